"""JSON and `.npz` files: written whole or not at all, read with errors that name them; checksums of
the files of a folder; locks."""

import contextlib
import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

CHECKSUMS_FILE = "checksums.json"


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all.

    Raises:
        ValueError: it holds NaN or infinity.
        OSError: it cannot be written; the message names it.
    """
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with _replacing(path) as file:
        file.write(text.encode())


def write_checked_json(path: Path, value: dict[str, Any]) -> None:
    """As `write_json`, with a checksum in it that `read_checked_json` compares."""
    write_json(path, value | {"checksum": hash_of(value)})


def read_checked_json(path: Path) -> dict[str, Any]:
    """What `write_checked_json` wrote. A file without a checksum is taken as it is.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged; the message names it.
    """
    try:
        value = json.loads(path.read_text())
        checksum = value.pop("checksum", None)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if checksum not in (None, hash_of(value)):
        raise ValueError(f"{path} is damaged: its content is not that of its checksum")
    return value


def hash_of(value: Any) -> str:
    """SHA-256 of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Write an `.npz` file whole or not at all; OSError names it if it cannot be written."""
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
        FileNotFoundError: there is none.
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


def write_checksums(folder: Path, files: Iterable[Path]) -> None:
    """Write down the SHA-256 of files in a folder, for `damage`; OSError if it cannot be done."""
    write_json(
        folder / CHECKSUMS_FILE,
        {path.relative_to(folder).as_posix(): sha256_of(path) for path in sorted(files)},
    )


def damage(folder: Path) -> str | None:
    """What is wrong with the files that `write_checksums` knows, in words; None if nothing.

    A folder without checksums is taken as it is.
    """
    try:
        wanted = json.loads((folder / CHECKSUMS_FILE).read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return f"{CHECKSUMS_FILE} cannot be read ({type(error).__name__}: {error})"
    if not isinstance(wanted, dict):
        return f"{CHECKSUMS_FILE} holds no checksums"
    for name, checksum in wanted.items():
        try:
            found = sha256_of(folder / name)
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        if found != checksum:
            return f"{name} is not as {CHECKSUMS_FILE} says"
    return None


def sha256_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
