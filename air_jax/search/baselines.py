"""What a code has to beat: codes that need no net, and the mean image.

The codes are pixels, their principal components, and two descriptions of an image by its patches,
reduced by PCA: k-means (Coates, Lee and Ng, 2011) and the sparse manifold transform (Chen and
others, 2022). Two cores make them in minutes: a deep code that loses to them needs a look.

PCA and k-means are JAX's, and so computed where the devices are.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from air_jax.models import manifold_transform, patches
from air_jax.models.patches import Whitening
from air_jax.runtime import cache
from air_jax.runtime.checksums import hash_of_array, hash_of_code

NAMES = ("random", "pixels", "pca", "kmeans", "smt", "untrained")  # reported beside the codes' mAP
WITHOUT_NET = ("pixels", "pca", "kmeans", "smt")

CENTROIDS = 400
KMEANS_STEPS = 10
KMEANS_BLOCK = 20_000  # patches whose distances are in memory at once
LEAST_VARIANCE = 1e-6  # of the largest one: below is what float32 rounds
GRID = 2  # cells a side that activations are pooled over
# Of the pooled activations, before the PCA, so that a few strong centroids do not decide the
# distances. With this power the codes reach the mAP that is known of them on CIFAR-100 (0.041);
# with 1/2 they reach 0.043, with 1 they stay at 0.036.
POWER = 2 / 3
SMALLEST_SIDE = {  # of images, by name
    "kmeans": patches.smallest_side(GRID),
    "smt": patches.smallest_side(manifold_transform.GRID),
}


def codes(
    name: str, database: np.ndarray, queries: np.ndarray, code_dim: int
) -> tuple[np.ndarray, np.ndarray]:
    """Codes that need no net, to be compared by Euclidean distance.

    Args:
        name: one of `WITHOUT_NET`: the pixels themselves, their first `code_dim` principal
            components, or those of k-means features or of the sparse manifold transform, of unit
            length (so L2 ranks as the cosine).
        database: [N, S, S, C] uint8; what is learnt is learnt on these.
        queries: [Q, S, S, C] uint8.
        code_dim: dimensions of the codes, but for the pixels.

    Returns:
        [N, D] and [Q, D] float32.

    Raises:
        ValueError: the images are smaller than `SMALLEST_SIDE` says.
    """
    check_side(name, database.shape[1])
    describe = pixel_codes
    if name == "kmeans":
        describe = partial(describe_by_patches, learn_patches(database))
    elif name == "smt":
        describe = partial(manifold_transform.describe, manifold_transform.learn(database))
    of_database, of_queries = describe(database), describe(queries)
    if name == "pixels":
        return of_database, of_queries
    pca = fit_pca(jnp.asarray(of_database), code_dim)

    def reduced(codes: np.ndarray) -> np.ndarray:
        codes = np.array(reduce(pca, jnp.asarray(codes)))
        if name != "pca":
            codes /= np.maximum(np.linalg.norm(codes, axis=1, keepdims=True), 1e-12)
        return codes

    return reduced(of_database), reduced(of_queries)


def kept_codes(
    name: str, database: np.ndarray, queries: np.ndarray, code_dim: int
) -> tuple[np.ndarray, np.ndarray]:
    """`codes`, kept in the cache: once for a data set and a split. Pixels are not kept."""
    if name == "pixels":
        return codes(name, database, queries, code_dim)
    made_from = [name, code_dim, hash_of_code(codes), *map(hash_of_array, (database, queries))]
    found = cache.kept(
        "baselines",
        made_from,
        lambda: dict(
            zip(("database", "query"), codes(name, database, queries, code_dim), strict=True)
        ),
    )
    return found["database"], found["query"]


def check_side(name: str, side: int) -> None:
    """Raise ValueError if images of this side are too small for codes of this name."""
    smallest = SMALLEST_SIDE.get(name, 1)
    if side < smallest:
        raise ValueError(
            f"{name!r} needs images of side {smallest} or more, these have {side} (data.size)"
        )


def pixel_codes(images: np.ndarray) -> np.ndarray:
    """Images [N, S, S, C] uint8 as they are: [N, S*S*C] float32 in [0, 1]."""
    return images.reshape(len(images), -1).astype(np.float32) / 255


def kept_pca_loss(
    training: np.ndarray, held_out: np.ndarray, std: np.ndarray, components: int
) -> float | None:
    """`pca_loss`, kept in the cache."""
    of_arrays = map(hash_of_array, (training, held_out, np.asarray(std)))
    made_from = ["pca loss", components, hash_of_code(pca_loss), *of_arrays]

    def make() -> dict[str, np.ndarray]:
        loss = pca_loss(training, held_out, std, components)
        return {"loss": np.array(np.nan if loss is None else loss)}

    loss = float(cache.kept("baselines", made_from, make)["loss"])
    return None if np.isnan(loss) else loss


class PCA(NamedTuple):
    """The best linear autoencoder.

    Attributes:
        mean: [D] of the codes it is of.
        axes: [D, d] of unit length, by falling variance; their signs mean nothing.
        variances: [d] along them.
    """

    mean: jax.Array
    axes: jax.Array
    variances: jax.Array


@partial(jax.jit, static_argnames="components")
def fit_pca(codes: jax.Array, components: int) -> PCA:
    """PCA of codes [N, D] float32; to fewer components where N or D is smaller."""
    samples, features = codes.shape
    components = min(components, samples, features)
    multiply = partial(jnp.matmul, precision="highest")
    mean = codes.mean(axis=0)
    centred = codes - mean
    if samples > features:
        variances, axes = jnp.linalg.eigh(multiply(centred.T, centred) / (samples - 1))
    else:  # the products of samples are fewer, and have the same variances
        variances, weights = jnp.linalg.eigh(multiply(centred, centred.T) / (samples - 1))
        axes = multiply(centred.T, weights)
        axes /= jnp.maximum(jnp.linalg.norm(axes, axis=0), 1e-12)
    return PCA(mean, axes[:, ::-1][:, :components], variances[::-1][:components])


@jax.jit
def reduce(pca: PCA, codes: jax.Array) -> jax.Array:
    """Codes [N, D] along the axes: [N, d] float32."""
    return jnp.matmul(codes - pca.mean, pca.axes, precision="highest")


def constant_loss(training: np.ndarray, held_out: np.ndarray, std: np.ndarray) -> float:
    """Mean squared error of predicting the mean training image, per standardised pixel.

    Args:
        training: [N, S, S, C] uint8.
        held_out: [Q, S, S, C] uint8, the images predicted.
        std: [C] of the standardisation, in pixels from 0 to 1.
    """
    mean_image = training.mean(axis=0)
    squared = np.mean((held_out - mean_image) ** 2, axis=(0, 1, 2))
    return float(np.mean(squared / (255 * std) ** 2))


def pca_loss(
    training: np.ndarray, held_out: np.ndarray, std: np.ndarray, components: int
) -> float | None:
    """Mean squared error of PCA to `components` numbers, per standardised pixel.

    Arguments as for `constant_loss`.

    Returns:
        None where PCA is lossless: the training images span no more than `components` dimensions.
    """
    fit_on, predict = (
        jnp.asarray(pixel_codes(images / std.astype(np.float32))) for images in (training, held_out)
    )
    pca = fit_pca(fit_on, components)
    variances = np.asarray(pca.variances)
    if len(variances) < components or variances[-1] < LEAST_VARIANCE * variances[0]:
        return None
    return float(_pca_error(pca, predict))


@jax.jit
def _pca_error(pca: PCA, codes: jax.Array) -> jax.Array:
    made = jnp.matmul(reduce(pca, codes), pca.axes.T, precision="highest") + pca.mean
    return jnp.mean(jnp.square(codes - made))


class Dictionary(NamedTuple):
    """What patches are described by.

    Attributes:
        whitening: of patches of P numbers.
        centroids: [K, P] of whitened patches.
    """

    whitening: Whitening
    centroids: np.ndarray


def learn_patches(images: np.ndarray, seed: int = 0) -> Dictionary:
    """Whitening and centroids of random patches.

    Args:
        images: [N, S, S, C] uint8, S at least `SMALLEST_SIDE["kmeans"]`.
        seed: of the choice of patches, and of k-means.
    """
    chosen = patches.random_patches(images, np.random.default_rng(seed))
    whitening = patches.learn_whitening(chosen)
    whitened = (chosen - whitening.mean) @ whitening.matrix
    return Dictionary(whitening, find_centroids(whitened, CENTROIDS))


def find_centroids(patches: np.ndarray, count: int) -> np.ndarray:
    """K-means of patches [n, P] float32 that lie in random order: [K, P] float32.

    Args:
        patches: the first K of them are the first centroids.
        count: K; fewer where there are fewer patches.
    """
    block = min(KMEANS_BLOCK, len(patches))
    blocks = -(-len(patches) // block)
    padded = np.zeros((blocks * block, patches.shape[1]), np.float32)
    padded[: len(patches)] = patches
    counted = np.arange(len(padded)) < len(patches)
    shape = (blocks, block)
    return np.asarray(
        _find_centroids(
            padded.reshape(*shape, -1), counted.reshape(shape), patches[:count], KMEANS_STEPS
        )
    )


@partial(jax.jit, static_argnames="steps")
def _find_centroids(
    blocks: jax.Array, counted: jax.Array, centroids: jax.Array, steps: int
) -> jax.Array:
    """Lloyd's algorithm, from centroids [K, P], over blocks [M, B, P] of points that count or not.

    Sums are products with one-hot rows, which are the same in every run on an accelerator.
    """
    multiply = partial(jnp.matmul, precision="highest")

    def step(centroids: jax.Array, _: None) -> tuple[jax.Array, None]:
        def add(
            sums: tuple[jax.Array, jax.Array], block: tuple[jax.Array, jax.Array]
        ) -> tuple[tuple[jax.Array, jax.Array], None]:
            points, counts = block
            distances = jnp.sum(centroids**2, axis=1) - 2 * multiply(points, centroids.T)
            nearest = jax.nn.one_hot(distances.argmin(axis=1), len(centroids)) * counts[:, None]
            return (sums[0] + multiply(nearest.T, points), sums[1] + nearest.sum(axis=0)), None

        start = jnp.zeros_like(centroids), jnp.zeros(len(centroids))
        (sums, counts), _ = jax.lax.scan(add, start, (blocks, counted))
        means = sums / jnp.maximum(counts, 1)[:, None]
        return jnp.where(counts[:, None] > 0, means, centroids), None

    return jax.lax.scan(step, centroids, None, length=steps)[0]


def describe_by_patches(dictionary: Dictionary, images: np.ndarray, batch: int = 250) -> np.ndarray:
    """How much each of four quadrants of images [N, S, S, C] has of each of K centroids.

    Returns:
        [N, 4 K] float32.
    """
    return patches.in_batches(partial(_describe_batch, dictionary), images, batch)


@jax.jit
def _describe_batch(dictionary: Dictionary, images: jax.Array) -> jax.Array:
    white = patches.whitened_patches(dictionary.whitening, images)
    squared = (
        jnp.sum(white**2, axis=-1, keepdims=True)
        - 2 * jnp.matmul(white, dictionary.centroids.T, precision="highest")
        + jnp.sum(dictionary.centroids**2, axis=-1)
    )
    distances = jnp.sqrt(jnp.maximum(squared, 0))
    # "Triangle" activation: how much nearer than on average a centroid is.
    activation = jnp.maximum(distances.mean(axis=-1, keepdims=True) - distances, 0)
    return patches.pool(activation, GRID).reshape(len(images), -1) ** POWER
