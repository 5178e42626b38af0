"""The three loaders give the same batches, in an order that needs no saving."""

import numpy as np
import pytest

from air_jax.data import loaders
from air_jax.data.loaders import LOADERS, make_loader

IMAGES = np.arange(50)[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8)
IMAGES = IMAGES.astype(np.uint8)
SEED = 3


def first_pixels(batches):
    return [np.asarray(batch)[:, 0, 0, 0].tolist() for batch in batches]


@pytest.mark.parametrize("kind", LOADERS)
def test_every_loader_gives_the_order_of_the_key(kind, mesh4):
    load = make_loader(kind, IMAGES, 8, SEED, mesh4)
    orders = [loaders.epoch_order(SEED, epoch, 50)[:48] for epoch in (0, 1)]
    assert first_pixels(load(0, 12)) == np.stack(orders).reshape(12, 8).tolist()


@pytest.mark.parametrize("kind", LOADERS)
def test_every_loader_can_start_in_the_middle_of_an_epoch(kind, mesh):
    load = make_loader(kind, IMAGES, 8, SEED, mesh)
    assert first_pixels(load(16, 20)) == first_pixels(load(0, 20))[16:]


@pytest.mark.parametrize("kind", LOADERS)
def test_batches_are_uint8_split_over_the_mesh(kind, mesh4):
    batch = next(iter(make_loader(kind, IMAGES, 8, SEED, mesh4)(0, 6)))
    assert batch.dtype == np.uint8
    assert {shard.data.shape for shard in batch.addressable_shards} == {(2, 4, 4, 1)}
    assert len(batch.addressable_shards) == 4


def test_an_epochs_order_is_a_permutation_and_differs_from_the_next():
    orders = [loaders.epoch_order(SEED, epoch, 100) for epoch in range(3)]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert (orders[0] != orders[1]).any()
    assert (orders[1] != orders[2]).any()


def test_unknown_loader_is_an_error_that_names_it(mesh):
    with pytest.raises(ValueError, match="data.loader='grain'"):
        make_loader("grain", IMAGES, 8, SEED, mesh)


def test_prefetch_keeps_order_and_runs_ahead_by_no_more_than_asked(mesh):
    taken = []

    def source():
        for i in range(6):
            taken.append(i)
            yield np.full(4, i)

    batches = loaders.prefetch(source(), loaders.replicated(mesh), ahead=2)
    assert int(next(batches)[0]) == 0
    assert taken == [0, 1, 2]
    assert [int(batch[0]) for batch in batches] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("kind", LOADERS)
def test_several_steps_on_each_batch_see_it_again_wherever_they_start(kind, mesh):
    once = first_pixels(make_loader(kind, IMAGES, 8, SEED, mesh)(0, 12))
    load = make_loader(kind, IMAGES, 8, SEED, mesh, steps_per_batch=3)
    whole = first_pixels(load(0, 36))
    assert whole == [pixels for pixels in once for _ in range(3)]
    assert first_pixels(load(17, 36)) == whole[17:]


@pytest.mark.parametrize("kind", LOADERS)
def test_calls_of_several_steps_hold_the_batches_of_single_ones(kind, mesh4):
    single = list(make_loader(kind, IMAGES, 8, SEED, mesh4)(1, 12))
    load = make_loader(kind, IMAGES, 8, SEED, mesh4, steps_per_call=4)
    stacks = [
        call.images[call.positions] if isinstance(call, loaders.Batches) else call
        for call in load(1, 12)
    ]
    assert [len(stack) for stack in stacks] == [4, 4, 3]
    assert {len(stack.sharding.device_set) for stack in stacks} == {4}
    for ours, theirs in zip(np.concatenate(stacks), single, strict=True):
        np.testing.assert_array_equal(ours, theirs)
