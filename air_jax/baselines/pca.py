"""Principal components on the devices: the best linear autoencoder."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp


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
def fit(codes: jax.Array, components: int) -> PCA:
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


@jax.jit
def squared_error(pca: PCA, codes: jax.Array) -> jax.Array:
    """Mean squared error [] float32 of making codes [N, D] again from those along the axes."""
    made = jnp.matmul(reduce(pca, codes), pca.axes.T, precision="highest") + pca.mean
    return jnp.mean(jnp.square(codes - made))
