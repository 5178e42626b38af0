"""Sessions and uploaded examples in SQLite: a change is on disk when its call returns.

Several servers may share the file: what is read to be changed is read in the transaction that
writes it. Nothing is written to a file that was deleted or replaced while it was open.
"""

import contextlib
import hashlib
import json
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from air_jax.index.catalogue import DAMAGED, Unavailable, check_integrity, identity, unusable
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


class Missing(LookupError):
    """There is no session or upload of a token."""


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
        Unavailable: it cannot be opened or written, here or by a method.
    """

    def __init__(self, path: Path):
        self.path = path
        self._access = threading.Lock()
        with self._errors():
            self._database = sqlite3.connect(
                path, timeout=BUSY_SECONDS, check_same_thread=False, isolation_level=None
            )
        self._identity = identity(path)
        try:
            with self._errors():
                self._database.execute("PRAGMA journal_mode = WAL")
                self._database.execute("PRAGMA synchronous = FULL")
                self._database.executescript(SCHEMA)
                check_integrity(self._database)
        except (ValueError, Unavailable):
            self._database.close()
            raise

    def close(self) -> None:
        """End; a thread that waits for another process is not waited for."""
        if self._access.acquire(timeout=1):
            self._database.close()
            self._access.release()

    def is_in_place(self) -> bool:
        """Whether the file is the one that was opened, not deleted and not another."""
        return identity(self.path) == self._identity

    def add(self, session: Session) -> None:
        """Keep a new session."""
        with self._transaction() as database:
            self._write(database, session)

    def session(self, token: str) -> Session:
        """A session as it is now.

        Raises:
            Missing: there is none of that token.
            ValueError: it is damaged.
        """
        with self._transaction(begin="BEGIN") as database:
            return self._read(database, token)

    @contextlib.contextmanager
    def change(self, token: str) -> Iterator[Session]:
        """A session to change; it is on disk when the block is left, unless by an exception.

        Nobody else reads or writes the file meanwhile, so the block has to be short.

        Raises:
            Missing: there is none of that token.
        """
        with self._transaction() as database:
            session = self._read(database, token)
            yield session
            session.updated = sessions.now()
            self._write(database, session)

    def delete(self, token: str) -> None:
        """Forget a session.

        Raises:
            Missing: there is none of that token.
        """
        with self._transaction() as database:
            if not database.execute("DELETE FROM sessions WHERE token = ?", [token]).rowcount:
                raise Missing(token)

    def summaries(self) -> list[dict[str, Any]]:
        """Every session in a few words, the newest first."""
        query = (
            "SELECT token AS session, name, created, updated, rounds, relevant, irrelevant "
            "FROM sessions ORDER BY updated DESC, token"
        )
        with self._transaction(begin="BEGIN") as database:
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
            Missing: there is none of that token.
        """
        query = "SELECT codes, width, height, code, thumbnail FROM uploads WHERE token = ?"
        with self._transaction(begin="BEGIN") as database:
            row = database.execute(query, [token]).fetchone()
        if row is None:
            raise Missing(token)
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

    @contextlib.contextmanager
    def _transaction(self, begin: str = "BEGIN IMMEDIATE") -> Iterator[sqlite3.Connection]:
        """One transaction; others that write, in any process, wait until it ends."""
        with self._access, self._errors():
            if not self.is_in_place():
                raise Unavailable(f"{self.path} was deleted or replaced")
            self._database.execute(begin)
            try:
                yield self._database
                self._database.execute("COMMIT")
            finally:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except DAMAGED as error:
            raise unusable(self.path, error) from error

    def _read(self, database: sqlite3.Connection, token: str) -> Session:
        query = "SELECT document FROM sessions WHERE token = ?"
        row = database.execute(query, [token]).fetchone()
        if row is None:
            raise Missing(token)
        return sessions.from_json(self._document(row[0]))

    def _document(self, text: str) -> dict[str, Any]:
        """A session as `_write` wrote it; earlier versions put a checksum and a space before it."""
        try:
            return json.loads(text[text.find("{") :])
        except ValueError as error:
            raise ValueError(f"{self.path} is damaged: a session is no JSON: {error}") from error

    def _write(self, database: sqlite3.Connection, session: Session) -> None:
        said = [mark.relevant for mark in session.marks_now().values()]
        document = json.dumps(sessions.to_json(session), allow_nan=False)
        head = (session.token, session.name, session.created, session.updated)
        counts = (len(session.rounds), said.count(True), said.count(False))
        database.execute(
            "INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (*head, *counts, document),
        )
