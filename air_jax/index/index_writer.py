"""An index while it is written: opened by one process, its generations, its leftovers, its summary.

What is written, `build` makes of a folder of pictures and `vector_files` of vectors.
"""

import contextlib
import io
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from air_jax.data import image_files
from air_jax.data.decoding import Limits
from air_jax.data.image_files import SHEET_FILE, File, shown
from air_jax.index import milvus_index
from air_jax.index.catalogue import DAMAGED, Catalogue, codes_name, unusable
from air_jax.index.image_index import SUMMARY_FILE
from air_jax.runtime.atomic_files import locked, write_json
from air_jax.runtime.checksums import damage, write_checksums
from air_jax.runtime.progress import say
from air_jax.search import file_codes
from air_jax.search.milvus_collection import Collection

BATCH = 256  # images committed at once
LOCK_FILE = "lock"
MOST_SAID = 10  # files of a kind that are named
# The contact sheet: some images of the index in one picture, for a person to look at.
# The contact sheet: some images of the index in one picture, for a person to look at.
SHEET_COLUMNS = 10
MOST_ON_SHEET = 6 * SHEET_COLUMNS
SHEET_CELL, SHEET_GAP = 72, 4  # pixels


class Options(NamedTuple):
    """How to index.

    Attributes:
        fit: how pictures that are not square are made so; `decoding.FITS`.
        storage: how codes are kept; `file_codes.STORAGES`.
        workers: decoding processes.
        rehash: compare contents, not only sizes and times.
        exclude: patterns of files and folders that are left out; `image_files.matcher`.
        drop_missing: drop images that are no longer there, however many they are.
        limits: of one file.
        store: where codes are kept instead of in the index: see
            `milvus_collection`. None: in the index.
    """

    fit: str = "crop"
    storage: str = "float32"
    workers: int = 1
    rehash: bool = False
    exclude: tuple[str, ...] = image_files.EXCLUDED
    drop_missing: bool = False
    limits: Limits = Limits()
    store: str | None = None


class OpenIndex(NamedTuple):
    """An index being written.

    Attributes:
        out: its folder.
        made_from: what it is of.
        catalogue: its catalogue.
        store: Milvus if that keeps its codes.
    """

    out: Path
    made_from: dict[str, Any]
    catalogue: Catalogue
    store: Collection | None

    @property
    def generation(self) -> int:
        """The generation that is published; 0 before the first."""
        return self.catalogue.meta.get("published", {}).get("generation", 0)


class Update(NamedTuple):
    """What an index is to become.

    Attributes:
        images: in order of position.
        broken: why files cannot be used, by path.
        added, unchanged: how many images are new, and as before.
        unseen: how many could not be looked at, and stay as they were.
        moved: images that are at another path now.
        dropped: paths of images that are no longer there.
        fingerprint: of paths and contents.
    """

    images: list[int]
    broken: dict[str, str]
    added: int
    unchanged: int = 0
    unseen: int = 0
    moved: Sequence[tuple[int, File]] = ()
    dropped: Sequence[str] = ()
    fingerprint: str = ""


@contextlib.contextmanager
def opened(
    out: Path, made_from: dict[str, Any], options: Options, dimension: int
) -> Iterator[OpenIndex]:
    """An index, made if it is not there, while no other process writes to it.

    Raises:
        OSError: the index cannot be written.
        ValueError: another process does, or the index was made from something else.
        ConnectionError: Milvus cannot be reached.
    """
    address = milvus_index.whole_address(options.store)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out={out} is a file; expected a folder")
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / LOCK_FILE, f"--out={out}", doing="indexing into it"):
        catalogue = Catalogue(out)
        try:
            made_from = made_from | {"store": address}
            _check_same(catalogue, made_from, out)
            storage = options.storage
            with milvus_index.opened(catalogue, options.store, storage, dimension) as store:
                yield OpenIndex(out, made_from, catalogue, store)
        except DAMAGED as error:
            raise unusable(catalogue.path, error) from error
        finally:
            catalogue.close()


def _check_same(catalogue: Catalogue, made_from: dict[str, Any], out: Path) -> None:
    before = catalogue.meta.get("made_from")
    if before is None:
        catalogue.set_meta(made_from=made_from)
        return
    folder = before.get("folder")
    if folder and made_from["folder"] and not Path(folder).exists():
        say(f"the folder was {folder} before, which is gone; its images are looked for in this one")
        before = before | {"folder": made_from["folder"]}
    for key, value in made_from.items():
        if before.get(key) != value:
            raise ValueError(
                f"--out={out}: this index has {key}={before.get(key)!r}, asked for is {value!r}; "
                "give another --out, or delete the index, and the sessions on it with it"
            )


