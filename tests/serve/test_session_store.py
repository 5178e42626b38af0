"""What is kept of sessions, through crashes and beside other threads."""

import contextlib
import hashlib
import random
import shutil
import sqlite3
import subprocess
import sys
import threading

import numpy as np
import pytest
from faults import Tried

from air_jax.index.catalogue import Unavailable
from air_jax.serve import sessions
from air_jax.serve.session_store import Missing, SessionStore, Upload
from air_jax.serve.sessions import Round, Session

WRITER = """
import sys, signal, os
from pathlib import Path
from air_jax.serve import sessions
from air_jax.serve.session_store import SessionStore
store = SessionStore(Path(sys.argv[1]))
image = 0
while True:
    image += 1
    with store.change("t") as session:
        sessions.mark(session, {image: True})
    print(image, flush=True)
"""


def make_session(token: str = "t") -> Session:
    made = Round(0, None, "best", 2, True, 0, [], [], [1, 2], [0.1, 0.2], True, True, 0.1)
    now = sessions.now()
    return Session(token, f"name of {token}", now, now, "model:1", [1], [], False, 0, [made])


@pytest.fixture
def store(tmp_path):
    store = SessionStore(tmp_path / "sessions.sqlite")
    store.add(make_session())
    yield store
    store.close()


def test_a_session_is_read_as_it_was_written(store):
    session = make_session("u")
    store.add(session)
    again = SessionStore(store.path)
    assert again.session("u") == session
    again.close()


def test_what_was_said_before_a_kill_is_there_after_it(store):
    command = [sys.executable, "-c", WRITER, str(store.path)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for _ in range(20):
        said = int(child.stdout.readline())
    child.kill()
    said = max([said, *(int(line) for line in child.stdout.read().split())])
    child.wait()
    assert set(range(1, said + 1)) <= set(store.session("t").marks)


def test_changes_of_several_threads_and_servers_are_all_kept(store):
    other = SessionStore(store.path)

    def mark(store: SessionStore, start: int) -> None:
        for image in range(start, start + 20):
            with store.change("t") as session:
                sessions.mark(session, {image: True})

    threads = [
        threading.Thread(target=mark, args=[one, 1 + 20 * i])
        for i, one in enumerate((store, store, other, other))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(store.session("t").marks) == set(range(1, 81))
    other.close()


@pytest.mark.parametrize("replaced", [False, True])
def test_nothing_is_acknowledged_in_a_file_that_was_deleted_or_replaced(store, replaced):
    store.path.unlink()
    if replaced:
        SessionStore(store.path).close()
    for attempt in (lambda: store.add(make_session("u")), lambda: store.session("t")):
        with pytest.raises(Unavailable, match="was deleted or replaced"):
            attempt()
    with pytest.raises(Unavailable), store.change("t"):
        pass


def test_a_file_that_cannot_be_written_is_not_called_damaged(store, monkeypatch):
    store._database.execute("PRAGMA query_only = ON")
    with pytest.raises(Unavailable, match="readonly"), store.change("t"):
        pass
    assert store.session("t").images == [1]


def test_a_change_that_fails_leaves_the_session_as_it_was(store):
    def fail() -> None:
        with store.change("t") as session:
            sessions.mark(session, {7: True})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not store.session("t").marks


def test_summaries_count_rounds_and_marks_and_begin_with_the_newest(store):
    store.add(make_session("u"))
    with store.change("t") as session:
        sessions.mark(session, {3: True, 4: False, 5: False})
    found = store.summaries()
    assert [one["session"] for one in found] == ["t", "u"]
    counted = {key: found[0][key] for key in ("rounds", "relevant", "irrelevant")}
    assert counted == {"rounds": 1, "relevant": 1, "irrelevant": 2}


def test_what_was_deleted_is_not_there(store):
    store.delete("t")
    assert store.summaries() == []
    for attempt in (store.session, store.delete, store.upload):
        with pytest.raises(Missing):
            attempt("t")
    with pytest.raises(Missing), store.change("t"):
        pass


def test_uploads_of_no_session_are_forgotten_and_others_are_not(store):
    code = np.arange(4, dtype=np.float32)
    tokens = [store.add_upload(Upload("model:1", 8, 9, code, b"jpeg")) for _ in range(3)]
    found = store.upload(tokens[0])
    assert found[:3] == ("model:1", 8, 9)
    np.testing.assert_array_equal(found.code, code)
    with store.change("t") as session:
        sessions.add_uploads(session, tokens[:1])
    with store.change("t") as session:
        sessions.add_uploads(session, tokens[1:2])
    with store.change("t") as session:
        sessions.undo(session)
    assert store.delete_unused_uploads("0") == 0
    assert store.delete_unused_uploads("9999") == 2
    assert store.upload(tokens[0]).thumbnail == b"jpeg"


def test_a_file_that_is_no_database_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "sessions.sqlite"
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(ValueError, match=r"sessions.sqlite cannot be read"):
        SessionStore(path)


def test_what_earlier_versions_stored_with_checksums_is_read(store):
    """They put a SHA-256 and a space before a session, and a SHA-256 after an upload's code."""
    code = np.arange(4, dtype="<f4")
    upload = store.add_upload(Upload("model:1", 3, 4, code, b"jpeg"))
    store.close()
    database = sqlite3.connect(store.path)
    ((document,),) = database.execute("SELECT document FROM sessions")
    sealed = f"{hashlib.sha256(document.encode()).hexdigest()} {document}"
    database.execute("UPDATE sessions SET document = ?", [sealed])
    sealed = code.tobytes() + hashlib.sha256(code.tobytes()).digest()
    database.execute("UPDATE uploads SET code = ?", [sealed])
    database.commit()
    database.close()
    again = SessionStore(store.path)
    assert again.session("t").images == [1]
    np.testing.assert_array_equal(again.upload(upload).code, code)
    with again.change("t") as session:
        sessions.add_uploads(session, [upload])
    assert again.delete_unused_uploads("9999") == 0
    assert again.session("t").uploads == [[upload, 0]]
    again.close()


@pytest.mark.parametrize("count", [40, pytest.param(1500, marks=pytest.mark.long)])
def test_damage_of_the_file_is_found_or_does_no_harm_to_reading(
    store, tmp_path, count, faults_tried
):
    """SQLite finds what breaks its structure; other bytes change what a session holds."""
    for token in "uvwxyz":
        store.add(make_session(token))
    code = np.arange(4, dtype=np.float32)
    upload = store.add_upload(Upload("model:1", 3, 4, code, b"jpeg"))
    store.close()
    content, draw = store.path.read_bytes(), random.Random(0)
    path = tmp_path / "damaged" / "sessions.sqlite"
    read = refused = 0
    for turn in range(count):
        shutil.rmtree(path.parent, ignore_errors=True)
        path.parent.mkdir()
        place = draw.randrange(100, len(content))  # the head of the file is refused
        changed = bytes([content[place] ^ draw.randrange(1, 256)])
        cut = turn % 8 == 0
        path.write_bytes(content[:place] + (b"" if cut else changed + content[place + 1 :]))
        try:
            with contextlib.closing(SessionStore(path)) as again:
                for token in "tuvwxyz":
                    again.session(token)
                again.upload(upload)
                again.summaries()
            assert not cut
            read += 1
        except ValueError as error:
            assert "session" in str(error)  # or the path, which has it in its name
            refused += 1
    faults_tried.add("one byte changed", "sessions of an index", Tried(count, read, refused))
    assert read
    assert refused
