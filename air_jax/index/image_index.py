"""An index on disk: images or vectors with their codes, opened for searching.

    catalogue.sqlite      the truth: images, codes, thumbnails, what is published; see `catalogue`
    codes-<generation>/   the codes in order of position: see `file_codes`. With --store they are in
                          Milvus, and codes-<generation>.npz is here: see `milvus_index`
    net.npz               the net that made the codes; not there for vectors
    checksums.json        of the codes
    index.json            what was found, for people and programs
    contact_sheet.png     some of its images, for people
    sessions.sqlite       what people did with it; see `session_store`

An image keeps its id as long as its content does not change, wherever in the folder its file is.
Its position changes with the images around it.
"""

import contextlib
import itertools
import json
import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import PIL.Image

from air_jax.data import decoding, image_files
from air_jax.index import catalogue, milvus_index
from air_jax.models import encode, net_file
from air_jax.models.net import Net
from air_jax.runtime import checksums, sharding
from air_jax.search.codes import Codes
from air_jax.search.file_codes import FileCodes

NET_FILE = "net.npz"
SUMMARY_FILE = "index.json"
IDS_OF_A_QUERY = 500  # SQLite takes no more than so many values at once, to be safe


class Image(NamedTuple):
    """What an index knows of an image.

    Attributes:
        id: stable, from 1 on.
        path: relative to the folder, as `os.fsdecode` gives it; "" if there is none.
        width, height: pixels; None if no image was read.
        bytes: of the file.
        metadata: of vectors.
    """

    id: int
    path: str
    width: int | None
    height: int | None
    bytes: int | None
    metadata: dict[str, str]

    @property
    def label(self) -> str:
        """The path as text that can be shown; of a vector without one, its row."""
        if not self.path:
            return f"row {self.id - 1}"
        return os.fsencode(self.path).decode("utf-8", "replace")


