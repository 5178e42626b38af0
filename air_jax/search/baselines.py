"""What a code has to beat: codes that need no net, and the mean image.

The codes are pixels, their principal components, and two descriptions of an image by its patches,
reduced by PCA: k-means (Coates, Lee and Ng, 2011) and the sparse manifold transform (Chen and
others, 2022). Two cores make them in minutes: a deep code that loses to them needs a look.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA

from air_jax.models import manifold_transform, patches
from air_jax.models.patches import Whitening

NAMES = ("random", "pixels", "pca", "kmeans", "smt", "untrained")  # reported beside the codes' mAP
WITHOUT_NET = ("pixels", "pca", "kmeans", "smt")

CENTROIDS = 400
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
    pca = fit_pca(of_database, code_dim)

    def reduced(codes: np.ndarray) -> np.ndarray:
        codes = pca.transform(codes).astype(np.float32)
        if name != "pca":
            codes /= np.maximum(np.linalg.norm(codes, axis=1, keepdims=True), 1e-12)
        return codes

    return reduced(of_database), reduced(of_queries)


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


def fit_pca(codes: np.ndarray, components: int) -> PCA:
    """PCA of codes [N, D], the best linear autoencoder; to fewer components where there are."""
    samples, features = codes.shape
    # Of few images with many pixels the exact solver takes several times as long as "auto".
    solver = "covariance_eigh" if samples > features else "auto"
    components = min(components, samples, features)
    return PCA(components, svd_solver=solver, random_state=0).fit(codes)


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
    scaled = (pixel_codes(images / std.astype(np.float32)) for images in (training, held_out))
    fit_on, predict = scaled
    pca = fit_pca(fit_on, components)
    smallest, largest = pca.explained_variance_[-1], pca.explained_variance_[0]
    if pca.n_components_ < components or smallest < 1e-9 * largest:
        return None
    error = predict - pca.inverse_transform(pca.transform(predict))
    return float(np.mean(error**2))


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
    centroids = min(CENTROIDS, len(chosen))
    kmeans = MiniBatchKMeans(centroids, batch_size=4096, n_init=1, random_state=seed)
    kmeans.fit(whitened)
    return Dictionary(whitening, kmeans.cluster_centers_)


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
