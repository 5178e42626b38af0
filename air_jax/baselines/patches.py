"""Square patches of images, whitened: what codes that need no training of a net are made from."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SIDE = 6  # pixels
STRIDE = 2  # pixels from one patch to the next
MOST = 200_000  # to learn from
PER_IMAGE = 50  # likewise, where there are few images
CONTRAST_FLOOR = 10.0  # added to a patch's variance, in pixels from 0 to 255
WHITENING_FLOOR = 0.1  # added to the variances of whitening


class Whitening(NamedTuple):
    """Makes normalised patches decorrelated, of about equal variance in all directions (ZCA).

    Attributes:
        mean: [P] of normalised patches, P = SIDE * SIDE * C.
        matrix: [P, P] symmetric.
    """

    mean: np.ndarray
    matrix: np.ndarray


def smallest_side(grid: int) -> int:
    """Of images that have `grid` patches a side, one for each cell."""
    return SIDE + (grid - 1) * STRIDE


def random_patches(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Normalised patches [n, P] float32 of images [N, S, S, C] uint8, from random places."""
    places = images.shape[1] - SIDE + 1
    count = min(MOST, PER_IMAGE * len(images))
    which = rng.integers(len(images), size=count)
    rows, columns = rng.integers(places, size=(2, count))
    offsets = np.arange(SIDE)
    patches = images[
        which[:, None, None],
        rows[:, None, None] + offsets[:, None],
        columns[:, None, None] + offsets,
    ]
    flat = jnp.asarray(patches.reshape(count, -1), jnp.float32)
    return np.asarray(_normalise(flat))


def learn_whitening(patches: np.ndarray) -> Whitening:
    """The whitening of normalised patches [n, P] float32."""
    mean = patches.mean(axis=0, dtype=np.float64).astype(np.float32)
    variances, axes = np.linalg.eigh(np.cov(patches - mean, rowvar=False))
    matrix = (axes / np.sqrt(variances + WHITENING_FLOOR)) @ axes.T
    return Whitening(mean, matrix.astype(np.float32))


def whitened_patches(whitening: Whitening, images: jax.Array) -> jax.Array:
    """All patches of images [B, S, S, C], `STRIDE` apart: [B, W, W, P] float32. For use in jit."""
    starts = jnp.arange(0, images.shape[1] - SIDE + 1, STRIDE)
    pixels = starts[:, None] + jnp.arange(SIDE)
    cut = images[:, pixels][:, :, :, pixels].transpose(0, 1, 3, 2, 4, 5)  # [B, W, W, SIDE, SIDE, C]
    flat = cut.reshape(*cut.shape[:3], -1).astype(jnp.float32)
    # Accelerators would round the operands to TF32 or bfloat16.
    return jnp.matmul(_normalise(flat) - whitening.mean, whitening.matrix, precision="highest")


def pool(maps: jax.Array, grid: int) -> jax.Array:
    """Means of maps [B, W, W, K] over a grid of cells, row by row: [B, grid * grid, K]."""
    edges = [i * maps.shape[1] // grid for i in range(grid + 1)]
    cells = [slice(*pair) for pair in itertools.pairwise(edges)]
    means = [maps[:, rows, columns].mean(axis=(1, 2)) for rows in cells for columns in cells]
    return jnp.stack(means, axis=1)


def in_batches(
    describe: Callable[[np.ndarray], jax.Array], images: np.ndarray, batch: int
) -> np.ndarray:
    """What a function makes of images [N, ...], `batch` at a time, so that it is compiled once."""
    described = np.empty(0)
    for start in range(0, len(images), batch):
        rows = images[start : start + batch]
        found = np.asarray(describe(np.resize(rows, (batch, *images.shape[1:]))))[: len(rows)]
        if not start:
            described = np.empty((len(images), *found.shape[1:]), found.dtype)
        described[start : start + batch] = found
    return described


def _normalise(patches: jax.Array) -> jax.Array:
    """Patches [..., P], brightness and contrast taken off."""
    centred = patches - patches.mean(axis=-1, keepdims=True)
    return centred / (jnp.var(patches, axis=-1, keepdims=True) + CONTRAST_FLOOR) ** 0.5
