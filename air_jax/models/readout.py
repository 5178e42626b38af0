"""The read-out: what is done to a net's codes before they are compared.

Few directions of a trained net's codes vary much more than all others, and a plain distance sees
these few only. A whitened read-out projects codes to their principal components, divides each by
a power of its variance, and brings the result to unit length. What it gives is compared by
Euclidean distance, as every code is.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

READOUTS = ("plain", "whitened")
_NONE = 1e-12  # a component with less of the largest variance is noise of rounding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Readout:
    """A linear map of codes, then unit length.

    Attributes:
        mean: [F] float32, taken off.
        projection: [F, D] float32.
        unit_length: whether codes are divided by their lengths.
    """

    mean: jax.Array
    projection: jax.Array
    unit_length: bool = dataclasses.field(metadata={"static": True})

    def __call__(self, codes: jax.Array) -> jax.Array:
        """Codes [B, F] float32 -> [B, D] float32. A code of zeros stays zero."""
        read = jnp.matmul(codes - self.mean, self.projection, precision="highest")
        if not self.unit_length:
            return read
        lengths = jnp.linalg.norm(read, axis=1, keepdims=True)
        return read / jnp.where(lengths > 0, lengths, 1)


def fit_whitened(codes: np.ndarray, dim: int, power: float, unit_length: bool) -> Readout:
    """Fit a whitened read-out.

    Args:
        codes: [N, F] float32, of training images.
        dim: D, the components kept, largest variance first; F or fewer, and never more than vary.
        power: each component is divided by its variance to this power: 0 is PCA, 0.5 makes all
            variances 1.
        unit_length: see `Readout`.

    Raises:
        ValueError: the codes do not vary.
    """
    mean = codes.mean(axis=0, dtype=np.float64)
    centred = codes - mean
    variances, axes = np.linalg.eigh(centred.T @ centred / len(codes))
    variances, axes = variances[::-1], axes[:, ::-1]
    kept = min(dim, int(np.count_nonzero(variances > _NONE * max(variances[0], 0))))
    if not kept:
        raise ValueError(f"the {len(codes):,} codes are all the same: nothing to read out of them")
    # The sign of an eigenvector is free: the largest entry is positive on every machine.
    axes = axes[:, :kept]
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(kept)])
    projection = axes * signs * variances[:kept] ** -power
    return Readout(
        jnp.asarray(mean, jnp.float32), jnp.asarray(projection, jnp.float32), unit_length
    )
