"""Sessions and uploaded examples in SQLite: a change is on disk when its call returns."""

import contextlib
import hashlib
import json
import secrets
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from air_jax.index.catalogue import DAMAGED, check_integrity
from air_jax.serve import sessions
from air_jax.serve.sessions import Session

SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (
    token TEXT PRIMARY KEY, name TEXT NOT NULL, created TEXT NOT NULL, updated TEXT NOT NULL,
    rounds INTEGER NOT NULL, relevant INTEGER NOT NULL, irrelevant INTEGER NOT NULL,
    document TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS newest ON sessions (updated DESC);
CREATE TABLE IF NOT EXISTS uploads (
    token TEXT PRIMARY KEY, created TEXT NOT NULL, codes TEXT NOT NULL,
    width INTEGER NOT NULL, height INTEGER NOT NULL, code BLOB NOT NULL, thumbnail BLOB NOT NULL
) STRICT;
"""
BUSY_SECONDS = 30  # to wait for another process that writes


class Upload(NamedTuple):
    """An example from outside the index.

    Attributes:
        codes: what made its code: `ImageIndex.about["codes"]`.
        width, height: pixels of what was uploaded.
        code: [D] float32.
        thumbnail: JPEG.
    """

    codes: str
    width: int
    height: int
    code: np.ndarray
    thumbnail: bytes


class SessionStore:
    """The sessions of an index; safe to use from several threads.

    Args:
        path: of the SQLite file, which is made if it is not there.

    Raises:
        ValueError: the file is damaged, or none of SQLite's.
    """

    def __init__(self, path: Path):
        self.path = path
        self._database = sqlite3.connect(path, timeout=BUSY_SECONDS, check_same_thread=False)
        try:
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.executescript(SCHEMA)
            check_integrity(self._database)
        except DAMAGED as error:
            self._database.close()
            raise ValueError(f"{path} cannot be read: {error}") from error
        self._access = threading.Lock()
        self._being_changed: weakref.WeakValueDictionary[str, threading.Lock] = (
            weakref.WeakValueDictionary()  # a lock lives as long as someone holds or awaits it
        )

    def close(self) -> None:
        with self._access:
            self._database.close()

    def add(self, session: Session) -> None:
        """Keep a new session."""
        self._write(session)

    def session(self, token: str) -> Session:
        """A session as it is now.

        Raises:
            KeyError: there is none of that token.
            ValueError: it is damaged.
        """
        row = self._row("SELECT document FROM sessions WHERE token = ?", token)
        if row is None:
            raise KeyError(token)
        return sessions.from_json(self._document(row[0]))

    @contextlib.contextmanager
    def change(self, token: str) -> Iterator[Session]:
        """A session to change; it is on disk when the block is left, unless by an exception.

        Other changes of the same session wait.

        Raises:
            KeyError: there is none of that token.
        """
        with self._access:
            lock = self._being_changed.setdefault(token, threading.Lock())
        with lock:
            session = self.session(token)
            yield session
            session.updated = sessions.now()
            self._write(session)

    def delete(self, token: str) -> None:
        """Forget a session.

        Raises:
            KeyError: there is none of that token.
        """
        with self._access:
            lock = self._being_changed.setdefault(token, threading.Lock())
        with lock, self._transaction() as database:
            if not database.execute("DELETE FROM sessions WHERE token = ?", [token]).rowcount:
                raise KeyError(token)

    def summaries(self) -> list[dict[str, Any]]:
        """Every session in a few words, the newest first."""
        query = (
            "SELECT token AS session, name, created, updated, rounds, relevant, irrelevant "
            "FROM sessions ORDER BY updated DESC, token"
        )
        with self._transaction() as database:
            cursor = database.execute(query)
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]

    def add_upload(self, upload: Upload) -> str:
        """Keep an example; returns its token."""
        token = secrets.token_urlsafe(12)
        code = np.asarray(upload.code, "<f4").tobytes()
        row = (token, sessions.now(), *upload[:3], code, upload.thumbnail)
        with self._transaction() as database:
            database.execute("INSERT INTO uploads VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        return token

    def upload(self, token: str) -> Upload:
        """An example.

        Raises:
            KeyError: there is none of that token.
        """
        columns = "codes, width, height, code, thumbnail"
        row = self._row(f"SELECT {columns} FROM uploads WHERE token = ?", token)
        if row is None:
            raise KeyError(token)
        codes, width, height, code, thumbnail = row
        if hashlib.sha256(code[:-32]).digest() == code[-32:]:  # of an earlier version
            code = code[:-32]
        return Upload(
            codes, width, height, np.frombuffer(code, "<f4").astype(np.float32), thumbnail
        )

    def delete_unused_uploads(self, before: str) -> int:
        """Forget examples of no session that came before a time; returns how many there were."""
        used = set()
        with self._transaction() as database:
            for (document,) in database.execute("SELECT document FROM sessions"):
                session = self._document(document)
                used |= {token for token, _ in session["uploads"]}
                for step in session["undo"]:
                    used |= {token for token, _ in step.get("uploads", [])}
            held = database.execute("SELECT token FROM uploads WHERE created < ?", [before])
            unused = [(token,) for (token,) in held if token not in used]
            database.executemany("DELETE FROM uploads WHERE token = ?", unused)
        return len(unused)

    def _row(self, query: str, *values: str) -> tuple[Any, ...] | None:
        with self._transaction() as database:
            return database.execute(query, values).fetchone()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._access:
            try:
                with self._database as database:
                    yield database
            except DAMAGED as error:
                raise ValueError(f"{self.path} cannot be read or written: {error}") from error

    def _document(self, text: str) -> dict[str, Any]:
        """A session as `_write` wrote it; earlier versions put a checksum and a space before it."""
        try:
            return json.loads(text[text.find("{") :])
        except ValueError as error:
            raise ValueError(f"{self.path} is damaged: a session is no JSON: {error}") from error

    def _write(self, session: Session) -> None:
        said = [mark.relevant for mark in session.marks_now().values()]
        document = json.dumps(sessions.to_json(session), allow_nan=False)
        head = (session.token, session.name, session.created, session.updated)
        counts = (len(session.rounds), said.count(True), said.count(False))
        with self._transaction() as database:
            database.execute(
                "INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (*head, *counts, document),
            )
