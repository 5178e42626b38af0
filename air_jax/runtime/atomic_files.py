"""Files that no killed process, and no other one at work, can spoil.

JSON and `.npz` files are written whole or not at all, and read with errors that name the file; a
lock keeps a folder for one process.
"""

import contextlib
import fcntl
import json
import os
import socket
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


@contextlib.contextmanager
def locked(
    path: Path, what: str, *, doing: str = "working in it", wait: bool = False
) -> Iterator[None]:
    """Hold a lock file; the system frees it when the process ends, however it does.

    Args:
        path: of the lock file, which stays.
        what: is locked, for the message.
        doing: what a process that holds it does, likewise.
        wait: until another process has freed it.

    Raises:
        ValueError: another process holds it; the message says which.
    """
    # Not "w": that would wipe out who holds it.
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            raise ValueError(
                f"{what}: another process is {doing} ({file.read().strip() or path})"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
