"""What a user's runs keep for later runs: decoded data sets, baselines and compilations."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from air_jax.runtime.atomic_files import read_npz, write_npz
from air_jax.runtime.checksums import hash_of


def cache_directory() -> Path:
    """The folder of what is kept: `$AIR_JAX_CACHE`, or `~/.cache/air_jax`."""
    return Path(os.environ.get("AIR_JAX_CACHE", "~/.cache/air_jax")).expanduser()


def kept(
    kind: str, made_from: Any, make: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Arrays by name that an earlier run made from the same, or that are made and kept now.

    Args:
        kind: the folder in the cache.
        made_from: all that the arrays depend on, as JSON can hold it.
        make: makes them.
    """
    path = cache_directory() / kind / f"{hash_of(made_from)}.npz"
    with contextlib.suppress(FileNotFoundError, ValueError):  # absent or damaged
        return read_npz(path)
    found = make()
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time only
        path.parent.mkdir(parents=True, exist_ok=True)
        write_npz(path, **found)
    return found


def keep_compilations(shortest: float = 0.5) -> None:
    """Reuse compilations of earlier runs, of nets of the same shape too, by XLA's cache on disk.

    `JAX_COMPILATION_CACHE_DIR` names another folder for them, of which JAX's own settings hold.

    Args:
        shortest: seconds that a compilation takes that is kept.
    """
    import jax  # here: data sets are read without it

    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "compilations"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", shortest)
