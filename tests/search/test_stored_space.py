"""Rounds on codes in a vector store against those on codes on this machine."""

import numpy as np
import pytest
from conftest import MILVUS_IS_MISSING

from air_jax.feedback.engine import LEARNER_NAMES, SHOW, Engine
from air_jax.search import code_store, kernel_machines, scorers, stored_space
from air_jax.search.milvus_store import MilvusStore
from air_jax.search.scorers import OUTSIDE, Kernel, Linear, Mixture, Near
from air_jax.search.stored_space import StoredCodes, StoredSpace
from air_jax.search.streaming import StreamedSpace
from air_jax.search.vector_store import MappedStore

SIZE, DIMENSION, K = 3000, 16, 40
BY_DISTANCE, LINEAR = {"means", "rocchio"}, {"discriminant", "svc_linear"}


def clusters(seed=0):
    """Codes of 20 classes, of different deviations and far from zero, and their classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 20, SIZE)
    codes = rng.normal(size=(20, DIMENSION))[labels] + rng.normal(size=(SIZE, DIMENSION))
    return (codes * (1 + rng.random(DIMENSION)) + 5).astype(np.float32), labels


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return code_store.write(tmp_path_factory.mktemp("local") / "codes", clusters()[0])


@pytest.fixture(scope="module", params=["mapped", "milvus"])
def stored(request, local, tmp_path_factory):
    """The same codes in a vector store, under ids in another order than positions."""
    folder = tmp_path_factory.mktemp("stored")
    if request.param == "mapped":
        vectors = MappedStore(folder / "codes", DIMENSION)
    else:
        pytest.importorskip("milvus_lite", reason=MILVUS_IS_MISSING)
        vectors = MilvusStore(f"milvus:{folder}/codes.db", DIMENSION)
    ids = np.random.default_rng(1).permutation(SIZE) + 100
    vectors.add(ids, local.exact)
    yield StoredCodes(vectors, ids, local.mean, local.covariance)
    if request.param == "milvus":
        vectors.close()


@pytest.fixture
def few_candidates(monkeypatch):
    """So few that candidates are not simply all codes."""
    monkeypatch.setattr(stored_space, "CANDIDATES", 600)


def marks(labels, own=0):
    rng = np.random.default_rng(2)
    positions = np.concatenate(
        [
            rng.choice(np.flatnonzero(labels == labels[own])[1:], 8, replace=False),
            rng.choice(np.flatnonzero(labels != labels[own]), 12, replace=False),
        ]
    )
    return positions, labels[positions] == labels[own]


def test_the_first_images_are_the_same(local, stored):
    codes, _ = clusters()
    here, there = Engine(local).first(codes[0], K), Engine(stored).first(codes[0], K)
    assert there.positions.tolist() == here.positions.tolist()
    np.testing.assert_allclose(there.scores, here.scores, rtol=1e-5, atol=1e-4)
    assert there.certain


def as_arrays(found):
    return [array for _, array in sorted(found.model.items()) if array.dtype.kind == "f"]


@pytest.mark.parametrize("learner", LEARNER_NAMES)
@pytest.mark.parametrize("show", SHOW)
def test_a_round_is_the_same_or_said_to_be_uncertain(local, stored, few_candidates, learner, show):
    codes, labels = clusters()
    asked = [learner, codes[0], codes[5:6] + 0.1, *marks(labels), K]
    here = Engine(local).next_round(*asked, show=show, hidden=np.array([0]))
    there = Engine(stored).next_round(*asked, show=show, hidden=np.array([0]))
    for was, now in zip(as_arrays(here), as_arrays(there), strict=True):
        np.testing.assert_allclose(was, now, rtol=1e-5, atol=1e-6)
    exact = learner in BY_DISTANCE or (learner in LINEAR and show == "best")
    assert there.certain == exact
    if exact:
        assert there.positions.tolist() == here.positions.tolist()
        np.testing.assert_allclose(there.scores, here.scores, rtol=1e-5, atol=1e-5)
        return
    assert not np.isin(there.positions, [0, *marks(labels)[0]]).any()
    every = np.asarray(
        scorers.of_codes(here.scorer, local.centred(np.arange(SIZE)), local.deviation)
    )[0]
    if show == "best" or learner == "svc_distance":
        assert len(np.intersect1d(there.positions, here.positions)) >= 0.9 * K
        expected = every[there.positions]
    else:
        expected = -np.abs(every[there.positions])
        assert -there.scores.min() < np.median(np.abs(every))
    np.testing.assert_allclose(there.scores, expected, rtol=1e-5, atol=1e-5)
    assert (np.diff(there.scores) <= 0).all()


@pytest.mark.parametrize("show", scorers.SHOW)
@pytest.mark.parametrize("kind", ["near", "linear"])
def test_equal_scores_keep_the_order_of_positions(tmp_path, kind, show):
    rng = np.random.default_rng(3)
    codes = rng.integers(-1, 2, (700, 3)).astype(np.float32)
    codes -= codes.mean(axis=0).round()
    here = code_store.write(tmp_path / "here", codes)
    vectors = MappedStore(tmp_path / "there", 3)
    ids = rng.permutation(700)
    vectors.add(ids, codes)
    there = StoredCodes(vectors, ids, here.mean, here.covariance)
    points = rng.integers(-1, 2, (2, 3)).astype(np.float32)
    scorer = Near(points) if kind == "near" else Linear(points, np.zeros(2, np.float32))
    hidden = np.array([[4, 5, 6], [1, 2, 3]])
    if kind == "linear" and show == "uncertain":
        return
    expected = StreamedSpace(here).search(scorer, 50, hidden, show)
    found = StoredSpace(there).search(scorer, 50, hidden, show)
    np.testing.assert_array_equal(found.positions, expected.positions)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    assert found.certain.all()


def test_all_that_is_left_can_be_asked_for_and_no_more(stored):
    space = StoredSpace(stored)
    scorer, hidden = Near(np.zeros((1, DIMENSION), np.float32)), np.arange(7)[None]
    found = space.search(scorer, SIZE - 7, hidden)
    assert sorted(found.positions[0].tolist()) == list(range(7, SIZE))
    assert found.certain.all()
    with pytest.raises(ValueError, match="the 2993 images that are left of 3000"):
        space.search(scorer, SIZE - 6, hidden)


def test_a_machine_of_few_samples_asks_for_all_codes_there_are(stored):
    support = np.zeros((1, 2, DIMENSION), np.float32)
    machine = kernel_machines.Machine(
        support, np.float32([[1, 0]]), np.float32([0]), np.float32([0.1])
    )
    kernel = Kernel(machine, np.full((1, 2), OUTSIDE))
    near = Near(np.zeros((1, DIMENSION), np.float32))
    for scorer in (kernel, Mixture(kernel, near, np.float32([[1, 1]]))):
        found = StoredSpace(stored).search(scorer, K)
        # Both fall with the distance of standardised codes from their mean.
        distance = np.linalg.norm(stored.centred(found.positions[0]) / stored.deviation, axis=1)
        if scorer is kernel:
            assert (np.diff(distance) >= -1e-4).all()
        assert found.scores.shape == (1, K)


def test_codes_that_left_the_store_since_are_told(local, tmp_path):
    vectors = MappedStore(tmp_path / "codes", DIMENSION)
    vectors.add(np.arange(SIZE), local.exact)
    engine = Engine(StoredCodes(vectors, np.arange(SIZE), local.mean, local.covariance))
    vectors.delete(np.arange(SIZE - 5))
    with pytest.raises(ValueError, match="left the store since it was opened"):
        engine.first(clusters()[0][0], K)
    vectors.add(np.array([SIZE + 1]), local.exact[:1])
    with pytest.raises(ValueError, match="not of this index"):
        engine.first(clusters()[0][0], 1)
