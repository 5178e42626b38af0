"""The very deep convolutional autoencoder of the AIR paper (section III.1) and its rivals."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from air_jax.models.architecture import Architecture
from air_jax.models.convolution import Convolution, images_first, max_pool, positions_first

# He's variance is right before a ReLU; the code and the image are linear.
_HE = nnx.initializers.he_normal()
_LECUN = nnx.initializers.lecun_normal()


class ConvLayer(nnx.Module):
    """A stride-1 convolution with bias, optional normalisation and shortcut, then φ (eq 1, 2).

    Args:
        in_channels: of the maps that it reads.
        out_channels: of the maps that it makes.
        kernel: side of the square kernel.
        norm: as in `Architecture`.
        groups: of group normalisation.
        dtype: of computation; parameters are float32.
        rngs: for initialisation.
        activation: φ; None for a linear layer.
        bias: whether there is one.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int,
        norm: str,
        groups: int,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        activation: Callable[[jax.Array], jax.Array] | None = nnx.relu,
        bias: bool = True,
    ):
        initializer = _HE if activation else _LECUN
        self.conv = Convolution(
            in_channels,
            out_channels,
            kernel,
            kernel_init=initializer,
            bias=bias,
            dtype=dtype,
            rngs=rngs,
        )
        self.activation = activation
        norms: dict[str, Callable[[], nnx.BatchNorm | nnx.GroupNorm | None]] = {
            "none": lambda: None,
            "batch": lambda: nnx.BatchNorm(out_channels, dtype=dtype, rngs=rngs),
            "group": lambda: nnx.GroupNorm(
                out_channels, num_groups=groups, reduction_axes=(0, 1, 3), dtype=dtype, rngs=rngs
            ),
        }
        self.norm = norms[norm]()

    def __call__(self, x: jax.Array, shortcut: jax.Array | None = None) -> jax.Array:
        """Maps [h, w, B, in] -> [h, w, B, out]; `shortcut` [h, w, B, out] joins before φ."""
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        if shortcut is not None:
            x = x + shortcut
        return self.activation(x) if self.activation else x


def _upsample(x: jax.Array) -> jax.Array:
    """Nearest neighbour, twice the side: the mirror of a pooling."""
    height, width, *rest = x.shape
    x = jnp.broadcast_to(x[:, None, :, None], (height, 2, width, 2, *rest))
    return x.reshape(2 * height, 2 * width, *rest)


def _segments(layers: int, remat: bool) -> list[range]:
    """Layers, from 1, in stretches whose activations are computed again together.

    A stretch is as long as the square root of all layers: as many maps are kept between stretches
    as within one.
    """
    length = math.isqrt(layers) if remat else layers
    return [range(i, min(i + length, layers + 1)) for i in range(1, layers + 1, length)]


def _rematerialised(some_layers: Callable[..., Any], remat: bool) -> Callable[..., Any]:
    """A method (self, layers, ...), of which the backward pass keeps only what goes in."""
    return nnx.remat(some_layers, static_argnums=1) if remat else some_layers


