"""Batches of training images, in the same order from each of three loaders.

`resident` keeps the data set on the device, `tfdata` streams it through tf.data, `host` slices
arrays in RAM. Order comes from `permutation(fold_in(key, epoch))`: it depends on nothing that
would have to be saved, so a run that resumes in the middle of an epoch sees the batches that an
uninterrupted one sees.
"""

import collections
import os
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from air_jax.sharding import by_columns, by_rows, replicated

LOADERS = ("auto", "resident", "tfdata", "host")

# loader(epoch, first) yields the batches of an epoch from its batch number `first` on.
Loader = Callable[[int, int], Iterator[jax.Array]]


def epoch_order(key: jax.Array, epoch: int, size: int) -> np.ndarray:
    """A permutation of `range(size)`, int32 [size]: the order of the images in an epoch."""
    return np.asarray(jax.random.permutation(jax.random.fold_in(key, epoch), size))


def make_loader(
    kind: str, images: np.ndarray, batch_size: int, keys: Sequence[jax.Array], mesh: Mesh
) -> Loader:
    """Make a function that yields the batches of any epoch.

    Args:
        kind: one of `LOADERS`; "auto" is "resident" if the images fit on each device beside the
            training, else "host".
        images: [N, S, S, C] uint8. The last, partial batch of an epoch is left out.
        batch_size: images in a batch.
        keys: of the order; one for each net that is trained.
        mesh: batches are split over its devices.

    Returns:
        `loader(epoch, first)`: an iterator over uint8 [batch_size, S, S, C] on the devices; with
        several keys [len(keys), batch_size, S, S, C], each net's in its own order.
    """
    if kind == "auto":
        kind = "resident" if resident(kind, images, mesh) else "host"
    streams = {"resident": _resident_stream, "host": _host_stream, "tfdata": _tfdata_stream}
    if kind not in streams:
        raise ValueError(f"data.loader={kind!r}: expected one of {', '.join(LOADERS)}")
    sharding = by_rows(mesh) if len(keys) == 1 else by_columns(mesh)
    stream = streams[kind](images, mesh, sharding)
    steps = len(images) // batch_size

    def load(epoch: int, first: int = 0) -> Iterator[jax.Array]:
        chosen = slice(first * batch_size, steps * batch_size)
        orders = [epoch_order(key, epoch, len(images))[chosen] for key in keys]
        batches = [order.reshape(-1, batch_size) for order in orders]
        return stream(batches[0] if len(keys) == 1 else np.stack(batches, axis=1))

    return load


# stream(positions [steps, ...]) yields the batches of images at these positions.
_Stream = Callable[[np.ndarray], Iterator[jax.Array]]


def _resident_stream(images: np.ndarray, mesh: Mesh, sharding: NamedSharding) -> _Stream:
    on_device = jax.device_put(images, replicated(mesh))
    take = jax.jit(lambda images, batch: images[batch], out_shardings=sharding)
    return lambda positions: (take(on_device, batch) for batch in positions)


def _host_stream(images: np.ndarray, mesh: Mesh, sharding: NamedSharding) -> _Stream:
    return lambda positions: prefetch((images[batch] for batch in positions), sharding)


def _tfdata_stream(images: np.ndarray, mesh: Mesh, sharding: NamedSharding) -> _Stream:
    tf = import_tensorflow()
    source = tf.constant(images)

    def stream(positions: np.ndarray) -> Iterator[jax.Array]:
        batches = (
            tf.data.Dataset.from_tensor_slices(positions)
            .map(lambda batch: tf.gather(source, batch), tf.data.AUTOTUNE)
            .prefetch(2)
        )
        return prefetch(batches.as_numpy_iterator(), sharding)

    return stream


def import_tensorflow() -> ModuleType:
    """TensorFlow, kept off the accelerator and quiet; the only place that imports it.

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
    """Put batches on the devices, `ahead` of the one in use: copies overlap with computation."""
    queue: collections.deque[jax.Array] = collections.deque()
    for batch in batches:
        queue.append(jax.device_put(batch, sharding))
        if len(queue) > ahead:
            yield queue.popleft()
    yield from queue


def resident(kind: str, images: np.ndarray, mesh: Mesh) -> bool:
    """Whether a loader of this kind keeps the images on the devices.

    "auto" does if they take less than half of each one's memory, as far as it tells.
    """
    if kind != "auto":
        return kind == "resident"
    stats = [device.memory_stats() or {} for device in mesh.local_devices]
    limits = [s["bytes_limit"] for s in stats if "bytes_limit" in s]
    return all(images.nbytes < limit / 2 for limit in limits)
