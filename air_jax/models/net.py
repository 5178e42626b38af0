"""A net: a module made functional, with the standardisation and the read-out of its codes."""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from air_jax.models.architecture import Architecture
from air_jax.models.autoencoder import Autoencoder
from air_jax.models.conv_net import ConvArchitecture, Embedder
from air_jax.models.readout import Readout

Module = Autoencoder | Embedder


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Precision:
    """What a net computes in. Its parameters are float32.

    Attributes:
        dtype: of the maps.
        products: precision of convolutions and matrix products of float32 numbers, as
            `jax.default_matmul_precision` names it. Unless told otherwise an accelerator rounds
            their operands, to TF32 (10 bits of mantissa rather than 23) or bfloat16.
    """

    dtype: str
    products: str


# By the value of `train.dtype`. A CPU rounds no operands: there tf32 is float32.
DTYPES = {
    "float32": Precision("float32", "float32"),
    "tf32": Precision("float32", "tensorfloat32"),
    "bfloat16": Precision("bfloat16", "default"),
}


class Net(NamedTuple):
    """A module split by `nnx.split`, with the standardisation that it was trained on.

    A pytree: it can be an argument of any jitted function.

    Attributes:
        graphdef: the modules' structure, static.
        params: their parameters, float32.
        stats: running statistics of batch normalisation; empty without it.
        mean: [C] float32, channel means of the training images in [0, 1].
        std: [C] float32, their standard deviations.
        readout: what is done to codes before they are compared; None leaves them as they are.
        precision: what is computed in, static.
    """

    graphdef: nnx.GraphDef
    params: nnx.State
    stats: nnx.State
    mean: jax.Array
    std: jax.Array
    readout: Readout | None = None
    precision: Precision = DTYPES["float32"]

    @property
    def depth(self) -> int:
        """Convolutions and deconvolutions."""
        return 2 * len(self.params["encoder"]["convs"])

    def standardise(self, images: jax.Array) -> jax.Array:
        """uint8 images [B, S, S, C] -> float32, zero mean and unit variance by channel."""
        return self.standardise_pixels(images.astype(jnp.float32) / 255)

    def standardise_pixels(self, pixels: jax.Array) -> jax.Array:
        """Pixels [B, S, S, C] float32 in [0, 1] -> zero mean and unit variance by channel."""
        return (pixels - self.mean) / self.std

    def computing(self) -> contextlib.AbstractContextManager[None]:
        """Functions that are traced within compute in the net's precision."""
        return jax.default_matmul_precision(self.precision.products)

    def module(self) -> Module:
        """The module, set to evaluation."""
        model = nnx.merge(self.graphdef, self.params, self.stats)
        model.eval()
        return model


ENCODERS = ("paper", "conv")
_OF_CONV = ("widths", "blocks", "residual")  # fields that only a `ConvArchitecture` has


def architecture_of(
    model: Mapping[str, Any], image_shape: tuple[int, int, int]
) -> Architecture | ConvArchitecture:
    """The encoder that the keys of `config.model` describe.

    Args:
        model: key -> value. Without `encoder`, as configs of earlier versions are, the paper's.
        image_shape: (S, S, C).

    Raises:
        ValueError: there is no such encoder; the message names the key.
    """
    keys = dict(model)
    encoder = keys.pop("encoder", "paper")
    if encoder == "conv":
        return ConvArchitecture(
            widths=tuple(keys["widths"]),
            blocks=tuple(keys["blocks"]),
            residual=keys["residual"],
            kernel=keys["kernel"],
            image_shape=image_shape,
        )
    if encoder != "paper":
        raise ValueError(f"model.encoder={encoder!r}: expected one of {', '.join(ENCODERS)}")
    of_paper = {key: value for key, value in keys.items() if key not in _OF_CONV}
    return Architecture(**of_paper, image_shape=image_shape)


def make_module(
    architecture: Architecture | ConvArchitecture,
    objective: str,
    *,
    remat: bool,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> Module:
    """What an objective trains: an autoencoder, or an encoder with a projector and no decoder."""
    if objective != "reconstruction":
        return Embedder(architecture, remat=remat, dtype=dtype, rngs=rngs)
    if not isinstance(architecture, Architecture):
        raise ValueError(
            "model.encoder='conv' with train.objective='reconstruction': the decoder mirrors the "
            "paper's encoder only; expected model.encoder='paper' or another objective"
        )
    return Autoencoder(architecture, remat=remat, dtype=dtype, rngs=rngs)


def make_net(
    model: Module,
    mean: np.ndarray | jax.Array,
    std: np.ndarray | jax.Array,
    precision: Precision = DTYPES["float32"],
) -> Net:
    """Split a module into a `Net`; `mean` and `std` [C] are of pixels in [0, 1]."""
    split = nnx.split(model, nnx.Param, nnx.BatchStat)
    return Net(*split, jnp.asarray(mean), jnp.asarray(std), precision=precision)


def untrained_net(
    architecture: Architecture | ConvArchitecture,
    mean: np.ndarray | jax.Array,
    std: np.ndarray | jax.Array,
    *,
    objective: str,
    dtype: str,
    remat: bool,
    rngs: nnx.Rngs,
) -> Net:
    """A net as its training begins; `dtype` is one of `DTYPES`. For use in jit or `eval_shape`."""
    precision = DTYPES[dtype]
    model = make_module(architecture, objective, remat=remat, dtype=precision.dtype, rngs=rngs)
    return make_net(model, mean, std, precision)


def parameter_names(params: nnx.State) -> list[str]:
    """Dotted names of all parameters: `encoder.convs.0.conv.kernel`, ..."""
    paths = [path for path, _ in nnx.to_flat_state(params)]
    return [".".join(map(str, path)) for path in paths]


def count_parameters(params: nnx.State) -> int:
    """Weights and biases in all; also of an abstract state (`nnx.eval_shape`)."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
