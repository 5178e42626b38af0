"""JSON and `.npz` files: written whole or not at all, read with errors that name the file."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all.

    Raises:
        ValueError: it holds NaN or infinity.
        OSError: it cannot be written; the message names it.
    """
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with _replacing(path) as file:
        file.write(text.encode())


def write_npz(path: Path, **arrays: Any) -> None:
    """Write arrays, or what NumPy makes arrays of, to an `.npz` file, whole or not at all.

    Raises:
        OSError: it cannot be written; the message names it.
    """
    with _replacing(path) as file:
        np.savez(file, **arrays)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` once it is on disk whole."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            yield file
            # A power cut after the rename would else leave an empty file.
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise OSError(error.errno, f"cannot be written: {error.strerror}", str(path)) from error


def read_npz(path: Path, required: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Every array of an `.npz` file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or lacks an array of `required`; the message names the file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except FileNotFoundError:
        raise
    except Exception as error:  # NumPy, zipfile and zlib raise a dozen kinds on damaged files
        raise ValueError(f"{path} cannot be read as an .npz file: {error}") from error
    missing = [key for key in required if key not in arrays]
    if missing:
        raise ValueError(
            f"{path} has no array named {' or '.join(map(repr, missing))}; "
            f"found {', '.join(sorted(arrays)) or 'nothing'}"
        )
    return arrays
