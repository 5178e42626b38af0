"""A plain convolutional encoder that widens as its maps shrink, and the projector of views.

The paper's encoder keeps one width and hands a dense code on; this one is the usual shape of
convolutional nets, up to ResNet-18's, and averages its last maps, so it reads images of any size.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from air_jax.models.architecture import Architecture
from air_jax.models.autoencoder import ConvLayer, Encoder
from air_jax.models.convolution import max_pool, positions_first


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvArchitecture:
    """The choices that make a `ConvEncoder`. Its fields are keys of `config.model`.

    Attributes:
        widths: channels of each stage; 2x2 max pooling between stages halves the maps.
        blocks: blocks of each stage. Widths 64, 128, 256, 512 with 2 residual blocks each are
            ResNet-18's.
        residual: blocks of two convolutions with a shortcut around them, after a first convolution;
            else blocks are single convolutions.
        kernel: side of the square kernels.
        image_shape: (S, S, C).

    Raises:
        ValueError: no such encoder can be built; the message names the field.
    """

    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    residual: bool = False
    kernel: int = 3
    image_shape: tuple[int, int, int] = (32, 32, 3)

    def __post_init__(self) -> None:
        for name in ("widths", "blocks"):
            values = getattr(self, name)
            if not values or min(values) < 1:
                raise ValueError(f"model.{name}={values}: expected numbers of at least 1")
        if len(self.widths) != len(self.blocks):
            raise ValueError(
                f"model.widths={self.widths} are {len(self.widths)} stages, but "
                f"model.blocks={self.blocks} are {len(self.blocks)}; expected a number of blocks "
                "for each width"
            )
        if self.kernel < 1:
            raise ValueError(f"model.kernel={self.kernel}: expected at least 1")
        side, least = self.image_shape[0], 2 ** (len(self.widths) - 1)
        if side % least:
            raise ValueError(
                f"images of {side}x{side} pixels: model.widths={self.widths} halve them "
                f"{len(self.widths) - 1} times, so the side must be a multiple of {least} "
                "(data.size and train.view_size set the sides)"
            )

    @property
    def code_dim(self) -> int:
        """Length of the code."""
        return self.widths[-1]

    @property
    def width(self) -> int:
        """Channels of the largest maps."""
        return self.widths[0]

    def kernels(self) -> list[tuple[int, int, int, int]]:
        """Of every convolution: side of its maps, side of its kernel, channels in and out."""
        side, channels = self.image_shape[0], self.image_shape[2]
        found = []
        if self.residual:
            found.append((side, self.kernel, channels, self.widths[0]))
            channels = self.widths[0]
        for stage, (width, blocks) in enumerate(zip(self.widths, self.blocks, strict=True)):
            maps = side // 2**stage
            for _ in range(blocks):
                found.append((maps, self.kernel, channels, width))
                if self.residual:
                    found.append((maps, self.kernel, width, width))
                    if channels != width:
                        found.append((maps, 1, channels, width))
                channels = width
        return found

    def multiplications(self) -> int:
        """Multiplications (each with an addition) of one image's way through the encoder."""
        return sum(side**2 * k**2 * read * made for side, k, read, made in self.kernels())

    def least_parameters(self) -> int:
        """Weights of all convolutions, without making the net."""
        return sum(k**2 * read * made for _, k, read, made in self.kernels())


class Block(nnx.Module):
    """One convolution, or two with a shortcut around them; batch norm and ReLU after each."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int,
        residual: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        # Without bias, which batch norm would take away again.
        layer = partial(ConvLayer, norm="batch", groups=1, bias=False, dtype=dtype, rngs=rngs)

        self.convs = nnx.List([layer(in_channels, out_channels, kernel=kernel)])
        self.residual = residual
        if residual:
            self.convs.append(layer(out_channels, out_channels, kernel=kernel))
        widens = residual and in_channels != out_channels
        self.widen = layer(in_channels, out_channels, kernel=1, activation=None) if widens else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [h, w, B, in] -> [h, w, B, out]."""
        if not self.residual:
            return self.convs[0](x)
        shortcut = x if self.widen is None else self.widen(x)
        return self.convs[1](self.convs[0](x), shortcut)


class ConvEncoder(nnx.Module):
    """Images [B, S, S, C] -> codes [B, widths[-1]], the mean of the last maps.

    Args:
        architecture: which encoder.
        dtype: of computation; parameters are float32.
        rngs: for initialisation.
    """

    def __init__(self, architecture: ConvArchitecture, *, dtype: DTypeLike, rngs: nnx.Rngs):
        channels, residual = architecture.image_shape[2], architecture.residual
        block = partial(Block, kernel=architecture.kernel, dtype=dtype, rngs=rngs)
        self.stem = block(channels, architecture.widths[0], residual=False) if residual else None
        if residual:
            channels = architecture.widths[0]
        stages = []
        for width, blocks in zip(architecture.widths, architecture.blocks, strict=True):
            read = [channels, *[width] * (blocks - 1)]
            stages.append(nnx.List(block(channels, width, residual=residual) for channels in read))
            channels = width
        self.stages = nnx.List(stages)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        """Standardised images [B, s, s, C] -> codes [B, widths[-1]] and the maps of every stage.

        Maps are [h, w, B, C]. s can be any multiple of 2 to the power of the number of poolings.
        """
        x = positions_first(images)
        x = x if self.stem is None else self.stem(x)
        maps = []
        for number, stage in enumerate(self.stages):
            if number:
                x = max_pool(x)
            for block in stage:
                x = block(x)
            maps.append(x)
        return x.mean(axis=(0, 1)), maps


class Projector(nnx.Module):
    """Codes [B, F] -> embeddings [B, out]: two dense layers, with batch norm and ReLU between.

    What an objective compares; codes are taken before it.
    """

    def __init__(self, features: int, hidden: int, out: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        he, lecun = nnx.initializers.he_normal(), nnx.initializers.lecun_normal()
        self.expand = nnx.Linear(
            features, hidden, use_bias=False, kernel_init=he, dtype=dtype, rngs=rngs
        )
        self.norm = nnx.BatchNorm(hidden, dtype=dtype, rngs=rngs)
        self.reduce = nnx.Linear(hidden, out, kernel_init=lecun, dtype=dtype, rngs=rngs)

    def __call__(self, codes: jax.Array) -> jax.Array:
        return self.reduce(nnx.relu(self.norm(self.expand(codes))))


PROJECTOR = (512, 128)  # hidden and last width


class Embedder(nnx.Module):
    """An encoder with a projector behind it, for objectives that compare views of images.

    Args:
        architecture: of the encoder: the paper's or a plain one.
        remat: of the paper's encoder, as for `Autoencoder`.
        dtype: of computation; parameters are float32.
        rngs: for initialisation.
    """

    def __init__(
        self,
        architecture: Architecture | ConvArchitecture,
        *,
        remat: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.encoder: Encoder | ConvEncoder
        if isinstance(architecture, Architecture):
            self.encoder = Encoder(architecture, remat=remat, dtype=dtype, rngs=rngs)
        else:
            self.encoder = ConvEncoder(architecture, dtype=dtype, rngs=rngs)
        self.projector = Projector(architecture.code_dim, *PROJECTOR, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Standardised images [B, s, s, C] -> codes [B, code_dim], embeddings [B, PROJECTOR[1]]."""
        codes = self.encode(images)
        return codes, self.projector(codes)

    def encode(self, images: jax.Array) -> jax.Array:
        """Standardised images [B, s, s, C] -> codes [B, code_dim]."""
        return self.encoder(images)[0]
