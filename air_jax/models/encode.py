"""Images to codes: the encoder alone, as section III.2 keeps it; and what the decoder makes."""

import collections
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from air_jax.data.loaders import resident
from air_jax.models.autoencoder import Autoencoder
from air_jax.models.net import Net
from air_jax.runtime import distributed, sharding
from air_jax.runtime.progress import Progress

AHEAD = 4  # batches
BATCH_ON_CPU = 512  # images of all devices
BATCH = 2048  # images of each accelerator
MAPS_BYTES = 2**30  # of one layer of a batch on an accelerator: fewer images if they are large


def batch_size(asked: int, image_shape: tuple[int, ...], width: int, mesh: Mesh) -> int:
    """Images in one call: as many as are asked for, or for 0 what suits the devices.

    Args:
        asked: `encode.batch`.
        image_shape: (S, S, C).
        width: channels of the largest maps.
        mesh: of the devices.
    """
    if asked:
        return asked
    if sharding.on_cpu():
        return max(1, BATCH_ON_CPU // mesh.size) * mesh.size
    of_maps = 4 * image_shape[0] * image_shape[1] * width
    return min(BATCH, max(1, MAPS_BYTES // of_maps)) * mesh.size


def on_devices(images: np.ndarray, mesh: Mesh) -> np.ndarray | jax.Array:
    """Images [N, ...] for several nets or passes: copied once, to accelerators that have room.

    A CPU reads them where they lie, and each of several processes copies its share in batches.
    """
    of_others = mesh.size > len(mesh.local_devices)
    if sharding.on_cpu() or of_others or not resident("auto", images.nbytes, mesh):
        return images
    return sharding.put(images, sharding.replicated(mesh))


def encode(
    net: Net,
    images: np.ndarray | jax.Array,
    mesh: Mesh,
    batch: int = BATCH_ON_CPU,
    label: str | None = "encode",
) -> np.ndarray:
    """Codes of images.

    Args:
        net: its encoder is used.
        images: [N, S, S, C] uint8, of one process also as `on_devices` gives them.
        mesh: each batch is split over its devices. Each of several processes encodes its share of
            the images, and gets the codes of all.
        batch: images in one call, of all processes together, a multiple of the devices; the last
            batch is padded, so there is one compilation.
        label: of the progress shown; None shows none.

    Returns:
        [N, D] float32: D is the read-out's, or without one the encoder's.
    """
    return _map_batches(encode_batch, net, (images,), mesh, batch, label)


@jax.jit
def encode_batch(net: Net, images: jax.Array) -> jax.Array:
    """Codes [B, D] float32 of one batch [B, S, S, C] uint8 on the devices."""
    with net.computing():
        codes = net.module().encode(net.standardise(images)).astype(jnp.float32)
    return codes if net.readout is None else net.readout(codes)


@jax.jit
def with_statistics_of(net: Net, images: jax.Array) -> Net:
    """A net whose batch normalisation has the means and variances that these images give it.

    Views that a net was trained on are crops and have other statistics than whole images.

    Args:
        net: any; without batch normalisation it stays as it is.
        images: [B, S, S, C] uint8; a thousand tell the statistics well.
    """
    model = net.module()
    model.train()
    for _, module in nnx.iter_graph(model):
        if isinstance(module, nnx.BatchNorm):
            module.momentum = 0.0  # what is new replaces what was
    with net.computing():
        model.encode(net.standardise(images))
    return net._replace(stats=nnx.state(model, nnx.BatchStat))


def reconstruct(
    net: Net, images: np.ndarray, codes: np.ndarray, mesh: Mesh, batch: int = 512
) -> np.ndarray:
    """What the decoder makes of `codes`, with the shortcuts that `images` give it.

    Args:
        net: encoder and decoder are used.
        images: [N, S, S, C] uint8.
        codes: [N, code_dim] float32, of these images or of others.
        mesh: each batch is split over its devices.
        batch: images in one call.

    Returns:
        [N, S, S, C] float32, standardised pixels.
    """
    return _map_batches(_reconstruct_batch, net, (images, codes), mesh, batch)


def _decode(net: Net, images: jax.Array, codes: jax.Array) -> jax.Array:
    model = net.module()
    assert isinstance(model, Autoencoder)
    with net.computing():
        _, maps = model.encoder(net.standardise(images))
        return model.decoder(codes, maps).astype(jnp.float32)


_reconstruct_batch = jax.jit(_decode)


@jax.jit
def _squared_error_batch(net: Net, images: jax.Array, codes: jax.Array) -> jax.Array:
    error = _decode(net, images, codes) - net.standardise(images)
    return jnp.mean(jnp.square(error), axis=(1, 2, 3))


class HeldOutLosses(NamedTuple):
    """Mean squared errors per standardised pixel on images the net was not trained on.

    Attributes:
        loss: of the net (eq 4, 5).
        code_shuffled_loss: of decoding with each image's code replaced by another image's. Close
            to `loss`: the decoder does not use the code, but sees the image by its shortcuts.
            None for a single image, which has no other.
    """

    loss: float
    code_shuffled_loss: float | None


def held_out_losses(net: Net, images: np.ndarray, mesh: Mesh, batch: int = 512) -> HeldOutLosses:
    """Reconstruct images [N, S, S, C] uint8 from their own and from other images' codes."""
    seen = on_devices(images, mesh)
    codes = encode(net, seen, mesh, batch, label=None)
    # A cyclic shift in random order: no image keeps its own code.
    order = np.random.default_rng(0).permutation(len(codes))
    shuffled = np.empty_like(codes)
    shuffled[order] = codes[np.roll(order, 1)]

    def loss(used: np.ndarray, label: str) -> float:
        errors = _map_batches(_squared_error_batch, net, (seen, used), mesh, batch, label)
        return float(errors.mean())

    own = loss(codes, "loss by their own codes")
    others = loss(shuffled, "loss by other images' codes") if len(codes) > 1 else None
    return HeldOutLosses(own, others)


def _map_batches(
    function: Callable[..., jax.Array],
    net: Net,
    arrays: tuple[np.ndarray | jax.Array, ...],
    mesh: Mesh,
    batch: int,
    label: str | None = None,
) -> np.ndarray:
    """`function(net, *batches)` over equally long arrays, padded to whole batches.

    Arrays on the devices give their rows there.

    `AHEAD` batches are under way while the result of the batch before them is fetched: copies, both
    ways, overlap with computation. Each of several processes does its share, on its own devices.
    """
    if mesh.size > len(mesh.local_devices):
        shares, own = distributed.shares(*map(np.asarray, arrays)), sharding.local(mesh)
        net, batch = sharding.on_own_devices(net, mesh), batch // distributed.processes()
        done = _map_batches(function, net, shares, own, batch, label)
        return distributed.gather(done, len(arrays[0]))
    size = len(arrays[0])
    leaves, structure = jax.tree.flatten(net)
    call = _of_leaves(function, structure)
    results: list[np.ndarray] = []
    under_way: collections.deque[jax.Array] = collections.deque()
    progress = Progress(label, size) if label else None
    for start in range(0, size, batch):
        parts = [_rows(array, start, batch, mesh) for array in arrays]
        under_way.append(call(leaves, *parts))
        under_way[-1].copy_to_host_async()
        if len(under_way) > AHEAD:
            results.append(np.asarray(under_way.popleft()))
        if progress:
            progress.advance(min(batch, size - start))
    results += map(np.asarray, under_way)
    if progress:
        progress.close()
    return np.concatenate(results)[:size]


@functools.lru_cache(maxsize=64)
def _of_leaves(
    function: Callable[..., jax.Array], structure: jax.tree_util.PyTreeDef
) -> Callable[..., jax.Array]:
    """A function of a net's leaves, jitted: to flatten a net of 40 layers takes a millisecond."""

    @functools.wraps(function)  # profiles and logs of compilations show its name
    def call(leaves: list[jax.Array], *parts: jax.Array) -> jax.Array:
        return function(jax.tree.unflatten(structure, leaves), *parts)

    return jax.jit(call)


def _rows(array: np.ndarray | jax.Array, start: int, count: int, mesh: Mesh) -> jax.Array:
    """Rows of an array from `start` on; after the last those from the first on, which fill up.

    The results of rows that fill up are dropped; they are real values.
    """
    split = sharding.by_rows(mesh)
    if isinstance(array, jax.Array):
        positions = np.arange(start, start + count, dtype=np.int32) % len(array)
        return _taking(split)(array, jax.device_put(positions, sharding.replicated(mesh)))
    rows = array[start : start + count]
    if len(rows) < count:
        rows = np.resize(rows, (count, *rows.shape[1:]))
    return jax.device_put(rows, split)


@functools.cache
def _taking(split: NamedSharding) -> Callable[[jax.Array, jax.Array], jax.Array]:
    return jax.jit(lambda array, positions: array[positions], out_shardings=split)
