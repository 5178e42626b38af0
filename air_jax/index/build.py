"""Builds and updates an index of pictures: only what is new or changed is decoded and encoded."""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from air_jax.data import decode_pool, image_files
from air_jax.data.decode_pool import Task
from air_jax.data.decoding import Decoded
from air_jax.data.image_files import File, Walk, shown
from air_jax.index import identity, index_writer, milvus_index
from air_jax.index.catalogue import Catalogue, Known, codes_name
from air_jax.index.image_index import NET_FILE
from air_jax.index.index_writer import BATCH, MOST_SAID, OpenIndex, Options, Update
from air_jax.models import encode, net_file
from air_jax.models.net import Net
from air_jax.run import trained_net
from air_jax.runtime import sharding
from air_jax.runtime.atomic_files import read_npz
from air_jax.runtime.progress import Progress, say


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
    dimension = kept.dimension
    with index_writer.opened(out, made_from, options, dimension) as index:
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
        if not index_writer.is_published(index, update.images, about):
            about["generation"] = index.generation + 1
            index_writer.write_codes(
                index, _gathered(index, update.images, about), update.images, about
            )
            index.catalogue.publish(update.images, about, update.moved)
        index.catalogue.set_meta(made_from=index.made_from)
        index_writer.delete_leftovers(index)
        return index_writer.write_summary(
            index, update, _left_out(walk), time.monotonic() - started
        )


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


def _update(
    catalogue: Catalogue,
    kept: net_file.KeptNet,
    walk: Walk,
    folder: Path,
    mesh: Mesh,
    options: Options,
) -> Update:
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
    return Update(
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


def _gathered(index: OpenIndex, ids: list[int], about: dict[str, Any]) -> np.ndarray:
    """The codes [N, D] float32 of images, from the catalogue to a memory-mapped file."""
    path = index.out / f".{codes_name(about['generation'])}.npy"
    dimension = about["dimension"]
    codes = np.lib.format.open_memmap(path, "w+", np.float32, (len(ids), dimension))
    for position, code in enumerate(index.catalogue.codes(ids)):
        codes[position] = code
    return codes


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
