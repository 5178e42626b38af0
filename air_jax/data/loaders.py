"""Batches of training images, in the same order from each of three loaders.

`resident` keeps the data set on the device, `tfdata` streams it through tf.data, `host` slices
arrays in RAM. The order of an epoch comes from the seed and the number of the epoch: it depends on
nothing that would have to be saved, so a run that resumes in the middle of an epoch sees the
batches that an uninterrupted one sees.
"""

import collections
import itertools
import os
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from air_jax.runtime import distributed
from air_jax.runtime.sharding import by_columns, by_rows, put, put_share, replicated

LOADERS = ("auto", "resident", "tfdata", "host")


class Batches(NamedTuple):
    """The batches of several steps, as positions in a set that lies on the devices.

    Attributes:
        images: the set [N, S, S, C] uint8, whole on each device.
        positions: [steps, B] int32.
    """

    images: jax.Array
    positions: jax.Array


# loader(first, last) yields what each call of the step takes, for the steps from first to last.
Loader = Callable[[int, int], Iterator[jax.Array | Batches]]


def epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """A permutation of `range(size)`, int32 [size]: the order of the images in an epoch."""
    # NumPy's: on an accelerator JAX's would stand in line behind the steps under way.
    return np.random.default_rng((seed, epoch)).permutation(size).astype(np.int32)


def make_loader(
    kind: str,
    images: np.ndarray,
    batch_size: int,
    seed: int,
    mesh: Mesh,
    steps_per_batch: int = 1,
    steps_per_call: int = 1,
) -> Loader:
    """Make a function that yields the batches of any steps.

    Args:
        kind: one of `LOADERS`; "auto" is "resident" if the images fit on each device beside the
            training, else "host".
        images: [N, S, S, C] uint8. The last, partial batch of an epoch is left out.
        batch_size: images in a batch.
        seed: of the order.
        mesh: batches are split over its devices.
        steps_per_batch: steps on each batch before the next.
        steps_per_call: how many steps' batches are given at once.

    Returns:
        `loader(first, last)`: an iterator over uint8 [batch_size, S, S, C] on the devices, one for
        each step from `first` to before `last`. With several steps in a call, over what so many
        steps take, the last time those that are left: `Batches` of images that are `resident`, of
        others uint8 [steps, batch_size, S, S, C].

    Raises:
        ValueError: an unknown kind.
        ImportError: the kind is "tfdata", and TensorFlow is not installed.
    """
    if resident(kind, images.nbytes, mesh):
        stream = _resident_stream(images, mesh, steps_per_call)
    elif kind == "tfdata":
        stream = _tfdata_stream(images, mesh, steps_per_call)
    else:
        stream = _host_stream(images, mesh, steps_per_call)
    per_epoch = len(images) // batch_size

    def positions(first: int, last: int) -> Iterator[np.ndarray]:
        orders: dict[int, np.ndarray] = {}
        for step in range(first, last):
            epoch, batch = divmod(step // steps_per_batch, per_epoch)
            if epoch not in orders:
                orders = {epoch: epoch_order(seed, epoch, len(images))}
            yield orders[epoch][batch * batch_size : (batch + 1) * batch_size]

    return lambda first, last: stream(positions(first, last))


# stream(positions of each step) yields what each call of the step takes.
_Stream = Callable[[Iterator[np.ndarray]], Iterator[jax.Array | Batches]]


def _resident_stream(images: np.ndarray, mesh: Mesh, steps_per_call: int) -> _Stream:
    whole = replicated(mesh)
    on_device = put(images, whole)
    if steps_per_call == 1:
        take = jax.jit(lambda images, batch: images[batch], out_shardings=by_rows(mesh))
        return lambda positions: (take(on_device, put(batch, whole)) for batch in positions)

    def stream(positions: Iterator[np.ndarray]) -> Iterator[Batches]:
        for steps in _stacks(positions, steps_per_call):
            yield Batches(on_device, put(steps, by_columns(mesh)))

    return stream


def _stacks(positions: Iterator[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """Positions of `count` steps at a time [count, B], the last time of the steps that are left."""
    while steps := list(itertools.islice(positions, count)):
        yield np.stack(steps)


def _host_stream(images: np.ndarray, mesh: Mesh, steps_per_call: int) -> _Stream:
    def stream(positions: Iterator[np.ndarray]) -> Iterator[jax.Array]:
        own = map(_own, positions)
        taken = own if steps_per_call == 1 else _stacks(own, steps_per_call)
        return prefetch((images[some] for some in taken), _split(mesh, steps_per_call))

    return stream


def _split(mesh: Mesh, steps_per_call: int) -> NamedSharding:
    """How a batch, or a stack of several, lies on the devices."""
    return by_rows(mesh) if steps_per_call == 1 else by_columns(mesh)


def _own(batch: np.ndarray) -> np.ndarray:
    """This process's part of a batch's positions [B]: no other process reads those images."""
    return batch[distributed.share(len(batch))]


def _tfdata_stream(images: np.ndarray, mesh: Mesh, steps_per_call: int) -> _Stream:
    tf = import_tensorflow()
    source = tf.constant(images)

    def stream(positions: Iterator[np.ndarray]) -> Iterator[jax.Array]:
        # Many steps at a time leave Python: one by one takes twice as long.
        taken = tf.data.Dataset.from_generator(
            lambda: _stacks(map(_own, positions), 256),
            output_signature=tf.TensorSpec(None, tf.int32),
        ).flat_map(tf.data.Dataset.from_tensor_slices)
        if steps_per_call > 1:
            taken = taken.batch(steps_per_call)
        batches = taken.map(lambda some: tf.gather(source, some), tf.data.AUTOTUNE).prefetch(2)
        return prefetch(batches.as_numpy_iterator(), _split(mesh, steps_per_call))

    return stream


def import_tensorflow() -> ModuleType:
    """TensorFlow, kept off the accelerator and quiet. No other function imports TensorFlow.

    Raises:
        ImportError: it is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")  # its default is to take all of the memory
    return tf


def prefetch(
    batches: Iterator[np.ndarray], sharding: NamedSharding, ahead: int = 2
) -> Iterator[jax.Array]:
    """Put batches on the devices, `ahead` of the one in use: copies overlap with computation.

    A batch may be a stack of several.

    Of several processes each has the part for its own devices.
    """
    queue: collections.deque[jax.Array] = collections.deque()
    for batch in batches:
        queue.append(put_share(batch, sharding))
        if len(queue) > ahead:
            yield queue.popleft()
    yield from queue


def resident(kind: str, image_bytes: int, mesh: Mesh) -> bool:
    """Whether a loader of this kind keeps images of so many bytes on the devices.

    "auto" does if they take less than half of each device's memory, as far as the device tells.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in LOADERS:
        raise ValueError(f"data.loader={kind!r}: expected one of {', '.join(LOADERS)}")
    if kind != "auto":
        return kind == "resident"
    stats = [device.memory_stats() or {} for device in mesh.local_devices]
    limits = [s["bytes_limit"] for s in stats if "bytes_limit" in s]
    return all(image_bytes < limit / 2 for limit in limits)