class Encoder(nnx.Module):
    """Images [B, S, S, C] -> codes [B, code_dim]. What is kept after training (section III.2).

    Args: as for `Autoencoder`.
    """

    def __init__(
        self, architecture: Architecture, *, remat: bool, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        width, channels = architecture.width, architecture.image_shape[2]
        self.remat = remat
        self.asymmetric = architecture.skip == "asymmetric"
        self.code = architecture.code
        self.pooled_after = architecture.pooled_after
        self.convs = nnx.List(
            ConvLayer(
                channels if i == 0 else width,
                width,
                kernel=architecture.kernel,
                norm=architecture.norm,
                groups=architecture.groups,
                dtype=dtype,
                rngs=rngs,
            )
            for i in range(architecture.layers)
        )
        cells, code_dim = architecture.code_side**2, architecture.code_dim
        self.project: nnx.Conv | nnx.Linear
        if self.code == "conv":
            self.project = nnx.Conv(
                width, code_dim // cells, (1, 1), kernel_init=_LECUN, dtype=dtype, rngs=rngs
            )
        else:
            read = width if self.code == "pooled" else cells * width
            self.project = nnx.Linear(read, code_dim, kernel_init=_LECUN, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        """Standardised images [B, S, S, C] -> codes [B, code_dim] and the maps of every layer.

        Maps are [h, w, B, C]. `maps[i]` is what convolution `i + 1` reads: `maps[0]` the images,
        `maps[i]` the output of convolution `i` after its pooling, if any. Decoders with shortcuts
        read the maps.

        Asymmetric shortcuts (section III.1): the first layer's maps, brought to size by the same
        max poolings, are added before the ReLU of every second later layer.
        """
        maps, first = [positions_first(images)], None
        run = _rematerialised(Encoder._some_layers, self.remat)
        for layers in _segments(len(self.convs), self.remat):
            made, first = run(self, layers, maps[-1], first)
            maps += made
        last = images_first(maps[-1])
        if self.code == "pooled":
            last = last.mean(axis=(1, 2))
        elif self.code == "dense":
            last = last.reshape(last.shape[0], -1)
        codes = self.project(last)
        return codes.reshape(codes.shape[0], -1), maps

    def _some_layers(
        self, layers: range, x: jax.Array, first: jax.Array | None
    ) -> tuple[list[jax.Array], jax.Array | None]:
        """The maps of `layers` from x, what the first of `layers` reads; and the next shortcut."""
        maps = []
        for layer in layers:
            takes_shortcut = self.asymmetric and layer >= 2 and layer % 2 == 0
            x = self.convs[layer - 1](x, first if takes_shortcut else None)
            if first is None:  # after layer 1
                first = x
            if layer in self.pooled_after:
                first = max_pool(first)
                # After layer 1 the maps and the shortcut are the same array: pool it once.
                x = first if layer == 1 else max_pool(x)
            maps.append(x)
        return maps, first


class Decoder(nnx.Module):
    """Codes [B, code_dim] -> images [B, S, S, C]. Used in training only.

    Args: as for `Autoencoder`.
    """

    def __init__(
        self, architecture: Architecture, *, remat: bool, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        width, side = architecture.width, architecture.code_side
        self.remat = remat
        self.symmetric = architecture.skip == "symmetric"
        self.asymmetric = architecture.skip_into == "both"
        self.input_residual = architecture.input_residual
        self.upsampled_before = architecture.upsampled_before
        self.map_shape = (side, side, width)
        self.expand = nnx.Linear(
            architecture.code_dim, side * side * width, kernel_init=_LECUN, dtype=dtype, rngs=rngs
        )
        layer = partial(
            ConvLayer,
            width,
            kernel=architecture.kernel,
            groups=architecture.groups,
            dtype=dtype,
            rngs=rngs,
        )
        self.deconvs = nnx.List(
            layer(width, norm=architecture.norm) for _ in range(architecture.layers - 1)
        )
        self.to_image = layer(architecture.image_shape[2], norm="none", activation=None)

    def __call__(self, codes: jax.Array, maps: list[jax.Array]) -> jax.Array:
        """Codes [B, code_dim], and the encoder's `maps` for shortcuts -> images [B, S, S, C].

        Symmetric shortcuts (RED-Net): deconvolution j is summed with the maps it mirrors before
        its ReLU, every second layer. Symmetric shortcuts, `skip_into="both"` and `input_residual`
        all reach the output around the code.
        """
        x = positions_first(self.expand(codes).reshape(-1, *self.map_shape))
        run = _rematerialised(Decoder._some_layers, self.remat)
        for layers in _segments(len(self.deconvs), self.remat):
            x = run(self, layers, x, maps)
        if len(self.deconvs) + 1 in self.upsampled_before:
            x = _upsample(x)
        return images_first(self.to_image(x, maps[0] if self.input_residual else None))

    def _some_layers(self, layers: range, x: jax.Array, maps: list[jax.Array]) -> jax.Array:
        """What the last of `layers` makes of x."""
        for layer in layers:
            if layer in self.upsampled_before:
                x = _upsample(x)
            shortcut = None
            if layer % 2 and self.symmetric:
                shortcut = maps[len(self.deconvs) + 1 - layer]
            elif layer % 2 and self.asymmetric:
                shortcut = maps[1]
                while len(shortcut) > len(x):
                    shortcut = max_pool(shortcut)
            x = self.deconvs[layer - 1](x, shortcut)
        return x

    def undo(self, layer: int, maps: jax.Array) -> jax.Array:
        """What convolution `layer` (from 1) read, from its maps, by the deconvolution it mirrors.

        No shortcut helps: the symmetric one is what is to be found.
        """
        mirror = len(self.deconvs) + 2 - layer
        if mirror in self.upsampled_before:
            maps = _upsample(maps)
        return self.to_image(maps) if layer == 1 else self.deconvs[mirror - 1](maps)


class Autoencoder(nnx.Module):
    """Encoder and decoder, trained to reproduce their input (eq 4, 5).

    Args:
        architecture: which autoencoder.
        remat: compute activations anew in the backward pass, in stretches of layers, rather than
            keep them all: less memory, more time, the same gradients.
        dtype: of computation; parameters are float32.
        rngs: for initialisation.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        remat: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.encoder = Encoder(architecture, remat=remat, dtype=dtype, rngs=rngs)
        self.decoder = Decoder(architecture, remat=remat, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Standardised images [B, S, S, C] -> their reconstructions, same shape."""
        return self.decoder(*self.encoder(images))

    def encode(self, images: jax.Array) -> jax.Array:
        """Standardised images [B, S, S, C] -> codes [B, code_dim]."""
        return self.encoder(images)[0]

    def undo_pair(self, images: jax.Array, pair: int) -> tuple[jax.Array, jax.Array]:
        """One pair of layers alone, for greedy training ("trained layer by layer").

        Args:
            images: standardised [B, S, S, C].
            pair: from 1: convolution `pair` and its mirror; the last, `depth / 2 + 1`, is the
                projection to the code and its inverse.

        Returns:
            What the pair makes of the maps that it reads, and those maps; both [B, h, w, C].
        """
        codes, maps = self.encoder(images)
        if pair == len(maps):
            read = images_first(maps[-1])
            return self.decoder.expand(codes).reshape(read.shape), read
        return images_first(self.decoder.undo(pair, maps[pair])), images_first(maps[pair - 1])


def pair_parameters(pair: int, depth: int) -> tuple[str, str]:
    """What the names of a pair's parameters begin with; pairs as for `Autoencoder.undo_pair`."""
    layers = depth // 2
    if pair == layers + 1:
        return "encoder.project.", "decoder.expand."
    mirror = "to_image." if pair == 1 else f"deconvs.{layers - pair}."
    return f"encoder.convs.{pair - 1}.", f"decoder.{mirror}"
