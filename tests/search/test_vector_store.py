"""What a vector store promises, held to NumPy: the folder's and, by Milvus Lite, Milvus'."""

import contextlib
import subprocess
import sys

import numpy as np
import pytest
from conftest import MILVUS_IS_MISSING
from hypothesis import given, settings
from hypothesis import strategies as st

from air_jax.search import code_store, milvus_store, vector_store
from air_jax.search.milvus_store import MilvusStore
from air_jax.search.vector_store import MappedStore


class Place:
    """Where a store of one kind is; opens it, again and again."""

    def __init__(self, kind, folder):
        self.kind, self.folder, self.opened = kind, folder, []

    def open(self, dimension=0):
        if self.kind == "mapped":
            return MappedStore(self.folder / "codes", dimension)
        self.opened.append(MilvusStore(f"milvus:{self.folder}/codes.db", dimension))
        return self.opened[-1]

    def close(self):
        while self.opened:
            self.opened.pop().close()


@pytest.fixture(params=["mapped", "milvus"], scope="module")
def new_place(request, tmp_path_factory):
    """Makes places: `with new_place() as place`."""
    if request.param == "milvus":
        pytest.importorskip("milvus_lite", reason=MILVUS_IS_MISSING)
    return lambda: contextlib.closing(Place(request.param, tmp_path_factory.mktemp("store")))


@pytest.fixture
def place(new_place):
    with new_place() as place:
        yield place


@pytest.fixture
def milvus(tmp_path):
    """The address of a file of Milvus Lite."""
    pytest.importorskip("milvus_lite", reason=MILVUS_IS_MISSING)
    return f"milvus:{tmp_path}/codes.db"


def brute_force(ids, codes, query, k, metric, reverse=False):
    """Ids and scores of the k best, in double precision, equal ones in order of ids."""
    codes, query = codes.astype(np.float64), query.astype(np.float64)
    scores = codes @ query if metric == "ip" else -((codes - query) ** 2).sum(axis=1)
    order = np.lexsort((ids, scores if reverse else -scores))[:k]
    return ids[order], scores[order]


def random_codes(seed, size, dimension=6, scale=1.0, away=0.0):
    rng = np.random.default_rng(seed)
    ids = rng.permutation(10 * size)[:size] + 5
    return ids, (scale * rng.normal(size=(size, dimension)) + away).astype(np.float32)


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_the_best_are_those_of_numpy_with_ties_in_order_of_ids(new_place, data):
    size = data.draw(st.sampled_from([1, 6, 130, 400]), "size")
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6), "seed"))
    # Small whole numbers: scores are exact in any precision, and many are equal.
    codes = rng.integers(-2, 3, (size, 3)).astype(np.float32)
    ids = rng.permutation(3 * size)[:size]
    metric = data.draw(st.sampled_from(vector_store.METRICS), "metric")
    reverse = data.draw(st.booleans(), "reverse")
    without = rng.permutation(3 * size)[: data.draw(st.integers(0, size), "without")]
    k = data.draw(st.integers(1, size + 2), "k")
    queries = rng.integers(-2, 3, (2, 3)).astype(np.float32)
    with new_place() as place:
        store = place.open(3)
        store.add(ids, codes)
        hits = store.search(queries, k, metric, without=without, reverse=reverse)
    left = ~np.isin(ids, without)
    assert hits.certain.all()
    for b, query in enumerate(queries):
        expected, scores = brute_force(ids[left], codes[left], query, k, metric, reverse)
        assert hits.ids[b].tolist() == expected.tolist()
        np.testing.assert_array_equal(hits.scores[b], scores)
        for one, code in zip(hits.ids[b], hits.codes[b], strict=True):
            np.testing.assert_array_equal(code, codes[ids == one][0])


