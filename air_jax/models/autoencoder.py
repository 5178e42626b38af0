"""The very deep convolutional autoencoder of the AIR paper (section III.1) and its two rivals.

An autoencoder of `depth` layers is `depth / 2` convolutions, a 128-d code, and `depth / 2`
"deconvolutions" that mirror them. The paper's five configurations (Figure 3) differ in two
things: whether the encoder pools, and where shortcuts lead.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from air_jax.models.convolution import Convolution

Skip = Literal["none", "symmetric", "asymmetric"]
SKIPS = ("none", "symmetric", "asymmetric")
SKIP_INTO = ("encoder", "both")
CODES = ("dense", "pooled", "conv")
NORMS = ("none", "batch", "group")
DEEPEST = 1000  # XLA would compile for hours

# He's variance is right before a ReLU; the code and the image are linear.
_HE = nnx.initializers.he_normal()
_LECUN = nnx.initializers.lecun_normal()


def pooling_layers(depth: int, pool: bool, pools: int = 3) -> tuple[int, ...]:
    """The encoder layers (counted from 1) that a 2x2 max pooling follows, evenly spread.

    There are `min(pools, depth / 2 - 1)` of them: three make 32x32 maps 4x4.
    """
    if not pool:
        return ()
    layers = depth // 2
    count = min(pools, layers - 1)
    return tuple(round(i * layers / (count + 1)) for i in range(1, count + 1))


def validate(
    *,
    depth: int,
    width: int,
    code_dim: int,
    pool: bool,
    skip: str,
    image_shape: tuple[int, int, int],
    kernel: int = 3,
    pools: int = 3,
    skip_into: str = "encoder",
    code: str = "dense",
    norm: str = "none",
    input_residual: bool = False,
) -> None:
    """Raise ValueError, naming the argument, if no autoencoder can be built from these."""
    if not 4 <= depth <= DEEPEST or depth % 2:
        raise ValueError(
            f"model.depth={depth}: expected an even number from 4 to {DEEPEST} "
            "(as many convolutions as deconvolutions)"
        )
    sizes = {"width": width, "code_dim": code_dim, "kernel": kernel, "pools": pools}
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"model.{name}={value}: expected at least 1")
    for name, value, known in (
        ("skip", skip, SKIPS),
        ("skip_into", skip_into, SKIP_INTO),
        ("code", code, CODES),
        ("norm", norm, NORMS),
    ):
        if value not in known:
            raise ValueError(f"model.{name}={value!r}: expected one of {', '.join(known)}")
    if skip_into != "encoder" and skip != "asymmetric":
        raise ValueError(
            f"model.skip_into={skip_into!r} is about asymmetric shortcuts, but model.skip={skip!r}"
        )
    height, image_width, channels = image_shape
    if height != image_width or channels < 1:
        raise ValueError(f"images of shape {image_shape}: expected square images [S, S, C]")
    pooled = len(pooling_layers(depth, pool, pools))
    factor = 2**pooled
    if height % factor:
        raise ValueError(
            f"images of {height}x{height} pixels: depth {depth} pools {pooled} times, so the side "
            f"must be a multiple of {factor} (model.pools lowers it, data.size sets the side)"
        )
    cells = (height // factor) ** 2
    if code == "conv" and code_dim % cells:
        raise ValueError(
            f"model.code='conv' spreads code_dim={code_dim} over {cells} map positions: "
            f"code_dim must be a multiple of {cells}"
        )
    if norm == "group" and width % _groups(width):
        raise ValueError(
            f"model.norm='group': model.width={width} does not divide into {_groups(width)} groups"
        )


def _groups(width: int) -> int:
    """Of group normalisation: eight channels each."""
    return max(1, width // 8)


def _norm(kind: str, channels: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Module | None:
    if kind == "batch":
        return nnx.BatchNorm(channels, dtype=dtype, rngs=rngs)
    if kind == "group":
        return nnx.GroupNorm(channels, num_groups=_groups(channels), dtype=dtype, rngs=rngs)
    return None


class ConvLayer(nnx.Module):
    """A stride-1 convolution with bias, optional normalisation and shortcut, then φ (eq 1, 2)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int,
        norm: str,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        activation: Callable[[jax.Array], jax.Array] | None = nnx.relu,
    ):
        self.conv = Convolution(
            in_channels,
            out_channels,
            kernel,
            kernel_init=_HE if activation else _LECUN,
            dtype=dtype,
            rngs=rngs,
        )
        self.activation = activation
        self.norm = _norm(norm, out_channels, dtype, rngs)

    def __call__(self, x: jax.Array, shortcut: jax.Array | None = None) -> jax.Array:
        """Maps [B, h, w, in] -> [B, h, w, out]; `shortcut` [B, h, w, out] joins before φ."""
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        if shortcut is not None:
            x = x + shortcut
        return self.activation(x) if self.activation else x


