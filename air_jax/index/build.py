"""Builds and updates an index: only what is new or changed is decoded and encoded."""

import contextlib
import csv
import hashlib
import io
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from PIL import Image

from air_jax.index import decode_pool, image_files, milvus_index
from air_jax.index.catalogue import DAMAGED, Catalogue, codes_name
from air_jax.index.decode_pool import Task
from air_jax.index.decoding import Decoded, Limits, read_file
from air_jax.index.image_files import File
from air_jax.index.image_index import NET_FILE, SHEET_FILE, SUMMARY_FILE
from air_jax.models import encode, net_file
from air_jax.models.net import Net
from air_jax.run import trained_net
from air_jax.runtime import sharding
from air_jax.runtime.atomic_files import locked, write_json
from air_jax.runtime.checksums import damage, sha256_of, write_checksums
from air_jax.runtime.progress import Progress, say
from air_jax.search import file_codes
from air_jax.search.milvus_collection import Collection

BATCH = 256  # images encoded at once, and committed
LOCK_FILE = "lock"
BROKEN_SAID = 10
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
        limits: of one file.
        store: where codes are kept instead of in the index: see
            `milvus_collection`. None: in the index.
    """

    fit: str = "crop"
    storage: str = "float32"
    workers: int = 1
    rehash: bool = False
    limits: Limits = Limits()
    store: str | None = None


def index_images(folder: Path, model: Path, out: Path, options: Options) -> dict[str, Any]:
    """Index a folder of images, or bring its index up to date.

    Args:
        folder: of the images.
        model: a run's work directory.
        out: the index.
        options: see there.

    Returns:
        What `index.json` holds.

    Raises:
        FileNotFoundError: the folder or the model is not there.
        ValueError: the index was made by another net, with another fit, or of another folder; no
            image can be read; another process is indexing; a file is damaged.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--images={folder}: there is no such folder")
    started = time.monotonic()
    mesh = sharding.make_mesh()
    kept = trained_net.of_run(model, mesh)
    made_from = {
        "kind": "images",
        "folder": str(folder.resolve()),
        "codes": f"model:{kept.about['fingerprint']}",
        "fit": options.fit,
    }
    dimension = kept.about["config"]["model.code_dim"]
    with _opened(out, made_from, options, dimension) as index:
        net_file.write(out / NET_FILE, kept)
        walk = image_files.walk(folder, without=out)
        update = _update(index.catalogue, kept, walk, folder, mesh, options)
        if not update.images:
            raise ValueError(
                f"--images={folder}: no image can be read in it; {len(update.broken)} files are "
                f"broken, {walk.others} are of other kinds"
            )
        about = made_from | {
            "model": {key: value for key, value in kept.about.items() if key != "config"}
            | {"fit": options.fit},
            "dimension": dimension,
            "size": len(update.images),
            "storage": options.storage,
            "fingerprint": update.fingerprint,
        }
        about |= milvus_index.about_store(index.catalogue, index.store, content="")
        if not _is_published(index, update.images, about):
            about["generation"] = index.generation + 1
            _write_codes(index, _gathered(index, update.images, about), update.images, about)
            index.catalogue.publish(update.images, about)
        _delete_leftovers(index)
        return _summary(index, update, walk.others, time.monotonic() - started)


def index_vectors(
    vectors: Path, metadata: Path | None, folder: Path | None, out: Path, options: Options
) -> dict[str, Any]:
    """Index vectors of any other model.

    Args:
        vectors: an `.npy` file, [N, D] of any float type.
        metadata: a CSV file with a head and N rows; a column `path` names their images,
        folder: in here.
        out: the index.
        options: `storage`, `workers`, `limits` are used.

    Returns:
        What `index.json` holds.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: vectors and rows are not as many, the file is damaged, or the index is of images
            or of another folder.
    """
    started = time.monotonic()
    codes = _read_vectors(vectors)
    rows = _read_metadata(metadata, len(codes))
    if folder is not None and not folder.is_dir():
        raise FileNotFoundError(f"--images={folder}: there is no such folder")
    told = json.dumps([sha256_of(vectors), rows], ensure_ascii=True)
    fingerprint = hashlib.sha256(told.encode()).hexdigest()
    made_from = {
        "kind": "vectors",
        "folder": None if folder is None else str(folder.resolve()),
    }
    with _opened(out, made_from, options, codes.shape[1]) as index:
        about = made_from | {
            "codes": f"vectors:{sha256_of(vectors)}",
            "model": None,
            "dimension": codes.shape[1],
            "size": len(codes),
            "storage": options.storage,
            "fingerprint": fingerprint,
        }
        about |= milvus_index.about_store(index.catalogue, index.store, sha256_of(vectors))
        ids = list(range(1, len(codes) + 1))
        if not _is_published(index, ids, about):
            about["generation"] = index.generation + 1
            _write_codes(index, codes, ids, about)
            index.catalogue.publish_rows(rows, about)
        _delete_leftovers(index)
        if folder is not None:
            _add_thumbnails(index.catalogue, folder, options)
        broken = {path: reason for path, (_, _, reason) in index.catalogue.broken().items()}
        update = _Update(ids, broken, len(codes), 0, fingerprint)
        return _summary(index, update, 0, time.monotonic() - started)


