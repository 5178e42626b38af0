"""What the commands share: flags, and errors in one line.

Exit statuses: 0 done; `FAILED` wrong input, or what only a person can mend; `STOPPED` ended by
SIGTERM or with another process of the run, the same command continues; `INTERRUPTED` by Ctrl-C.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

import jax
from absl import app, flags, logging

import air_jax.configs
from air_jax.runtime import distributed, signals
from air_jax.runtime.progress import say

FAILED = 2
STOPPED = distributed.LOST
INTERRUPTED = 130  # the shell's code for Ctrl-C


def run(main: Callable[[list[str]], int]) -> None:
    """Parse the flags, among them `--config`, and exit with what `main` returns.

    By `--coordinator`, `--processes` and `--process`, or by what a scheduler says, this is one of
    several processes of a run; see `distributed`.
    """
    flags.DEFINE_string("coordinator", None, "HOST:PORT of the first process of a run of several.")
    flags.DEFINE_integer(
        "processes", None, "Of the run. Default: as Slurm, Open MPI or a TPU slice say, else 1.", 1
    )
    flags.DEFINE_integer("process", None, "Number of this one, from 0.", 0)
    logging.set_verbosity(logging.WARNING)
    app.run(partial(_start, main), flags_parser=_parse_flags)


def _start(main: Callable[[list[str]], int], argv: list[str]) -> int:
    told = flags.FLAGS
    try:
        distributed.start(distributed.find_place(told.coordinator, told.processes, told.process))
    except ValueError as error:
        fail(str(error))
    except ConnectionError as error:
        print(f"error: {error}", file=sys.stderr)
        return STOPPED
    return main(argv)


def guard(work: Callable[[], None], path: Path) -> int:
    """Do the work of a command in folder `path`; returns its exit status, errors said.

    SIGTERM ends it, but where `signals.deferred` lets it save first.
    """
    signals.raise_on_sigterm()
    try:
        work()
        return 0
    except signals.Terminated:
        say(f"\nterminated; the same command continues in {path}")
        status = STOPPED
    except KeyboardInterrupt:
        say(f"\ninterrupted; the same command continues in {path}")
        status = INTERRUPTED
    except (ValueError, OSError, FloatingPointError) as error:
        if logging.level_debug():  # --verbosity=1
            raise
        print(f"error: {error}", file=sys.stderr)
        status = FAILED
    except jax.errors.JaxRuntimeError as error:
        if distributed.processes() == 1 or "RESOURCE_EXHAUSTED" in str(error):
            raise
        # This is how the devices of one process notice that another one is gone.
        short = str(error).partition("\n")[0]
        print(
            f"error: process {distributed.process()} of {distributed.processes()}: "
            f"another process of the run was lost ({short}); the same command continues in {path}",
            file=sys.stderr,
        )
        status = STOPPED
    distributed.leave(status)
    return status


def fail(message: str) -> NoReturn:
    """Say what is wrong and exit."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(FAILED)


def _parse_flags(argv: list[str]) -> list[str]:
    """A config file or key that does not exist is an error in one line."""
    argv = _name_config_files(argv)
    files = [arg.partition("=")[2] for arg in argv if arg.startswith("--config=")]
    try:
        others = app.parse_flags_with_usage(argv)[1:]
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        # ml_collections puts one exception into another; the innermost says what is wrong.
        while error.args and isinstance(error.args[0], Exception):
            error = error.args[0]
        text = str(error.args[0] if error.args else error).replace("\n", ". ")
        fail(f"{', '.join(files)}: {text}")
    except (SyntaxError, ImportError, NameError) as error:
        fail(f"{', '.join(files)} cannot be loaded: {type(error).__name__}: {error}")
    if others:
        fail(f"unexpected argument {others[0]!r}; flags begin with --")
    if flags.FLAGS.config is None:
        fail("--config=FILE is missing; --config=quickstart needs no data")
    return argv[:1]


def _name_config_files(argv: list[str]) -> list[str]:
    """The arguments with `--config=FILE` for each config, also where a packaged one is named."""
    named = []
    arguments = iter(argv)
    for argument in arguments:
        flag, equals, file = argument.partition("=")
        if flag in ("--config", "-config"):
            argument = f"--config={find_config(file if equals else next(arguments, ''))}"
        named.append(argument)
    return named


def find_config(file: str) -> str:
    """A config file's path: the file of that name, or else the packaged config; exits if neither.

    Args:
        file: path, or name of a packaged config, with or without `.py`; `:TEXT` for the config may
            follow.
    """
    path, colon, text = file.partition(":")
    if Path(path).is_file():
        return file
    packaged = {
        config.stem: config
        for folder in air_jax.configs.__path__
        for config in sorted(Path(folder).glob("[!_]*.py"))
    }
    if path.removesuffix(".py") not in packaged:
        fail(f"--config={file}: there is no such file, nor a config of air_jax's own, which are "
             f"{', '.join(packaged)}")  # fmt: skip
    return f"{packaged[path.removesuffix('.py')]}{colon}{text}"
