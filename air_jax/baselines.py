"""What a code has to beat: pixels, their principal components, and the mean image."""

import numpy as np
from sklearn.decomposition import PCA

NAMES = ("random", "pixels", "pca", "untrained")  # what the codes' mAP is reported beside


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