class _Index(NamedTuple):
    """An index being written: its folder, its catalogue, and Milvus if that keeps its codes."""

    out: Path
    catalogue: Catalogue
    store: Collection | None

    @property
    def generation(self) -> int:
        """The generation that is published; 0 before the first."""
        return self.catalogue.meta.get("published", {}).get("generation", 0)


class _Update(NamedTuple):
    """Images in order of position; broken files; counts; fingerprint of paths and contents."""

    images: list[int]
    broken: dict[str, str]
    added: int
    unchanged: int
    fingerprint: str


@contextlib.contextmanager
def _opened(
    out: Path, made_from: dict[str, Any], options: Options, dimension: int
) -> Iterator[_Index]:
    """An index, made if it is not there, while no other process writes to it.

    Raises:
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
            _check_same(catalogue, made_from | {"store": address}, out)
            storage = options.storage
            with milvus_index.opened(catalogue, options.store, storage, dimension) as store:
                yield _Index(out, catalogue, store)
        except DAMAGED as error:
            raise ValueError(f"{catalogue.path} is damaged: {error}") from error
        finally:
            catalogue.close()


def _check_same(catalogue: Catalogue, made_from: dict[str, Any], out: Path) -> None:
    before = catalogue.meta.get("made_from")
    if before is None:
        catalogue.set_meta(made_from=made_from)
        return
    for key, value in made_from.items():
        if before.get(key) != value:
            raise ValueError(
                f"--out={out}: this index has {key}={before.get(key)!r}, asked for is {value!r}; "
                "give another --out, or delete it"
            )


def _update(
    catalogue: Catalogue,
    kept: net_file.KeptNet,
    walk: image_files.Walk,
    folder: Path,
    mesh: Mesh,
    options: Options,
) -> _Update:
    """Decode and encode the files that are not in the catalogue as they are now."""
    known, known_broken = catalogue.known(), catalogue.broken()
    files = {file.path: file for file in walk.files}
    broken = dict(walk.unusable)
    todo: list[str] = []
    same_time: list[tuple[int, File]] = []
    for path, file in files.items():
        before = known.get(path)
        state = (file.bytes, file.mtime_ns)
        if before is not None and state == (before.bytes, before.mtime_ns) and not options.rehash:
            continue
        if path in known_broken and known_broken[path][:2] == state and not options.rehash:
            broken[path] = known_broken[path][2]
        elif before is not None and _same_content(folder / path, before.sha256, options.limits):
            same_time.append((before.image, file))
        else:
            todo.append(path)
    catalogue.touch(same_time)
    unchanged = len(files) - len(todo) - sum(path in files for path in broken)
    say(f"{len(files):,} image files: {unchanged:,} known, {len(todo):,} to do")
    shape = tuple(kept.about["image_shape"])
    task = Task(str(folder.resolve()), shape, options.fit, options.limits)
    encoder = _Encoder(catalogue, kept.net, mesh, files)
    with Progress("index", len(todo)) as progress:
        for decoded in decode_pool.decode(todo, task, options.workers) if todo else ():
            encoder.add(decoded)
            progress.advance(1)
        encoder.flush()
    broken |= encoder.broken
    catalogue.keep_broken(set(broken) & set(files))
    current = catalogue.known()
    usable = [path for path in files if path in current and path not in broken]
    content = hashlib.sha256()
    for path in usable:
        content.update(path.encode("utf-8", "surrogateescape") + b"\0")
        content.update(current[path].sha256.encode())
    content.update(f"{kept.about['fingerprint']} {options.fit}".encode())
    images = [current[path].image for path in usable]
    return _Update(images, broken, encoder.added, unchanged, content.hexdigest())


class _Encoder:
    """Gathers decoded images to batches, encodes and keeps them."""

    def __init__(self, catalogue: Catalogue, net: Net, mesh: Mesh, files: dict[str, File]):
        self.catalogue, self.net, self.mesh, self.files = catalogue, net, mesh, files
        self.batch = BATCH * mesh.size
        self.waiting: list[Decoded] = []
        self.unusable: list[Decoded] = []
        self.broken: dict[str, str] = {}
        self.added = 0

    def add(self, decoded: Decoded) -> None:
        (self.waiting if decoded.error is None else self.unusable).append(decoded)
        if len(self.waiting) == self.batch or len(self.unusable) == self.batch:
            self.flush()

    def flush(self) -> None:
        known = [self.catalogue.code_of_content(one.sha256) for one in self.waiting]
        new = [one.pixels for one, code in zip(self.waiting, known, strict=True) if code is None]
        made: Iterator[np.ndarray] = iter(())
        if new:
            # Always as many at once: a picture's code does not depend on how many are waiting.
            made = iter(encode.encode(self.net, np.stack(new), self.mesh, self.batch, label=None))
        codes = [np.asarray(next(made), "<f4").tobytes() if c is None else c for c in known]
        rows = zip(self.waiting, codes, strict=True)
        self.catalogue.add([(self.files[one.path], one, code) for one, code in rows])
        errors = [(self.files[one.path], str(one.error)) for one in self.unusable if one.lasting]
        self.catalogue.add_broken(errors)
        self.broken |= {one.path: str(one.error) for one in self.unusable}
        self.added += len(self.waiting)
        self.waiting, self.unusable = [], []


def _same_content(path: Path, sha256: str, limits: Limits) -> bool:
    try:
        return hashlib.sha256(read_file(path, limits)).hexdigest() == sha256
    except ValueError:
        return False


def _is_published(index: _Index, ids: list[int], about: dict[str, Any]) -> bool:
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


def _gathered(index: _Index, ids: list[int], about: dict[str, Any]) -> np.ndarray:
    """The codes [N, D] float32 of images, from the catalogue to a memory-mapped file."""
    path = index.out / f".{codes_name(about['generation'])}.npy"
    dimension = about["dimension"]
    codes = np.lib.format.open_memmap(path, "w+", np.float32, (len(ids), dimension))
    for position, code in enumerate(index.catalogue.codes(ids, dimension)):
        codes[position] = code
    return codes


def _write_codes(index: _Index, codes: np.ndarray, ids: list[int], about: dict[str, Any]) -> None:
    """Write the codes of a generation, which nobody opens before the catalogue publishes it."""
    keys, generation = np.array(ids, np.int64), about["generation"]
    if index.store is not None:
        keys = keys + about["first_key"]
        milvus_index.write(index.store, keys, codes, index.out, generation)
        return
    file_codes.write(index.out / codes_name(generation), codes, about["storage"])
    write_checksums(index.out, index.out.glob("codes-*/*"))


def _delete_leftovers(index: _Index) -> None:
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


def _summary(index: _Index, update: _Update, others: int, seconds: float) -> dict[str, Any]:
    """What was found: said, written to `index.json`, and shown to people in a picture."""

    def shown(path: str) -> str:
        return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")

    broken = [
        {"path": shown(path), "reason": reason} for path, reason in sorted(update.broken.items())
    ]
    say(
        f"{len(update.images):,} images in the index: {update.added:,} added, "
        f"{update.unchanged:,} known before; {len(broken):,} broken, {others:,} other files"
    )
    for one in broken[:BROKEN_SAID]:
        say(f"  broken: {one['path']!r}: {one['reason']}")
    if len(broken) > BROKEN_SAID:
        say(f"  and {len(broken) - BROKEN_SAID:,} more: see {SUMMARY_FILE}")
    summary = {
        **index.catalogue.meta["published"],
        "added": update.added,
        "unchanged": update.unchanged,
        "other_files": others,
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


def _read_vectors(path: Path) -> np.ndarray:
    try:
        codes = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"--vectors={path}: there is no such file") from None
    except (ValueError, EOFError) as error:
        raise ValueError(f"--vectors={path} cannot be read as an .npy file: {error}") from error
    if codes.ndim != 2 or not codes.size or not np.issubdtype(codes.dtype, np.floating):
        raise ValueError(
            f"--vectors={path} holds {list(codes.shape)} {codes.dtype}; expected [N > 0, D > 0] "
            "floats"
        )
    return codes


def _read_metadata(path: Path | None, count: int) -> list[tuple[str, dict[str, str]]]:
    """Path ("" if there is none) and the other columns of each row."""
    if path is None:
        return [("", {})] * count
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, restkey="", restval="", strict=True))
    except FileNotFoundError:
        raise FileNotFoundError(f"--metadata={path}: there is no such file") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"--metadata={path} cannot be read as CSV in UTF-8: {error}") from error
    if len(rows) != count:
        raise ValueError(f"--metadata={path} has {len(rows)} rows for {count} vectors")
    for number, row in enumerate(rows, 1):
        if "" in row:
            raise ValueError(f"--metadata={path}: row {number} has more cells than the head")
    return [(row.pop("path", ""), row) for row in rows]


def _add_thumbnails(catalogue: Catalogue, folder: Path, options: Options) -> None:
    """Pictures of vectors whose metadata names a file in the folder."""
    missing = catalogue.rows_without_thumbnail()
    outside = [
        (image, Decoded(path, error="there is no such file in the folder"))
        for image, path in missing
        if image_files.inside(folder, path) is None
    ]
    catalogue.add_thumbnails(outside)
    gone = {image for image, _ in outside}
    todo = [(image, path) for image, path in missing if image not in gone]
    task = Task(str(folder.resolve()), None, options.fit, options.limits)
    batch: list[tuple[int, Decoded]] = []
    with Progress("thumbnails", len(todo)) as progress:
        decoded = decode_pool.decode([path for _, path in todo], task, options.workers)
        for (image, _), one in zip(todo, decoded, strict=True):
            batch.append((image, one))
            progress.advance(1)
            if len(batch) == BATCH:
                catalogue.add_thumbnails(batch)
                batch = []
    catalogue.add_thumbnails(batch)
