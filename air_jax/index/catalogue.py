"""The catalogue of an index in SQLite: what the indexer writes and `image_index` reads.

Images without a position are being indexed, or have left the folder: `publish` gives positions to
the current images and forgets the others, in one transaction. A process killed at any moment leaves
what was published, and what it had committed for the next run.
"""

import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from air_jax.index.decoding import Decoded
from air_jax.index.image_files import File

FILE = "catalogue.sqlite"
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
"""


class Unavailable(OSError):
    """A database that cannot be used now, as it is busy, replaced, or its disk is full."""


class Known(NamedTuple):
    """A file that the catalogue has an image of.

    Attributes:
        image: its id.
        bytes, mtime_ns: when it was read.
        sha256: of its content.
    """

    image: int
    bytes: int
    mtime_ns: int
    sha256: str


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


class Catalogue:
    """The catalogue, opened for writing by the one indexer.

    Args:
        path: of the index's folder, which is made if it is not there.

    Raises:
        ValueError: the catalogue is damaged, or of another format.
    """

    def __init__(self, path: Path):
        self.path = path / FILE
        path.mkdir(parents=True, exist_ok=True)
        self.database = sqlite3.connect(self.path, timeout=30)
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
        except (sqlite3.DatabaseError, ValueError) as error:
            self.database.close()
            raise ValueError(f"{self.path} cannot be read: {error}") from error

    def close(self) -> None:
        self.database.close()

    def set_meta(self, **values: Any) -> None:
        """Remember values under their names."""
        rows = [(key, json.dumps(value)) for key, value in values.items()]
        with self.database:
            self.database.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)
        self.meta |= values

    def known(self) -> dict[str, Known]:
        """By path, the newest image of it."""
        rows = self.database.execute(
            "SELECT path, id, bytes, mtime_ns, sha256 FROM images ORDER BY id"
        )
        return {os.fsdecode(path): Known(*row) for path, *row in rows}

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

    def add(self, batch: list[tuple[File, Decoded, bytes]]) -> None:
        """Add images with their codes, in one transaction."""
        with self.database:
            for file, decoded, code in batch:
                image = self.database.execute(
                    "INSERT INTO images (path, bytes, mtime_ns, sha256, width, height, metadata) "
                    "VALUES (?, ?, ?, ?, ?, ?, '{}')",
                    [
                        *(os.fsencode(file.path), file.bytes, file.mtime_ns),
                        *(decoded.sha256, decoded.width, decoded.height),
                    ],
                ).lastrowid
                self.database.execute("INSERT INTO codes VALUES (?, ?)", [image, code])
                self.database.execute(
                    "INSERT INTO thumbnails VALUES (?, ?)", [image, decoded.thumbnail]
                )
                self.database.execute("DELETE FROM broken WHERE path = ?", [os.fsencode(file.path)])

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

    def codes(self, images: list[int], dimension: int) -> Iterator[np.ndarray]:
        """Codes [D] float32 of images, in their order."""
        for image in images:
            row = self.database.execute("SELECT code FROM codes WHERE image = ?", [image])
            yield np.frombuffer(row.fetchone()[0], "<f4", dimension)

    def publish(self, images: list[int], about: dict[str, Any]) -> None:
        """Make these images, in order of position, what the index is; the others are forgotten."""
        with self.database as database:
            database.execute("UPDATE images SET position = NULL")
            database.executemany(
                "UPDATE images SET position = ? WHERE id = ?",
                ((position, image) for position, image in enumerate(images)),
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

    def publish_rows(self, rows: list[tuple[str, dict[str, str]]], about: dict[str, Any]) -> None:
        """Make rows of vectors, (path, metadata) each, what the index is; ids are rows + 1."""
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

    def rows_without_thumbnail(self) -> list[tuple[int, str]]:
        """Ids and paths of rows whose picture has not been looked at."""
        rows = self.database.execute(
            "SELECT id, path FROM images WHERE width IS NULL AND path != x'' "
            "AND path NOT IN (SELECT path FROM broken) ORDER BY id"
        )
        return [(image, os.fsdecode(path)) for image, path in rows]

    def add_thumbnails(self, batch: list[tuple[int, Decoded]]) -> None:
        """Pictures of rows, or why there is none; in one transaction."""
        with self.database as database:
            for image, decoded in batch:
                if decoded.error is None:
                    database.execute(
                        "UPDATE images SET width = ?, height = ? WHERE id = ?",
                        [decoded.width, decoded.height, image],
                    )
                    database.execute(
                        "INSERT OR REPLACE INTO thumbnails VALUES (?, ?)",
                        [image, decoded.thumbnail],
                    )
                else:
                    database.execute(
                        "INSERT OR REPLACE INTO broken VALUES (?, NULL, NULL, ?)",
                        [os.fsencode(decoded.path), decoded.error],
                    )