def _max_pool(x: jax.Array, window: int = 2) -> jax.Array:
    """Equation 6."""
    return nnx.max_pool(x, (window, window), strides=(window, window))


def _upsample(x: jax.Array) -> jax.Array:
    """Nearest neighbour, twice the side: the mirror of a pooling."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


def _segments(layers: int, remat: bool) -> list[range]:
    """Layers, from 1, in stretches whose activations are computed again together.

    The square root of their number: as many maps are kept between stretches as within one.
    """
    length = math.isqrt(layers) if remat else layers
    return [range(i, min(i + length, layers + 1)) for i in range(1, layers + 1, length)]


def _rematerialised(some_layers: Callable[..., Any], remat: bool) -> Callable[..., Any]:
    """A method (self, layers, ...), of which the backward pass keeps only what goes in."""
    return nnx.remat(some_layers, static_argnums=1) if remat else some_layers


class Encoder(nnx.Module):
    """Images [B, S, S, C] -> codes [B, code_dim]. What is kept after training (section III.2)."""

    def __init__(
        self,
        *,
        depth: int,
        width: int,
        code_dim: int,
        pool: bool,
        skip: Skip,
        image_shape: tuple[int, int, int],
        kernel: int = 3,
        pools: int = 3,
        code: str = "dense",
        norm: str = "none",
        remat: bool = False,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        layers = depth // 2
        size, _, channels = image_shape
        self.remat = remat
        self.asymmetric = skip == "asymmetric"
        self.code = code
        self.pooled_after = pooling_layers(depth, pool, pools)
        self.convs = nnx.List(
            ConvLayer(
                channels if i == 0 else width,
                width,
                kernel=kernel,
                norm=norm,
                dtype=dtype,
                rngs=rngs,
            )
            for i in range(layers)
        )
        cells = (size // 2 ** len(self.pooled_after)) ** 2
        if code == "conv":
            self.project = nnx.Conv(
                width, code_dim // cells, (1, 1), kernel_init=_LECUN, dtype=dtype, rngs=rngs
            )
        else:
            features = width if code == "pooled" else cells * width
            self.project = nnx.Linear(
                features, code_dim, kernel_init=_LECUN, dtype=dtype, rngs=rngs
            )

    def __call__(self, images: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        """Standardised images [B, S, S, C] -> codes [B, code_dim] and the maps of every layer.

        `maps[i]` is what convolution `i + 1` reads: `maps[0]` the images, `maps[i]` the output of
        convolution `i` after its pooling, if any. Decoders with shortcuts read them.

        Asymmetric shortcuts (section III.1): the first layer's maps, brought to size by the same
        max poolings, are added before the ReLU of every second later layer.
        """
        maps, first = [images], None
        for layers in _segments(len(self.convs), self.remat):
            run = _rematerialised(Encoder._some_layers, self.remat)
            made, first = run(self, layers, maps[-1], first)
            maps += made
        features = maps[-1]
        if self.code == "pooled":
            features = features.mean(axis=(1, 2))
        elif self.code == "dense":
            features = features.reshape(features.shape[0], -1)
        codes = self.project(features)
        return codes.reshape(codes.shape[0], -1), maps

    def _some_layers(
        self, layers: range, x: jax.Array, first: jax.Array | None
    ) -> tuple[list[jax.Array], jax.Array]:
        """The maps of `layers` from x, what the first of them reads; and the next shortcut."""
        maps = []
        for layer in layers:
            takes_shortcut = self.asymmetric and layer >= 2 and layer % 2 == 0
            x = self.convs[layer - 1](x, first if takes_shortcut else None)
            if layer == 1:
                first = x
            if layer in self.pooled_after:
                first = _max_pool(first)
                # After layer 1 the maps and the shortcut are the same array: pool it once.
                x = first if layer == 1 else _max_pool(x)
            maps.append(x)
        return maps, first


class Decoder(nnx.Module):
    """Codes [B, code_dim] -> images [B, S, S, C]. Used in training only."""

    def __init__(
        self,
        *,
        depth: int,
        width: int,
        code_dim: int,
        pool: bool,
        skip: Skip,
        image_shape: tuple[int, int, int],
        kernel: int = 3,
        pools: int = 3,
        skip_into: str = "encoder",
        norm: str = "none",
        input_residual: bool = False,
        remat: bool = False,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        layers = depth // 2
        self.remat = remat
        size, _, channels = image_shape
        self.symmetric = skip == "symmetric"
        self.asymmetric = skip == "asymmetric" and skip_into == "both"
        self.input_residual = input_residual
        # Deconvolution j mirrors convolution layers + 1 - j: it upsamples where that one pooled.
        poolings = pooling_layers(depth, pool, pools)
        self.upsampled_before = tuple(layers + 1 - layer for layer in poolings)
        side = size // 2 ** len(self.upsampled_before)
        self.map_shape = (side, side, width)
        self.expand = nnx.Linear(
            code_dim, side * side * width, kernel_init=_LECUN, dtype=dtype, rngs=rngs
        )
        self.deconvs = nnx.List(
            ConvLayer(
                width,
                width,
                kernel=kernel,
                norm=norm,
                dtype=dtype,
                rngs=rngs,
            )
            for _ in range(layers - 1)
        )
        self.to_image = ConvLayer(
            width,
            channels,
            kernel=kernel,
            norm="none",
            dtype=dtype,
            rngs=rngs,
            activation=None,
        )

    def __call__(self, codes: jax.Array, maps: list[jax.Array]) -> jax.Array:
        """Codes [B, code_dim], and the encoder's `maps` for shortcuts -> images [B, S, S, C].

        Symmetric shortcuts (RED-Net): deconvolution j is summed with the maps it mirrors before
        its ReLU, every second layer. They, `skip_into="both"` and `input_residual` all reach the
        output around the code.
        """
        x = self.expand(codes).reshape(-1, *self.map_shape)
        for layers in _segments(len(self.deconvs), self.remat):
            run = _rematerialised(Decoder._some_layers, self.remat)
            x = run(self, layers, x, maps)
        if len(self.deconvs) + 1 in self.upsampled_before:
            x = _upsample(x)
        return self.to_image(x, maps[0] if self.input_residual else None)

    def _some_layers(self, layers: range, x: jax.Array, maps: list[jax.Array]) -> jax.Array:
        """What the last of `layers` makes of x."""
        for layer in layers:
            if layer in self.upsampled_before:
                x = _upsample(x)
            shortcut = None
            if layer % 2 and self.symmetric:
                shortcut = maps[len(self.deconvs) + 1 - layer]
            elif layer % 2 and self.asymmetric:
                shortcut = _max_pool(maps[1], maps[1].shape[1] // x.shape[1])
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
        depth: convolutions plus deconvolutions, even and at least 4; the projection to the code
            and its inverse are not counted.
        width: channels of every layer.
        code_dim: length of the code; 128 in the paper.
        pool: whether the encoder pools, `min(pools, depth / 2 - 1)` times.
        skip: "none", "symmetric" (RED-Net's, encoder to mirrored decoder layer) or "asymmetric"
            (the paper's, first layer to later ones).
        image_shape: (S, S, C).
        kernel: side of the square kernels.
        pools: how often at most; three make 32x32 maps 4x4.
        skip_into: where asymmetric shortcuts land: "encoder", or "both" for the decoder as well.
        code: "dense" (a linear layer on the last maps), "pooled" (on their mean over space) or
            "conv" (a 1x1 convolution whose outputs, flattened, are the code).
        norm: "none", "batch" or "group", after every convolution but the last.
        input_residual: RED-Net's shortcut from the input image to the output.
        remat: compute activations anew in the backward pass, in stretches of layers, rather than
            keep them all: less memory, more time, the same gradients.
        dtype: of computation; parameters are float32.
        rngs: for initialisation.

    Raises:
        ValueError: if no such net can be built; the message names the argument.
    """

    def __init__(
        self,
        *,
        depth: int,
        width: int = 64,
        code_dim: int = 128,
        pool: bool = True,
        skip: Skip = "asymmetric",
        image_shape: tuple[int, int, int] = (32, 32, 3),
        kernel: int = 3,
        pools: int = 3,
        skip_into: str = "encoder",
        code: str = "dense",
        norm: str = "none",
        input_residual: bool = False,
        remat: bool = False,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        shape = {
            "depth": depth,
            "width": width,
            "code_dim": code_dim,
            "pool": pool,
            "skip": skip,
            "image_shape": image_shape,
            "kernel": kernel,
            "pools": pools,
            "norm": norm,
        }
        validate(**shape, skip_into=skip_into, code=code, input_residual=input_residual)
        made = {"remat": remat, "dtype": dtype, "rngs": rngs}
        self.encoder = Encoder(**shape, code=code, **made)
        self.decoder = Decoder(**shape, skip_into=skip_into, input_residual=input_residual, **made)

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
            What the pair makes of the maps that it reads, and those maps; same shape.
        """
        codes, maps = self.encoder(images)
        if pair == len(maps):
            return self.decoder.expand(codes).reshape(maps[-1].shape), maps[-1]
        return self.decoder.undo(pair, maps[pair]), maps[pair - 1]


def pair_parameters(pair: int, depth: int) -> tuple[str, str]:
    """What the names of a pair's parameters begin with; pairs as for `Autoencoder.undo_pair`."""
    layers = depth // 2
    if pair == layers + 1:
        return "encoder.project.", "decoder.expand."
    mirror = "to_image." if pair == 1 else f"deconvs.{layers - pair}."
    return f"encoder.convs.{pair - 1}.", f"decoder.{mirror}"


# The paper's five configurations (section IV.3), with its spelling.
classic = partial(Autoencoder, pool=True, skip="none")
sortcut_con_decon = partial(Autoencoder, pool=True, skip="symmetric")
nop_sortcut_con_decon = partial(Autoencoder, pool=False, skip="symmetric")
sortcut = partial(Autoencoder, pool=True, skip="asymmetric")
nop_sortcut = partial(Autoencoder, pool=False, skip="asymmetric")

# The rivals of Figure 4. RED-Net restores images: train it on corrupted input.
edsscir = partial(Autoencoder, pool=False, skip="symmetric", input_residual=True)
sscair = partial(Autoencoder, depth=10, pool=True, skip="none")

CONFIGURATIONS = {
    "classic": classic,
    "Sortcut (con-decon)": sortcut_con_decon,
    "NoP_sortcut (con-decon)": nop_sortcut_con_decon,
    "Sortcut": sortcut,
    "NoP_sortcut": nop_sortcut,
}


def configuration_name(pool: bool, skip: str, input_residual: bool = False) -> str | None:
    """The paper's name for these choices; None for one that it has no name for."""
    if (pool, skip, input_residual) == (False, "symmetric", True):
        return "EDSSCIR"
    for name, build in CONFIGURATIONS.items():
        if build.keywords == {"pool": pool, "skip": skip} and not input_residual:
            return name
    return None


class Net(NamedTuple):
    """An autoencoder made functional (`nnx.split`), with the standardisation it was trained on.

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


def make_net(model: Autoencoder, mean: jax.Array, std: jax.Array) -> Net:
    """Split a module into a `Net`; `mean` and `std` [C] are of pixels in [0, 1]."""
    return Net(*nnx.split(model, nnx.Param, nnx.BatchStat), jnp.asarray(mean), jnp.asarray(std))


def multiplications(
    *,
    depth: int,
    width: int,
    code_dim: int,
    pool: bool,
    image_shape: tuple[int, int, int],
    kernel: int = 3,
    pools: int = 3,
    **others: Any,
) -> int:
    """Multiplications (each with an addition) of one image's way through net and back to pixels.

    Convolutions, and the dense layers around the code; a training step takes three times as many.
    `others` are the arguments of `Autoencoder` that do not matter here.
    """
    side, _, channels = image_shape
    layers = depth // 2
    after = pooling_layers(depth, pool, pools)
    total = 0
    for layer in range(1, layers + 1):
        # The deconvolution that mirrors this layer works at the same size, its ends swapped.
        total += 2 * side**2 * kernel**2 * (channels if layer == 1 else width) * width
        if layer in after:
            side //= 2
    return total + 2 * side**2 * width * code_dim


def least_parameters(
    *,
    depth: int,
    width: int,
    code_dim: int,
    pool: bool,
    image_shape: tuple[int, int, int],
    kernel: int = 3,
    pools: int = 3,
    code: str = "dense",
    **others: Any,
) -> int:
    """Weights of convolutions and of the dense layers around the code, without making the net."""
    side, _, channels = image_shape
    convolutions = 2 * kernel**2 * width * (channels + (depth // 2 - 1) * width)
    cells = (side // 2 ** len(pooling_layers(depth, pool, pools))) ** 2
    return convolutions + (2 * cells * width * code_dim if code == "dense" else 0)


def count_parameters(params: nnx.State) -> int:
    """Weights and biases in all; also of an abstract state (`nnx.eval_shape`)."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
