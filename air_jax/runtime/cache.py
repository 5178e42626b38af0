"""What a user's runs keep for later runs: decoded data sets and compilations."""

import os
from pathlib import Path


def cache_directory() -> Path:
    """The folder of what is kept: `$AIR_JAX_CACHE`, or `~/.cache/air_jax`."""
    return Path(os.environ.get("AIR_JAX_CACHE", "~/.cache/air_jax")).expanduser()


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
