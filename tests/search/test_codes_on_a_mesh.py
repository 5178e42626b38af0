"""Search and ranks over several devices against one."""

import jax
import numpy as np
import pytest
from accelerator import counting
from hypothesis import given, settings
from hypothesis import strategies as st

from air_jax.runtime import sharding
from air_jax.search import device_codes, full_ranking
from air_jax.search.device_codes import DeviceCodes
from air_jax.search.full_ranking import PADDING
from air_jax.search.scorers import Near


def collection(seed, size, dimension=8, coarse=False):
    """Codes and queries; coarse ones have many equal distances."""
    rng = np.random.default_rng(seed)
    codes = rng.normal(size=(size + 9, dimension))
    codes = np.round(codes) if coarse else codes
    return codes[:size].astype(np.float32), codes[size:].astype(np.float32)


@pytest.mark.parametrize("devices", [1, 3, 4])
@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize(("size", "k"), [(800, 1), (803, 20), (30, 30), (5, 5)])
def test_search_over_devices_equals_search_on_one(devices, coarse, size, k):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    codes, queries = collection(0, size, coarse=coarse)
    # Their mean is a whole number: distances are exact, and equal ones equal on every device.
    codes = codes - (codes.mean(axis=0) if coarse else 0)
    database = DeviceCodes(codes, mesh)
    found = device_codes.search(database, queries, k, block=4)
    expected = device_codes.search(DeviceCodes(codes), queries, k)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-4)
    if coarse:
        own = ((queries[:, None] - codes[found[1]]) ** 2).sum(axis=2)
        np.testing.assert_allclose(own, expected[0], rtol=1e-4, atol=1e-3)
    else:
        np.testing.assert_array_equal(found[1], expected[1])


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([61, 64, 200]))
def test_equal_distances_over_devices_come_in_the_same_order_as_on_one(seed, size):
    mesh = sharding.make_mesh(jax.devices()[:4])
    rng = np.random.default_rng(seed)
    # In pairs of opposite codes: the mean is zero, and all arithmetic exact.
    half = rng.integers(-2, 3, (size, 4)).astype(np.float32)
    codes = np.concatenate([half, -half])
    queries = rng.integers(-2, 3, (3, 4)).astype(np.float32)
    distances = ((queries[:, None] - codes) ** 2).sum(axis=2)
    order = np.argsort(distances, axis=1, kind="stable")
    database = DeviceCodes(codes, mesh)
    _, positions = device_codes.search(database, queries, 20)
    np.testing.assert_array_equal(positions, order[:, :20])
    items = np.stack([rng.permutation(2 * size)[:30] for _ in queries]).astype(np.int32)
    items[1, 20:] = PADDING
    ranks = full_ranking.ranks_by_distance(database, queries, items)
    ties = full_ranking.tie_order(2 * size)
    order = np.stack([np.lexsort((ties, row)) for row in distances])
    places = np.take_along_axis(np.argsort(order, axis=1), np.maximum(items, 0), axis=1)
    np.testing.assert_array_equal(ranks, np.where(items == PADDING, 2 * size, places))


@pytest.mark.gpu
@pytest.mark.parametrize("devices", [1, 3, 4])
@pytest.mark.parametrize("coarse", [False, True])
def test_ranks_and_first_images_over_devices_are_numpys(devices, coarse, plays_accelerator):
    codes, queries = collection(1, 203, coarse=coarse)
    codes = codes - (codes.mean(axis=0) if coarse else 0)
    distances = ((queries[:, None] - codes) ** 2).sum(axis=2)
    order = np.stack([np.lexsort((full_ranking.tie_order(203), row)) for row in distances])
    items = np.tile(np.arange(203, dtype=np.int32), (len(queries), 1))
    for mesh in (None, sharding.make_mesh(jax.devices()[:devices])):
        database = DeviceCodes(codes, mesh)
        found = full_ranking.ranking_by_distance(database, queries, items, 80, block=4)
        assert (found.first.dtype, found.ranks.dtype) == (np.int32, np.int32)
        if not coarse:
            np.testing.assert_array_equal(found.first, order[:, :80])
        np.testing.assert_array_equal(found.first, np.argsort(found.ranks, axis=1)[:, :80])


@pytest.mark.gpu
def test_an_accelerator_ranks_many_queries_at_a_time(plays_accelerator):
    codes, queries = collection(0, 500)
    queries = np.tile(queries, (40, 1))
    items = np.zeros((len(queries), 1), np.int32)
    database = DeviceCodes(codes)
    full_ranking.ranking_by_distance(database, queries, items, 10)
    with counting() as counts:
        full_ranking.ranking_by_distance(database, queries, items, 10)
    assert not counts.compilations
    assert len(counts.round_trips) == 1, counts.round_trips


def test_bad_queries_and_k_are_errors():
    mesh = sharding.make_mesh(jax.devices()[:4])
    codes, queries = collection(0, 20)
    database = DeviceCodes(codes, mesh)
    with pytest.raises(ValueError, match="k=21: expected from 1 to the 20"):
        device_codes.search(database, queries, 21)
    with pytest.raises(ValueError, match="4 dimensions, the database's have 8"):
        device_codes.search(database, queries[:, :4], 3)
    with pytest.raises(ValueError, match="1 of 20 database codes hold NaN"):
        DeviceCodes(np.where(np.arange(20)[:, None] == 3, np.nan, codes), mesh)
    with pytest.raises(ValueError, match="split over a mesh are only searched by distance"):
        database.top(Near(queries), 3)
