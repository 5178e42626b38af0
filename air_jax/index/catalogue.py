"""The catalogue of an index in SQLite: what the indexer writes and `image_index` reads.

Images without a position are being indexed, or have left the folder: `publish` gives positions to
the current images and drops the others, in one transaction. A process killed at any moment leaves
what was published, and what it had committed for the next run. Of images that were dropped the
catalogue keeps id, path and content hash, so that they get their ids back when they return.
"""

import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from air_jax.data.decoding import Decoded
from air_jax.data.image_files import CATALOGUE_FILE, File

FILE = CATALOGUE_FILE
# SQLite puts the name of what is damaged into its message, whatever bytes that has become.
DAMAGED = (sqlite3.DatabaseError, UnicodeDecodeError)
FORMAT = 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS images (
    id INTEGER PRIMARY KEY AUTOINCREMENT, path BLOB NOT NULL,
    bytes INTEGER, mtime_ns INTEGER, sha256 TEXT, width INTEGER, height INTEGER,
    metadata TEXT NOT NULL, position INTEGER
) STRICT;
CREATE INDEX IF NOT EXISTS by_path ON images (path);
CREATE INDEX IF NOT EXISTS by_content ON images (sha256);
CREATE UNIQUE INDEX IF NOT EXISTS by_position ON images (position) WHERE position IS NOT NULL;
CREATE TABLE IF NOT EXISTS codes (image INTEGER PRIMARY KEY, code BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS thumbnails (image INTEGER PRIMARY KEY, jpeg BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS broken (
    path BLOB PRIMARY KEY, bytes INTEGER, mtime_ns INTEGER, reason TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS dropped (
    id INTEGER PRIMARY KEY, path BLOB NOT NULL, bytes INTEGER NOT NULL, sha256 TEXT NOT NULL
) STRICT;
"""
# What SQLite reports of a file that is not damaged: the system does not let it read or write there.
NOT_DAMAGE = (
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR),
    *(sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY),
)


class Unavailable(OSError):
    """A database that cannot be used now, as it is busy, replaced, or its disk is full."""


class Known(NamedTuple):
    """A file that the catalogue has, or had, an image of.

    Attributes:
        image: its id.
        path: where it was.
        bytes, mtime_ns: when it was read.
        sha256: of its content.
        kind: "published"; "new" if it was added since; "dropped" if only its id is kept.
    """

    image: int
    path: str
    bytes: int
    mtime_ns: int
    sha256: str
    kind: str


def codes_name(generation: int) -> str:
    """The folder of the codes of a generation."""
    return f"codes-{generation}"


def identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from another one of its name; None if there is none.

    A database that is open is looked at by its name only: to open and close its file, but through
    SQLite, drops all locks that this process has on it.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def read_meta(database: sqlite3.Connection) -> dict[str, Any]:
    """All of the `meta` table.

    Raises:
        ValueError: the catalogue is damaged, or of another format.
    """
    meta = {key: json.loads(value) for key, value in database.execute("SELECT * FROM meta")}
    if meta.get("format") != FORMAT:
        raise ValueError(f"the catalogue is of format {meta.get('format')}; expected {FORMAT}")
    return meta


def check_integrity(database: sqlite3.Connection, quick: bool = False) -> None:
    """Let SQLite look for damage in a whole database.

    Args:
        database: a connection to it.
        quick: do not compare tables with their indexes: a million images take 0.5 s, not 3.

    Raises:
        sqlite3.DatabaseError, UnicodeDecodeError: there is some; both are in `DAMAGED`.
    """
    check = "quick_check" if quick else "integrity_check"
    (found,) = database.execute(f"PRAGMA {check}(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(found)


def unusable(path: Path, error: Exception) -> Exception:
    """The error to raise for one of `DAMAGED`, which SQLite reported of a file: it names the file.

    Returns:
        `Unavailable` where the file is whole, but SQLite cannot read or write it; or a ValueError.
    """
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in NOT_DAMAGE:
        return Unavailable(
            f"{path} cannot be used: {error}; SQLite needs to write this file and beside it, even "
            "to read it"
        )
    return ValueError(f"{path} cannot be read: {error}")


class Catalogue:
    """The catalogue, opened for writing by the one indexer.

    Args:
        path: of the index's folder, which is made if it is not there.

    Raises:
        OSError: the catalogue cannot be written.
        ValueError: the catalogue is damaged, or of another format.
    """

    def __init__(self, path: Path):
        self.path = path / FILE
        path.mkdir(parents=True, exist_ok=True)
        try:
            self.database = sqlite3.connect(self.path, timeout=30)
        except DAMAGED as error:
            raise unusable(self.path, error) from error
        try:
            check_integrity(self.database)
            self.database.execute("PRAGMA journal_mode = WAL")
            self.database.execute("PRAGMA synchronous = NORMAL")
            self.database.executescript(SCHEMA)
            self.database.execute(
                "INSERT OR IGNORE INTO meta VALUES ('format', ?)", [json.dumps(FORMAT)]
            )
            self.database.commit()
            self.meta = read_meta(self.database)
        except (*DAMAGED, ValueError) as error:
            self.database.close()
            raise unusable(self.path, error) from error

    def close(self) -> None:
        self.database.close()

    def set_meta(self, **values: Any) -> None:
        """Remember values under their names."""
        rows = [(key, json.dumps(value)) for key, value in values.items()]
        with self.database:
            self.database.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)
        self.meta |= values

    def known(self) -> list[Known]:
        """Every image: those published before new ones, both in order of id."""
        rows = self.database.execute(
            "SELECT id, path, bytes, mtime_ns, sha256, iif(position IS NULL, 'new', 'published') "
            "FROM images ORDER BY position IS NULL, id"
        )
        return [Known(image, os.fsdecode(path), *row) for image, path, *row in rows]

    def dropped(self) -> list[Known]:
        """Images that left the index, in order of id."""
        rows = self.database.execute("SELECT id, path, bytes, sha256 FROM dropped ORDER BY id")
        return [
            Known(image, os.fsdecode(path), size, 0, sha256, "dropped")
            for image, path, size, sha256 in rows
        ]

    def broken(self) -> dict[str, tuple[int, int, str]]:
        """By path, size, time and reason of files that could not be read."""
        rows = self.database.execute("SELECT path, bytes, mtime_ns, reason FROM broken")
        return {os.fsdecode(path): tuple(row) for path, *row in rows}

    def code_of_content(self, sha256: str) -> bytes | None:
        """The code of an image of the same content, if there is one."""
        row = self.database.execute(
            "SELECT code FROM images JOIN codes ON image = id WHERE sha256 = ? LIMIT 1", [sha256]
        ).fetchone()
        return None if row is None else row[0]

    def add(self, batch: list[tuple[File, Decoded, bytes, int | None]]) -> list[int]:
        """Add images with their codes, in one transaction.

        Args:
            batch: with the id of each that was dropped before.

        Returns:
            Their ids.
        """
        ids = []
        with self.database as database:
            for file, decoded, code, known in batch:
                path = os.fsencode(file.path)
                (image,) = database.execute(
                    "INSERT INTO images (id, path, bytes, mtime_ns, sha256, width, height, "
                    "metadata) VALUES (?, ?, ?, ?, ?, ?, ?, '{}') RETURNING id",
                    [
                        *(known, path, file.bytes, file.mtime_ns),
                        *(decoded.sha256, decoded.width, decoded.height),
                    ],
                ).fetchone()
                database.execute("INSERT INTO codes VALUES (?, ?)", [image, code])
                database.execute("INSERT INTO thumbnails VALUES (?, ?)", [image, decoded.thumbnail])
                database.execute("DELETE FROM dropped WHERE id = ?", [image])
                database.execute("DELETE FROM broken WHERE path = ?", [path])
                ids.append(image)
        return ids

    def add_broken(self, batch: list[tuple[File, str]]) -> None:
        """Remember files that cannot be read, until they change."""
        rows = [(os.fsencode(f.path), f.bytes, f.mtime_ns, reason) for f, reason in batch]
        with self.database:
            self.database.executemany("INSERT OR REPLACE INTO broken VALUES (?, ?, ?, ?)", rows)

    def touch(self, unchanged: list[tuple[int, File]]) -> None:
        """New times of files whose content is the same."""
        rows = [(file.bytes, file.mtime_ns, image) for image, file in unchanged]
        with self.database:
            self.database.executemany(
                "UPDATE images SET bytes = ?, mtime_ns = ? WHERE id = ?", rows
            )

    def keep_broken(self, paths: set[str]) -> None:
        """Forget broken files that are not among these."""
        gone = [[os.fsencode(path)] for path in set(self.broken()) - paths]
        with self.database:
            self.database.executemany("DELETE FROM broken WHERE path = ?", gone)

    def codes(self, images: list[int]) -> Iterator[np.ndarray]:
        """Codes [D] float32 of images, in their order."""
        for image in images:
            row = self.database.execute("SELECT code FROM codes WHERE image = ?", [image])
            yield np.frombuffer(row.fetchone()[0], "<f4")

    def publish(
        self, images: list[int], about: dict[str, Any], moved: Sequence[tuple[int, File]] = ()
    ) -> None:
        """Make these images, in order of position, what the index is; the others are dropped.

        Args:
            images: their ids.
            about: what is published.
            moved: images that are another file now.
        """
        with self.database as database:
            database.execute("UPDATE images SET position = NULL")
            database.executemany(
                "UPDATE images SET path = ?, bytes = ?, mtime_ns = ? WHERE id = ?",
                ((os.fsencode(file.path), file.bytes, file.mtime_ns, i) for i, file in moved),
            )
            database.executemany(
                "UPDATE images SET position = ? WHERE id = ?",
                ((position, image) for position, image in enumerate(images)),
            )
            database.execute(
                "INSERT INTO dropped SELECT id, path, bytes, sha256 FROM images "
                "WHERE position IS NULL"
            )
            database.execute("DELETE FROM images WHERE position IS NULL")
            for table in ("codes", "thumbnails"):
                database.execute(f"DELETE FROM {table} WHERE image NOT IN (SELECT id FROM images)")
            database.execute(
                "INSERT OR REPLACE INTO meta VALUES ('published', ?)", [json.dumps(about)]
            )
        self.meta["published"] = about

    def published(self) -> list[int]:
        """The images that are published, in order of position."""
        rows = self.database.execute(
            "SELECT id FROM images WHERE position IS NOT NULL ORDER BY position"
        )
        return [row[0] for row in rows]

    def some_thumbnails(self, most: int) -> list[bytes]:
        """JPEGs of at most so many images, spread evenly over the positions."""
        rows = self.database.execute(
            "SELECT image FROM thumbnails JOIN images ON id = image "
            "WHERE position IS NOT NULL ORDER BY position"
        ).fetchall()
        count = min(most, len(rows))
        chosen = [rows[place * len(rows) // count] for place in range(count)]
        query = "SELECT jpeg FROM thumbnails WHERE image = ?"
        return [self.database.execute(query, row).fetchone()[0] for row in chosen]

    def publish_rows(
        self, rows: Sequence[tuple[str, dict[str, str]]], about: dict[str, Any]
    ) -> None:
        """Make rows of vectors, path and metadata each, what the index is; ids are rows + 1."""
        values = (
            (row + 1, os.fsencode(path), json.dumps(metadata), row)
            for row, (path, metadata) in enumerate(rows)
        )
        with self.database as database:
            for table in ("images", "thumbnails", "broken"):
                database.execute(f"DELETE FROM {table}")
            database.executemany(
                "INSERT INTO images (id, path, metadata, position) VALUES (?, ?, ?, ?)", values
            )
            database.execute(
                "INSERT OR REPLACE INTO meta VALUES ('published', ?)", [json.dumps(about)]
            )
        self.meta["published"] = about

    def pictures(self) -> list[tuple[int, File]]:
        """Ids of rows that name a picture, and the files that their thumbnails were made of.

        A file of no size and time stands for none.
        """
        rows = self.database.execute(
            "SELECT id, path, ifnull(bytes, 0), ifnull(mtime_ns, 0) FROM images "
            "WHERE path != x'' ORDER BY id"
        )
        return [(image, File(os.fsdecode(path), *state)) for image, path, *state in rows]

    def set_pictures(self, batch: list[tuple[int, File, Decoded]]) -> None:
        """Give rows their pictures, or take away those whose file is broken; in one transaction."""
        with self.database as database:
            for image, file, decoded in batch:
                path, state = os.fsencode(file.path), [file.bytes, file.mtime_ns]
                database.execute("DELETE FROM thumbnails WHERE image = ?", [image])
                database.execute("DELETE FROM broken WHERE path = ?", [path])
                size = [decoded.width, decoded.height] if decoded.error is None else [None, None]
                database.execute(
                    "UPDATE images SET bytes = ?, mtime_ns = ?, width = ?, height = ? WHERE id = ?",
                    [*state, *size, image],
                )
                if decoded.error is None:
                    database.execute(
                        "INSERT INTO thumbnails VALUES (?, ?)", [image, decoded.thumbnail]
                    )
                else:
                    database.execute(
                        "INSERT INTO broken VALUES (?, ?, ?, ?)", [path, *state, decoded.error]
                    )
