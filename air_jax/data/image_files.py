"""The image files of a folder, and what lies in it that only looks like one."""

import errno
import fnmatch
import functools
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Container, Iterable
from pathlib import Path, PurePath
from typing import NamedTuple

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
# Pictures too, but no decoder here reads them: they are told of.
UNREAD = (
    *(".heic", ".heif", ".avif", ".jxl", ".jp2", ".psd", ".xcf", ".svg", ".tga", ".exr", ".dng"),
    *(".arw", ".cr2", ".cr3", ".nef", ".orf", ".pef", ".raf", ".rw2", ".srw"),
)
# What storage devices, systems and archives put beside people's files: thumbnails and rubbish bins.
EXCLUDED = (
    *("@eaDir", "@tmp", "@Recycle", "@Recently-Snapshot", "@__thumb", "#recycle", "#snapshot"),
    *("$RECYCLE.BIN", "RECYCLER", "System Volume Information", "lost+found", "__MACOSX"),
)
# What makes a folder an index, and its picture for people.
CATALOGUE_FILE, SHEET_FILE = "catalogue.sqlite", "contact_sheet.png"
GONE = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR)  # a look that fails otherwise tells nothing


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
        unseen: paths of those that may well be there, but could not be looked at.
        others: how many files have another suffix.
        unread: of those, the pictures of formats that are not read.
        links: to folders, which are not followed.
        excluded: files and folders that a pattern leaves out.
        indexes: folders that are an index themselves.
    """

    files: list[File]
    unusable: list[tuple[str, str]]
    unseen: set[str]
    others: int
    unread: list[str]
    links: list[str]
    excluded: list[str]
    indexes: list[str]


def walk(folder: Path, exclude: Iterable[str] = EXCLUDED) -> Walk:
    """List a folder and those in it; hidden ones, links to folders and indexes are left out.

    Args:
        folder: where to begin.
        exclude: patterns of what is left out; see `matcher`.

    Raises:
        OSError: the folder itself cannot be listed.
    """
    root = folder.resolve()
    os.listdir(root)
    is_excluded = matcher(exclude)
    found = Walk([], [], set(), 0, [], [], [], [])
    others = 0

    def cannot_be_read(path: str, reason: str, error: OSError | None) -> None:
        found.unusable.append((path, reason))
        if error is not None and error.errno not in GONE:
            found.unseen.add(path)

    def no_folder(error: OSError) -> None:
        reason = f"the folder cannot be read: {error.strerror}"
        cannot_be_read(os.path.relpath(error.filename, root), reason, error)

    def taken(here: Path, names: list[str]) -> list[tuple[str, str]]:
        """Names and paths of what is neither hidden nor excluded."""
        kept = []
        for name in sorted(names):
            path = os.path.relpath(here / name, root)
            if name.startswith("."):
                continue
            if is_excluded(path):
                found.excluded.append(path)
            else:
                kept.append((name, path))
        return kept

    for place, folders, names in os.walk(root, onerror=no_folder):
        here = Path(place)
        if CATALOGUE_FILE in names:
            if here != root:
                found.indexes.append(os.path.relpath(here, root))
                folders.clear()
                continue
            names = [name for name in names if name != SHEET_FILE]
        inner = taken(here, folders)
        found.links.extend(path for name, path in inner if os.path.islink(here / name))
        folders[:] = [name for name, _ in inner]
        for name, path in taken(here, names):
            if not name.lower().endswith(SUFFIXES):
                others += 1
                if name.lower().endswith(UNREAD):
                    found.unread.append(path)
                continue
            try:
                found.files.append(_file(root, path))
            except OSError as error:
                cannot_be_read(path, error.strerror or str(error), error)
            except ValueError as error:
                cannot_be_read(path, str(error), None)
    found.files.sort(key=lambda file: os.fsencode(file.path))
    found.unusable.sort()
    return found._replace(others=others)


def is_within(path: str, places: Container[str]) -> bool:
    """Whether a path, or a folder that it lies in, is among some."""
    return path in places or any(str(parent) in places for parent in PurePath(path).parents)


def matcher(patterns: Iterable[str]) -> Callable[[str], bool]:
    """Whether a path relative to the folder is of one of some patterns, as those of a shell.

    A pattern without a slash is of names, one with a slash of whole paths: "*" is any text.
    """
    told = [folded(pattern.rstrip("/")) for pattern in patterns if pattern.rstrip("/")]
    names, paths = (
        re.compile("|".join(map(fnmatch.translate, some)) or "(?!)")
        for some in ([one for one in told if "/" not in one], [one for one in told if "/" in one])
    )

    def matches(path: str) -> bool:
        path = folded(path)
        if names.match(os.path.basename(path)):
            return True
        return bool(paths.match(path) or paths.match(f"/{path}"))

    return matches


def folded(text: str) -> str:
    """Text as it is compared: without case, and with accents always written in the same way."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def shown(path: str) -> str:
    """A path that JSON in UTF-8 can hold: other bytes are escaped."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def inside(folder: Path, path: str) -> Path | None:
    """The regular file at a path in a folder, resolved; None if it is none, or lies outside.

    If nothing has just this name, it may differ in case, and in how accents and slashes are
    written: systems do not agree on these.
    """
    try:
        root = folder.resolve()
        found = root / path
        if not os.path.lexists(found):
            found = _alike(root, path.replace("\\", "/"))
        found = found.resolve(strict=True)
        if found.is_relative_to(root) and stat.S_ISREG(found.stat().st_mode):
            return found
    except (OSError, ValueError, RuntimeError):  # gone, a zero byte, a loop of links
        pass
    return None


def _alike(root: Path, path: str) -> Path:
    """Raises FileNotFoundError if no name or several are alike."""
    found = root
    for name in PurePath(path).parts:
        if not os.path.lexists(found / name):
            names = _names(found, found.stat().st_mtime_ns).get(folded(name), [])
            if len(names) != 1:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            name = names[0]
        found = found / name
    return found


@functools.lru_cache(maxsize=100)
def _names(folder: Path, _: int) -> dict[str, list[str]]:
    """The names in a folder by how they are compared; it was changed at the time given."""
    names: dict[str, list[str]] = {}
    for name in os.listdir(folder):
        names.setdefault(folded(name), []).append(name)
    return names


def _file(root: Path, path: str) -> File:
    """Raises OSError or ValueError, with the reason, if it is no regular file in the folder."""
    status = os.stat(root / path)  # follows links; a loop of them is an OSError
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no regular file")
    if inside(root, path) is None:
        raise ValueError("it is a link that leads out of the folder")
    return File(path, status.st_size, status.st_mtime_ns)
