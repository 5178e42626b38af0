"""An index on disk, opened for reading: images by id, path and position, and their codes.

    catalogue.sqlite      the truth: what was found, what it holds, what is published
    codes-<generation>/   a `code_store` of the codes published, in order of position
    net.npz               what made the codes; absent from an index of vectors
    index.json            a summary for people and programs

An opened index stays as it was: whoever writes a new generation meanwhile does not disturb it.
"""

import json
import os
import sqlite3
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image as PillowImage

from air_jax import decoding
from air_jax.code_store import CodeStore

if TYPE_CHECKING:
    from air_jax.net_file import Encoder

CATALOGUE = "catalogue.sqlite"
NET_FILE = "net.npz"
SUMMARY = "index.json"
FORMAT = 1
MANY = 500  # parameters of one SQL statement

SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
-- What was found in the folder, looked at or not: broken ones have a reason and no content.
CREATE TABLE IF NOT EXISTS files (
    path BLOB PRIMARY KEY, bytes INTEGER NOT NULL, mtime_ns INTEGER, content INTEGER, reason TEXT
) STRICT;
-- Pictures by what they hold; those of equal content share a code and a thumbnail.
CREATE TABLE IF NOT EXISTS contents (
    content INTEGER PRIMARY KEY, sha BLOB NOT NULL UNIQUE,
    bytes INTEGER NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS codes (content INTEGER PRIMARY KEY, code BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS thumbnails (content INTEGER PRIMARY KEY, jpeg BLOB NOT NULL) STRICT;
-- What is published; AUTOINCREMENT, so that no id comes back.
CREATE TABLE IF NOT EXISTS images (
    id INTEGER PRIMARY KEY AUTOINCREMENT, path BLOB NOT NULL, content INTEGER,
    position INTEGER, metadata TEXT
) STRICT;
CREATE INDEX IF NOT EXISTS images_by_path ON images (path);
"""


class Image(NamedTuple):
    """An indexed image.

    Attributes:
        id: stays; another content under the same path is another image.
        path: relative to the folder, as `os.fsdecode` gives it; of vectors the metadata's "path".
        width, height: of the picture upright; None where there is no picture.
        bytes: of its file.
        metadata: of vectors, by column.
    """

    id: int
    path: str
    width: int | None
    height: int | None
    bytes: int | None
    metadata: dict[str, str]

    @property
    def label(self) -> str:
        """For showing: the path, bytes that are no UTF-8 replaced; "row 17" where there is none."""
        return shown(self.path) or f"row {self.id - 1}"


def shown(path: str) -> str:
    """A path as `os.fsdecode` gives it for people: bytes that are no UTF-8 replaced."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


class ImageIndex:
    """An index, opened for reading; safe to use from several threads.

    Args:
        path: of its folder.

    Attributes:
        path: of its folder.
        about: what it is of: kind ("images" or "vectors"), folder, model, generation, dimension,
            size, fingerprint (of what is published), codes (what made the codes).
        store: the codes.
        ids: [N] int64 by position.

    Raises:
        FileNotFoundError: there is no index.
        ValueError: it is damaged, of another format, or its first indexing has not ended.
    """

    def __init__(self, path: Path):
        self.path = path
        if not (path / CATALOGUE).is_file():
            raise FileNotFoundError(f"{path} holds no {CATALOGUE}: it is no index of air_jax")
        self._lock = threading.Lock()
        self._encoder: Encoder | None = None
        try:
            self._open()
        except sqlite3.Error as error:
            raise ValueError(f"{path / CATALOGUE} cannot be read: {error}") from error
        if len(self.store) != len(self.ids):
            raise ValueError(
                f"{self.path} is damaged: {len(self.ids)} images, {len(self.store)} codes"
            )
        order = np.argsort(self.ids)
        self._sorted_ids, self._position_of = self.ids[order], order

    def _open(self) -> None:
        """Begin to read the newest generation; once more if it was replaced meanwhile."""
        before = None
        while True:
            self._connection = open_catalogue(self.path)
            # A transaction that stays open keeps showing what is in the catalogue now.
            self._connection.execute("BEGIN")
            held = dict(self._connection.execute("SELECT key, value FROM meta"))
            check_format(self.path, held)
            if "about" not in held:
                raise ValueError(f"{self.path} is not finished: its first indexing has not ended")
            self.about: dict[str, Any] = json.loads(held["about"])
            generation = self.about["generation"]
            try:
                self.store = CodeStore(self.path / f"codes-{generation}")
                break
            except FileNotFoundError:
                self._connection.close()
                if generation == before:
                    raise
                before = generation
        rows = self._connection.execute(
            "SELECT id FROM images WHERE position IS NOT NULL ORDER BY position"
        )
        self.ids = np.fromiter((row[0] for row in rows), np.int64)

    def close(self) -> None:
        """End reading. Until then the catalogue's log of later changes cannot be shortened."""
        with self._lock:
            self._connection.close()

    def position(self, image: int) -> int | None:
        """Where in `store` an image's code is; None: there is no such image."""
        place = int(np.searchsorted(self._sorted_ids, image))
        if place == len(self.ids) or self._sorted_ids[place] != image:
            return None
        return int(self._position_of[place])

    def images(self, ids: list[int]) -> list[Image]:
        """Images by id, in that order; ValueError names one that is not there."""
        ids = [int(image) for image in ids]
        missing = [image for image in ids if self.position(image) is None]
        if missing:
            raise ValueError(f"image {missing[0]}: there is no such image in {self.path.name}")
        found = {}
        for start in range(0, len(ids), MANY):
            part = ids[start : start + MANY]
            marks = ",".join("?" * len(part))
            found |= {image.id: image for image in self._select(f"id IN ({marks})", part)}
        return [found[image] for image in ids]

    def find(self, text: str, limit: int) -> list[Image]:
        """Images by path: the very one first, then those that contain the text, in order.

        Upper and lower case are one; "17" and "#17" find image 17 as well, before those.
        """
        exact = os.fsencode(text)
        found = self._select("path = ? LIMIT ?", [exact, limit]) if text else []
        number = text.removeprefix("#")
        if number.isascii() and number.isdigit() and len(number) < 19:
            found += self._select("id = ?", [int(number)])
        # LIKE folds the case of ASCII only; `folded` also that of other letters.
        found += self._select(
            "instr(folded(path), folded(?)) ORDER BY position LIMIT ?", [exact, limit + len(found)]
        )
        return list({image.id: image for image in found}.values())[:limit]

    def thumbnail(self, image: int) -> bytes | None:
        """A small JPEG of an image; None if there is none."""
        row = self._rows(
            "SELECT jpeg FROM thumbnails JOIN images USING (content) WHERE id = ?", [image]
        )
        return row[0][0] if row else None

    def file(self, image: int) -> Path | None:
        """An image's file, all links resolved; None unless it is a regular one in the folder."""
        rows = self._rows("SELECT path FROM images WHERE id = ?", [image])
        if not rows or not rows[0][0] or self.about["folder"] is None:
            return None
        return inside(Path(self.about["folder"]), os.fsdecode(rows[0][0]))

    def encode(self, picture: PillowImage.Image) -> np.ndarray:
        """The code [D] float32 that the index's net makes of a picture ("RGB").

        Raises:
            ValueError: the index has no net.
        """
        model = self.about["model"]
        if model is None:
            raise ValueError(f"{self.path.name} is an index of vectors: it has no net to encode by")
        pixels = decoding.fit(picture, tuple(model["image_shape"]), model["fit"])
        with self._lock:
            if self._encoder is None:
                from air_jax.net_file import Encoder  # JAX, only where it is needed

                self._encoder = Encoder(self.path / NET_FILE, model["fingerprint"])
        return self._encoder.encode(pixels)

    def _select(self, where: str, values: list[Any]) -> list[Image]:
        rows = self._rows(
            "SELECT id, path, width, height, bytes, metadata FROM images LEFT JOIN contents "
            f"USING (content) WHERE position IS NOT NULL AND {where}",
            values,
        )
        return [
            Image(image, os.fsdecode(path), width, height, size, json.loads(metadata or "{}"))
            for image, path, width, height, size, metadata in rows
        ]

    def _rows(self, statement: str, values: list[Any]) -> list[tuple]:
        with self._lock:
            return self._connection.execute(statement, values).fetchall()


def open_catalogue(path: Path) -> sqlite3.Connection:
    """The catalogue in a folder, for reading; also where that folder cannot be written to."""
    mode = "mode=ro" if os.access(path, os.W_OK) else "mode=ro&immutable=1"
    address = (path / CATALOGUE).absolute().as_uri()
    connection = sqlite3.connect(
        f"{address}?{mode}", uri=True, isolation_level=None, check_same_thread=False
    )
    connection.create_function("folded", 1, _folded, deterministic=True)
    return connection


def _folded(path: bytes) -> str:
    return shown(os.fsdecode(path)).casefold()


def check_format(path: Path, held: dict[str, str]) -> None:
    """Raise ValueError unless a catalogue's `meta` is of this version's format."""
    if held.get("format") != str(FORMAT):
        raise ValueError(f"{path / CATALOGUE} is of format {held.get('format')}; expected {FORMAT}")


def inside(folder: Path, name: str) -> Path | None:
    """The file of a relative name, all links resolved; None unless a regular one in the folder."""
    try:
        root = folder.resolve(strict=True)
        found = (root / name).resolve(strict=True)
        return found if found.is_relative_to(root) and found.is_file() else None
    except (OSError, RuntimeError, ValueError):  # not there, a loop of links, a NUL
        return None