@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 10**6),
    metric=st.sampled_from(vector_store.METRICS),
    scale=st.sampled_from([1e-3, 1.0, 1e4]),
    reverse=st.booleans(),
)
def test_codes_of_any_size_are_found_exactly(new_place, seed, metric, scale, reverse):
    ids, codes = random_codes(seed, 500, scale=scale)
    query = codes[:1] + np.float32(scale)
    with new_place() as place:
        store = place.open(6)
        store.add(ids, codes)
        hits = store.search(query, 20, metric, reverse=reverse)
    expected, scores = brute_force(ids, codes, query[0], 20, metric, reverse)
    assert hits.certain.all()
    assert hits.ids[0].tolist() == expected.tolist()
    np.testing.assert_allclose(hits.scores[0], scores, rtol=1e-12)


def test_codes_far_from_the_origin_are_found_or_said_to_be_uncertain(new_place):
    sure = []
    for away in (0.0, 30.0, 1000.0, 30_000.0):
        ids, codes = random_codes(7, 1000, away=away)
        query = codes[:1] + np.float32(0.1)
        with new_place() as place:
            store = place.open(6)
            store.add(ids, codes)
            hits = store.search(query, 20, "l2")
        if hits.certain.all():
            assert hits.ids[0].tolist() == brute_force(ids, codes, query[0], 20, "l2")[0].tolist()
            sure.append(away)
    assert {0.0, 30.0} <= set(sure)


def test_the_sign_of_an_inner_product_is_kept(place):
    store = place.open(2)
    store.add(np.array([1, 2, 3]), np.array([[3, 0], [-3, 0], [0, 5]], np.float32))
    hits = store.search(np.array([[2.0, 0.0]]), 3, "ip")
    assert hits.ids[0].tolist() == [1, 3, 2]
    assert hits.scores[0].tolist() == [6, 0, -6]
    hits = store.search(np.array([[-2.0, 0.0]]), 3, "ip")
    assert hits.ids[0].tolist() == [2, 3, 1]


def test_of_more_equal_codes_than_are_looked_for_the_first_ids_are_found(place):
    size = 4 * vector_store.MARGIN
    ids = np.random.default_rng(0).permutation(size)
    codes = np.ones((size, 4), np.float32)
    codes[ids < 3] = 2
    store = place.open(4)
    store.add(ids, codes)
    hits = store.search(np.ones((1, 4)), 5, "l2")
    assert hits.ids[0].tolist() == [3, 4, 5, 6, 7]
    assert hits.certain.all()


def test_codes_come_back_bit_for_bit_in_the_shape_that_is_asked(place):
    ids, codes = random_codes(1, 300, away=100.0)
    store = place.open(6)
    store.add(ids, codes)
    asked = np.array([[ids[4], ids[290]], [ids[4], ids[0]]])
    np.testing.assert_array_equal(store.get(asked), codes[[[4, 290], [4, 0]]])
    assert store.get(np.zeros(0, np.int64)).shape == (0, 6)
    with pytest.raises(ValueError, match="no code of id 1"):
        store.get(np.array([ids[0], 1]))


def test_added_again_a_code_is_replaced_and_deleted_it_is_gone(place):
    ids, codes = random_codes(2, 50)
    store = place.open(6)
    store.add(ids, codes)
    store.add(ids[:3], -codes[:3])
    assert store.count() == 50
    np.testing.assert_array_equal(store.get(ids[:4]), [*-codes[:3], codes[3]])
    store.delete(np.append(ids[10:20], 10**9))
    assert store.count() == 40
    assert set(store.ids().tolist()) == set(ids.tolist()) - set(ids[10:20].tolist())
    assert ids[12] not in store.search(codes[12:13], 40, "l2").ids
    with pytest.raises(ValueError, match="no code of id"):
        store.get(ids[15])
    store.add(ids[15:16], codes[15:16])
    assert store.search(codes[15:16], 1, "l2").ids[0, 0] == ids[15]
    store.delete(ids)
    assert store.count() == 0
    assert store.ids().tolist() == []
    hits = store.search(codes[:2], 3, "ip")
    assert hits.ids.shape == (2, 0)
    assert hits.certain.all()


