"""Which autoencoder: its depth, width, poolings and shortcuts, checked; and what it costs.

An autoencoder of `depth` layers is `depth / 2` convolutions, a 128-d code, and `depth / 2`
"deconvolutions" that mirror the convolutions. The paper's five configurations (Figure 3) differ in
two things: whether the encoder pools, and where shortcuts lead.
"""

import dataclasses

SKIPS = ("none", "symmetric", "asymmetric")
SKIP_INTO = ("encoder", "both")
CODES = ("dense", "pooled", "conv")
NORMS = ("none", "batch", "group")
DEEPEST = 1000  # XLA would compile for hours

# The paper's five configurations (section IV.3), with its spelling.
CONFIGURATIONS = {
    "classic": {"pool": True, "skip": "none"},
    "Sortcut (con-decon)": {"pool": True, "skip": "symmetric"},
    "NoP_sortcut (con-decon)": {"pool": False, "skip": "symmetric"},
    "Sortcut": {"pool": True, "skip": "asymmetric"},
    "NoP_sortcut": {"pool": False, "skip": "asymmetric"},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """The choices that make an autoencoder. Its fields are the keys of `config.model`.

    Attributes:
        depth: convolutions plus deconvolutions, even and at least 4; the projection to the code
            and its inverse are not counted.
        width: channels of every layer.
        code_dim: length of the code; 128 in the paper.
        pool: whether the encoder pools, `min(pools, depth / 2 - 1)` times.
        skip: "none", "symmetric" (RED-Net's, encoder to mirrored decoder layer) or "asymmetric"
            (the paper's, first layer to later ones).
        image_shape: (S, S, C).
        kernel: side of the square kernels.
        pools: how often the encoder pools at most; three poolings make 32x32 maps 4x4.
        skip_into: where asymmetric shortcuts land: "encoder", or "both" for the decoder as well.
        code: "dense" (a linear layer on the last maps), "pooled" (on their mean over space) or
            "conv" (a 1x1 convolution whose outputs, flattened, are the code).
        norm: "none", "batch" or "group", after every convolution but the last.
        input_residual: RED-Net's shortcut from the input image to the output.

    Raises:
        ValueError: no such autoencoder can be built; the message names the field.
    """

    depth: int
    width: int = 64
    code_dim: int = 128
    pool: bool = True
    skip: str = "asymmetric"
    image_shape: tuple[int, int, int] = (32, 32, 3)
    kernel: int = 3
    pools: int = 3
    skip_into: str = "encoder"
    code: str = "dense"
    norm: str = "none"
    input_residual: bool = False

    def __post_init__(self) -> None:
        self._check_fields()
        self._check_together()

    def _check_fields(self) -> None:
        """Raise ValueError if a field is wrong by itself."""
        if not 4 <= self.depth <= DEEPEST or self.depth % 2:
            raise ValueError(
                f"model.depth={self.depth}: expected an even number from 4 to {DEEPEST} "
                "(as many convolutions as deconvolutions)"
            )
        for name in ("width", "code_dim", "kernel", "pools"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)}: expected at least 1")
        for name, known in (
            ("skip", SKIPS),
            ("skip_into", SKIP_INTO),
            ("code", CODES),
            ("norm", NORMS),
        ):
            if getattr(self, name) not in known:
                found = getattr(self, name)
                raise ValueError(f"model.{name}={found!r}: expected one of {', '.join(known)}")
        height, width, channels = self.image_shape
        if height != width or channels < 1:
            raise ValueError(
                f"images of shape {self.image_shape}: expected square images [S, S, C]"
            )

    def _check_together(self) -> None:
        """Raise ValueError if fields do not fit each other."""
        if self.skip_into != "encoder" and self.skip != "asymmetric":
            raise ValueError(
                f"model.skip_into={self.skip_into!r} is about asymmetric shortcuts, but "
                f"model.skip={self.skip!r}"
            )
        size, poolings = self.image_shape[0], len(self.pooled_after)
        if size % 2**poolings:
            raise ValueError(
                f"images of {size}x{size} pixels: depth {self.depth} pools {poolings} times, so "
                f"the side must be a multiple of {2**poolings} (model.pools lowers it, data.size "
                "sets the side)"
            )
        cells = self.code_side**2
        if self.code == "conv" and self.code_dim % cells:
            raise ValueError(
                f"model.code='conv' spreads code_dim={self.code_dim} over {cells} map positions: "
                f"code_dim must be a multiple of {cells}"
            )
        if self.norm == "group" and self.width % self.groups:
            raise ValueError(
                f"model.norm='group': model.width={self.width} does not divide into {self.groups} "
                "groups"
            )

    @property
    def layers(self) -> int:
        """Convolutions, and as many deconvolutions."""
        return self.depth // 2

    @property
    def pooled_after(self) -> tuple[int, ...]:
        """The encoder layers (counted from 1) that a 2x2 max pooling follows, evenly spread."""
        if not self.pool:
            return ()
        count = min(self.pools, self.layers - 1)
        return tuple(round(i * self.layers / (count + 1)) for i in range(1, count + 1))

    @property
    def upsampled_before(self) -> tuple[int, ...]:
        """The decoder layers (from 1) that double the side of their maps.

        Deconvolution j mirrors convolution layers + 1 - j: it upsamples where that one pooled.
        """
        return tuple(self.layers + 1 - layer for layer in self.pooled_after)

    @property
    def code_side(self) -> int:
        """Side of the last maps, from which the code is made."""
        return self.image_shape[0] // 2 ** len(self.pooled_after)

    @property
    def groups(self) -> int:
        """Of group normalisation: eight channels each."""
        return max(1, self.width // 8)

    def maps(self) -> list[tuple[int, int]]:
        """Side and input channels of every convolution's maps; the mirror's are the same, its ends
        swapped."""
        size, _, channels = self.image_shape
        return [
            (
                size // 2 ** sum(earlier < layer for earlier in self.pooled_after),
                channels if layer == 1 else self.width,
            )
            for layer in range(1, self.layers + 1)
        ]

    def multiplications(self) -> int:
        """Multiplications (each with an addition) of one image's way through net and back.

        Convolutions, and the dense layers around the code; a training step takes three times as
        many.
        """
        convolutions = sum(
            2 * side**2 * self.kernel**2 * channels * self.width for side, channels in self.maps()
        )
        return convolutions + 2 * self.code_side**2 * self.width * self.code_dim

    def least_parameters(self) -> int:
        """Weights of convolutions and of dense layers around the code, without making the net."""
        weights = sum(2 * self.kernel**2 * channels * self.width for _, channels in self.maps())
        dense = 2 * self.code_side**2 * self.width * self.code_dim
        return weights + (dense if self.code == "dense" else 0)


def configuration_name(pool: bool, skip: str, input_residual: bool = False) -> str | None:
    """The paper's name for these choices; None for choices that the paper has no name for."""
    if input_residual:
        return "EDSSCIR" if (pool, skip) == (False, "symmetric") else None
    choices = {"pool": pool, "skip": skip}
    return next((name for name, known in CONFIGURATIONS.items() if known == choices), None)
