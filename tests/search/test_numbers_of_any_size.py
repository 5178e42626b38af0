"""Search in codes of any size, against double precision over the codes that were given."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from air_jax.feedback.engine import Engine
from air_jax.search import codes, distances, file_codes
from air_jax.search.device_codes import DeviceCodes
from air_jax.search.scorers import Linear, Near

SIZE, DIMENSION = 1000, 32
BASE = np.random.default_rng(0).normal(size=(SIZE, DIMENSION)).astype(np.float32)


def with_row(value):
    """The base, its last row all of one value."""
    changed = BASE.copy()
    changed[-1] = value
    return changed


def two_clusters(offset):
    """Double precision has the neighbours within each; float32 loses those of the second."""
    return BASE.astype(np.float64) + offset * (np.arange(SIZE) % 2)[:, None]


KINDS = {
    "plain": BASE,
    "one row of 1e10": with_row(1e10),
    "one row of -1e15": with_row(-1e15),
    "one row of 1000": with_row(1000),
    "times 1e20": BASE * np.float32(1e20),
    "times 1e-20": BASE * np.float32(1e-20),
    "times 1e200": BASE.astype(np.float64) * 1e200,
    "times 1e-200": BASE.astype(np.float64) * 1e-200,
    "plus 1e9": BASE.astype(np.float64) + 1e9,
    "plus 1e6 in float32": BASE + np.float32(1e6),
    "times 1e20 and plus 1e28": BASE.astype(np.float64) * 1e20 + 1e28,
    "one column of 1e12": BASE + 1e12 * np.eye(DIMENSION)[3],
    "float16": BASE.astype(np.float16),
}


def nearest(given, query, k):
    """Positions of the k nearest by double precision, without overflow."""
    given = given.astype(np.float64)
    difference = given - given[query]
    difference /= np.median(np.abs(difference))
    return np.argsort(np.square(difference).sum(axis=1), kind="stable")[:k]


@pytest.mark.parametrize("storage", file_codes.STORAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_in_a_folder_are_those_of_double_precision(tmp_path, kind, storage):
    held = file_codes.write(tmp_path / "codes", KINDS[kind], storage)
    engine = Engine(held)
    for query in (0, 500):
        found = engine.first(held.get(np.array(query)), 10)
        np.testing.assert_array_equal(found.positions, nearest(KINDS[kind], query, 10))
        assert np.isfinite(found.scores).all()
        if "row" not in kind or storage == "float32":
            assert found.certain
    np.testing.assert_allclose(held.get(np.arange(9)), KINDS[kind][:9], rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_on_the_device_are_those_of_double_precision(kind):
    held = DeviceCodes(KINDS[kind])
    found = Engine(held).first(KINDS[kind][0], 10)
    np.testing.assert_array_equal(found.positions, nearest(KINDS[kind], 0, 10))


@pytest.mark.parametrize("kind", KINDS)
def test_feedback_learns_from_codes_of_any_size(tmp_path, kind):
    given = KINDS[kind]
    held = file_codes.write(tmp_path / "codes", given)
    marks = np.arange(1, 41)
    relevant = BASE[1:41, 0] > 0
    for learner in ("svc", "svc_linear", "discriminant", "ridge", "means"):
        none = np.zeros((0, DIMENSION))
        found = Engine(held).next_round(learner, held.get(np.array(0)), none, marks, relevant, 50)
        assert np.isfinite(found.scores).all()
        assert len(np.unique(found.scores)) > 40
        # As good as on the plain codes: the first are on the side of the relevant ones.
        assert (BASE[found.positions, 0] > 0).mean() > 0.6


@pytest.mark.parametrize("storage", ["float32", "int8"])
@pytest.mark.parametrize("offset", [1e3, 1e6, 1e12])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_lost_between_far_clusters_is_not_called_certain(tmp_path, dtype, offset, storage):
    given = two_clusters(offset).astype(dtype)
    held = file_codes.write(tmp_path / "codes", given, storage)
    for codes_held in (held, DeviceCodes(given)):
        for query in range(20):
            found = Engine(codes_held).first(given[query], 10)
            right = set(nearest(given, query, 10))
            assert not found.certain or set(found.positions) == right


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10**6),
    st.sampled_from(file_codes.STORAGES),
    st.sampled_from([np.float32, np.float64]),
    st.sampled_from([1e-6, 1e-3, 1.0, 1e3, 1e6]),
    st.sampled_from([0.0, 1e2, 1e5, 1e8]),
    st.sampled_from(["near", "linear"]),
)
def test_certain_is_never_said_where_an_image_is_missing(
    tmp_path_factory, seed, storage, dtype, spread, offset, kind
):
    rng = np.random.default_rng(seed)
    given = rng.normal(size=(500, 4)) * spread ** rng.random(4) + offset * rng.integers(0, 2, 4)
    given = given.astype(dtype)
    held = file_codes.write(tmp_path_factory.mktemp("c") / "codes", given, storage)
    wide = (given.astype(np.float64) - held.mean) / held.unit
    scorer = (
        Near(wide[:3])
        if kind == "near"
        else Linear(rng.normal(size=(3, 4)).astype(np.float32), np.zeros(3, np.float32))
    )
    found = held.top(scorer, 7)
    if kind == "near":
        scores = -np.square(wide - wide[:3, None]).sum(axis=2)
    else:
        scores = scorer.weights.astype(np.float64) @ (wide / held.deviation).T
    best = np.argsort(-scores, axis=1, kind="stable")[:, :7]
    for positions, expected, row, certain in zip(
        found.positions, best, scores, found.certain, strict=True
    ):
        if certain and set(positions) != set(expected):  # equal scores are as good
            assert row[positions].min() == pytest.approx(row[expected].min(), rel=1e-12, abs=0)


@pytest.mark.parametrize("make", [lambda given, path: file_codes.write(path, given),
                                  lambda given, _: DeviceCodes(given)])  # fmt: skip
def test_a_row_that_does_not_fit_is_named(tmp_path, make):
    with pytest.raises(ValueError, match=r"row 999 of the codes holds 3e\+38 in column 0"):
        make(with_row(3e38), tmp_path / "codes")


def test_a_query_that_does_not_fit_is_named(tmp_path):
    engine = Engine(file_codes.write(tmp_path / "codes", BASE))
    with pytest.raises(ValueError, match=r"query codes hold 1e\+30, too far"):
        engine.first(np.full(DIMENSION, 1e30), 3)


def test_one_row_changes_no_statistics_of_the_others():
    for changed in (with_row(1e10), with_row(500)):
        frame = codes.frame_of(changed)
        np.testing.assert_allclose(frame.mean, BASE[:-1].mean(axis=0), atol=1e-5)
        covariance, extent = codes.statistics(changed, frame)
        np.testing.assert_allclose(covariance, np.cov(BASE[:-1].T, bias=True), atol=1e-5)
        assert extent.max() < 10
        np.testing.assert_allclose(DeviceCodes(changed).covariance, covariance, atol=1e-4)


def test_a_million_rows_far_from_zero_have_their_deviation():
    rng = np.random.default_rng(0)
    column = (rng.normal(size=(1_000_000, 1)) + 300).astype(np.float32)
    expected = column.std(dtype=np.float64)
    scaled, _ = distances.for_metric("standardised", column, column[:1])
    assert (column[0] / scaled[0])[0] == pytest.approx(expected, rel=1e-6)
    assert DeviceCodes(column).deviation[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1.0, 1e20, 1e30])
def test_metrics_do_not_depend_on_the_size_of_codes(scale):
    given = BASE * np.float32(scale)
    for metric in ("standardised", "cosine"):
        scaled, _ = distances.for_metric(metric, given, given[:1])
        expected, _ = distances.for_metric(metric, BASE, BASE[:1])
        np.testing.assert_allclose(scaled, expected, rtol=1e-4, atol=1e-6)


def test_different_codes_are_counted():
    assert codes.count_different(np.zeros((50, 3))) == 1
    assert codes.count_different(np.array([[0.0, 1], [-0.0, 1], [1, 0]])) == 2
    assert codes.count_different(np.repeat(BASE, 2, axis=0)) == SIZE