def test_opened_again_it_answers_the_same(place):
    ids, codes = random_codes(3, 200)
    store = place.open(6)
    store.add(ids[:150], codes[:150])
    store.add(ids[150:], codes[150:])
    store.delete(ids[:20])
    before = store.search(codes[:3], 30, "l2")
    place.close()
    store = place.open()
    assert store.dimension == 6
    assert store.count() == 180
    for was, now in zip(before, store.search(codes[:3], 30, "l2"), strict=True):
        np.testing.assert_array_equal(was, now)
    place.close()
    with pytest.raises(ValueError, match="holds codes of 6, not 7"):
        place.open(7)


def test_what_is_not_there_is_an_error(place):
    with pytest.raises((ValueError, FileNotFoundError), match="codes"):
        place.open()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_cannot_be_meant_is_refused(place, bad):
    ids, codes = random_codes(4, 5)
    store = place.open(6)
    with pytest.raises(ValueError, match="expected"):
        store.add(ids, codes[:, :5])
    with pytest.raises(ValueError, match="expected"):
        store.add(ids[:4], codes)
    with pytest.raises(ValueError, match="not different"):
        store.add(np.array([1, 1]), codes[:2])
    spoilt = codes.copy()
    spoilt[2, 3] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        store.add(ids, spoilt)
    assert store.count() == 0
    store.add(ids, codes)
    with pytest.raises(ValueError, match="NaN or infinity"):
        store.search(spoilt[2:3], 1, "l2")
    with pytest.raises(ValueError, match="k=0"):
        store.search(codes, 0, "l2")
    with pytest.raises(ValueError, match="metric='cosine'"):
        store.search(codes, 1, "cosine")
    with pytest.raises(ValueError, match="expected"):
        store.search(codes[0], 1, "l2")


def test_a_folder_of_codes_without_ids_has_rows_for_them(tmp_path):
    _, codes = random_codes(5, 30)
    code_store.write(tmp_path / "codes", codes, "int8")
    store = MappedStore(tmp_path / "codes")
    hits = store.search(codes[7:8], 4, "l2")
    assert hits.ids[0].tolist() == brute_force(np.arange(30), codes, codes[7], 4, "l2")[0].tolist()


def test_a_store_sees_only_the_ids_it_is_to_see(milvus):
    ids, codes = np.arange(100), random_codes(6, 100)[1]
    with_all = MilvusStore(milvus, 6)
    with_all.add(ids, codes)
    some = MilvusStore(milvus, within=(20, 59))
    assert some.count() == 40
    assert sorted(some.ids().tolist()) == list(range(20, 60))
    found = some.search(codes[:1], 100, "l2")
    assert (
        found.ids[0].tolist()
        == brute_force(ids[20:60], codes[20:60], codes[0], 40, "l2")[0].tolist()
    )
    with pytest.raises(ValueError, match="no code of id 3"):
        some.get(np.array([3, 30]))
    some.close()
    assert with_all.count() == 100  # closing one leaves the other open
    with_all.close()


def test_with_an_index_that_is_not_exact_nothing_is_certain(milvus):
    ids, codes = random_codes(8, 300)
    store = MilvusStore(milvus, 6)
    store.add(ids, codes)
    assert store.search(codes[:1], 5, "l2").certain.all()
    from pymilvus import MilvusClient

    client, name = MilvusClient(milvus.removeprefix("milvus:")), milvus_store.LITE_COLLECTION
    client.release_collection(name)
    client.drop_index(name, "code")
    index = client.prepare_index_params()
    index.add_index("code", index_type="HNSW", metric_type="IP", params={"M": 8})
    client.create_index(name, index)
    again = MilvusStore(milvus)
    hits = again.search(codes[:1], 5, "l2")
    assert (np.diff(hits.scores) <= 0).all()
    assert not hits.certain.any()
    client.close()
    again.close()
    store.close()


def test_more_than_milvus_finds_at_once_is_refused(milvus):
    store = MilvusStore(milvus, 6)
    with pytest.raises(ValueError, match="k=20000: expected from 1 to 16384"):
        store.search(np.zeros((1, 6)), 20_000, "l2")
    store.close()


