"""The sparse manifold transform: codes in closed form, without the training of a net.

After Chen, Yun, Ma, Olshausen and LeCun, "Minimalistic Unsupervised Learning with the Sparse
Manifold Transform" (2022), at a small size. An image's whitened patches get sparse codes A [K, n]
in a dictionary of K patches. A linear embedding P [d, K] of the sparse codes then puts close
together what occurs in the same images:

    minimise |P A D|^2 (Frobenius), subject to P V P^T = I.

V is the covariance of the sparse codes, and A D what remains of each patch's sparse code when the
mean of its context is taken off; the context here is the whole image. The solution is the first
eigenvectors of a generalised eigenproblem of size K.

The embedding is averaged over a grid of cells, and each cell is brought to unit length (on
validation queries better than patches of unit length). Averaging and embedding are both linear, so
only the averaged sparse codes are embedded.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from air_jax.baselines import patches
from air_jax.baselines.patches import Whitening

# Chosen on 500 validation queries drawn from the database part of CIFAR-100.
ATOMS = 1024  # in the dictionary, K
THRESHOLD = 0.2  # of the cosine of patch and atom
DIMENSIONS = 128  # of the embedding, d
GRID = 4  # cells a side
MOST_IMAGES = 2000  # that the embedding is learnt from
RIDGE = 1e-3  # the noise of a sparse code's number, in units of their mean variance; see `embed`
BATCH = 25  # images at a time; with their patches' sparse codes they take some 20 MB
TINY = 1e-6  # added to lengths

Numbers = jax.Array | np.ndarray


class Transform(NamedTuple):
    """What images are described by.

    Attributes:
        whitening: of patches of F numbers.
        atoms: [K, F] whitened patches of unit length.
        mean: [K] of the sparse codes.
        embedding: [K, d]: the paper's P, transposed.
    """

    whitening: Whitening
    atoms: np.ndarray
    mean: np.ndarray
    embedding: np.ndarray


class Moments(NamedTuple):
    """Of the sparse codes of all patches of some images.

    Attributes:
        patches: their number, n.
        total: [K] their sum.
        squares: [K, K] the sum of their outer products: A A^T.
        roughness: [K, K] likewise, of what the image's mean leaves of them: A D D^T A^T.
    """

    patches: Numbers
    total: Numbers
    squares: Numbers
    roughness: Numbers


def learn(images: np.ndarray, seed: int = 0) -> Transform:
    """Whitening, dictionary and embedding, from random patches and images.

    Args:
        images: [N, S, S, C] uint8, S at least `patches.smallest_side(GRID)`.
        seed: of the choice of patches and of images.
    """
    rng = np.random.default_rng(seed)
    chosen = patches.random_patches(images, rng)
    whitening = patches.learn_whitening(chosen)
    atoms = (chosen[:ATOMS] - whitening.mean) @ whitening.matrix
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True) + TINY
    few = rng.choice(len(images), min(MOST_IMAGES, len(images)), replace=False)
    mean, embedding = embed(moments(whitening, atoms, images[few]), DIMENSIONS)
    return Transform(whitening, atoms, mean, embedding)


def moments(whitening: Whitening, atoms: np.ndarray, images: np.ndarray) -> Moments:
    """The moments of the sparse codes of images [N, S, S, C], summed in float64."""
    sums: list[np.ndarray] = []
    for start in range(0, len(images), BATCH):
        some = images[start : start + BATCH]
        counted = np.arange(BATCH) < len(some)
        some = np.resize(some, (BATCH, *images.shape[1:]))
        found = _moments_of_batch(whitening, atoms, some, counted)
        found = [np.asarray(moment, np.float64) for moment in found]
        sums = [one + other for one, other in zip(sums, found, strict=True)] if sums else found
    return Moments(*sums)


def embed(moments: Moments, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean [K] of sparse codes and their smoothest embedding [K, d], float32.

    Args:
        moments: of the sparse codes, in float64.
        dimensions: of the embedding; K, if the sparse codes have fewer.
    """
    count, total, squares, roughness = (np.asarray(moment, np.float64) for moment in moments)
    size = len(total)
    mean = total / count
    covariance = squares / count - np.outer(mean, mean)
    # As if each number of each sparse code had noise of its own: atoms that no patch is like
    # count as rough.
    noise = (RIDGE * np.trace(covariance) / size + TINY**2) * np.eye(size)
    _, vectors = scipy.linalg.eigh(
        roughness / count + noise,
        covariance + noise,
        subset_by_index=(0, min(dimensions, size) - 1),
    )
    return mean.astype(np.float32), vectors.astype(np.float32)


def describe(transform: Transform, images: np.ndarray) -> np.ndarray:
    """The embedded sparse codes of the cells of images [N, S, S, C] uint8.

    Returns:
        [N, GRID * GRID * d] float32; each cell's d numbers have unit length.
    """
    return patches.in_batches(partial(_describe_batch, transform), images, BATCH)


def _sparse_codes(whitening: Whitening, atoms: np.ndarray, images: jax.Array) -> jax.Array:
    """How far above the threshold a patch's cosine with each atom is: [B, W, W, K]."""
    white = patches.whitened_patches(whitening, images)
    white /= jnp.linalg.norm(white, axis=-1, keepdims=True) + TINY
    return jnp.maximum(jnp.matmul(white, atoms.T, precision="highest") - THRESHOLD, 0)


@jax.jit
def _moments_of_batch(
    whitening: Whitening, atoms: np.ndarray, images: jax.Array, counted: jax.Array
) -> Moments:
    """Moments of the images [B, S, S, C] that are `counted` [B] bool."""
    codes = _sparse_codes(whitening, atoms, images) * counted[:, None, None, None]
    means, flat = codes.mean(axis=(1, 2)), codes.reshape(-1, len(atoms))
    places = len(flat) // len(images)
    multiply = partial(jnp.matmul, precision="highest")
    squares = multiply(flat.T, flat)
    roughness = squares - places * multiply(means.T, means)
    return Moments(places * counted.sum(), flat.sum(axis=0), squares, roughness)


@jax.jit
def _describe_batch(transform: Transform, images: jax.Array) -> jax.Array:
    codes = _sparse_codes(transform.whitening, transform.atoms, images)
    cells = patches.pool(codes, GRID) - transform.mean
    embedded = jnp.matmul(cells, transform.embedding, precision="highest")
    embedded /= jnp.linalg.norm(embedded, axis=-1, keepdims=True) + TINY
    return embedded.reshape(len(images), -1)
