"""The command line of commands with a config, and how every command ends.

Exit statuses: 0: done. `FAILED`: wrong input, or what only a person can mend. `STOPPED`: ended by
SIGTERM, or with another process of the run; the same command continues. `INTERRUPTED`: Ctrl-C.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_collections
from absl import logging

import air_jax.configs
from air_jax.runtime import distributed, signals
from air_jax.runtime.arguments import FAILED, Arguments, near_key
from air_jax.runtime.progress import say

STOPPED = distributed.LOST
INTERRUPTED = 130  # the shell's code for Ctrl-C


def arguments_of_run(module: str, about: str | None) -> Arguments:
    """Arguments of a command that has a config and may run as several processes."""
    parser = Arguments(module, about)
    parser.add_argument(
        "--config",
        "-config",
        metavar="FILE",
        help="config file, or the name of one of air_jax's own; --config.KEY=VALUE changes a key",
    )
    parser.add_argument(
        "--coordinator", metavar="HOST:PORT", help="of the first process of a run of several"
    )
    parser.number(
        "--processes", None, "of the run; default: as Slurm, Open MPI or a TPU slice say, else 1", 1
    )
    parser.number("--process", None, "number of this one, from 0", 0)
    return parser


def read(
    parser: Arguments, arguments: list[str] | None
) -> tuple[argparse.Namespace, ml_collections.ConfigDict]:
    """What the command line says, and its config; exits if something in it is wrong."""
    told, overrides = parser.parse_known_args(arguments)
    if told.config is None:
        parser.error("--config=FILE is missing; --config=quickstart needs no data")
    for argument in overrides:
        if argument.startswith("-") and _key(argument) is None:
            parser.refuse(argument)
    try:
        told.config = find_config(told.config)
        return told, read_config(told.config, overrides)
    except ValueError as error:
        parser.error(str(error))


def start(
    parser: Arguments, arguments: list[str] | None
) -> tuple[argparse.Namespace, ml_collections.ConfigDict]:
    """As `read`; then this is one of several processes of a run, if it is said to be.

    `--coordinator`, `--processes` and `--process` say so, or a scheduler; see `distributed`.
    """
    told, config = read(parser, arguments)
    try:
        distributed.start(distributed.find_place(told.coordinator, told.processes, told.process))
    except ValueError as error:
        parser.error(str(error))
    except ConnectionError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(STOPPED)
    return told, config


def read_config(file: str, overrides: list[str]) -> ml_collections.ConfigDict:
    """The config of a file, changed by `--config.KEY=VALUE` flags.

    Raises:
        ValueError: the file cannot be loaded, or a flag is wrong; with the file's name.
    """
    known = list(flatten(_load_config(file, [])))
    for argument in (one for one in overrides if one.startswith("-")):
        key = str(_key(argument))
        if not any(one == key or one.startswith(f"{key}.") for one in known):
            raise ValueError(f"--config.{key}: there is no such key{near_key(key, known)}")
    return _load_config(file, overrides)


def _key(argument: str) -> str | None:
    """The key of a flag --config.KEY=VALUE, without the [place] in a tuple; None of other flags."""
    name = argument.lstrip("-").partition("=")[0].removeprefix("no")
    return name.removeprefix("config.").partition("[")[0] if name.startswith("config.") else None


def flatten(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Dotted names -> values that JSON keeps: `{"train.batch": 160, ...}`."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            flat |= {f"{key}.{inner}": v for inner, v in flatten(value).items()}
        else:
            flat[key] = list(value) if isinstance(value, tuple) else value
    return flat


def _load_config(file: str, overrides: list[str]) -> ml_collections.ConfigDict:
    from absl import flags
    from ml_collections import config_flags

    told = flags.FlagValues()
    argv = ["", f"--config={file}", *overrides]
    holder = config_flags.DEFINE_config_file("config", flag_values=told, sys_argv=argv)
    try:
        others = told(argv)[1:]
        config = holder.value
        config.keys()  # ml_collections tells of a file that it cannot read when the config is used
    except flags.Error as error:
        raise ValueError(str(error)) from error
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        # ml_collections puts one exception into another; the innermost says what is wrong.
        inner: Exception = error
        while inner.args and isinstance(inner.args[0], Exception):
            inner = inner.args[0]
        text = str(inner.args[0] if inner.args else inner).replace("\n", ". ")
        raise ValueError(f"{file}: {text}") from error
    except (SyntaxError, ImportError, NameError) as error:
        raise ValueError(f"{file} cannot be loaded: {type(error).__name__}: {error}") from error
    if others:
        raise ValueError(f"unexpected argument {others[0]!r}; flags begin with --")
    return config


def guard(work: Callable[[], None], path: Path) -> int:
    """Do the work of a command in folder `path`, and print its errors; returns its exit status.

    SIGTERM ends the work at once, except where `signals.deferred` lets it save first.
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
    except Exception as error:
        if distributed.processes() == 1:
            raise
        import jax  # here: commands read their flags before

        if not isinstance(error, jax.errors.JaxRuntimeError) or "RESOURCE_EXHAUSTED" in str(error):
            raise
        # The devices of one process notice so that another process is gone.
        short = str(error).partition("\n")[0]
        print(
            f"error: process {distributed.process()} of {distributed.processes()}: "
            f"another process of the run was lost ({short}); the same command continues in {path}",
            file=sys.stderr,
        )
        status = STOPPED
    distributed.leave(status)
    return status


def find_config(file: str) -> str:
    """A config file's path: the file of that name, or else the packaged config.

    Args:
        file: path, or name of a packaged config, with or without `.py`; `:TEXT` for the config may
            follow.

    Raises:
        ValueError: there is neither.
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
        raise ValueError(
            f"--config={file}: there is no such file, nor a config of air_jax's own, which are "
            f"{', '.join(packaged)}"
        )
    return f"{packaged[path.removesuffix('.py')]}{colon}{text}"
