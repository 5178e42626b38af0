"""SHA-256 checksums: of values, of files and folders, and files that carry their own.

A process reads a file for its checksum once, as long as the file's size, time and inode stay the
same.
"""

import functools
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from air_jax.runtime.atomic_files import write_json

CHECKSUMS_FILE = "checksums.json"


def hash_of(value: Any) -> str:
    """SHA-256 of anything that JSON can hold, as 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files in a folder.

    Raises:
        OSError: a file is missing or cannot be read.
    """
    if path.is_dir():
        inner = sorted(p for p in path.rglob("*") if p.is_file())
        return hash_of([[p.relative_to(path).as_posix(), sha256_of(p)] for p in inner])
    return _sha256_of_file(path.absolute(), *_state(path))


def difference(folder: Path, checksums: dict[str, str]) -> str | None:
    """The first file of a folder that is not as its checksum says, in words; None if all are.

    Args:
        folder: where the files lie.
        checksums: `sha256_of` the files and folders in it, by name.
    """
    for name, checksum in checksums.items():
        try:
            found = sha256_of(folder / name)
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        if found != checksum:
            return f"{name} is damaged: its checksum is not the recorded one"
    return None


def write_checksums(folder: Path, files: Iterable[Path]) -> None:
    """Write `checksums.json` with the SHA-256 of files in a folder, for `damage`.

    Raises:
        OSError: it cannot be written.
    """
    checksums = {path.relative_to(folder).as_posix(): sha256_of(path) for path in sorted(files)}
    write_json(folder / CHECKSUMS_FILE, checksums)


def damage(folder: Path, within: str = "") -> str | None:
    """What is wrong with the files that `write_checksums` knows, in words; None if nothing.

    A folder without `checksums.json` is taken as it is.

    Args:
        folder: that `write_checksums` was given.
        within: only files whose name begins so are compared.
    """
    try:
        checksums = json.loads((folder / CHECKSUMS_FILE).read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return f"{CHECKSUMS_FILE} cannot be read ({type(error).__name__}: {error})"
    if not isinstance(checksums, dict):
        return f"{CHECKSUMS_FILE} holds no checksums"
    return difference(
        folder, {name: value for name, value in checksums.items() if name.startswith(within)}
    )


def write_checked_json(path: Path, value: dict[str, Any]) -> None:
    """As `write_json`, with a checksum in it that `read_checked_json` compares."""
    write_json(path, value | {"checksum": hash_of(value)})


def read_checked_json(path: Path) -> dict[str, Any]:
    """What `write_checked_json` wrote. A file without a checksum is taken as it is.

    Raises:
        FileNotFoundError: there is no such file.
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


def _state(path: Path) -> tuple[int, int, int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino


@functools.lru_cache(maxsize=10_000)
def _sha256_of_file(path: Path, *_: int) -> str:
    """SHA-256 of a file; the other arguments tell whether it has changed since."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