def test_a_collection_of_another_owner_or_not_ours_is_refused(milvus):
    MilvusStore(milvus, 6, owner="one").close()
    with pytest.raises(ValueError, match="belongs to another index"):
        MilvusStore(milvus, 6, owner="two")
    from pymilvus import MilvusClient

    client = MilvusClient(milvus.removeprefix("milvus:"))
    client.drop_collection(milvus_store.LITE_COLLECTION)
    client.create_collection(milvus_store.LITE_COLLECTION, dimension=7)
    with pytest.raises(ValueError, match="air_jax did not make this collection"):
        MilvusStore(milvus, 6)
    client.close()


@pytest.mark.parametrize(
    ("address", "uri", "collection"),
    [
        ("milvus://there:19530/codes", "http://there:19530", "codes"),
        ("milvus://there/codes", "http://there:19530", "codes"),
        ("milvus+https://there:443/codes", "https://there:443", "codes"),
        ("milvus://[::1]:19530/codes", "http://[::1]:19530", "codes"),
    ],
)
def test_an_address_names_a_cluster_and_a_collection(address, uri, collection):
    assert milvus_store.parse(address)[:2] == (uri, collection)
    assert milvus_store.parse(milvus_store.parse(address).text).uri == uri


def test_an_address_names_a_file_wherever_the_command_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    address = milvus_store.parse("milvus:codes.db")
    assert address.uri == str(tmp_path / "codes.db")
    assert milvus_store.parse(address.text) == address
    assert milvus_store.parse(f"milvus://{tmp_path}/codes.db") == address
    with pytest.raises(ValueError, match="no folder"):
        milvus_store.parse("milvus:nowhere/codes.db")


@pytest.mark.parametrize(
    "address", ["", "codes", "codes.db", "http://there/codes", "milvus://there", "milvus://there/",
                "milvus://there/a/b", "milvus:///", "milvus://there:x/codes", "milvus://there/a-b"],
)  # fmt: skip
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ValueError, match="expected milvus://HOST:PORT/COLLECTION or milvus:FILE"):
        milvus_store.parse(address)


def test_a_password_in_an_address_is_refused_and_not_repeated():
    with pytest.raises(ValueError, match="MILVUS_TOKEN") as error:
        milvus_store.parse("milvus://me:secret@there/codes")
    assert "secret" not in str(error.value)


def test_a_token_goes_to_the_cluster_only(tmp_path, monkeypatch):
    pymilvus = pytest.importorskip("pymilvus", reason=MILVUS_IS_MISSING)
    given = []

    def client(uri, token, timeout):
        given.append((uri, token))
        raise pymilvus.exceptions.MilvusException(message="not there")

    monkeypatch.setattr(pymilvus, "MilvusClient", client)
    monkeypatch.setenv(milvus_store.TOKEN_VARIABLE, "me:secret")
    with pytest.raises(ConnectionError, match="not there") as error:
        MilvusStore("milvus://there/codes")
    assert "secret" not in str(error.value)
    with pytest.raises(ConnectionError):
        MilvusStore(f"milvus:{tmp_path}/codes.db")
    assert given == [("http://there:19530", "me:secret"), (f"{tmp_path}/codes.db", "")]


def run_index(tmp_path, address):
    np.save(tmp_path / "codes.npy", np.zeros((3, 2), np.float32))
    command = [sys.executable, "-m", "air_jax.index", f"--vectors={tmp_path}/codes.npy"]
    command += [f"--out={tmp_path}/index", f"--store={address}"]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_cluster_that_cannot_be_reached_is_one_line(tmp_path):
    pytest.importorskip("pymilvus", reason=MILVUS_IS_MISSING)
    done = run_index(tmp_path, "milvus://127.0.0.1:1/codes")
    assert done.returncode == 2
    assert "milvus://127.0.0.1:1/codes cannot be reached" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_file_that_another_process_has_open_is_one_line(milvus, tmp_path):
    store = MilvusStore(milvus, 2)
    done = run_index(tmp_path, milvus)
    store.close()
    assert done.returncode == 2
    assert "another process has it open" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
