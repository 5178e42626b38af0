"""Search in codes on disk against NumPy over all of them."""

import numpy as np
import pytest
from accelerator import counting
from hypothesis import given, settings
from hypothesis import strategies as st

from air_jax.search import codes, file_codes, scorers
from air_jax.search.codes import WithExamples
from air_jax.search.device_codes import DeviceCodes
from air_jax.search.scorers import OUTSIDE, Kernel, Linear, Mixture, Near

DIMENSION, RANKINGS = 8, 3


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Of 700 images several tiles of several chunks, and a rest."""
    monkeypatch.setattr(file_codes, "TILE", 384)
    monkeypatch.setattr(file_codes, "CHUNK", 64)
    monkeypatch.setattr(codes, "MARGIN", 30)


def make_store(path, storage="float32", size=700, seed=0):
    rng = np.random.default_rng(seed)
    codes = 2 * rng.normal(size=(size, DIMENSION)) + 5
    return file_codes.write(path / storage, codes.astype(np.float32), storage)


def make_scorer(kind, store, seed=1):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(RANKINGS, DIMENSION)).astype(np.float32)
    near = Near(points)
    if kind == "near":
        return near
    if kind == "linear":
        return Linear(points, rng.normal(size=RANKINGS).astype(np.float32))
    coefficients = rng.normal(size=(RANKINGS, 12)).astype(np.float32)
    coefficients[:, ::3] = 0
    support = rng.normal(size=(RANKINGS, 12, DIMENSION)).astype(np.float32)
    values = rng.normal(size=(2, RANKINGS)).astype(np.float32)
    machines = scorers.Machine(support, coefficients, values[0], np.full(RANKINGS, 0.1, np.float32))
    kernel = Kernel(machines, np.full((RANKINGS, 12), OUTSIDE))
    if kind == "kernel":
        return kernel
    return Mixture(kernel, near, np.tile(np.float32([1, 0.3]), (RANKINGS, 1)))


def true_scores(scorer, store):
    """[B, N] in double precision."""
    centred = store.exact.astype(np.float64) - store.mean
    standard = centred / store.deviation
    match scorer:
        case Near(points):
            return -((points[:, None] - centred) ** 2).sum(axis=2)
        case Linear(weights, intercept):
            return weights @ standard.T + intercept[:, None]
        case Kernel(machines, _):
            squares = ((machines.support[:, :, None] - standard) ** 2).sum(axis=3)
            values = np.exp(-machines.gamma[:, None, None] * squares)
            return (
                np.einsum("bm,bmn->bn", machines.coefficients, values)
                + (machines.intercept[:, None])
            )
        case Mixture(kernel, near, weights):
            parts = true_scores(kernel, store), true_scores(near, store)
            return weights[:, :1] * parts[0] + weights[:, 1:] * parts[1]


KINDS = ["near", "linear", "kernel", "mixture"]


@pytest.mark.parametrize("storage", file_codes.STORAGES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("show", list(scorers.SHOW))
def test_the_best_are_those_of_numpy(tmp_path, storage, kind, show):
    store = make_store(tmp_path, storage)
    scorer = make_scorer(kind, store)
    found = store.top(scorer, 15, show=show)
    expected = np.asarray(scorers.SHOW[show](true_scores(scorer, store).astype(np.float32)))
    order = np.argsort(-expected, axis=1, kind="stable")[:, :15]
    np.testing.assert_array_equal(found.positions, order)
    best = np.take_along_axis(expected, order, axis=1)
    np.testing.assert_allclose(found.scores, best, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["near", "linear", "kernel"])
def test_the_database_on_the_device_has_the_same_scores(tmp_path, kind):
    store = make_store(tmp_path)
    scorer = make_scorer(kind, store)
    here = DeviceCodes(np.array(store.stored))
    expected = true_scores(scorer, store)
    np.testing.assert_allclose(here.scores(scorer), expected, rtol=1e-4, atol=1e-4)
    own = scorers.of_codes(scorer, store.take(np.arange(700)), store.deviation)
    np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 10**6),
    st.sampled_from(["float16", "int8"]),
    st.sampled_from(["near", "linear", "kernel"]),
    st.sampled_from(list(scorers.SHOW)),
)
def test_what_is_called_certain_is_right_however_coarse_the_codes(
    tmp_path_factory, seed, storage, kind, show
):
    """A few outliers make int8 so coarse that candidates can miss the best."""
    rng = np.random.default_rng(seed)
    codes = rng.normal(size=(500, DIMENSION)).astype(np.float32)
    codes[:3] *= rng.choice([1, 30, 1000])
    store = file_codes.write(tmp_path_factory.mktemp("s") / "store", codes, storage)
    scorer = make_scorer(kind, store, seed)
    found = store.top(scorer, 4, show=show)
    expected = np.asarray(scorers.SHOW[show](true_scores(scorer, store).astype(np.float32)))
    best = -np.sort(-expected, axis=1)[:, :4]
    certain = found.certain
    np.testing.assert_allclose(found.scores[certain], best[certain], rtol=1e-3, atol=1e-3)


def test_codes_too_coarse_to_be_sure_are_said_to_be(tmp_path):
    codes = np.random.default_rng(0).normal(size=(500, DIMENSION)).astype(np.float32)
    codes[0] = 1e4
    coarse = file_codes.write(tmp_path / "coarse", codes, "int8")
    near = Near(np.zeros((1, DIMENSION), np.float32))
    assert not coarse.top(near, 4).certain.any()
    fine = make_store(tmp_path, "int8")
    assert fine.top(near, 4).certain.all()


def test_hidden_images_are_left_out(tmp_path):
    store = make_store(tmp_path, "int8")
    scorer = make_scorer("near", store)
    first = store.top(scorer, 20).positions
    hidden = first[:, [0, 3, 5, 19]]
    found = store.top(scorer, 16, hidden).positions
    for row in range(RANKINGS):
        assert found[row].tolist() == [x for x in first[row] if x not in hidden[row]]


@pytest.mark.parametrize("storage", file_codes.STORAGES)
def test_equal_scores_come_in_order_of_the_store(tmp_path, storage):
    rng = np.random.default_rng(0)
    half = rng.integers(-2, 3, (300, DIMENSION)).astype(np.float32)
    store = file_codes.write(tmp_path / "store", np.concatenate([half, -half]), storage)
    points = rng.integers(-2, 3, (RANKINGS, DIMENSION)).astype(np.float32)
    found = store.top(Near(points), 40)
    expected = true_scores(Near(points), store)
    order = np.argsort(-expected, axis=1, kind="stable")[:, :40]
    if storage == "float32":
        np.testing.assert_array_equal(found.positions, order)
    for scores, positions in zip(found.scores, found.positions, strict=True):
        same = np.diff(scores) == 0
        assert (np.diff(positions)[same] > 0).all()


def test_all_images_can_be_asked_for_but_no_more(tmp_path):
    store = make_store(tmp_path, size=70)
    scorer = make_scorer("near", store)
    found = store.top(scorer, 70)
    np.testing.assert_array_equal(np.sort(found.positions), np.tile(np.arange(70), (RANKINGS, 1)))
    hidden = np.tile(np.arange(10), (RANKINGS, 1))
    assert np.sort(store.top(scorer, 60, hidden).positions)[0].tolist() == list(range(10, 70))
    for k, without in ((71, None), (0, None), (-1, None), (61, hidden)):
        with pytest.raises(ValueError, match=f"k={k}: expected from 1 to the"):
            store.top(scorer, k, without)


def test_idle_samples_are_dropped_without_changing_scores(tmp_path):
    store = make_store(tmp_path)
    scorer = make_scorer("mixture", store)
    coefficients = np.zeros((RANKINGS, 40), np.float32)
    coefficients[:, 5:13] = scorer.kernel.machines.coefficients[:, :8]
    machines = scorer.kernel.machines._replace(
        coefficients=coefficients,
        support=np.random.default_rng(0).normal(size=(RANKINGS, 40, DIMENSION)).astype(np.float32),
    )
    padded = scorer._replace(kernel=Kernel(machines, np.full((RANKINGS, 40), OUTSIDE)))
    fewer = scorers.without_idle_samples(padded)
    assert fewer.kernel.machines.coefficients.shape == (RANKINGS, 16)
    np.testing.assert_allclose(true_scores(fewer, store), true_scores(padded, store))


def test_examples_outside_the_store_are_at_the_positions_after_it(tmp_path):
    store = make_store(tmp_path, size=70)
    examples = np.arange(2 * DIMENSION, dtype=np.float32).reshape(2, DIMENSION)
    codes = WithExamples(store, examples).take(np.array([[3, 71, 70]]))
    np.testing.assert_array_equal(codes[0, 1:], examples[::-1])
    np.testing.assert_allclose(codes[0, 0], store.exact[3] - store.mean)


@pytest.mark.gpu
@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_an_accelerator_keeps_the_codes_from_round_to_round(
    tmp_path, storage, monkeypatch, plays_accelerator
):
    monkeypatch.setattr(file_codes, "KEPT_TILE", 300)
    monkeypatch.setattr(file_codes, "SCORES", 450)
    store = make_store(tmp_path, storage)
    for kind in KINDS:
        scorer = make_scorer(kind, store)
        found = store.top(scorer, 15)
        expected = true_scores(scorer, store).astype(np.float32)
        order = np.argsort(-expected, axis=1, kind="stable")[:, :15]
        np.testing.assert_array_equal(found.positions, order)
        # No tile moves again; one read of what was found.
        monkeypatch.setattr(file_codes, "_tiles", None)
        with counting() as counts:
            store.top(scorer, 15)
        assert not counts.compilations
        assert len(counts.round_trips) == 1, counts.round_trips


@pytest.mark.gpu
def test_codes_that_do_not_fit_an_accelerator_are_read_tile_by_tile(
    tmp_path, monkeypatch, plays_accelerator
):
    store = make_store(tmp_path)
    monkeypatch.setattr(file_codes, "free_memory", lambda _: store.stored.nbytes)
    assert store._kept is None
    scorer = make_scorer("near", store)
    order = np.argsort(-true_scores(scorer, store), axis=1)[:, :15]
    np.testing.assert_array_equal(store.top(scorer, 15).positions, order)
