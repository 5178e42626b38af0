"""Indexes whose codes are in Milvus: the same as those on this machine, after whatever happens."""

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import MILVUS_IS_MISSING, write_pictures

pytest.importorskip("milvus_lite", reason=MILVUS_IS_MISSING)

from air_jax.data import decoding
from air_jax.index import build, milvus_index, vector_files
from air_jax.index.catalogue import Catalogue
from air_jax.index.image_index import ImageIndex
from air_jax.index.index_writer import Options
from air_jax.search.milvus_collection import LITE_COLLECTION, Collection

ROOT = Path(__file__).parents[2]


def content(out):
    """By path, or else by id, the codes of an index; its store has no others."""
    index = ImageIndex(out)
    codes = index.codes.get(np.arange(len(index.ids)))
    images = index.images(index.ids.tolist())
    if "store" in index.about:
        index.codes.collection.close()
        everything = Collection(index.about["store"], owner=index.about["owner"])
        assert everything.count() == len(index.ids)
        everything.close()
    return {
        (image.path or str(image.id)): code.tobytes()
        for image, code in zip(images, codes, strict=True)
    }


@pytest.fixture
def store(tmp_path):
    return f"milvus:{tmp_path}/codes.db"


@pytest.fixture
def pictures(tmp_path):
    write_pictures(tmp_path / "pictures", 14)
    return tmp_path / "pictures"


def make(folder, model, out, store=None):
    return build.index_images(folder, model, out, Options(store=store))


def change(folder):
    """Two new pictures, one gone, one renamed."""
    (folder / "0/000.png").unlink()
    (folder / "1/001.png").rename(folder / "1/moved.png")
    write_pictures(folder / "new", 2, seed=1)


def test_an_index_holds_the_same_codes_and_follows_its_folder(
    pictures, trained_run, store, tmp_path
):
    found = make(pictures, trained_run, tmp_path / "there", store)
    make(pictures, trained_run, tmp_path / "here")
    assert content(tmp_path / "there") == content(tmp_path / "here")
    assert make(pictures, trained_run, tmp_path / "there", store)["generation"] == 1
    here, there = ImageIndex(tmp_path / "here"), ImageIndex(tmp_path / "there")
    for name in ("mean", "covariance", "deviation"):
        np.testing.assert_array_equal(getattr(here.codes, name), getattr(there.codes, name))
    there.codes.collection.close()
    assert here.about["fingerprint"] == found["fingerprint"]
    change(pictures)
    found = make(pictures, trained_run, tmp_path / "there", store)
    assert (found["added"], found["moved"], found["unchanged"]) == (2, 1, 12)
    assert found["generation"] == 2
    make(pictures, trained_run, tmp_path / "fresh")
    assert content(tmp_path / "there") == content(tmp_path / "fresh")
    assert [path.name for path in (tmp_path / "there").glob("*codes-*")] == ["codes-2.npz"]


def test_only_what_is_new_is_sent(pictures, trained_run, store, tmp_path, monkeypatch):
    make(pictures, trained_run, tmp_path / "index", store)
    sent = []
    add = Collection.add
    monkeypatch.setattr(
        Collection, "add", lambda self, ids, codes: sent.extend(ids) or add(self, ids, codes)
    )
    change(pictures)
    make(pictures, trained_run, tmp_path / "index", store)
    assert len(sent) == 2  # a picture that was moved keeps its code


class Killed(BaseException):
    """Nothing catches it."""


