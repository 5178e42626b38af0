"""Builds and updates an index: only what is new or changed is decoded and encoded."""

import contextlib
import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from PIL import Image

from air_jax.data import decode_pool, image_files
from air_jax.data.decode_pool import Task
from air_jax.data.decoding import Decoded, Limits
from air_jax.data.image_files import SHEET_FILE, File, Walk, shown
from air_jax.index import identity, milvus_index
from air_jax.index.catalogue import DAMAGED, Catalogue, Known, codes_name, unusable
from air_jax.index.image_index import NET_FILE, SUMMARY_FILE
from air_jax.index.vector_files import Row, read_metadata, read_vectors
from air_jax.models import encode, net_file
from air_jax.models.net import Net
from air_jax.run import trained_net
from air_jax.runtime import sharding
from air_jax.runtime.atomic_files import locked, read_npz, write_json
from air_jax.runtime.checksums import damage, sha256_of, write_checksums
from air_jax.runtime.progress import Progress, say
from air_jax.search import file_codes
from air_jax.search.milvus_collection import Collection

BATCH = 256  # images encoded at once, and committed
LOCK_FILE = "lock"
MOST_SAID = 10  # files of a kind that are named
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
            image can be read; a large part of the images is no longer there; another process is
            indexing; a file is damaged.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--images={folder}: there is no such folder")
    started = time.monotonic()
    mesh = sharding.make_mesh()
    kept = trained_net.of_run(model, mesh)
    _check_net(out, kept.about)
    made_from = {
        "kind": "images",
        "folder": str(folder.resolve()),
        "codes": f"model:{kept.about['fingerprint']}",
        "fit": options.fit,
    }
    dimension = kept.about["config"]["model.code_dim"]
    with _opened(out, made_from, options, dimension) as index:
        net_file.write(out / NET_FILE, kept)
        walk = image_files.walk(folder, options.exclude)
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
            index.catalogue.publish(update.images, about, update.moved)
        index.catalogue.set_meta(made_from=index.made_from)
        _delete_leftovers(index)
        return _summary(index, update, _left_out(walk), time.monotonic() - started)


def index_vectors(
    vectors: Path, metadata: Path | None, folder: Path | None, out: Path, options: Options
) -> dict[str, Any]:
    """Index vectors of any other model.

    Args:
        vectors: an `.npy` file, [N, D] of any float type.
        metadata: a CSV file with a head and N rows, of which a column names the images; see
            `vector_files.read_metadata`.
        folder: of the images.
        out: the index.
        options: `storage`, `workers`, `rehash`, `limits` and `store` are used.

    Returns:
        What `index.json` holds.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: vectors and rows are not as many, a file is damaged, none of the images is in
            the folder, or the index is of images or of another folder.
    """
    started = time.monotonic()
    codes = read_vectors(vectors)
    rows = [Row("", {})] * len(codes)
    if metadata is not None:
        rows = read_metadata(metadata, len(codes), with_images=folder is not None)
    files = {} if folder is None else _files_of(rows, folder)
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
        index.catalogue.set_meta(made_from=index.made_from)
        _delete_leftovers(index)
        broken = {}
        if folder is not None:
            broken = _update_pictures(index.catalogue, folder, files, options)
        update = _Update(ids, broken, len(codes), fingerprint=fingerprint)
        return _summary(index, update, {"other_files": 0}, time.monotonic() - started)


class _Index(NamedTuple):
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


class _Update(NamedTuple):
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
def _opened(
    out: Path, made_from: dict[str, Any], options: Options, dimension: int
) -> Iterator[_Index]:
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
                yield _Index(out, made_from, catalogue, store)
        except DAMAGED as error:
            raise unusable(catalogue.path, error) from error
        finally:
            catalogue.close()


def _check_net(out: Path, asked: dict[str, Any]) -> None:
    """Raise ValueError if the index has another net, saying what is different of the two."""
    try:
        before = json.loads(str(read_npz(out / NET_FILE, ("about",))["about"]))
        if before["fingerprint"] == asked["fingerprint"]:
            return
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError):
        return  # there is none, or it is damaged and written again
    changed = [
        f"{key} was {before['config'].get(key)!r}, now {value!r}"
        for key, value in asked["config"].items()
        if before["config"].get(key) != value
    ]
    if before["step"] != asked["step"]:
        changed.append(f"{before['step']} steps of training, now {asked['step']}")
    raise ValueError(
        f"--out={out}: this index is of another net, of the run {before['name']}; --model is the "
        f"run {asked['name']} ({'; '.join(changed) or 'of the same config, trained anew'}); "
        "give another --out, or delete the index, and the sessions on it with it"
    )


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


