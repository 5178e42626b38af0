"""A collection of codes in Milvus Lite: what it keeps, finds, and refuses."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import MILVUS_IS_MISSING

from air_jax.search import milvus_collection
from air_jax.search.milvus_collection import Collection

NOTHING = np.zeros(0, np.int64)


@pytest.fixture
def milvus(tmp_path):
    """The address of a file of Milvus Lite."""
    pytest.importorskip("milvus_lite", reason=MILVUS_IS_MISSING)
    return f"milvus:{tmp_path}/codes.db"


def random_codes(seed, size, dimension=6, away=0.0):
    rng = np.random.default_rng(seed)
    ids = rng.permutation(10 * size)[:size] + 5
    return ids, (rng.normal(size=(size, dimension)) + away).astype(np.float32)


def nearest(store, query, count, without=NOTHING):
    """Ids in order of distance; see `milvus_collection`."""
    return store.search(np.append(2 * query, np.float32(-1)), count, without)[0].tolist()


def test_the_sign_of_an_inner_product_is_kept(milvus):
    store = Collection(milvus, 2)
    given = np.array([[3, 0], [-3, 0], [0, 5]], np.float32)
    store.add(np.array([1, 2, 3]), given)
    for sign, expected in ((2, [1, 3, 2]), (-2, [2, 3, 1])):
        ids, codes = store.search(np.float32([sign, 0, 0]), 3, NOTHING)
        assert ids.tolist() == expected
        np.testing.assert_array_equal(codes, given[ids - 1])
    assert nearest(store, np.float32([3, 1]), 2) == [1, 3]
    assert nearest(store, np.float32([3, 1]), 3, without=np.array([1, 9])) == [3, 2]
    assert store.longest() == 5
    store.close()


def test_codes_come_back_bit_for_bit_in_the_shape_that_is_asked(milvus):
    ids, codes = random_codes(1, 300, away=100.0)
    store = Collection(milvus, 6)
    store.add(ids, codes)
    asked = np.array([[ids[4], ids[290]], [ids[4], ids[0]]])
    np.testing.assert_array_equal(store.get(asked), codes[[[4, 290], [4, 0]]])
    assert store.get(np.zeros(0, np.int64)).shape == (0, 6)
    with pytest.raises(ValueError, match="no code of id 1"):
        store.get(np.array([ids[0], 1]))


def test_added_again_a_code_is_replaced_and_deleted_it_is_gone(milvus):
    ids, codes = random_codes(2, 50)
    store = Collection(milvus, 6)
    store.add(ids, codes)
    store.add(ids[:3], -codes[:3])
    assert store.count() == 50
    np.testing.assert_array_equal(store.get(ids[:4]), [*-codes[:3], codes[3]])
    store.delete(np.append(ids[10:20], 10**9))
    assert store.count() == 40
    assert set(store.ids().tolist()) == set(ids.tolist()) - set(ids[10:20].tolist())
    assert ids[12] not in nearest(store, codes[12], 40)
    with pytest.raises(ValueError, match="no code of id"):
        store.get(ids[15])
    store.add(ids[15:16], codes[15:16])
    assert nearest(store, codes[15], 1) == [ids[15]]
    store.delete(ids)
    assert store.count() == 0
    assert store.ids().tolist() == []
    assert nearest(store, codes[0], 3) == []
    assert store.longest() == 0


def test_opened_again_it_answers_the_same(milvus):
    ids, codes = random_codes(3, 200)
    store = Collection(milvus, 6)
    store.add(ids[:150], codes[:150])
    store.add(ids[150:], codes[150:])
    store.delete(ids[:20])
    before = nearest(store, codes[3], 30)
    store.close()
    store = Collection(milvus)
    assert store.dimension == 6
    assert store.count() == 180
    assert nearest(store, codes[3], 30) == before
    store.close()
    with pytest.raises(ValueError, match="holds codes of 6, not 7"):
        Collection(milvus, 7)


def test_what_is_not_there_is_an_error(milvus):
    with pytest.raises((ValueError, FileNotFoundError), match="codes"):
        Collection(milvus)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_cannot_be_meant_is_refused(milvus, bad):
    ids, codes = random_codes(4, 5)
    store = Collection(milvus, 6)
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


def test_a_store_sees_only_the_ids_it_is_to_see(milvus):
    ids, codes = np.arange(100), random_codes(6, 100)[1]
    with_all = Collection(milvus, 6)
    with_all.add(ids, codes)
    some = Collection(milvus, within=(20, 59))
    assert some.count() == 40
    assert sorted(some.ids().tolist()) == list(range(20, 60))
    expected = np.argsort(((codes[20:60] - codes[0]) ** 2).sum(axis=1)) + 20
    assert nearest(some, codes[0], 100) == expected.tolist()
    with pytest.raises(ValueError, match="no code of id 3"):
        some.get(np.array([3, 30]))
    some.close()
    assert with_all.count() == 100  # closing one leaves the other open
    with_all.close()


def test_a_collection_of_another_owner_or_not_ours_is_refused(milvus):
    Collection(milvus, 6, owner="one").close()
    with pytest.raises(ValueError, match="belongs to another index"):
        Collection(milvus, 6, owner="two")
    from pymilvus import MilvusClient

    client = MilvusClient(milvus.removeprefix("milvus:"))
    client.drop_collection(milvus_collection.LITE_COLLECTION)
    client.create_collection(milvus_collection.LITE_COLLECTION, dimension=7)
    with pytest.raises(ValueError, match="air_jax did not make this collection"):
        Collection(milvus, 6)
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
    assert milvus_collection.parse(address)[:2] == (uri, collection)
    assert milvus_collection.parse(milvus_collection.parse(address).text).uri == uri


def test_an_address_names_a_file_wherever_the_command_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    address = milvus_collection.parse("milvus:codes.db")
    assert address.uri == str(tmp_path / "codes.db")
    assert milvus_collection.parse(address.text) == address
    assert milvus_collection.parse(f"milvus://{tmp_path}/codes.db") == address
    with pytest.raises(ValueError, match="no folder"):
        milvus_collection.parse("milvus:nowhere/codes.db")


@pytest.mark.parametrize(
    "address", ["", "codes", "codes.db", "http://there/codes", "milvus://there", "milvus://there/",
                "milvus://there/a/b", "milvus:///", "milvus://there:x/codes", "milvus://there/a-b"],
)  # fmt: skip
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ValueError, match="expected milvus://HOST:PORT/COLLECTION or milvus:FILE"):
        milvus_collection.parse(address)


def test_a_password_in_an_address_is_refused_and_not_repeated():
    with pytest.raises(ValueError, match="MILVUS_TOKEN") as error:
        milvus_collection.parse("milvus://me:secret@there/codes")
    assert "secret" not in str(error.value)


def test_a_token_goes_to_the_cluster_only(tmp_path, monkeypatch):
    pymilvus = pytest.importorskip("pymilvus", reason=MILVUS_IS_MISSING)
    given = []

    def client(uri, token, timeout):
        given.append((uri, token))
        raise pymilvus.exceptions.MilvusException(message="not there")

    monkeypatch.setattr(pymilvus, "MilvusClient", client)
    monkeypatch.setenv(milvus_collection.TOKEN_VARIABLE, "me:secret")
    with pytest.raises(ConnectionError, match="not there") as error:
        Collection("milvus://there/codes")
    assert "secret" not in str(error.value)
    with pytest.raises(ConnectionError):
        Collection(f"milvus:{tmp_path}/codes.db")
    assert given == [("http://there:19530", "me:secret"), (f"{tmp_path}/codes.db", "")]


def test_a_cluster_that_cannot_be_reached_is_an_error_of_one_line():
    pytest.importorskip("pymilvus", reason=MILVUS_IS_MISSING)
    with pytest.raises(
        ConnectionError, match="milvus://127.0.0.1:1/codes cannot be reached"
    ) as told:
        Collection("milvus://127.0.0.1:1/codes")
    assert len(str(told.value).splitlines()) == 1


def test_a_file_that_another_process_has_open_ends_the_indexer_with_one_line(milvus, tmp_path):
    store = Collection(milvus, 2)
    np.save(tmp_path / "codes.npy", np.zeros((3, 2), np.float32))
    command = [sys.executable, "-m", "air_jax.index", f"--vectors={tmp_path}/codes.npy"]
    command += [f"--out={tmp_path}/index", f"--store={milvus}"]
    done = subprocess.run(command, capture_output=True, text=True)
    store.close()
    assert done.returncode == 2
    assert "another process has it open" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
