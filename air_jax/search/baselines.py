"""What a code has to beat: pixels, their principal components, k-means, and the mean image."""

import numpy as np
from sklearn.decomposition import PCA

from air_jax.search import kmeans

NAMES = ("random", "pixels", "pca", "kmeans", "untrained")  # reported beside the codes' mAP
WITHOUT_NET = ("pixels", "pca", "kmeans")


def codes(
    name: str, database: np.ndarray, queries: np.ndarray, code_dim: int
) -> tuple[np.ndarray, np.ndarray]:
    """Codes that need no net, to be compared by Euclidean distance.

    Args:
        name: one of `WITHOUT_NET`: the pixels themselves, their first `code_dim` principal
            components, or those of k-means features, of unit length (so L2 ranks as the cosine).
        database: [N, S, S, C] uint8; what is learnt is learnt on these.
        queries: [Q, S, S, C] uint8.
        code_dim: dimensions of the codes, but for the pixels.

    Returns:
        [N, D] and [Q, D] float32.
    """
    if name == "kmeans":
        features = kmeans.describe_images(database, queries)
    else:
        features = pixel_codes(database), pixel_codes(queries)
    if name == "pixels":
        return features
    pca = fit_pca(features[0], code_dim)
    reduced = tuple(pca.transform(part).astype(np.float32) for part in features)
    return tuple(map(_unit_length, reduced)) if name == "kmeans" else reduced


def _unit_length(codes: np.ndarray) -> np.ndarray:
    return codes / np.maximum(np.linalg.norm(codes, axis=1, keepdims=True), 1e-12)


def pixel_codes(images: np.ndarray) -> np.ndarray:
    """Images [N, S, S, C] uint8 as they are: [N, S*S*C] float32 in [0, 1]."""
    return images.reshape(len(images), -1).astype(np.float32) / 255


def fit_pca(codes: np.ndarray, components: int) -> PCA:
    """PCA of codes [N, D], the best linear autoencoder; to fewer components where there are."""
    samples, features = codes.shape
    solver = "covariance_eigh" if samples > features else "full"
    return PCA(min(components, samples, features), svd_solver=solver).fit(codes)


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