def _update(
    catalogue: Catalogue,
    kept: net_file.KeptNet,
    walk: Walk,
    folder: Path,
    mesh: Mesh,
    options: Options,
) -> _Update:
    """Decode and encode the files that are not in the catalogue as they are now."""
    known = catalogue.known()
    found = identity.compare(catalogue, known, walk, folder, options.limits, options.rehash)
    files = {file.path: file for file in walk.files}
    stay = found.same | found.unseen | found.placed
    usable = files.keys() - found.broken.keys()
    identity.check_loss(known, stay, usable, walk, options.drop_missing)
    back = {path: one for path, one in stay.items() if one.kind == "dropped"}
    stay = {path: one for path, one in stay.items() if path not in back}
    catalogue.touch([(one.image, files[p]) for p, one in found.placed.items() if one.path == p])
    moved = [(one.image, files[path]) for path, one in stay.items() if one.path != path]
    unchanged = len(stay) - len(moved) - len(found.unseen)
    say(
        f"{len(files):,} image files: {unchanged:,} known, "
        + (f"{len(moved):,} known from another place, " if moved else "")
        + f"{len(found.todo):,} to do"
    )
    shape = tuple(kept.about["image_shape"])
    task = Task(str(folder.resolve()), shape, options.fit, options.limits)
    encoder = _Encoder(catalogue, kept.net, mesh, files, back)
    with Progress("index", len(found.todo)) as progress:
        for decoded in decode_pool.decode(found.todo, task, options.workers) if found.todo else ():
            encoder.add(decoded)
            progress.advance(1)
        encoder.flush()
    broken = found.broken | encoder.broken
    catalogue.keep_broken(set(broken) & set(files))
    staying = {one.image for one in stay.values()}
    unread = {
        one.path: one
        for one in known
        if one.path in encoder.unread and one.kind == "published" and one.image not in staying
    }
    images = {path: (one.image, one.sha256) for path, one in (stay | unread).items()}
    images |= encoder.images
    dropped = identity.check_loss(known, stay | unread, encoder.images, walk, options.drop_missing)
    content = hashlib.sha256()
    paths = sorted(images, key=os.fsencode)
    for path in paths:
        content.update(path.encode("utf-8", "surrogateescape") + b"\0")
        content.update(images[path][1].encode())
    content.update(f"{kept.about['fingerprint']} {options.fit}".encode())
    return _Update(
        [images[path][0] for path in paths],
        broken,
        len(encoder.images),
        unchanged,
        len(found.unseen) + len(unread),
        moved,
        dropped,
        content.hexdigest(),
    )


