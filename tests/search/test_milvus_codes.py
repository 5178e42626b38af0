"""Rankings of codes in Milvus Lite against NumPy and against the same codes in a folder."""

import numpy as np
import pytest
from conftest import MILVUS_IS_MISSING
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("milvus_lite", reason=MILVUS_IS_MISSING)

from air_jax.feedback.engine import LEARNER_NAMES, SHOW, Engine
from air_jax.search import codes, file_codes, milvus_codes, milvus_collection, scorers
from air_jax.search.milvus_codes import MilvusCodes
from air_jax.search.milvus_collection import Collection
from air_jax.search.scorers import Linear, Near

SIZE, DIMENSION, K = 3000, 16, 40
BY_DISTANCE, LINEAR = {"means", "rocchio"}, {"discriminant", "svc_linear"}


def clusters(seed=0):
    """Codes of 20 classes, of different deviations and far from zero, and their classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 20, SIZE)
    given = rng.normal(size=(20, DIMENSION))[labels] + rng.normal(size=(SIZE, DIMENSION))
    return (given * (1 + rng.random(DIMENSION)) + 5).astype(np.float32), labels


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return file_codes.write(tmp_path_factory.mktemp("here") / "codes", clusters()[0])


@pytest.fixture(scope="module")
def in_milvus(tmp_path_factory):
    """Puts codes into a new collection, under ids in another order than positions."""
    opened = []

    def put(given):
        address = f"milvus:{tmp_path_factory.mktemp('milvus')}/codes.db"
        collection = Collection(address, given.shape[1])
        opened.append(collection)
        ids = np.random.default_rng(1).permutation(3 * len(given))[: len(given)] + 100
        collection.add(ids, given)
        frame = codes.frame_of(given)
        return MilvusCodes(collection, ids, frame.mean, codes.statistics(given, frame)[0])

    yield put
    for collection in opened:
        collection.close()


@pytest.fixture(scope="module")
def there(in_milvus):
    return in_milvus(clusters()[0])


def marks(labels, own=0):
    rng = np.random.default_rng(2)
    positions = np.concatenate(
        [
            rng.choice(np.flatnonzero(labels == labels[own])[1:], 8, replace=False),
            rng.choice(np.flatnonzero(labels != labels[own]), 12, replace=False),
        ]
    )
    return positions, labels[positions] == labels[own]


def test_the_first_images_are_the_same(here, there):
    query = clusters()[0][0]
    expected, found = Engine(here).first(query, K), Engine(there).first(query, K)
    assert found.positions.tolist() == expected.positions.tolist()
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5, atol=1e-4)
    assert found.certain


@pytest.mark.parametrize("learner", LEARNER_NAMES)
@pytest.mark.parametrize("show", SHOW)
def test_a_round_is_the_same_or_refused_by_an_error_that_names_exact_learners(
    here, there, learner, show
):
    given, labels = clusters()
    asked = [learner, given[0], given[5:6] + 0.1, *marks(labels), K]
    exact = learner in BY_DISTANCE or (learner in LINEAR and show == "best")
    offered = learner in Engine(there).learners and show in Engine(there).shows
    assert offered == (exact and show == "best")
    assert (Engine(here).learners, Engine(here).shows) == (LEARNER_NAMES, SHOW)
    if not exact:
        named = "discriminant, svc_linear, means, rocchio with show=best"
        with pytest.raises(ValueError, match=named):
            Engine(there).next_round(*asked, show=show)
        return
    expected = Engine(here).next_round(*asked, show=show, hidden=np.array([0]))
    found = Engine(there).next_round(*asked, show=show, hidden=np.array([0]))
    assert found.certain
    assert found.positions.tolist() == expected.positions.tolist()
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5, atol=1e-5)
    for was, now in zip(expected.scorer, found.scorer, strict=True):
        np.testing.assert_allclose(was, now, rtol=1e-5, atol=1e-6)


def as_scorer(kind, points):
    return Near(points) if kind == "near" else Linear(points, np.zeros(len(points), np.float32))


def true_scores(scorer, given):
    """[B, N] in double precision."""
    centred = given.astype(np.float64) - given.mean(axis=0, dtype=np.float64)
    if isinstance(scorer, Near):
        return -((scorer.points[:, None] - centred) ** 2).sum(axis=2)
    return scorer.weights @ (centred / given.std(axis=0, dtype=np.float64)).T


@settings(deadline=None, max_examples=10)
@given(data=st.data())
def test_equal_scores_are_in_order_of_positions(in_milvus, data):
    size = data.draw(st.sampled_from([1, 6, 130, 400]), "size")
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6), "seed"))
    # In pairs of opposite whole numbers: scores are exact in any precision, and many are equal.
    half = rng.integers(-2, 3, (size, 3)).astype(np.float32)
    given = np.concatenate([half, -half])
    there = in_milvus(given)
    show = data.draw(st.sampled_from(["best", "worst"]), "show")
    scorer = as_scorer(data.draw(st.sampled_from(["near", "linear"]), "kind"), half[:1])
    there.deviation = np.ones(3, np.float32)
    hidden = rng.permutation(2 * size)[None, : data.draw(st.integers(0, size), "hidden")]
    k = data.draw(st.integers(1, 2 * size - hidden.shape[1]), "k")
    found = there.top(scorer, k, hidden, show)
    if isinstance(scorer, Near):
        expected = -((half[:1] - given) ** 2).sum(axis=1)
    else:
        expected = given @ half[0]
    expected = np.asarray(scorers.SHOW[show](expected))
    expected[hidden[0]] = -np.inf
    order = np.argsort(-expected, kind="stable")[:k]
    assert found.positions[0].tolist() == order.tolist()
    np.testing.assert_array_equal(found.scores[0], expected[order])
    assert found.certain.all()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_codes_of_any_size_are_found_exactly(in_milvus, scale):
    rng = np.random.default_rng(3)
    given = (scale * rng.normal(size=(500, 6))).astype(np.float32)
    there = in_milvus(given)
    points = (scale * rng.normal(size=(2, 6))).astype(np.float32)
    for kind in ("near", "linear"):
        for show in ("best", "worst"):
            scorer = as_scorer(kind, points)
            found = there.top(scorer, 20, np.array([[4, 5], [6, 7]]), show)
            expected = true_scores(scorer, given) * (-1 if show == "worst" else 1)
            expected[[0, 0, 1, 1], [4, 5, 6, 7]] = -np.inf
            order = np.argsort(-expected, axis=1)[:, :20]
            np.testing.assert_array_equal(found.positions, order)
            best = np.take_along_axis(expected, order, axis=1)
            np.testing.assert_allclose(found.scores, best, rtol=1e-4, atol=1e-4 * scale)
            assert found.certain.all()


def test_codes_far_from_the_origin_are_found_or_said_to_be_uncertain(in_milvus):
    sure = []
    for away in (30.0, 1000.0, 30_000.0):
        given = (np.random.default_rng(7).normal(size=(1000, 6)) + away).astype(np.float32)
        point = np.float32([[0.3, 0, 0, 0, 0, 0.1]])
        found = in_milvus(given).top(Near(point), 20)
        if found.certain.all():
            order = np.argsort(-true_scores(Near(point), given)[0])[:20]
            assert set(found.positions[0].tolist()) == set(order.tolist())
            sure.append(away)
    assert 30.0 in sure


def test_of_more_equal_codes_than_are_looked_for_the_first_positions_are_found(in_milvus):
    given = np.ones((4 * milvus_codes.MARGIN, 4), np.float32)
    given[:3] = 2
    there = in_milvus(given)
    found = there.top(Near(given[5:6] - there.mean), 5)
    assert found.positions[0].tolist() == [3, 4, 5, 6, 7]
    assert found.certain.all()


def test_all_that_is_left_can_be_asked_for_and_no_more(there):
    scorer, hidden = Near(np.zeros((1, DIMENSION), np.float32)), np.arange(7)[None]
    found = there.top(scorer, SIZE - 7, hidden)
    assert sorted(found.positions[0].tolist()) == list(range(7, SIZE))
    assert found.certain.all()
    with pytest.raises(ValueError, match="the 2993 images that are left of 3000"):
        there.top(scorer, SIZE - 6, hidden)


def test_more_than_milvus_finds_at_once_is_refused(there, monkeypatch):
    monkeypatch.setattr(milvus_codes, "MOST", 2000)
    with pytest.raises(ValueError, match="k=2001: expected from 1 to 2000"):
        there.top(Near(np.zeros((1, DIMENSION), np.float32)), 2001)


def test_codes_that_left_the_collection_since_are_told(in_milvus):
    given = clusters()[0][:300]
    there = in_milvus(given)
    engine = Engine(there)
    there.collection.delete(there.ids[:295])
    with pytest.raises(ValueError, match="left the store since it was opened"):
        engine.first(given[0], K)
    there.collection.add(np.array([10**6]), given[:1])
    with pytest.raises(ValueError, match="not of this index"):
        engine.first(given[0], 1)


def test_with_an_index_that_is_not_exact_nothing_is_certain(in_milvus):
    from pymilvus import MilvusClient

    there = in_milvus(clusters()[0][:300])
    point = Near(np.zeros((1, DIMENSION), np.float32))
    assert there.top(point, 5).certain.all()
    client = MilvusClient(there.collection.address.uri)
    name = milvus_collection.LITE_COLLECTION
    client.release_collection(name)
    client.drop_index(name, "code")
    index = client.prepare_index_params()
    index.add_index("code", index_type="HNSW", metric_type="IP", params={"M": 8})
    client.create_index(name, index)
    again = Collection(there.collection.address.text)
    found = MilvusCodes(again, there.ids, there.mean, there.covariance).top(point, 5)
    assert (np.diff(found.scores) <= 0).all()
    assert not found.certain.any()
    client.close()
    again.close()