def is_published(index: OpenIndex, ids: list[int], about: dict[str, Any]) -> bool:
    """Whether the index already is as `about` says, and its codes are whole."""
    before = index.catalogue.meta.get("published", {})
    if {**before, "generation": None} != {**about, "generation": None}:
        return False
    if ids != index.catalogue.published():
        return False
    if index.store is not None:
        return milvus_index.is_whole(index.store, np.array(ids) + about["first_key"])
    folder = codes_name(index.generation)
    return (index.out / folder).is_dir() and damage(index.out, within=f"{folder}/") is None


def write_codes(index: OpenIndex, codes: np.ndarray, ids: list[int], about: dict[str, Any]) -> None:
    """Write the codes of a generation, which nobody opens before the catalogue publishes it."""
    keys, generation = np.array(ids, np.int64), about["generation"]
    if index.store is not None:
        keys = keys + about["first_key"]
        milvus_index.write(index.store, keys, codes, index.out, generation)
        return
    file_codes.write(index.out / codes_name(generation), codes, about["storage"])
    write_checksums(index.out, index.out.glob("codes-*/*"))


def delete_leftovers(index: OpenIndex) -> None:
    """Delete older generations, and what killed runs began."""
    current = codes_name(index.generation)
    for path in [*index.out.glob("codes-*"), *index.out.glob(".codes-*")]:
        if path.name in (current, f"{current}.npz"):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    if index.store is not None:
        first_key = index.catalogue.meta["published"]["first_key"]
        keys = np.array(index.catalogue.published(), np.int64) + first_key
        milvus_index.delete_others(index.store, keys)


def write_summary(
    index: OpenIndex, update: Update, left_out: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """What was found: said, written to `index.json`, and shown to people in a picture."""
    broken = [
        {"path": shown(path), "reason": reason} for path, reason in sorted(update.broken.items())
    ]
    counts = {
        "added": update.added,
        "unchanged": update.unchanged,
        "moved": len(update.moved),
        "unseen": update.unseen,
        "dropped": len(update.dropped),
    }
    words = {
        "moved": "known from another place",
        "unseen": "kept though they cannot be looked at",
        "dropped": "dropped since they are not there any more",
    }
    others = "".join(f", {counts[key]:,} {words[key]}" for key in words if counts[key])
    say(
        f"{len(update.images):,} images in the index: {update.added:,} added, "
        f"{update.unchanged:,} known before{others}; {len(broken):,} broken, "
        f"{left_out['other_files']:,} other files"
    )
    for one in broken[:MOST_SAID]:
        say(f"  broken: {one['path']!r}: {one['reason']}")
    if len(broken) > MOST_SAID:
        say(f"  and {len(broken) - MOST_SAID:,} more: see {SUMMARY_FILE}")
    for path in update.dropped[:MOST_SAID]:
        say(f"  dropped: {shown(path)!r}")
    summary = {
        **index.catalogue.meta["published"],
        **counts,
        **left_out,
        "seconds": seconds,
        "images_per_second": update.added / seconds,
        "broken": broken,
    }
    thumbnails = index.catalogue.some_thumbnails(MOST_ON_SHEET)
    if thumbnails:
        _write_contact_sheet(index.out / SHEET_FILE, thumbnails)
    else:
        (index.out / SHEET_FILE).unlink(missing_ok=True)  # of vectors that had images before
    write_json(index.out / SUMMARY_FILE, summary)
    return summary


def _write_contact_sheet(path: Path, thumbnails: list[bytes]) -> None:
    """Lay out at most `MOST_ON_SHEET` JPEGs in rows, as a PNG of 256 colours; whole or not at all.

    The place of a damaged JPEG stays white.
    """
    rows = -(-len(thumbnails) // SHEET_COLUMNS)
    step = SHEET_CELL + SHEET_GAP
    sheet = Image.new("RGB", (SHEET_COLUMNS * step + SHEET_GAP, rows * step + SHEET_GAP), "white")
    for place, content in enumerate(thumbnails):
        try:
            picture = Image.open(io.BytesIO(content), formats=("JPEG",))
            picture.thumbnail((SHEET_CELL, SHEET_CELL))
        except Exception:  # Pillow's decoders raise a dozen kinds on damaged files
            continue
        row, column = divmod(place, SHEET_COLUMNS)
        left = SHEET_GAP + column * step + (SHEET_CELL - picture.width) // 2
        top = SHEET_GAP + row * step + (SHEET_CELL - picture.height) // 2
        sheet.paste(picture, (left, top))
    partial = path.with_name(f".{path.name}.partial")
    sheet.quantize(256).save(partial, "PNG", optimize=True)
    partial.replace(path)