class _Encoder:
    """Gathers decoded images to batches, encodes and keeps them.

    Args:
        catalogue: gets the images.
        net: encodes.
        mesh: for the net.
        files: by path.
        back: images that were dropped before and return, by path.

    Attributes:
        images: ids and SHA-256 of what was added, by path.
        broken: reasons of what cannot be used, by path.
        unread: paths of those that could not be read this time.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        net: Net,
        mesh: Mesh,
        files: dict[str, File],
        back: dict[str, Known],
    ):
        self.catalogue, self.net, self.mesh = catalogue, net, mesh
        self.files, self.back = files, back
        self.batch = BATCH * mesh.size
        self.waiting: list[Decoded] = []
        self.unusable: list[Decoded] = []
        self.images: dict[str, tuple[int, str]] = {}
        self.broken: dict[str, str] = {}
        self.unread: set[str] = set()

    def add(self, decoded: Decoded) -> None:
        (self.waiting if decoded.error is None else self.unusable).append(decoded)
        if len(self.waiting) == self.batch or len(self.unusable) == self.batch:
            self.flush()

    def flush(self) -> None:
        known = [self.catalogue.code_of_content(one.sha256) for one in self.waiting]
        new = [
            one.pixels
            for one, code in zip(self.waiting, known, strict=True)
            if code is None and one.pixels is not None
        ]
        made: Iterator[np.ndarray] = iter(())
        if new:
            # Always as many at once: a picture's code does not depend on how many are waiting.
            made = iter(encode.encode(self.net, np.stack(new), self.mesh, self.batch, label=None))
        codes = [np.asarray(next(made), "<f4").tobytes() if c is None else c for c in known]
        rows = [
            (self.files[one.path], one, code, self._id_before(one))
            for one, code in zip(self.waiting, codes, strict=True)
        ]
        for one, image in zip(self.waiting, self.catalogue.add(rows), strict=True):
            self.images[one.path] = image, one.sha256
        errors = [(self.files[one.path], str(one.error)) for one in self.unusable if one.lasting]
        self.catalogue.add_broken(errors)
        self.broken |= {one.path: str(one.error) for one in self.unusable}
        self.unread |= {one.path for one in self.unusable if not one.lasting}
        self.waiting, self.unusable = [], []

    def _id_before(self, decoded: Decoded) -> int | None:
        before = self.back.get(decoded.path)
        return None if before is None or before.sha256 != decoded.sha256 else before.image


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


def _left_out(walk: Walk) -> dict[str, Any]:
    """What a folder holds besides its images, for `index.json`; said, too."""
    unread: dict[str, list[str]] = {}
    for path in walk.unread:
        unread.setdefault(Path(path).suffix.lower(), []).append(path)
    told = [
        ("links to folders, which are not followed", walk.links),
        ("files and folders left out by --exclude", walk.excluded),
        ("folders that are an index themselves", walk.indexes),
        *((f"{suffix} files, which no decoder here reads", unread[suffix]) for suffix in unread),
    ]
    for what, paths in told:
        if paths:
            some = ", ".join(repr(shown(path)) for path in paths[:MOST_SAID])
            say(f"  left out: {len(paths):,} {what}: {some}" + ", …" * (len(paths) > MOST_SAID))
    return {
        "other_files": walk.others,
        "unread_formats": {suffix: len(paths) for suffix, paths in unread.items()},
        "unread_files": [shown(path) for path in walk.unread],
        "links": [shown(path) for path in walk.links],
        "excluded": [shown(path) for path in walk.excluded],
        "indexes": [shown(path) for path in walk.indexes],
    }


def _summary(
    index: _Index, update: _Update, left_out: dict[str, Any], seconds: float
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


def _files_of(rows: list[Row], folder: Path) -> dict[str, File]:
    """The files of the images that rows name, by the path in the row.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: none of the images is in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--images={folder}: there is no such folder")
    files = {}
    named = {row.path for row in rows} - {""}
    for path in named:
        place = image_files.inside(folder, path)
        if place is not None:
            with contextlib.suppress(OSError):  # it is gone by now
                status = place.stat()
                files[path] = File(str(place), status.st_size, status.st_mtime_ns)
    if not files:
        first = next((f", the first of them {row.path!r}" for row in rows if row.path), "")
        raise ValueError(
            f"--images={folder}: no image of the metadata is in this folder; {len(named):,} are "
            f"named{first}"
        )
    return files


def _update_pictures(
    catalogue: Catalogue, folder: Path, files: dict[str, File], options: Options
) -> dict[str, str]:
    """Bring the thumbnails of vectors up to date.

    A thumbnail stays where its file is not there, or cannot be read this time.

    Args:
        catalogue: of the index.
        folder: of the images.
        files: of the images by the path in their row.
        options: see there.

    Returns:
        Reasons by path of files that cannot be used.
    """
    known_broken = catalogue.broken()
    broken: dict[str, str] = {}
    todo: list[tuple[int, File, File]] = []
    for image, before in catalogue.pictures():
        path = before.path
        file = files.get(path)
        if file is None:
            broken[path] = "there is no such file in the folder"
        elif options.rehash or file[1:] != before[1:]:
            todo.append((image, file._replace(path=path), file))
        elif path in known_broken:
            broken[path] = known_broken[path][2]
    task = Task(str(folder.resolve()), None, options.fit, options.limits)
    batch: list[tuple[int, File, Decoded]] = []
    with Progress("thumbnails", len(todo)) as progress:
        decoded = decode_pool.decode([place.path for *_, place in todo], task, options.workers)
        for (image, file, _), one in zip(todo, decoded, strict=True):
            progress.advance(1)
            if one.error is not None:
                broken[file.path] = one.error
            if one.error is None or one.lasting:
                batch.append((image, file, one))
            if len(batch) == BATCH:
                catalogue.set_pictures(batch)
                batch = []
    catalogue.set_pictures(batch)
    catalogue.keep_broken(set(broken))
    return broken
