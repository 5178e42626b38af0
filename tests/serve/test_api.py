"""The HTTP interface over an index: what a person does, what is refused, what replay repeats."""

import csv
import gc
import io
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import write_pictures
from PIL import Image

from air_jax.data import decoding
from air_jax.feedback import svm
from air_jax.index import build, vector_files
from air_jax.index.image_index import ImageIndex
from air_jax.index.index_writer import Options
from air_jax.search import scorers
from air_jax.serve import session_files
from air_jax.serve.session_store import SessionStore

pytest.importorskip("fastapi", reason="fastapi is not installed (pip install 'air_jax[app]')")
pytest.importorskip("httpx", reason="httpx is not installed (pip install 'air_jax[test]')")

from fastapi.testclient import TestClient

from air_jax.serve import sessions
from air_jax.serve.api import make_app
from air_jax.serve.service import Following, Service

ROOT = Path(__file__).parents[2]
SIZE = 40
LIMITS = decoding.Limits(bytes=100_000, pixels=10_000)


@pytest.fixture(scope="module")
def index(trained_run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder, SIZE - 1)
    with open(bytes(folder) + b"/<b>=1\xff.png", "wb") as file:
        file.write((folder / "0/000.png").read_bytes())
    out = tmp_path_factory.mktemp("indexes") / "index"
    build.index_images(folder, trained_run, out, Options())
    return out


def open_client(index: Path, sessions: Path, round_seconds: float = 50) -> TestClient:
    service = Service(ImageIndex(index), SessionStore(sessions), LIMITS, round_seconds)
    client = TestClient(make_app(lambda: service), raise_server_exceptions=False)
    client.service = service
    return client


@pytest.fixture
def client(index, tmp_path) -> TestClient:
    return open_client(index, tmp_path / "sessions.sqlite")


def ask(client, method, path, expected=200, **how):
    answer = client.request(method, f"/api{path}", **how)
    assert answer.status_code == expected, answer.text
    return answer.json()


def start(client, **asked):
    return ask(client, "POST", "/sessions", json={"count": 6, **asked})


def mark(client, session, **said):
    """Marks "i17=True" and the like."""
    marks = [{"image": int(key[1:]), "relevant": value} for key, value in said.items()]
    return ask(client, "POST", f"/sessions/{session['session']}/marks", json={"marks": marks})


def go_on(client, session, **asked):
    path = f"/sessions/{session['session']}/rounds"
    return ask(client, "POST", path, json={"count": 6, **asked})


def shown(session) -> list[int]:
    return [one["image"] for one in session["round"]["results"]]


