"""The command line of each command: its flags, `--help`, and errors in one line.

Processes that decode images import this module, and a wrong flag is told at once: so it imports no
JAX.
"""

import argparse
import difflib
from collections.abc import Iterable
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

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """What was given; exits if the parser does not know all of it."""
        told, others = self.parse_known_args(args, namespace)
        if others:
            self.refuse(others[0])
        return told

    def refuse(self, argument: str) -> NoReturn:
        """Say that there is no such argument, and which flags are near; exit."""
        flag = argument.partition("=")[0]
        if not flag.startswith("-"):
            self.error(f"unexpected argument {argument!r}; flags begin with --")
        flags = [known for known in self._option_string_actions if known.startswith("--")]
        self.error(f"{flag}: there is no such flag{near(flag, flags) or '; --help shows all'}")

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and exit."""
        self.exit(FAILED, f"error: {message}\n")


def near(word: str, known: Iterable[str]) -> str:
    """What of the known words was probably meant, as the end of a message; "" if nothing is."""
    found = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {found[0]}?" if found else ""


def near_key(key: str, known: Iterable[str]) -> str:
    """As `near`, of a config's dotted keys: those of nearly this name, or all of the section."""
    section, _, name = key.rpartition(".")
    parts = {one: one.rpartition(".") for one in known}
    close = difflib.get_close_matches(name, [own for _, _, own in parts.values()])
    if meant := [one for one, (_, _, own) in parts.items() if own in close]:
        return f"; did you mean {' or '.join(meant)}?"
    beside = [one for one, (of, _, _) in parts.items() if of == section]
    return f"; known are {', '.join(beside or parts)}"


def names(text: str) -> list[str]:
    """What a comma-separated list names; one empty name if there is nothing in it."""
    return [name.strip() for name in text.split(",")]
