"""What the commands share: flags, errors in one line, and compilations that are kept on disk."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import jax
from absl import app, flags, logging

from air_jax.datasets import cache_directory
from air_jax.progress import say
from air_jax.training_log import NonFiniteError

FAILED = 2
INTERRUPTED = 130  # the shell's code for Ctrl-C
SHORTEST_KEPT_COMPILATION = 0.5  # seconds


def run(main: Callable[[list[str]], int]) -> None:
    """Parse the flags, among them `--config`, and exit with what `main` returns."""
    logging.set_verbosity(logging.WARNING)
    app.run(main, flags_parser=_parse_flags)


def guard(work: Callable[[], None], path: Path) -> int:
    """Do the work of a command in folder `path`; returns its exit status, errors said."""
    try:
        work()
    except KeyboardInterrupt:
        say(f"\ninterrupted; the same command continues in {path}")
        return INTERRUPTED
    except (ValueError, OSError, NonFiniteError) as error:
        if logging.level_debug():  # --verbosity=1
            raise
        fail(str(error))
    return 0


def keep_compilations() -> None:
    """Reuse compilations of earlier runs, and of nets of the same shape: XLA's own cache on disk.

    `JAX_COMPILATION_CACHE_DIR` names another folder for it.
    """
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "compilations"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", SHORTEST_KEPT_COMPILATION)


def fail(message: str) -> NoReturn:
    """Say what is wrong and exit."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(FAILED)


def _parse_flags(argv: list[str]) -> list[str]:
    """A config file or key that does not exist is an error in one line."""
    files = [arg.partition("=")[2] for arg in argv if arg.startswith(("--config=", "-config="))]
    for file in files:
        if not Path(file.partition(":")[0]).is_file():
            fail(f"--config={file}: there is no such file")
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
        fail("--config=FILE is missing; --config=configs/quickstart.py needs no data")
    return argv[:1]