def png(size=(20, 20), colour="red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def upload(client, content=None, expected=200, kind="image/png"):
    content = png() if content is None else content
    return ask(
        client, "POST", "/uploads", expected, content=content, headers={"content-type": kind}
    )


def test_the_first_retrieval_is_the_nearest_images_without_the_query(client, index):
    opened = ImageIndex(index)
    codes = np.asarray(opened.codes.exact)
    position = opened.position(5)
    order = np.argsort(((codes - codes[position]) ** 2).sum(axis=1), kind="stable")
    expected = [int(opened.ids[p]) for p in order if p != position]
    found = shown(start(client, images=[5], count=8))
    # The file with the strange name is a copy of another: equal distances.
    assert set(found) == set(expected[:8])


def test_a_whole_search_over_two_rounds_with_undo_and_a_step_back(client):
    session = start(client, images=[5])
    first = shown(session)
    said = mark(client, session, **{f"i{first[0]}": True, f"i{first[1]}": False})
    assert [(one["image"], one["relevant"]) for one in said["marks"]] == [
        (first[0], True),
        (first[1], False),
    ]
    second = go_on(client, session)
    assert (second["current"], second["round"]["learner"]) == (1, "discriminant")
    assert not set(first[:2]) & set(shown(second))
    mark(client, session, **{f"i{shown(second)[0]}": True})
    third = go_on(client, session, learner="svc", show="uncertain", hide_judged=False)
    assert third["rounds"][2]["relevant"] == 2
    path = f"/sessions/{session['session']}"
    assert shown(ask(client, "GET", path)) == shown(third)
    assert shown(ask(client, "POST", path + "/back", json={"round": 0})) == first
    assert len(ask(client, "GET", path)["rounds"]) == 3
    assert len(ask(client, "GET", path)["marks"]) == 2
    assert shown(ask(client, "POST", path + "/undo")) == shown(third)
    assert shown(ask(client, "POST", path + "/undo")) == shown(second)
    undone = ask(client, "POST", path + "/undo")
    assert len(undone["marks"]) == 2
    ask(client, "POST", path + "/undo")
    ask(client, "POST", path + "/undo")
    assert ask(client, "POST", path + "/undo", 400) == {"error": "there is nothing to undo"}


def test_a_mark_again_unmarks_and_sessions_do_not_mix(client):
    one, other = start(client, images=[5]), start(client, images=[5])
    mark(client, one, i7=True)
    mark(client, other, i7=False)
    assert mark(client, one, i8=True, i7=None)["marks"][0]["image"] == 8
    held = ask(client, "GET", f"/sessions/{other['session']}")["marks"]
    assert [(mark["image"], mark["relevant"]) for mark in held] == [(7, False)]


@pytest.mark.parametrize("relevant", [True, False])
@pytest.mark.parametrize("learner", ["discriminant", "svc"])
def test_marks_of_one_kind_from_a_random_start_give_a_round(client, relevant, learner):
    session = start(client, random=True)
    assert session["round"]["results"][0]["score"] is None
    assert len(set(shown(session))) == 6
    mark(client, session, **{f"i{image}": relevant for image in shown(session)[:2]})
    found = go_on(client, session, learner=learner)
    assert len(shown(found)) == 6
    assert not set(shown(found)) & set(shown(session)[:2])


def test_several_examples_and_uploads_make_one_query(client):
    token = upload(client)["upload"]
    session = start(client, images=[3, 5], uploads=[token])
    assert not {3, 5} & set(shown(session))
    mark(client, session, i9=False)
    assert not {3, 5, 9} & set(shown(go_on(client, session)))
    another = upload(client, png(colour="blue"))["upload"]
    path = f"/sessions/{session['session']}"
    added = ask(client, "POST", path + "/uploads", json={"uploads": [another]})
    assert added["query"]["uploads"] == [token, another]
    assert len(shown(go_on(client, session))) == 6
    assert client.get(f"/api/uploads/{another}/thumbnail").content[:2] == b"\xff\xd8"


def test_an_upload_of_an_indexed_picture_finds_that_picture_first(client, index):
    opened = ImageIndex(index)
    content = opened.file(9).read_bytes()
    session = start(client, uploads=[upload(client, content)["upload"]])
    assert shown(session)[0] == 9


@pytest.mark.parametrize(
    ("content", "kind", "status", "text"),
    [
        (b"no picture", "image/png", 422, "no image of a known format"),
        (png()[:-40], "image/png", 422, "damaged"),
        (png((200, 200)), "image/png", 422, "pixels; at most 10,000"),
        (b"\x89PNG" + bytes(200_000), "image/png", 422, "bytes; at most 100,000"),
        (png(), "text/html", 415, "expected image/*"),
        (b"", "application/octet-stream", 422, "no image"),
    ],
    ids=["text", "cut", "pixels", "bytes", "kind", "empty"],
)
def test_uploads_that_are_no_small_image_are_refused_with_a_reason(
    client, content, kind, status, text
):
    assert text in upload(client, content, status, kind)["error"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "text"),
    [
        ("POST", "/sessions", {}, 400, "expected images or uploads, or random"),
        ("POST", "/sessions", {"images": [5], "random": True}, 400, "and not both"),
        ("POST", "/sessions", {"images": [999]}, 400, "image 999"),
        ("POST", "/sessions", {"uploads": ["x"]}, 404, "'x'"),
        ("POST", "/sessions", {"images": ["a"]}, 422, "images.0"),
        ("POST", "/sessions", {"images": [5], "cuont": 3}, 422, "cuont"),
        ("POST", "/sessions", {"images": [5], "count": 1001}, 422, "count"),
        ("POST", "/sessions/{s}/rounds", {"learner": "magic"}, 400, "learner='magic'"),
        ("POST", "/sessions/{s}/rounds", {"show": "worst"}, 400, "show='worst'"),
        ("POST", "/sessions/{s}/marks", {"marks": [{"image": 999, "relevant": True}]}, 404, "999"),
        ("POST", "/sessions/{s}/back", {"round": 4}, 400, "round 4"),
        ("POST", "/sessions/nothing/undo", None, 404, "'nothing'"),
        ("GET", "/sessions/nothing", None, 404, "'nothing'"),
        ("DELETE", "/sessions/nothing", None, 404, "'nothing'"),
        ("GET", "/images/999", None, 404, "999"),
        ("GET", "/images/999/thumbnail", None, 404, "999"),
        ("GET", "/images/-1", None, 422, "image"),
        ("GET", "/images?count=100000", None, 422, "count"),
        ("GET", "/nothing", None, 404, "Not Found"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(client, method, path, body, status, text):
    token = start(client, images=[5])["session"]
    assert text in ask(client, method, path.format(s=token), status, json=body)["error"]
    assert len(ask(client, "GET", f"/sessions/{token}")["rounds"]) == 1


@pytest.mark.parametrize("path", ["/static/../api.py", "/static/%2e%2e/api.py", "/..%2f..%2fetc"])
def test_no_path_leads_out_of_the_pages_folder(client, path):
    assert client.get(path).status_code == 404


def test_files_that_left_or_became_links_are_not_shown(trained_run, tmp_path):
    folder = tmp_path / "pictures"
    write_pictures(folder, 4)
    secret = tmp_path / "secret.png"
    secret.write_bytes(png())
    build.index_images(folder, trained_run, tmp_path / "index", Options())
    client = open_client(tmp_path / "index", tmp_path / "sessions.sqlite")
    assert client.get("/api/images/1/preview").headers["content-type"] == "image/jpeg"
    path = ImageIndex(tmp_path / "index").file(1)
    path.unlink()
    assert client.get("/api/images/1/preview").status_code == 404
    path.symlink_to(secret)
    assert client.get("/api/images/1/preview").status_code == 404


def test_browsing_and_finding_give_every_image_once_in_order(client):
    pages = [ask(client, "GET", f"/images?offset={at}&count=15") for at in (0, 15, 30)]
    labels = [one["label"] for page in pages for one in page["images"]]
    assert len(labels) == SIZE == pages[0]["total"]
    assert "<b>=1\N{REPLACEMENT CHARACTER}.png" in labels
    found = ask(client, "GET", "/images/find?text=/003")["images"]
    assert [one["label"] for one in found] == ["0/003.png"]
    answer = client.get("/api/images/1/thumbnail")
    assert answer.content[:2] == b"\xff\xd8"
    again = client.get("/api/images/1/thumbnail", headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_sessions_are_listed_renamed_deleted_and_there_after_a_restart(client, index, tmp_path):
    session = start(client, images=[5], name="mine")
    mark(client, session, i7=True)
    again = open_client(index, tmp_path / "sessions.sqlite")
    (listed,) = ask(again, "GET", "/sessions")["sessions"]
    assert (listed["name"], listed["relevant"], listed["rounds"]) == ("mine", 1, 1)
    path = f"/sessions/{session['session']}"
    assert ask(again, "PATCH", path, json={"name": "<b>"})["name"] == "<b>"
    ask(again, "DELETE", path)
    assert ask(again, "GET", "/sessions") == {"sessions": []}


def played(client) -> dict:
    session = start(client, images=[5], uploads=[upload(client)["upload"]])
    mark(client, session, **{f"i{shown(session)[0]}": True, f"i{shown(session)[1]}": False})
    second = go_on(client, session)
    mark(client, session, **{f"i{shown(second)[0]}": True, f"i{shown(second)[1]}": False})
    return go_on(client, session, learner="svc")


def test_replay_gives_the_same_rankings(client, index, tmp_path):
    session = played(client)
    file = tmp_path / "session.json"
    file.write_bytes(client.get(f"/api/sessions/{session['session']}/export.json").content)
    command = [sys.executable, "-m", "air_jax.replay", str(file), f"--out={tmp_path / 'out.json'}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out.json").read_text())["rounds"]
    assert [one["same"] for one in found] == [True] * 3
    assert found[2]["images"] == shown(session)
    # A ranking that is not the same is told.
    held = session_files.read(file)
    held["session"]["rounds"][2]["images"].reverse()
    before, now = session_files.replay(held, ImageIndex(index))[2]
    assert session_files.compared(before, now)["first_different_rank"] == 1
    held["session"]["codes"] = "model:another"
    with pytest.raises(ValueError, match="codes of model:another"):
        session_files.replay(held, ImageIndex(index))
    file.write_text("{}")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "is no session exported" in done.stderr


def test_the_exported_model_ranks_as_the_page_did(client, index):
    session = start(client, images=[5])
    mark(client, session, **{f"i{shown(session)[0]}": True, f"i{shown(session)[1]}": False})
    found = go_on(client, session, learner="discriminant")
    content = client.get(f"/api/sessions/{session['session']}/model.npz").content
    with np.load(io.BytesIO(content), allow_pickle=False) as model:
        assert str(model["kind"]) == "linear"
        codes = np.asarray(ImageIndex(index).codes.exact)
        standardised = (codes - model["mean"]) / model["deviation"]
        scores = standardised @ model["weights"][0] + model["intercept"][0]
    opened = ImageIndex(index)
    for one in found["round"]["results"]:
        assert scores[opened.position(one["image"])] == pytest.approx(one["score"], abs=1e-3)
    assert set(scorers.to_arrays(scorers.Near(codes[:1]))) == {"points", "kind"}
    random = start(client, random=True)
    answer = ask(client, "GET", f"/sessions/{random['session']}/model.npz", 400)
    assert "random start" in answer["error"]


def test_the_csv_has_paths_scores_and_marks_and_no_formulas(client):
    session = start(client, images=[5], count=SIZE - 1)
    first = shown(session)[0]
    mark(client, session, **{f"i{first}": True, "i5": False})
    text = client.get(f"/api/sessions/{session['session']}/export.csv").text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == SIZE
    assert (rows[0]["image"], rows[0]["mark"], rows[0]["rank"]) == (str(first), "relevant", "1")
    assert (rows[-1]["image"], rows[-1]["mark"], rows[-1]["rank"]) == ("5", "irrelevant", "")
    assert not [row for row in rows if row["path"][0] in "=+-@"]


def test_a_round_that_is_not_solved_is_said_to_be_so_wherever_it_is_shown(client, monkeypatch):
    session = start(client, images=[5])
    relevant = np.random.default_rng(0).random(SIZE) < 0.5
    mark(client, session, **{f"i{image + 1}": bool(relevant[image]) for image in range(SIZE)})
    path = f"/api/sessions/{session['session']}"

    def told(solved: bool) -> None:
        found = go_on(client, session, learner="svc", hide_judged=False)
        assert found["round"]["solved"] is solved
        rows = list(csv.DictReader(io.StringIO(client.get(f"{path}/export.csv").text)))
        ranked = {(row["learnt"], row["certain"], row["solved"]) for row in rows if row["rank"]}
        assert ranked == {("yes", "yes", "yes" if solved else "no")}
        others = {(row["learnt"], row["certain"], row["solved"]) for row in rows if not row["rank"]}
        assert others == {("", "", "")}
        with np.load(io.BytesIO(client.get(f"{path}/model.npz").content)) as model:
            assert bool(model["solved"]) is solved
        held = client.get(f"{path}/export.json").json()
        made, again = session_files.replay(held, client.service.index)[-1]
        assert session_files.compared(made, again)["solved"] is solved

    told(solved=True)
    monkeypatch.setattr(svm, "MAX_ITERATIONS", 3)
    monkeypatch.setattr(svm, "MAX_ITERATIONS_PER_SAMPLE", 0)
    ask(client, "POST", f"/sessions/{session['session']}/undo")
    told(solved=False)


def test_an_index_of_vectors_is_searched_too_but_for_uploads(tmp_path):
    np.save(tmp_path / "codes.npy", np.random.default_rng(0).normal(size=(30, 6)))
    vector_files.index_vectors(tmp_path / "codes.npy", None, None, tmp_path / "index", Options())
    client = open_client(tmp_path / "index", tmp_path / "sessions.sqlite")
    assert ask(client, "GET", "/index")["uploads"] is False
    session = start(client, images=[3])
    mark(client, session, **{f"i{shown(session)[0]}": True, f"i{shown(session)[1]}": False})
    assert len(shown(go_on(client, session))) == 6
    assert "without a net" in upload(client, expected=409)["error"]


def test_marks_of_images_that_left_the_index_are_passed_over(trained_run, tmp_path):
    folder = tmp_path / "pictures"
    write_pictures(folder, 12)
    out = tmp_path / "index"
    build.index_images(folder, trained_run, out, Options())
    client = open_client(out, tmp_path / "sessions.sqlite")
    session = start(client, images=[5])
    gone = shown(session)[0]
    mark(client, session, **{f"i{gone}": True, f"i{shown(session)[1]}": False})
    ImageIndex(out).file(gone).unlink()
    build.index_images(folder, trained_run, out, Options())
    client = open_client(out, tmp_path / "sessions.sqlite")
    found = ask(client, "GET", f"/sessions/{session['session']}")
    assert found["round"]["results"][0]["label"] == "(no longer in the index)"
    assert gone not in shown(go_on(client, session))
    assert client.get(f"/api/sessions/{session['session']}/export.csv").status_code == 200


@pytest.fixture
def followed(trained_run, tmp_path):
    """A folder of pictures, what indexes it, and the interface as `serve` runs it."""
    folder, out = tmp_path / "pictures", tmp_path / "index"
    write_pictures(folder, 12)

    def index():
        return build.index_images(folder, trained_run, out, Options())

    def opened(before: Service | None = None) -> Service:
        index = ImageIndex(out)
        in_place = before is not None and before.store.is_in_place()
        store = before.store if in_place else SessionStore(out / "sessions.sqlite")
        return Service(index, store, LIMITS)

    index()
    following = Following(opened(), opened)
    client = TestClient(make_app(lambda: following.service), raise_server_exceptions=False)
    return folder, index, following, client


def test_an_index_made_anew_is_served_without_a_new_start_and_sessions_go_on(followed):
    folder, index, following, client = followed
    session = start(client, images=[5], count=11)
    gone, kept = shown(session)[:2]
    mark(client, session, **{f"i{gone}": True, f"i{kept}": False})
    assert following.look() is False
    before = following.service
    before.index.file(gone).unlink()
    (folder / "new.png").write_bytes(png(colour="blue"))
    index()
    assert ask(client, "GET", "/index")["generation"] == 1
    assert shown(go_on(client, session))  # the codes it was opened with can still be read
    assert following.look() is True
    assert following.look() is False
    about = ask(client, "GET", "/index")
    assert (about["generation"], about["size"]) == (2, 12)
    (new,) = ask(client, "GET", "/images/find?text=new.png")["images"]
    found = shown(go_on(client, session, count=12))
    assert new["image"] in found
    assert not {gone, kept} & set(found)
    assert len(ask(client, "GET", f"/sessions/{session['session']}")["marks"]) == 2
    uploaded = start(client, uploads=[upload(client, png(colour="blue"))["upload"]])
    assert shown(uploaded)[0] == new["image"]
    assert len(before.index.codes.exact) == 12


def test_a_session_goes_on_and_is_replayed_after_a_folder_was_renamed(followed, tmp_path):
    folder, index, following, client = followed
    session = played(client)
    file = tmp_path / "session.json"
    file.write_bytes(client.get(f"/api/sessions/{session['session']}/export.json").content)
    (folder / "1").rename(folder / "renamed")
    index()
    assert following.look() is True
    found = ask(client, "GET", f"/sessions/{session['session']}")
    assert shown(found) == shown(session)
    labels = [one["item"]["label"] for one in found["marks"]]
    labels += [one["label"] for one in found["round"]["results"]]
    assert not [label for label in labels if label.startswith(("1/", "("))]
    go_on(client, session)
    held = session_files.read(file)
    pairs = session_files.replay(held, following.service.index)
    assert all(session_files.compared(*pair)["same"] for pair in pairs)
    held["contents"][str(shown(session)[0])] = "0" * 64
    with pytest.raises(ValueError, match="it is of another index"):
        session_files.replay(held, following.service.index)


def test_a_picture_of_vectors_that_was_replaced_is_shown_anew(tmp_path):
    write_pictures(tmp_path / "pictures", 3)
    np.save(tmp_path / "codes.npy", np.eye(3))
    (tmp_path / "rows.csv").write_text("path\n0/000.png\n1/001.png\n2/002.png\n")
    paths = (tmp_path / "codes.npy", tmp_path / "rows.csv", tmp_path / "pictures", tmp_path / "ix")
    vector_files.index_vectors(*paths, Options())
    client = open_client(tmp_path / "ix", tmp_path / "sessions.sqlite")
    before = client.get("/api/images/1/thumbnail")
    (tmp_path / "pictures/0/000.png").write_bytes(png())
    vector_files.index_vectors(*paths, Options())
    known = {"if-none-match": before.headers["etag"]}
    after = client.get("/api/images/1/thumbnail", headers=known)
    assert after.status_code == 200
    assert after.content != before.content
    assert client.get("/api/images/1").json()["width"] == 20


def test_an_index_that_cannot_be_opened_anew_is_still_served_as_it_was(followed):
    folder, index, following, client = followed
    (folder / "new.png").write_bytes(png(colour="blue"))
    index()
    codes = next((folder.parent / "index").glob("codes-*/codes.npy"))
    content = codes.read_bytes()
    codes.write_bytes(content[:-100])
    assert following.look() is False
    assert len(shown(start(client, images=[5]))) == 6
    codes.write_bytes(content)
    assert following.look() is True


def test_a_server_notices_by_itself_that_its_index_was_made_anew(followed):
    folder, index, following, _ = followed
    following.start(seconds=0.01)
    (folder / "new.png").write_bytes(png(colour="blue"))
    index()
    end = time.monotonic() + 60
    while following.service.index.about["size"] == 12 and time.monotonic() < end:
        time.sleep(0.01)
    following.end()
    assert following.service.index.about["size"] == 13


def test_every_generation_is_served_however_many_threads_read(followed):
    folder, index, following, client = followed
    for generation in range(2, 8):
        (folder / f"{generation}.png").write_bytes(png(colour=(generation, 0, 0)))
        index()
        assert following.look() is True
        threads = [threading.Thread(target=client.get, args=["/api/images"]) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        about = ask(client, "GET", "/images")
        assert (about["generation"], about["total"]) == (generation, 11 + generation)


def test_an_index_that_is_replaced_while_it_is_served_is_never_mixed_with_the_old_one(followed):
    folder, index, following, client = followed
    session = start(client, images=[5])
    version = ask(client, "GET", "/index")["version"]
    shutil.rmtree(folder)
    shutil.rmtree(folder.parent / "index")
    for path in ("/index", "/images", "/images/1", f"/sessions/{session['session']}"):
        assert "deleted or replaced" in ask(client, "GET", path, 503)["error"]
    marks = {"marks": [{"image": 5, "relevant": True}]}
    ask(client, "POST", f"/sessions/{session['session']}/marks", 503, json=marks)
    assert following.look() is False
    write_pictures(folder, 12, seed=1)
    (folder / "0/new.png").write_bytes(png())  # the ids after it are of other pictures
    index()
    ask(client, "GET", "/images", 503)
    assert following.look() is True
    about = ask(client, "GET", "/index")
    assert (about["generation"], about["size"]) == (1, 13)
    assert about["version"] != version
    ask(client, "GET", f"/sessions/{session['session']}", 404)
    mark(client, start(client, images=[5]), i5=True)
    again = SessionStore(folder.parent / "index" / "sessions.sqlite")
    assert [one["relevant"] for one in again.summaries()] == [1]
    opened = ImageIndex(folder.parent / "index")
    for one in ask(client, "GET", "/images")["images"]:
        assert one["label"] == opened.images([one["image"]])[0].path


def test_a_look_that_fails_in_any_way_is_said_once_and_tried_again(followed, monkeypatch, capsys):
    folder, index, following, _ = followed

    def fail(self):
        raise sqlite3.DatabaseError("database disk image is malformed")

    with monkeypatch.context() as patch:
        patch.setattr(ImageIndex, "is_newest", fail)
        assert following.look() is following.look() is False
    assert capsys.readouterr().out.count("disk image is malformed") == 1
    (folder / "new.png").write_bytes(png())
    index()
    assert following.look() is True


def test_an_index_that_was_replaced_leaves_no_open_files(followed):
    folder, index, following, client = followed

    def held() -> int:
        gc.collect()
        out = str(folder.parent / "index")
        files = [os.path.realpath(path) for path in Path("/proc/self/fd").iterdir()]
        maps = Path("/proc/self/maps").read_text().splitlines()
        return sum(out in line for line in files + maps)

    counts = []
    for turn in range(4):
        (folder / f"{turn}.png").write_bytes(png(colour=(turn, 0, 0)))
        index()
        assert following.look() is True
        start(client, images=[5])
        counts.append(held())
    assert counts[-1] <= counts[1]  # SQLite keeps what it may need again


def test_an_index_of_other_vectors_does_not_show_its_rows_in_older_sessions(tmp_path):
    file, out = tmp_path / "codes.npy", tmp_path / "index"
    np.save(file, np.random.default_rng(0).normal(size=(30, 6)))
    vector_files.index_vectors(file, None, None, out, Options())
    path = f"/sessions/{start(open_client(out, tmp_path / 's.sqlite'), images=[3])['session']}"
    np.save(file, np.random.default_rng(1).normal(size=(30, 6)))
    vector_files.index_vectors(file, None, None, out, Options())
    client = open_client(out, tmp_path / "s.sqlite")
    for method, what in (("GET", ""), ("POST", "/undo"), ("GET", "/export.json")):
        assert "made anew" in ask(client, method, path + what, 409)["error"]
    ask(client, "DELETE", path)


def test_every_learner_makes_a_round_of_an_index_that_is_judged_wholly(client):
    session = start(client, images=[5])
    mark(client, session, **{f"i{image}": image % 2 == 0 for image in range(1, SIZE + 1)})
    for learner in ask(client, "GET", "/index")["learners"]:
        found = go_on(client, session, learner=learner, hide_judged=False)
        assert len(shown(found)) == 6


def test_two_clicks_make_one_round(client):
    session = start(client, images=[5])
    mark(client, session, i7=True)
    path = f"/sessions/{session['session']}"
    answers = []

    def click(**asked) -> None:
        answers.append(client.post(f"/api{path}/rounds", json={"count": 6, **asked}))

    for asked in ({}, {"follows": 0}):
        threads = [threading.Thread(target=click, kwargs=asked) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(ask(client, "GET", path)["rounds"]) == 2
    assert {answer.status_code for answer in answers[:2]} == {200}
    assert answers[0].json()["rounds"] == answers[1].json()["rounds"]
    assert [answer.status_code for answer in answers[2:]] == [409, 409]
    assert "round 1 is shown now" in answers[2].json()["error"]
    assert go_on(client, session, follows=1)["current"] == 2
    # Other settings or other marks make another round.
    assert go_on(client, session, learner="svc")["current"] == 3
    mark(client, session, i8=False)
    assert go_on(client, session, learner="svc")["current"] == 4


def test_a_round_is_not_added_to_a_session_that_has_gone_on_without_it(client):
    token = start(client, images=[5])["session"]
    service = client.service
    before = service.session(token)
    settings = {"learner": "svc", "show": "best", "count": 6, "hide_judged": True}
    made = service.searcher.next_round(before, service.code_of, **settings)
    go_on(client, {"session": token}, learner="rocchio")
    with service.store.change(token) as session, pytest.raises(sessions.Conflict):
        sessions.add_round(session, made, after=before.rounds[0])
    assert [made.learner for made in service.session(token).rounds] == [None, "rocchio"]


def test_a_round_that_takes_too_long_is_given_up_and_blocks_nobody(index, tmp_path, monkeypatch):
    client = open_client(index, tmp_path / "sessions.sqlite", round_seconds=1)
    session, other = start(client, images=[5]), start(client, images=[6])
    engine, release = client.service.searcher.engine, threading.Event()
    search = engine.next_round

    def slow(learner, *rest, **settings):
        if learner == "svc":
            assert release.wait(60)
        return search(learner, *rest, **settings)

    monkeypatch.setattr(engine, "next_round", slow)
    answers = []
    path = f"/api/sessions/{session['session']}/rounds"
    asking = threading.Thread(
        target=lambda: answers.append(client.post(path, json={"count": 6, "learner": "svc"}))
    )
    asking.start()
    assert mark(client, session, i7=True)["marks"]
    assert go_on(client, other)["current"] == 1
    asking.join()
    assert answers[0].status_code == 503
    assert "longer than 1 s" in answers[0].json()["error"]
    release.set()
    client.service.long_work._threads.shutdown(wait=True)
    found = ask(client, "GET", f"/sessions/{session['session']}")
    assert (len(found["rounds"]), len(found["marks"])) == (1, 1)


@pytest.mark.parametrize("bug", [KeyError("key"), ValueError("a shape"), AssertionError()])
def test_a_fault_of_the_program_is_500_and_its_number_stands_in_the_log(
    client, monkeypatch, capsys, bug
):
    session = start(client, images=[5])

    def fail(*_, **__):
        raise bug

    monkeypatch.setattr(client.service.searcher.engine, "next_round", fail)
    path = f"/sessions/{session['session']}/rounds"
    said = ask(client, "POST", path, 500, json={"count": 6})["error"]
    number = re.search(r"number ([0-9a-f]{8});", said)[1]
    log = capsys.readouterr().out
    assert f"fault {number} at POST /api{path}" in log
    assert "Traceback" in log


def test_the_interface_is_described(client):
    described = ask(client, "GET", "/openapi.json")
    assert {"/api/sessions/{token}/rounds", "/api/uploads", "/api/images"} <= set(
        described["paths"]
    )
