"""A net: an autoencoder made functional, with the standardisation that it was trained on."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from air_jax.models.autoencoder import Autoencoder


class Net(NamedTuple):
    """An autoencoder split by `nnx.split`, with the standardisation that it was trained on.

    A pytree: it can be an argument of any jitted function.

    Attributes:
        graphdef: the modules' structure, static.
        params: their parameters, float32.
        stats: running statistics of batch normalisation; empty without it.
        mean: [C] float32, channel means of the training images in [0, 1].
        std: [C] float32, their standard deviations.
    """

    graphdef: nnx.GraphDef
    params: nnx.State
    stats: nnx.State
    mean: jax.Array
    std: jax.Array

    @property
    def depth(self) -> int:
        """Convolutions and deconvolutions."""
        return 2 * len(self.params["encoder"]["convs"])

    def standardise(self, images: jax.Array) -> jax.Array:
        """uint8 images [B, S, S, C] -> float32, zero mean and unit variance by channel."""
        return (images.astype(jnp.float32) / 255 - self.mean) / self.std

    def module(self) -> Autoencoder:
        """The autoencoder as a module, set to evaluation."""
        model = nnx.merge(self.graphdef, self.params, self.stats)
        model.eval()
        return model


def make_net(model: Autoencoder, mean: np.ndarray | jax.Array, std: np.ndarray | jax.Array) -> Net:
    """Split a module into a `Net`; `mean` and `std` [C] are of pixels in [0, 1]."""
    return Net(*nnx.split(model, nnx.Param, nnx.BatchStat), jnp.asarray(mean), jnp.asarray(std))


def parameter_names(params: nnx.State) -> list[str]:
    """Dotted names of all parameters: `encoder.convs.0.conv.kernel`, ..."""
    paths = [path for path, _ in nnx.to_flat_state(params)]
    return [".".join(map(str, path)) for path in paths]


def count_parameters(params: nnx.State) -> int:
    """Weights and biases in all; also of an abstract state (`nnx.eval_shape`)."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