class ImageIndex:
    """An index, opened for reading; safe to use from several threads.

    An indexer that publishes meanwhile does not disturb it: images that were there stay there,
    though those that left the folder lose their thumbnails.

    Args:
        path: of the folder.

    Attributes:
        about: {"kind": "images" or "vectors", "folder", "model", "generation", "dimension", "size",
            "fingerprint": of all that is published, "codes": what made the codes}.
        codes: of the images, by position.
        ids: [N] int64 by position.

    Raises:
        FileNotFoundError: it is no index, or nothing is published in it yet.
        ValueError: a file of it is damaged, or of another version, or the codes in its
            Milvus collection are not those that it knows.
        ConnectionError: Milvus cannot be reached.
    """

    def __init__(self, path: Path):
        self.path = path
        self._identity = catalogue.identity(path / catalogue.FILE)
        if not (path / catalogue.FILE).is_file():
            raise FileNotFoundError(f"{path} holds no {catalogue.FILE}: it is no index")
        self._free: list[sqlite3.Connection] = []
        weakref.finalize(self, _close, self._free)
        while True:
            self.about, self.ids = self._read_catalogue()
            try:
                self.codes = self._open_codes()
                break
            except (FileNotFoundError, ValueError):
                # An indexer that published since has deleted the codes.
                if not self.is_in_place() or self.is_newest():
                    raise
        self._order = np.argsort(self.ids)
        self._sorted = self.ids[self._order]
        self._net: Net | None = None
        self._net_access = threading.Lock()
        if self.about["model"] is not None and not (path / NET_FILE).is_file():
            raise FileNotFoundError(f"{path / NET_FILE} is missing: it encodes uploads")

    def _read_catalogue(self) -> tuple[dict[str, Any], np.ndarray]:
        """What is published, and the ids by position."""
        with self._database() as database, database:
            catalogue.check_integrity(database, quick=True)
            database.execute("BEGIN")  # an indexer may publish between the two
            meta = catalogue.read_meta(database)
            rows = database.execute(
                "SELECT id FROM images WHERE position IS NOT NULL ORDER BY position"
            )
            ids = np.array([row[0] for row in rows], np.int64)
        if "published" not in meta:
            raise FileNotFoundError(
                f"{self.path} is not finished: run air_jax.index again, it continues"
            )
        return meta["published"], ids

    def _open_codes(self) -> Codes:
        if "store" in self.about:
            return milvus_index.open_codes(self.path, self.about, self.ids)
        folder = catalogue.codes_name(self.about["generation"])
        if found := checksums.damage(self.path, within=f"{folder}/"):
            raise ValueError(f"{self.path} is damaged: {found}. Run air_jax.index again, it mends")
        codes = FileCodes(self.path / folder)
        if len(codes) != len(self.ids):
            raise ValueError(
                f"{self.path}: {len(self.ids)} images in the catalogue, {len(codes)} codes"
            )
        return codes

    @property
    def version(self) -> str:
        """What tells these images and ids from those of any other state, of any index here."""
        assert self._identity is not None
        return f"{self._identity[1]:x}-{self.about['fingerprint'][:16]}"

    def is_in_place(self) -> bool:
        """Whether its folder is the one that was opened, not deleted and not another."""
        return catalogue.identity(self.path / catalogue.FILE) == self._identity

    def is_newest(self) -> bool:
        """Whether nothing was published since this was opened."""
        if not self.is_in_place():
            return False
        with self._database() as database:
            return catalogue.read_meta(database).get("published") == self.about

    def position(self, image: int) -> int | None:
        """The position of an image; None if it is not in the index."""
        place = int(np.searchsorted(self._sorted, image))
        if place < len(self._sorted) and self._sorted[place] == image:
            return int(self._order[place])
        return None

    def images(self, ids: list[int]) -> list[Image]:
        """Images in the order of their ids; one that has left the catalogue has no path.

        Raises:
            ValueError: an id that is none of this index's.
        """
        unknown = [image for image in ids if self.position(image) is None]
        if unknown:
            raise ValueError(f"there is no image {unknown[0]} in the index")
        found = {row[0]: _image(row) for row in self._rows(_COLUMNS, ids)}
        gone = Image(0, "(removed)", None, None, None, {})
        return [found.get(image, gone._replace(id=image)) for image in ids]

    def contents(self, ids: list[int]) -> dict[int, str]:
        """SHA-256 of the files of images, by id; not of vectors."""
        return {image: sha256 for image, sha256 in self._rows("id, sha256", ids) if sha256}

    def _rows(self, columns: str, ids: list[int]) -> Iterator[tuple[Any, ...]]:
        for start in range(0, len(ids), IDS_OF_A_QUERY):
            part = ids[start : start + IDS_OF_A_QUERY]
            marks = ", ".join("?" * len(part))
            with self._database() as database:
                query = f"SELECT {columns} FROM images WHERE id IN ({marks})"
                rows = database.execute(query, part).fetchall()
            yield from rows

    def find(self, text: str, limit: int) -> list[Image]:
        """Images by id ("17", "#17"), by path, then by a part of path or of a metadata's value.

        Case does not count, nor how accents are written.
        """
        found: dict[int, Image] = {}
        digits = text.removeprefix("#")
        if digits.isascii() and digits.isdigit() and self.position(int(digits)) is not None:
            found |= {image.id: image for image in self.images([int(digits)])}
        columns = f"SELECT {_COLUMNS} FROM images WHERE position IS NOT NULL"
        path, wanted = os.fsencode(text), image_files.folded(text)
        maybe = [wanted, json.dumps(wanted)[1:-1], NOT_ASCII, ESCAPED]
        with (
            self._database() as database,
            contextlib.closing(
                database.execute(f"{columns} AND ({_MAYBE}) ORDER BY position", maybe)
            ) as rows,
        ):
            exact = database.execute(f"{columns} AND path = ?", [path]).fetchall()
            for row in itertools.chain(exact, (row for row in rows if _has(row, wanted))):
                if len(found) >= limit:
                    break
                if self.position(row[0]) is not None:
                    found.setdefault(row[0], _image(row))
        return list(found.values())

    def thumbnail(self, image: int) -> bytes | None:
        """A small JPEG; None if there is none."""
        query = "SELECT jpeg FROM thumbnails WHERE image = ?"
        with self._database() as database:
            found = database.execute(query, [image]).fetchone()
        return None if found is None else found[0]

    def file(self, image: int) -> Path | None:
        """The file of an image, if it is still a regular file in the folder."""
        if self.about["folder"] is None or self.position(image) is None:
            return None
        path = self.images([image])[0].path
        return image_files.inside(Path(self.about["folder"]), path) if path else None

    def encode(self, picture: PIL.Image.Image) -> np.ndarray:
        """The code [D] float32 of any picture, by the net of the index.

        Raises:
            ValueError: the index is of vectors, or its net is damaged.
        """
        model = self.about["model"]
        if model is None:
            raise ValueError(f"{self.path} is an index of vectors: it has no net")
        # One picture needs one device only.
        mesh = sharding.make_mesh(jax.local_devices()[:1])
        with self._net_access:
            if self._net is None:
                kept = net_file.read(self.path / NET_FILE, mesh)
                if kept.about["fingerprint"] != model["fingerprint"]:
                    raise ValueError(f"{self.path / NET_FILE} is not the net that made the codes")
                self._net = kept.net
        pixels = decoding.fit(picture, tuple(model["image_shape"]), model["fit"])
        return encode.encode(self._net, pixels[None], mesh, batch=1, label=None)[0]

    @contextlib.contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """A connection that no other thread uses meanwhile; it is used again later.

        Raises:
            Unavailable, ValueError: what SQLite reports, or a value that cannot be read.
        """
        try:
            try:
                database = self._free.pop()
            except IndexError:
                database = self._connected()
            try:
                yield database
            finally:
                self._free.append(database)
        except (*catalogue.DAMAGED, ValueError) as error:
            raise catalogue.unusable(self.path / catalogue.FILE, error) from error

    def _connected(self) -> sqlite3.Connection:
        # A connection that may create the file would spoil a folder that is made anew.
        address = f"{(self.path / catalogue.FILE).absolute().as_uri()}?mode=rw"
        database = sqlite3.connect(address, timeout=30, uri=True, check_same_thread=False)
        if not self.is_in_place():
            database.close()
            raise catalogue.Unavailable(f"{self.path} was deleted or replaced")
        database.execute("PRAGMA query_only = ON")
        return database


def _close(connections: list[sqlite3.Connection]) -> None:
    """Close connections at once; a connection that is only forgotten waits for Python's gc."""
    for connection in connections:
        connection.close()


_COLUMNS = "id, path, width, height, bytes, metadata"
# What SQLite can tell of a text, ten times faster than Python: it finds all that `_has` takes, and
# more. JSON is ASCII here, with escapes for other letters.
_MAYBE = """
instr(lower(CAST(path AS TEXT)), ?) OR instr(lower(metadata), ?)
OR CAST(path AS TEXT) GLOB ? OR instr(metadata, ?)
"""
NOT_ASCII, ESCAPED = "*[^\x01-\x7f]*", "\\u"


def _has(row: tuple[Any, ...], wanted: str) -> bool:
    """Whether a folded text is in the path of an image, or in a value of its metadata."""
    _, path, *_, metadata = row
    texts = [os.fsdecode(path)]
    if metadata != "{}":
        texts += json.loads(metadata).values()
    return any(wanted in image_files.folded(text) for text in texts)


def _image(row: tuple[Any, ...]) -> Image:
    image, path, width, height, size, metadata = row
    return Image(image, os.fsdecode(path), width, height, size, json.loads(metadata))
