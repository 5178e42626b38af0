"""Distances, search and ranks against NumPy."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import cdist

from air_jax.baselines import baseline_codes
from air_jax.data import splits
from air_jax.runtime import sharding
from air_jax.search import device_codes, distances, full_ranking, metrics
from air_jax.search.device_codes import DeviceCodes
from air_jax.search.full_ranking import PADDING


def ranks_by_bisection(scores, items):
    return full_ranking.ranks_by_bisection(scores, items, full_ranking.tie_order(scores.shape[1]))


RANKS = (full_ranking.ranks_by_sorting, ranks_by_bisection)


def brute_force_order(queries, database):
    """Database positions by exact distance, equals by position."""
    distances = ((queries[:, None].astype(float) - database[None].astype(float)) ** 2).sum(-1)
    return np.argsort(distances, axis=1, kind="stable"), distances


def random_codes(seed, count, dimension=16, offset=0.0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, dimension)) + offset).astype(np.float32)


@pytest.mark.parametrize("offset", [0, 10, 1000])
def test_search_equals_brute_force_also_far_from_the_origin(offset):
    # 16 significant bits: at offset 1000 the codes themselves are still exact.
    database = np.round(random_codes(0, 500) * 64) / 64 + np.float32(offset)
    queries = np.round(random_codes(1, 70) * 64) / 64 + np.float32(offset)
    order, distances = brute_force_order(queries, database)
    found, positions = device_codes.search(DeviceCodes(database), queries, 20)
    expected = np.take_along_axis(distances, order, axis=1)[:, :20]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    own = np.take_along_axis(distances, positions, axis=1)
    np.testing.assert_allclose(own, expected, rtol=1e-5)


def test_equal_distances_come_in_order_of_the_index():
    database = np.zeros((100, 8), np.float32)
    _, positions = device_codes.search(DeviceCodes(database), database[:3], 10)
    np.testing.assert_array_equal(positions, np.tile(np.arange(10), (3, 1)))


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(np.float32, (3, 40), elements=st.integers(0, 6).map(float)),
    st.permutations(range(40)),
    st.sampled_from([1, 7, 39]),
)
def test_ranks_are_places_by_distance_and_tie_order_whatever_the_ties(distances, order, count):
    items = np.tile(np.array(order[:count], np.int32), (3, 1))
    items[1, count // 2 :] = PADDING
    for ranks_by in RANKS:
        ranks = np.asarray(ranks_by(-distances, items))
        for row in range(3):
            place = np.empty(40, int)
            order_of_row = np.lexsort((full_ranking.tie_order(40), distances[row]))
            place[order_of_row] = np.arange(40)
            expected = np.where(items[row] == PADDING, 40, place[items[row]])
            np.testing.assert_array_equal(ranks[row], expected)


nearest = jax.jit(distances.nearest, static_argnames="k")


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(np.float32, (2, 700), elements=st.integers(-3, 9).map(float)),
    st.sampled_from([1, 2, 5, 6, 100, 700]),
)
def test_the_best_in_two_stages_are_those_of_the_stable_sort_whatever_the_ties(scores, k):
    scores[1, :650] = -np.inf  # marked
    values, positions = nearest(scores, k)
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(positions, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(scores, expected, axis=1))


@pytest.mark.parametrize("ranks_by", RANKS)
def test_ranks_take_infinite_distances_as_last_before_padding(ranks_by):
    distances = np.array([[np.inf, 1.0, np.inf, 0.0]], np.float32)
    items = np.array([[0, 1, 2, 3, PADDING]], np.int32)
    ranks = ranks_by(-distances, items)
    far = full_ranking.tie_order(4)[[0, 2]].argsort().argsort() + 2
    assert ranks.tolist() == [[far[0], 1, far[1], 0, 4]]


def test_ranks_by_distance_equal_brute_force_for_any_block():
    database, queries = random_codes(0, 300), random_codes(1, 37)
    order, _ = brute_force_order(queries, database)
    items = np.random.default_rng(2).permuted(np.tile(np.arange(300), (37, 1)), axis=1)[:, :25]
    place = np.argsort(order, axis=1)
    expected = np.take_along_axis(place, items, axis=1)
    prepared = DeviceCodes(database)
    for block in (1, 10, 64):
        ranks = full_ranking.ranks_by_distance(prepared, queries, items.astype(np.int32), block)
        np.testing.assert_array_equal(ranks, expected)


def test_relevant_items_are_the_members_of_the_class_padded():
    items = full_ranking.relevant_items(np.array([2, 0, 2]), np.array([0, 2, 1, 0, 0]))
    assert items.tolist() == [[1, PADDING, PADDING], [0, 3, 4], [1, PADDING, PADDING]]


@pytest.mark.parametrize("devices", [None, 4])
@pytest.mark.parametrize("by_class", [True, False])
def test_one_code_for_all_images_is_as_good_as_chance_in_any_order(by_class, devices):
    """The order of the database often follows the classes."""
    labels = np.arange(4000) // 400
    if not by_class:
        labels = np.random.default_rng(0).permutation(labels)
    mesh = None if devices is None else sharding.make_mesh(jax.devices()[:devices])
    database = DeviceCodes(np.full((4000, 8), 3.0), mesh)
    items = full_ranking.relevant_items(np.arange(10), labels)
    ranks = full_ranking.ranks_by_distance(database, np.full((10, 8), 3.0), items)
    chance = metrics.random_average_precision(np.array(400), 4000)
    assert metrics.average_precision(ranks, 4000).mean() == pytest.approx(chance, abs=0.01)
    assert metrics.precision_at(ranks, 100).mean() == pytest.approx(0.1, abs=0.02)
    assert metrics.recall_at(ranks, 1000, 4000).mean() == pytest.approx(0.25, abs=0.02)
    assert metrics.precision_at(ranks, 1).mean() <= 0.1


def test_duplicates_are_in_the_order_of_ties():
    codes = np.repeat(random_codes(0, 50), 2, axis=0)
    order = full_ranking.tie_order(100)
    ranks = full_ranking.ranks_by_distance(
        DeviceCodes(codes), codes[:1], np.arange(100, dtype=np.int32)[None]
    )[0]
    for pair in range(0, 100, 2):
        assert abs(ranks[pair] - ranks[pair + 1]) == 1
        assert (ranks[pair] < ranks[pair + 1]) == (order[pair] < order[pair + 1])


@pytest.mark.parametrize(
    ("database", "message"),
    [
        (np.zeros((0, 4)), r"shape \[0, 4\]"),
        (np.zeros(4), r"shape \[4\]"),
        (np.array([[0, 1], [np.nan, 1], [np.inf, 0]]), "2 of 3 database codes.*first at 1"),
    ],
)
def test_unusable_database_codes_are_an_error(database, message):
    with pytest.raises(ValueError, match=message):
        DeviceCodes(database)


@pytest.mark.parametrize("k", [0, -1, 11])
def test_k_out_of_range_is_an_error(k):
    codes = random_codes(0, 10)
    with pytest.raises(ValueError, match=f"k={k}: expected from 1 to the 10"):
        device_codes.search(DeviceCodes(codes), codes, k)


def test_queries_that_do_not_fit_are_an_error():
    database = DeviceCodes(random_codes(0, 10, 16))
    with pytest.raises(ValueError, match="8 dimensions, the database's have 16"):
        device_codes.search(database, random_codes(0, 3, 8), 1)
    with pytest.raises(ValueError, match="1 of 3 query codes hold NaN"):
        device_codes.search(database, np.where(np.arange(3)[:, None] == 2, np.nan, np.ones(16)), 1)


def test_float64_and_non_contiguous_codes_give_the_same_answer():
    codes = random_codes(0, 60)
    _, expected = device_codes.search(DeviceCodes(codes), codes[:9], 5)
    strided = np.asfortranarray(np.repeat(codes.astype(np.float64), 2, axis=0))[::2]
    _, positions = device_codes.search(DeviceCodes(strided), strided[:9], 5)
    np.testing.assert_array_equal(positions, expected)


@pytest.mark.long
@pytest.mark.parametrize(("name", "expected"), [("pixels", 0.02382), ("pca", 0.02444)])
def test_map_of_pixels_and_pca_on_cifar100_is_the_known_one(cifar100, name, expected):
    parts = splits.split(cifar100, "official")
    codes = baseline_codes.make(name, *(cifar100.images[part] for part in parts), code_dim=128)
    labels = [cifar100.labels[part] for part in parts]
    items = full_ranking.relevant_items(labels[1], labels[0])
    ranks = full_ranking.ranks_by_distance(DeviceCodes(codes[0]), codes[1], items)
    assert metrics.average_precision(ranks, 50_000).mean() == pytest.approx(expected, abs=2e-4)


def test_the_standardised_metric_is_scikit_learns_seuclidean():
    database, queries = random_codes(0, 60), random_codes(1, 7)
    database[:, 3] = 0.5  # constant: divided by nothing
    scaled = distances.for_metric("standardised", database, queries)
    found, _ = device_codes.search(DeviceCodes(scaled[0]), scaled[1], 60)
    variance = database.var(axis=0)
    variance[3] = 1
    expected = np.sort(cdist(queries, database, "seuclidean", V=variance) ** 2, axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_the_cosine_metric_is_scipys():
    database, queries = random_codes(0, 60), random_codes(1, 7)
    database[5] = 0
    scaled = distances.for_metric("cosine", database, queries)
    found, positions = device_codes.search(DeviceCodes(scaled[0]), scaled[1], 59)
    expected = cdist(queries, np.delete(database, 5, axis=0), "cosine")
    real = np.take_along_axis(found, np.argsort(positions, axis=1), axis=1)
    present = np.sort(positions, axis=1)
    for row in range(7):
        kept = present[row] != 5
        columns = present[row][kept] - (present[row][kept] > 5)
        np.testing.assert_allclose(real[row][kept] / 2, expected[row, columns], atol=1e-5)


def test_the_inner_product_metric_orders_by_inner_products():
    database, queries = random_codes(0, 60), random_codes(1, 7)
    scaled = distances.for_metric("inner_product", database, queries)
    found, positions = device_codes.search(DeviceCodes(scaled[0]), scaled[1], 60)
    products = queries.astype(np.float64) @ database.T.astype(np.float64)
    np.testing.assert_array_equal(positions, np.argsort(-products, axis=1))
    longest = np.square(database).sum(axis=1).max()
    own = np.square(queries).sum(axis=1, keepdims=True)
    expected = longest + own - 2 * np.take_along_axis(products, positions, axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("precision", "compiled_for"),
    [("float32", "HIGHEST"), ("bfloat16_3x", "num_primitive_operations = 3")],
)
def test_products_are_compiled_for_their_precision(precision, compiled_for):
    """A CPU multiplies float32 whatever it is told; what an accelerator is told is this."""
    codes = random_codes(0, 60)
    lengths = np.square(codes).sum(axis=1)
    lowered = distances.negative_distances.lower(random_codes(1, 7), codes, lengths, precision)
    assert compiled_for in lowered.as_text()


def test_the_first_images_are_those_of_the_first_ranks_with_ties_too():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2, (60, 4)).astype(np.float32)  # 16 different ones
    queries = rng.integers(0, 2, (9, 4)).astype(np.float32)
    items = np.tile(np.arange(60, dtype=np.int32), (9, 1))
    database = DeviceCodes(codes)
    ranks, first = full_ranking.ranking_by_distance(database, queries, items, 10)
    assert first.dtype == np.int32
    np.testing.assert_array_equal(first, np.argsort(ranks, axis=1)[:, :10])


@pytest.mark.parametrize("ties", [False, True])
def test_the_first_unmarked_images_have_one_dtype_with_ties_and_without(ties):
    scores = (
        np.zeros((2, 6), np.float32) if ties else -np.arange(12, dtype=np.float32).reshape(2, 6)
    )
    found = full_ranking.first_unmarked(scores, np.array([[0], [1]]), 3)
    assert (found.dtype, found.shape) == (np.int32, (2, 3))
    assert 0 not in found[0]
    assert 1 not in found[1]
