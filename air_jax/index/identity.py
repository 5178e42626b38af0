"""Which image of the index each file of a folder is: at its old path, moved, or back again.

An image is its content. Its file may be touched, renamed or moved, and may be away for a while: the
image keeps its id, and with it the marks on it.
"""

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Container
from pathlib import Path
from typing import NamedTuple

from air_jax.data.decoding import Limits, read_file
from air_jax.data.image_files import File, Walk, is_within, shown
from air_jax.index.catalogue import Catalogue, Known
from air_jax.runtime.progress import Progress

# An index loses no larger part, and no more images, unless it is asked to: a share may be away.
LARGEST_LOSS, A_HANDFUL = 0.2, 5


class Found(NamedTuple):
    """What the files of a folder are, compared with the images that the catalogue knows.

    Attributes:
        same: by path, images whose file is as before.
        unseen: those whose file could not be looked at.
        placed: those whose content is in a file that is new or changed, by its path.
        todo: paths of files that have to be decoded.
        broken: reasons by path.
    """

    same: dict[str, Known]
    unseen: dict[str, Known]
    placed: dict[str, Known]
    todo: list[str]
    broken: dict[str, str]


def compare(
    catalogue: Catalogue,
    known: list[Known],
    walk: Walk,
    folder: Path,
    limits: Limits,
    rehash: bool,
) -> Found:
    """Find each file's image: by size and time, or by the content of a file that has changed.

    Args:
        catalogue: of the index.
        known: its images.
        walk: what the folder holds.
        folder: of the files.
        limits: of one file.
        rehash: compare all contents.
    """
    newest = {one.path: one for one in known}
    known_broken = catalogue.broken()
    same: dict[str, Known] = {}
    broken = dict(walk.unusable)
    changed: list[File] = []
    for file in walk.files:
        before, state = newest.get(file.path), (file.bytes, file.mtime_ns)
        if rehash:
            changed.append(file)
        elif before is not None and state == (before.bytes, before.mtime_ns):
            same[file.path] = before
        elif file.path in known_broken and state == known_broken[file.path][:2]:
            broken[file.path] = known_broken[file.path][2]
        else:
            changed.append(file)
    unseen = {
        one.path: one
        for one in known
        if one.kind == "published" and is_within(one.path, walk.unseen)
    }
    settled = {one.image for one in (*same.values(), *unseen.values())}
    others = [one for one in (*known, *catalogue.dropped()) if one.image not in settled]
    sizes = {one.bytes for one in others}
    maybe = [file for file in changed if file.bytes in sizes]
    contents: dict[str, str] = {}
    with Progress("compare contents", len(maybe)) as progress:
        for file in maybe:
            # What cannot be read is told of when it is decoded.
            with contextlib.suppress(ValueError):
                content = read_file(folder / file.path, limits)
                contents[file.path] = hashlib.sha256(content).hexdigest()
            progress.advance(1)
    placed = _placed(others, contents)
    todo = [
        file.path
        for file in changed
        if file.path not in placed or placed[file.path].kind == "dropped"
    ]
    return Found(same, unseen, placed, todo, broken)


def _placed(images: list[Known], contents: dict[str, str]) -> dict[str, Known]:
    """The image of each file: of its content, if possible at its path, or else of its name.

    Args:
        images: that are free; the first is taken where several fit alike.
        contents: SHA-256 of the files, by path.
    """
    found: dict[str, Known] = {}
    for part in (str, os.path.basename, lambda _: ""):
        taken = {one.image for one in found.values()}
        free: dict[tuple[str, str], list[Known]] = {}
        for one in reversed(images):
            if one.image not in taken:
                free.setdefault((part(one.path), one.sha256), []).append(one)
        for path, sha256 in contents.items():
            if path not in found and (fitting := free.get((part(path), sha256))):
                found[path] = fitting.pop()
    return found


def check_loss(
    known: list[Known],
    stay: dict[str, Known],
    others: Container[str],
    walk: Walk,
    drop_missing: bool,
) -> list[str]:
    """The paths of images that are dropped, since they are no longer there.

    Args:
        known: images of the index.
        stay: images that stay, by path.
        others: paths at which there is another image, or may be.
        walk: what the folder holds.
        drop_missing: drop them, however many they are.

    Raises:
        ValueError: a large part of the index would be dropped.
    """
    published = [one for one in known if one.kind == "published"]
    staying = {one.image for one in stay.values()}
    dropped = [one.path for one in published if one.image not in staying and one.path not in others]
    most = max(A_HANDFUL, LARGEST_LOSS * len(published))
    if len(dropped) > most and not drop_missing:
        raise ValueError(
            f"{len(dropped):,} of the {len(published):,} images in the index would be dropped: "
            f"{_why_dropped(dropped, walk)}. Is a disk or a share away? The index stays as it is; "
            "--drop-missing drops them"
        )
    return dropped


def _why_dropped(dropped: list[str], walk: Walk) -> str:
    """Why images are dropped, in words with their numbers."""
    unreadable = {path for path, _ in walk.unusable} | {file.path for file in walk.files}
    places = {
        "left out by --exclude": set(walk.excluded),
        "in the folder of another index": set(walk.indexes),
        "whose file cannot be read any more": unreadable,
    }
    reasons = Counter(
        next((why for why in places if is_within(path, places[why])), "not there now")
        for path in dropped
    )
    told = ", ".join(f"{count:,} {why}" for why, count in reasons.items())
    return f"{told}; the first is {shown(dropped[0])!r}"
