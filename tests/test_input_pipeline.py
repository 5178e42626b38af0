"""The three loaders give the same batches, in an order that needs no saving."""

import jax
import numpy as np
import pytest

from air_jax import input_pipeline
from air_jax.input_pipeline import LOADERS, make_loader

IMAGES = np.arange(50)[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8)
IMAGES = IMAGES.astype(np.uint8)
KEY = jax.random.key(3)


def first_pixels(batches):
    return [np.asarray(batch)[:, 0, 0, 0].tolist() for batch in batches]


@pytest.mark.parametrize("kind", LOADERS)
def test_every_loader_gives_the_order_of_the_key(kind, mesh4):
    load = make_loader(kind, IMAGES, 8, [KEY], mesh4)
    for epoch in (0, 1):
        order = input_pipeline.epoch_order(KEY, epoch, 50)
        expected = order[:48].reshape(6, 8).tolist()
        assert first_pixels(load(epoch, 0)) == expected


@pytest.mark.parametrize("kind", LOADERS)
def test_every_loader_can_start_in_the_middle_of_an_epoch(kind, mesh):
    load = make_loader(kind, IMAGES, 8, [KEY], mesh)
    assert first_pixels(load(2, 4)) == first_pixels(load(2, 0))[4:]


@pytest.mark.parametrize("kind", LOADERS)
def test_batches_are_uint8_split_over_the_mesh(kind, mesh4):
    batch = next(iter(make_loader(kind, IMAGES, 8, [KEY], mesh4)(0, 0)))
    assert batch.dtype == np.uint8
    assert {shard.data.shape for shard in batch.addressable_shards} == {(2, 4, 4, 1)}
    assert len(batch.addressable_shards) == 4


def test_an_epochs_order_is_a_permutation_and_differs_from_the_next():
    orders = [input_pipeline.epoch_order(KEY, epoch, 100) for epoch in range(3)]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert (orders[0] != orders[1]).any()
    assert (orders[1] != orders[2]).any()


def test_unknown_loader_is_an_error_that_names_it(mesh):
    with pytest.raises(ValueError, match="data.loader='grain'"):
        make_loader("grain", IMAGES, 8, [KEY], mesh)


def test_prefetch_keeps_order_and_runs_ahead_by_no_more_than_asked(mesh):
    taken = []

    def source():
        for i in range(6):
            taken.append(i)
            yield np.full(4, i)

    batches = input_pipeline.prefetch(source(), input_pipeline.replicated(mesh), ahead=2)
    assert int(next(batches)[0]) == 0
    assert taken == [0, 1, 2]
    assert [int(batch[0]) for batch in batches] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("kind", LOADERS)
def test_several_keys_give_every_net_the_batches_of_its_own_key(kind, mesh4):
    keys = [jax.random.key(seed) for seed in (3, 4)]
    alone = [list(make_loader(kind, IMAGES, 8, [key], mesh4)(1, 2)) for key in keys]
    together = list(make_loader(kind, IMAGES, 8, keys, mesh4)(1, 2))
    assert len(together) == len(alone[0])
    for both, *each in zip(together, *alone, strict=True):
        assert both.shape == (2, 8, 4, 4, 1)
        np.testing.assert_array_equal(both, np.stack(each))
