"""What reconstruction has to beat: the mean image, and PCA with as many numbers as the code."""

import jax.numpy as jnp
import numpy as np

from air_jax.baselines import pca
from air_jax.baselines.baseline_codes import pixel_codes
from air_jax.runtime import cache
from air_jax.runtime.checksums import hash_of_array, hash_of_code

LEAST_VARIANCE = 1e-6  # of the largest one: below is what float32 rounds


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
    found = pca.fit(fit_on, components)
    variances = np.asarray(found.variances)
    if len(variances) < components or variances[-1] < LEAST_VARIANCE * variances[0]:
        return None
    return float(pca.squared_error(found, predict))


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
