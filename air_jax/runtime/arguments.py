"""The command line of each command: its flags, `--help`, and errors in one line.

Processes that decode images import this module, so it imports no JAX.
"""

import argparse
from typing import Any, NoReturn

from absl import logging

FAILED = 2  # exit status: wrong input, or what only a person can mend


class _Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the description, and adds each flag's default to its help."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        shown = action.option_strings and action.default not in (None, False, "", argparse.SUPPRESS)
        return f"{text} (default: %(default)s)" if shown else text


class Arguments(argparse.ArgumentParser):
    """Arguments of a command; a wrong one is an error in one line, with status 2.

    Args:
        module: `python -m MODULE` is the command.
        about: what the command does, its docstring.
    """

    def __init__(self, module: str, about: str | None):
        super().__init__(
            f"python -m {module}", description=about, formatter_class=_Help, allow_abbrev=False
        )
        self.number(
            "--verbosity", logging.WARNING, "from 1 on, with the traceback of errors", -3, 9
        )

    def number(
        self, flag: str, default: int | None, about: str, lowest: int, highest: int | None = None
    ) -> None:
        """Take a flag whose value is a whole number from `lowest` on, or up to `highest`."""
        expected = f"from {lowest} " + ("on" if highest is None else f"to {highest}")

        def read(text: str) -> int:
            value = int(text) if text.removeprefix("-").isdecimal() else lowest - 1
            if value < lowest or (highest is not None and value > highest):
                raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number {expected}")
            return value

        self.add_argument(flag, metavar="N", type=read, default=default, help=about)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """What was given, and the arguments that the parser does not know."""
        told, others = super().parse_known_args(args, namespace)
        logging.set_verbosity(told.verbosity)
        del told.verbosity
        return told, others

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and exit."""
        self.exit(FAILED, f"error: {message}\n")


def names(text: str) -> list[str]:
    """What a comma-separated list names; one empty name if there is nothing in it."""
    return [name.strip() for name in text.split(",")]