def kill(monkeypatch, owner, name, when):
    """A method that kills its process before it does anything, after half of it, or afterwards."""
    method = getattr(owner, name)

    def killing(self, *given):
        if when == "half way":
            method(self, *(one[: len(one) // 2] for one in given))
        elif when == "after":
            method(self, *given)
        raise Killed

    monkeypatch.setattr(owner, name, killing)


@pytest.mark.parametrize(
    ("owner", "name", "when"),
    [
        (Collection, "add", "before"),
        (Collection, "add", "half way"),
        (Collection, "add", "after"),
        (Catalogue, "publish", "after"),
        (Collection, "delete", "half way"),
        (Collection, "delete", "after"),
    ],
)
def test_wherever_it_is_killed_the_next_run_ends_with_the_same_index(
    pictures, trained_run, store, tmp_path, monkeypatch, owner, name, when
):
    out = tmp_path / "index"
    make(pictures, trained_run, out, store)
    before = content_or_none(out)
    for path in ("0/003.png", "0/006.png"):
        (pictures / path).unlink()
    change(pictures)
    with monkeypatch.context() as patch:
        kill(patch, owner, name, when)
        with pytest.raises(Killed):
            make(pictures, trained_run, out, store)
    make(pictures, trained_run, tmp_path / "fresh")
    after = content(tmp_path / "fresh")
    # What is opened now is what was published, or an error that says what to do.
    assert content_or_none(out) in (before, after, None)
    if name == "add":
        assert content_or_none(out) == before
    make(pictures, trained_run, out, store)
    assert content(out) == after


def content_or_none(out):
    """None: it cannot be opened until the indexer has run again, and says so. Else what is seen."""
    try:
        index = ImageIndex(out)
    except ValueError as error:
        assert "run air_jax.index again" in str(error)
        return None
    codes = index.codes.get(np.arange(len(index.ids)))
    assert everything_found(index) == set(index.codes.ids.tolist())
    images = index.images(index.ids.tolist())
    index.codes.collection.close()
    return {image.path: code.tobytes() for image, code in zip(images, codes, strict=True)}


def everything_found(index):
    """The ids of all codes that a search in an index finds, some more being asked for."""
    codes = index.codes
    asked = np.zeros(codes.dimension + 1, np.float32)
    return set(codes.collection.search(asked, 2 * len(codes), np.zeros(0, np.int64))[0].tolist())


def kill_and_finish(folder, model, out, store, times, longest):
    """Runs the command, killed at random moments, then to its end; returns how often it died."""
    command = [sys.executable, "-m", "air_jax.index", f"--images={folder}", f"--model={model}"]
    command += [f"--out={out}", f"--store={store}", "--workers=2"]
    died = 0
    for attempt in range(times):
        child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        while not (out / "catalogue.sqlite").exists() and child.poll() is None:
            time.sleep(0.01)
        time.sleep(random.Random(attempt).uniform(0, longest))
        child.kill()
        died += child.wait() != 0
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return died


@pytest.mark.long
def test_killed_twenty_times_the_next_run_ends_with_the_same_index(
    trained_run, store, tmp_path, monkeypatch
):
    folder = tmp_path / "pictures"
    write_pictures(folder, 3000)
    make(folder, trained_run, tmp_path / "undisturbed")
    died = kill_and_finish(folder, trained_run, tmp_path / "index", store, times=20, longest=10)
    assert died >= 5
    assert content(tmp_path / "index") == content(tmp_path / "undisturbed")


def index_vectors(path, codes, out, store, metadata=None):
    np.save(path, codes)
    return vector_files.index_vectors(path, metadata, None, out, Options(store=store))


def random_vectors(seed, size=30):
    return np.random.default_rng(seed).normal(size=(size, 6)).astype(np.float32)


def test_other_vectors_replace_all_and_an_open_index_says_so(store, tmp_path):
    out = tmp_path / "index"
    index_vectors(tmp_path / "codes.npy", random_vectors(0), out, store)
    opened = ImageIndex(out)
    index_vectors(tmp_path / "codes.npy", random_vectors(1, 35), out, store)
    with pytest.raises(ValueError, match="no code of id"):
        opened.codes.get(np.array([3]))
    opened.codes.collection.close()
    assert content(out) == {
        str(n + 1): code.tobytes() for n, code in enumerate(random_vectors(1, 35))
    }


def test_other_vectors_half_sent_do_not_show(store, tmp_path, monkeypatch):
    out = tmp_path / "index"
    index_vectors(tmp_path / "codes.npy", random_vectors(0), out, store)
    with monkeypatch.context() as patch:
        kill(patch, Collection, "add", "half way")
        with pytest.raises(Killed):
            index_vectors(tmp_path / "codes.npy", random_vectors(1), out, store)
    index = ImageIndex(out)
    np.testing.assert_array_equal(index.codes.get(np.arange(30)), random_vectors(0))
    assert everything_found(index) == set(index.codes.ids.tolist())
    index.codes.collection.close()
    # Then a third file comes.
    index_vectors(tmp_path / "codes.npy", random_vectors(2), out, store)
    assert list(content(out).values()) == [code.tobytes() for code in random_vectors(2)]


def test_other_metadata_sends_no_codes(store, tmp_path, monkeypatch):
    out, table = tmp_path / "index", tmp_path / "rows.csv"
    table.write_text("title\n" + "a\n" * 30)
    index_vectors(tmp_path / "codes.npy", random_vectors(0), out, store, table)
    kill(monkeypatch, Collection, "add", "before")
    table.write_text("title\n" + "b\n" * 30)
    index_vectors(tmp_path / "codes.npy", random_vectors(0), out, store, table)
    index = ImageIndex(out)
    assert index.images([7])[0].metadata == {"title": "b"}
    index.codes.collection.close()


def lite(store):
    from pymilvus import MilvusClient

    return MilvusClient(store.removeprefix("milvus:"))


def test_a_collection_that_is_gone_or_cut_is_told_and_the_indexer_repairs_it(store, tmp_path):
    out = tmp_path / "index"
    index_vectors(tmp_path / "codes.npy", random_vectors(0), out, store)
    expected = content(out)
    client = lite(store)
    client.drop_collection(LITE_COLLECTION)
    client.close()
    with pytest.raises(ValueError, match="there is no such collection"):
        ImageIndex(out)
    index_vectors(tmp_path / "codes.npy", random_vectors(0), out, store)
    assert content(out) == expected
    about = Catalogue(out).meta["published"]
    held = Collection(store, owner=about["owner"])
    held.delete(held.ids()[:4])
    held.close()
    with pytest.raises(ValueError, match=r"30 images .* has 26 of 6: run air_jax.index again"):
        ImageIndex(out)
    index_vectors(tmp_path / "codes.npy", random_vectors(0), out, store)
    assert content(out) == expected


def test_a_collection_of_another_index_or_dimension_is_refused(store, tmp_path):
    index_vectors(tmp_path / "codes.npy", random_vectors(0), tmp_path / "index", store)
    with pytest.raises(ValueError, match="belongs to another index"):
        index_vectors(tmp_path / "codes.npy", random_vectors(0), tmp_path / "other", store)
    with pytest.raises(ValueError, match="holds codes of 6, not 4"):
        index_vectors(tmp_path / "codes.npy", random_vectors(0)[:, :4], tmp_path / "index", store)
    np.save(tmp_path / "codes.npy", random_vectors(0))
    with pytest.raises(ValueError, match="store='milvus:.*asked for is None"):
        vector_files.index_vectors(
            tmp_path / "codes.npy", None, None, tmp_path / "index", Options()
        )
    with pytest.raises(ValueError, match="--storage=int8: a --store keeps float32"):
        vector_files.index_vectors(
            tmp_path / "codes.npy", None, None, tmp_path / "x", Options(storage="int8", store=store)
        )
    assert len(content(tmp_path / "index")) == 30


@pytest.mark.parametrize("damage", ["cut", "missing", "other"])
def test_damaged_statistics_are_an_error_that_names_the_file(store, tmp_path, damage):
    out = tmp_path / "index"
    index_vectors(tmp_path / "codes.npy", random_vectors(0), out, store)
    file = out / "codes-1.npz"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-30])
    elif damage == "missing":
        file.unlink()
    else:
        np.savez(file, mean=np.zeros(5), covariance=np.zeros((5, 5)))
    with pytest.raises((ValueError, FileNotFoundError), match="codes-1.npz"):
        ImageIndex(out)


def unavailable(*_, **__):
    from pymilvus.exceptions import MilvusException

    raise MilvusException(message="it is\ndown")


def test_the_page_s_interface_answers_as_on_an_index_of_this_machine_or_says_what_to_use(
    pictures, trained_run, store, tmp_path, monkeypatch
):
    pytest.importorskip("fastapi", reason="fastapi is not installed (pip install 'air_jax[app]')")
    pytest.importorskip("httpx", reason="httpx is not installed (pip install 'air_jax[test]')")
    from fastapi.testclient import TestClient

    from air_jax.serve.api import make_app
    from air_jax.serve.service import Service
    from air_jax.serve.session_store import SessionStore

    make(pictures, trained_run, tmp_path / "here")
    make(pictures, trained_run, tmp_path / "there", store)
    answers = []
    for out in ("here", "there"):
        index = ImageIndex(tmp_path / out)
        service = Service(index, SessionStore(tmp_path / f"{out}.sqlite"), decoding.Limits())
        client = TestClient(
            make_app(lambda service=service: service), raise_server_exceptions=False
        )
        told = client.get("/api/index").json()
        refused = ("svc" not in told["learners"], "uncertain" not in told["shows"])
        assert refused == ((False, False) if out == "here" else (True, True))
        assert told["learner"] in told["learners"]
        rounds = [client.post("/api/sessions", json={"images": [5], "count": 6}).json()]
        path = f"/api/sessions/{rounds[0]['session']}"
        shown = [one["image"] for one in rounds[0]["round"]["results"]]
        marks = [{"image": shown[n], "relevant": n < 2} for n in range(4)]
        client.post(f"{path}/marks", json={"marks": marks})
        for learner in ("discriminant", "svc_linear"):
            asked = {"count": 6, "learner": learner}
            rounds.append(client.post(f"{path}/rounds", json=asked).json())
        for asked in ({"learner": "svc"}, {"learner": "discriminant", "show": "uncertain"}):
            answer = client.post(f"{path}/rounds", json={"count": 6, **asked})
            assert answer.status_code == (200 if out == "here" else 400)
            if out == "there":
                assert "discriminant, svc_linear, means, rocchio" in answer.json()["error"]
        assert client.get(f"{path}/export.csv").status_code == 200
        answers.append([one["round"]["results"] for one in rounds])
        if out == "there":
            with monkeypatch.context() as patch:
                patch.setattr(index.codes.collection._client, "search", unavailable)
                answer = client.post("/api/sessions", json={"images": [5], "count": 6})
            assert answer.status_code == 503
            assert "codes.db: it is down" in answer.json()["error"]
            index.codes.collection.close()
    for here, there in zip(*answers, strict=True):
        assert [one["image"] for one in here] == [one["image"] for one in there]
        np.testing.assert_allclose(
            [one["score"] for one in here], [one["score"] for one in there], rtol=1e-4, atol=1e-4
        )


def test_serve_opens_it_and_a_missing_file_is_one_line(store, tmp_path):
    index_vectors(tmp_path / "codes.npy", random_vectors(0), tmp_path / "index", store)
    shutil.rmtree(store.removeprefix("milvus:"))
    command = [sys.executable, "-m", "air_jax.serve", f"--index={tmp_path / 'index'}", "--port=0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "there is no such collection" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert json.loads((tmp_path / "index/index.json").read_text())["store"] == store


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda codes: codes + 1e9, r"row \d+ of the codes loses .* in float32, in which Milvus"),
        (lambda codes: codes * 1e20, "the codes differ by about 1e.20, whose squares"),
    ],
)
def test_codes_that_float32_does_not_hold_are_refused(tmp_path, change, message):
    codes = change(random_vectors(0).astype(np.float64))
    with pytest.raises(ValueError, match=message):
        milvus_index.write(None, np.arange(len(codes)), codes, tmp_path, 1)
