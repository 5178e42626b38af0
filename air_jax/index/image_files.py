"""The image files of a folder, and what lies in it that only looks like one."""

import os
import stat
from pathlib import Path
from typing import NamedTuple

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


class File(NamedTuple):
    """A file as the folder lists it.

    Attributes:
        path: relative to the folder, as `os.fsdecode` gives it.
        bytes: its size.
        mtime_ns: when it was changed, in nanoseconds.
    """

    path: str
    bytes: int
    mtime_ns: int


class Walk(NamedTuple):
    """What a folder holds.

    Attributes:
        files: with the suffix of an image, in order of path.
        unusable: (path, reason) of what has such a suffix, or is a folder, and cannot be read.
        others: how many files have another suffix.
    """

    files: list[File]
    unusable: list[tuple[str, str]]
    others: int


def walk(folder: Path, without: Path | None = None) -> Walk:
    """List a folder and those in it; hidden ones and links to folders are left out.

    Args:
        folder: where to begin.
        without: a folder in it that is left out.

    Raises:
        OSError: the folder itself cannot be listed.
    """
    root = folder.resolve()
    os.listdir(root)
    files: list[File] = []
    unusable: list[tuple[str, str]] = []
    others = 0

    def no_folder(error: OSError) -> None:
        path = os.path.relpath(error.filename, root)
        unusable.append((path, f"the folder cannot be read: {error.strerror}"))

    for place, folders, names in os.walk(root, onerror=no_folder):
        here = Path(place)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and (without is None or here / name != without.resolve())
        )
        for name in sorted(names):
            if name.startswith("."):
                continue
            if not name.lower().endswith(SUFFIXES):
                others += 1
                continue
            path = os.path.relpath(here / name, root)
            try:
                files.append(_file(root, path))
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) else str(error)
                unusable.append((path, reason or str(error)))
    files.sort(key=lambda file: os.fsencode(file.path))
    return Walk(files, sorted(unusable), others)


def inside(folder: Path, path: str) -> Path | None:
    """The regular file at a path in a folder, resolved; None if it is none, or lies outside."""
    try:
        root = folder.resolve()
        found = (root / path).resolve(strict=True)
        if found.is_relative_to(root) and stat.S_ISREG(found.stat().st_mode):
            return found
    except (OSError, ValueError, RuntimeError):  # gone, a zero byte, a loop of links
        pass
    return None


def _file(root: Path, path: str) -> File:
    """Raises OSError or ValueError, with the reason, if it is no regular file in the folder."""
    status = os.stat(root / path)  # follows links; a loop of them is an OSError
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no regular file")
    if inside(root, path) is None:
        raise ValueError("it is a link that leads out of the folder")
    return File(path, status.st_size, status.st_mtime_ns)
