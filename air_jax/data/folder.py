"""A person's folder of pictures: pixels as in an index of the folder, labels by sub-folder."""

import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from air_jax.data import decode_pool, image_files
from air_jax.data.decode_pool import Task
from air_jax.data.decoding import Limits
from air_jax.data.image_files import Walk, shown
from air_jax.runtime.progress import Progress, say

FIT = "crop"  # how pictures become square; what `air_jax.index` does unless it is told otherwise
LOOSE = "."  # the class of pictures beside the sub-folders, which have nothing in common
QUERIES = 0.1  # of each class, rounded down; at least one and at most so many
MOST_QUERIES = 100
COPIES = 3  # of the pixels that a run has in memory at once
MOST_SAID = 10  # broken files that are named


class Labels(NamedTuple):
    """The class of each picture.

    Attributes:
        labels: [N] int32, from 0 to the number of classes - 1.
        class_names: names of the sub-folders in order of name, then `LOOSE` if there are such.
    """

    labels: np.ndarray
    class_names: tuple[str, ...]


def read(directory: str, side: int) -> tuple[np.ndarray, list[str]]:
    """The pictures of a folder and of the folders in it.

    Hidden files, links to folders and the like are left out as `image_files.walk` does. Broken
    files are named and left out.

    Args:
        directory: the folder.
        side: of the squares that the pictures become, in pixels.

    Returns:
        images [N, side, side, 3] uint8, and their paths relative to the folder, in order of path.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no side, no picture that can be read, or not enough memory.
    """
    if not directory:
        raise ValueError("data.name='folder' needs data.dir=FOLDER, a folder of pictures")
    folder = Path(directory).expanduser()
    if not folder.exists():
        raise FileNotFoundError(f"data.dir={directory}: there is no such folder")
    if not folder.is_dir():
        raise ValueError(f"data.dir={directory} is a file; data.name='folder' needs a folder")
    if not side:
        raise ValueError(
            "data.size=0: data.name='folder' needs the side that the pictures are brought to, in "
            "pixels, for example data.size=32"
        )
    try:
        walk = image_files.walk(folder)
    except OSError as error:
        raise ValueError(f"data.dir={directory} cannot be read: {error.strerror}") from error
    _check_memory(len(walk.files), side)
    images = np.empty((len(walk.files), side, side, 3), np.uint8)
    paths: list[str] = []
    broken = dict(walk.unusable)
    task = Task(str(folder.resolve()), (side, side, 3), FIT, Limits(), thumbnails=False)
    files = [file.path for file in walk.files]
    with Progress("decode pictures", len(files)) as progress:
        for decoded in decode_pool.decode(files, task, decode_pool.usable_cores()):
            progress.advance(1)
            if decoded.pixels is None:
                broken[decoded.path] = str(decoded.error)
            else:
                images[len(paths)] = decoded.pixels
                paths.append(decoded.path)
    _tell(len(paths), broken, walk)
    if not paths:
        raise ValueError(
            f"data.dir={directory}: no picture can be read in it; {len(broken)} files are broken, "
            f"{walk.others} are of other kinds"
        )
    return images[: len(paths)], paths


def label(paths: list[str]) -> Labels | None:
    """The class of each picture, by the first folder in its path; None if folders tell nothing.

    Folders tell something if at least two of them hold pictures, and one of them holds two.
    Pictures beside the folders get the class `LOOSE`.
    """
    first = [path.partition(os.sep)[0] if os.sep in path else LOOSE for path in paths]
    counts = Counter(first)
    folders = sorted(counts.keys() - {LOOSE}, key=os.fsencode)
    if len(folders) < 2:
        reason = f"{len(folders)} sub-folders hold pictures; labels need 2"
    elif max(counts[folder] for folder in folders) < 2:
        reason = f"each of the {len(folders):,} sub-folders holds a single picture"
    else:
        classes = [*folders, LOOSE] if LOOSE in counts else folders
        numbers = {name: number for number, name in enumerate(classes)}
        say(
            f"folder: {len(folders):,} classes by sub-folder"
            + f", {counts[LOOSE]:,} pictures beside them" * (LOOSE in counts)
        )
        labels = np.array([numbers[name] for name in first], np.int32)
        return Labels(labels, tuple(map(shown, classes)))
    say(f"folder: no labels: {reason}")
    return None


def draw_queries(count: int, labels: Labels | None) -> np.ndarray:
    """[N] bool: a tenth of the pictures of each class, drawn once and for all; True for queries.

    At least one and at most `MOST_QUERIES` of each class. A class of one picture, and `LOOSE`, have
    none: nothing would be relevant to them. Without labels, all pictures are as of one class.

    Args:
        count: of pictures, N.
        labels: of the pictures, if they have some.

    Raises:
        ValueError: there is a single picture.
    """
    if count < 2:
        raise ValueError(
            f"data.name='folder': there is {count} picture that can be read; expected 2 or more"
        )
    numbers = np.zeros(count, np.int32) if labels is None else labels.labels
    loose = None if labels is None else LOOSE
    names = ("",) if labels is None else labels.class_names
    rng = np.random.default_rng(0)
    queries = np.zeros(count, bool)
    for number, name in enumerate(names):
        members = np.flatnonzero(numbers == number)
        if len(members) > 1 and name != loose:
            drawn = min(max(1, int(QUERIES * len(members))), MOST_QUERIES)
            queries[rng.choice(members, drawn, replace=False)] = True
    return queries


def _check_memory(count: int, side: int) -> None:
    needed = COPIES * count * side * side * 3
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > physical:
        raise ValueError(
            f"data.size={side}: a run has {COPIES} copies of the pixels of {count:,} pictures of "
            f"{side}x{side} in memory, {needed / 2**30:,.1f} GiB, and this machine has "
            f"{physical / 2**30:,.1f} GiB"
        )


def _tell(usable: int, broken: dict[str, str], walk: Walk) -> None:
    """Say what the folder holds, and what of it is left out."""
    left_out = {
        "broken": len(broken),
        "of other kinds": walk.others - len(walk.unread),
        "of formats that no decoder here reads": len(walk.unread),
        "links to folders, which are not followed": len(walk.links),
        "folders that are an index": len(walk.indexes),
        "of the names that air_jax.index leaves out": len(walk.excluded),
    }
    told = "".join(f", {number:,} {what}" for what, number in left_out.items() if number)
    say(f"folder: {usable:,} pictures{told}")
    for path, reason in sorted(broken.items())[:MOST_SAID]:
        say(f"  broken: {shown(path)!r}: {reason}")
    if len(broken) > MOST_SAID:
        say(f"  and {len(broken) - MOST_SAID:,} more")
