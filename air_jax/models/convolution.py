"""Stride-1 convolution and 2 x 2 max pooling of maps [h, w, B, C], fast on a CPU, too.

Inside the nets, rows and columns come first: then tiles of Winograd's convolutions and the windows
of poolings are whole blocks of memory. An accelerator chooses the order in memory itself.
XLA's gradient of a window's maximum finds the maxima again and scatters to them, which takes ten
times as long on a CPU as what is here. `benchmarks/NOTES.md` has the measurements.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from air_jax.models import winograd

_FEW = 4  # channels


class Convolution(nnx.Module):
    """A stride-1 convolution, padded with zeros: maps keep their size (eq 1).

    Args:
        in_channels: of the maps it reads.
        out_channels: of those it makes.
        side: k of its k x k kernel.
        kernel_init: initialiser of the kernel; the bias starts at zero.
        bias: whether there is one.
        dtype: of computation; parameters are float32.
        rngs: for initialisation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        side: int,
        *,
        kernel_init: nnx.Initializer,
        bias: bool = True,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        shape = (side, side, in_channels, out_channels)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, jnp.float32))
        zeros = nnx.initializers.zeros
        self.bias = nnx.Param(zeros(rngs.params(), (out_channels,), jnp.float32)) if bias else None
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [h, w, B, in_channels] -> [h, w, B, out_channels] of `dtype`."""
        made = convolve(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return made if self.bias is None else made + self.bias[...].astype(self.dtype)


def positions_first(images: jax.Array) -> jax.Array:
    """Images [B, h, w, C] -> maps [h, w, B, C]."""
    return images.transpose(1, 2, 0, 3)


def images_first(maps: jax.Array) -> jax.Array:
    """Maps [h, w, B, C] -> images [B, h, w, C]."""
    return maps.transpose(2, 0, 1, 3)


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Maps [h, w, B, in] and a kernel [k, k, in, out] -> [h, w, B, out], without bias."""
    on_cpu = convolve_directly
    if winograd.applies(x, kernel):
        on_cpu = winograd.convolve
    elif kernel.shape[3] <= _FEW and x.dtype == jnp.float32:
        on_cpu = convolve_to_few
    return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=convolve_directly)


def convolve_directly(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`convolve` as XLA's convolution."""
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("HWNC", "HWIO", "HWNC")
    )


@jax.custom_vjp
def convolve_to_few(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`convolve` for few output channels, as those of an image, on a CPU.

    One product of every position with the whole kernel; then its k x k parts are shifted and added.
    """
    side, _, read, made = kernel.shape
    products = x @ kernel.transpose(2, 0, 1, 3).reshape(read, -1)
    products = _bordered(products, (side - 1) // 2, side // 2)
    height, width = x.shape[:2]
    first, *others = (
        products[row : row + height, column : column + width, :, start : start + made]
        for row in range(side)
        for column in range(side)
        for start in ((row * side + column) * made,)
    )
    return sum(others, start=first)


def _to_few_forward(
    x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return convolve_to_few(x, kernel), (x, kernel)


def _to_few_backward(
    operands: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Products with the gradient's patches, in which the kernel lies turned around."""
    x, kernel = operands
    side, _, read, made = kernel.shape
    patches = _patches(gradient, side)
    turned = kernel[::-1, ::-1].swapaxes(2, 3).reshape(-1, read)
    positions = (0, 1, 2)
    of_kernel = jnp.tensordot(x, patches, (positions, positions))
    of_kernel = of_kernel.reshape(read, side, side, made)
    return patches @ turned, of_kernel.transpose(1, 2, 0, 3)[::-1, ::-1]


convolve_to_few.defvjp(_to_few_forward, _to_few_backward)


def _patches(x: jax.Array, side: int) -> jax.Array:
    """[h, w, B, C] -> the side x side positions around each, [h, w, B, side side C].

    Those around which a kernel of this side reads each position.
    """
    height, width = x.shape[:2]
    x = _bordered(x, side // 2, (side - 1) // 2)
    x = jnp.concatenate([x[:, column : column + width] for column in range(side)], axis=-1)
    x = jax.lax.optimization_barrier(x)  # two concatenations made as one take longer
    return jnp.concatenate([x[row : row + height] for row in range(side)], axis=-1)


def _bordered(x: jax.Array, before: int, after: int) -> jax.Array:
    """Maps [h, w, B, C] with so many rows and columns of zeros around them."""
    return jnp.pad(x, ((before, after), (before, after), (0, 0), (0, 0)))


def max_pool(x: jax.Array) -> jax.Array:
    """Maps [h, w, B, C] -> [h // 2, w // 2, B, C]: the largest of each 2 x 2 positions (eq 6).

    The same values as `nnx.max_pool` of images; a last odd row or column is left out. The
    gradient goes to one of the four positions: of equal maxima, to the first in the order of rows,
    then columns, on a CPU and on accelerators alike.
    """
    return jax.lax.platform_dependent(x, cpu=max_pool_by_slices, default=max_pool_by_window)


def max_pool_by_window(x: jax.Array) -> jax.Array:
    """`max_pool` as XLA's window reduction, for accelerators."""
    window = (2, 2, 1, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")


@jax.custom_vjp
def max_pool_by_slices(x: jax.Array) -> jax.Array:
    """`max_pool` as the maximum of four slices, for a CPU."""
    first, second, third, fourth = _quarters(x)
    return jnp.maximum(jnp.maximum(first, second), jnp.maximum(third, fourth))


def _quarters(x: jax.Array) -> list[jax.Array]:
    """The four positions of all windows, each [h // 2, w // 2, B, C], row by row."""
    height, width = (side // 2 * 2 for side in x.shape[:2])
    return [x[row:height:2, column:width:2] for row in (0, 1) for column in (0, 1)]


def _pool_forward(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # Not `x` is kept but where its maxima are, so that no later computation of `x` that rounds in
    # another way (a fused multiply-add) could miss all four.
    first, second, third, _ = _quarters(x)
    largest = max_pool_by_slices(x)
    which = jnp.where(third == largest, 2, 3)
    which = jnp.where(first == largest, 0, jnp.where(second == largest, 1, which))
    return largest, (which.astype(jnp.int8), jnp.zeros((*x.shape[:2], 0)))


def _pool_backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array]:
    which, of_sides = kept  # the second is empty: it carries the sides of the maps alone
    height, width, batch, channels = gradient.shape
    position = jnp.arange(4, dtype=jnp.int8).reshape(1, 2, 1, 2, 1, 1)  # [_, row, _, column, _, _]
    spread = jnp.where(which[:, None, :, None] == position, gradient[:, None, :, None], 0)
    spread = spread.reshape(2 * height, 2 * width, batch, channels)
    odd = [(0, side % 2) for side in of_sides.shape[:2]]
    return (jnp.pad(spread, (*odd, (0, 0), (0, 0))),)


max_pool_by_slices.defvjp(_pool_forward, _pool_backward)
