"""Stride-1 convolution, with a weight gradient that is fast on a CPU.

XLA computes the gradient with respect to a kernel as a convolution whose window is the whole map.
Of two libraries for it on a CPU, the one that XLA takes by itself needs up to three times as long
as a forward convolution of as many multiplications (`benchmarks/NOTES.md`). Where
`air_jax.runtime.cpu_flags` has chosen the other, XLA's gradient is the fastest. Elsewhere large
maps have a sum of matrix products over a few images at a time, whose operands stay in cache.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from air_jax.runtime import cpu_flags

# Ours is the faster one on maps of at least so many positions, between layers of at least so many
# channels; the table is in `benchmarks/NOTES.md`.
LEAST_POSITIONS = 256
LEAST_CHANNELS = 8
ROWS_PER_PRODUCT = 1024  # of map positions; more of them leave the cache, fewer cost more calls


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
        """Maps [B, h, w, in_channels] -> [B, h, w, out_channels] of `dtype`."""
        made = convolve(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return made if self.bias is None else made + self.bias[...].astype(self.dtype)


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Maps [B, h, w, in] and a kernel [k, k, in, out] -> [B, h, w, out], without bias."""
    if cpu_flags.xla_convolves_fast():
        return _convolve_apart(x, kernel)
    wide = min(kernel.shape[2:]) >= LEAST_CHANNELS and x.shape[1] * x.shape[2] >= LEAST_POSITIONS
    return _convolve_by_products(x, kernel) if wide else _convolve(x, kernel)


def _convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@jax.custom_vjp
def _convolve_by_products(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _convolve(x, kernel)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve(x, kernel), (x, kernel)


def _backward(
    operands: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = operands

    def of_kernel(x: jax.Array, gradient: jax.Array) -> jax.Array:
        return weight_gradient(x, gradient, kernel.shape[0])

    def of_kernel_by_xla(x: jax.Array, gradient: jax.Array) -> jax.Array:
        return _gradients(x, kernel, gradient)[1]

    of_x, _ = _gradients(x, kernel, gradient)
    return of_x, jax.lax.platform_dependent(x, gradient, cpu=of_kernel, default=of_kernel_by_xla)


_convolve_by_products.defvjp(_forward, _backward)


def _gradients(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    """XLA's, with respect to `x` and `kernel`."""
    (of_x,) = jax.linear_transpose(lambda x: _convolve(x, kernel), x)(gradient)
    (of_kernel,) = jax.linear_transpose(lambda kernel: _convolve(x, kernel), kernel)(gradient)
    return of_x, of_kernel


@jax.custom_vjp
def _convolve_apart(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _convolve(x, kernel)


def _backward_apart(
    operands: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = operands
    # The gradient of the kernel transposes both. On a CPU, XLA would do so in one loop with what
    # computes them (normalisation, ReLU), which takes several times as long as a transpose alone.
    x, gradient = jax.lax.platform_dependent(
        x,
        gradient,
        cpu=lambda *maps: jax.lax.optimization_barrier(maps),
        default=lambda *maps: maps,
    )
    return _gradients(x, kernel, gradient)


_convolve_apart.defvjp(_forward, _backward_apart)


def weight_gradient(x: jax.Array, gradient: jax.Array, kernel: int) -> jax.Array:
    """The gradient with respect to the kernel of `convolve`.

    Args:
        x: what was convolved [B, h, w, in].
        gradient: with respect to the result [B, h, w, out].
        kernel: the kernel's side k.

    Returns:
        [k, k, in, out]. Entry (i, j) is the product of `x`, shifted by (i, j), with `gradient`
        over all positions. Shifting x by columns and the gradient by rows gives all k² in one
        product, with k-fold copies of both instead of a k²-fold copy of one.
    """
    batch, height, width, channels_in = x.shape
    channels_out = gradient.shape[-1]
    # A leading axis for the devices of the mesh that the batch is split over: each adds up its own
    # images. Outside `jax.set_mesh` there is no mesh, and one device.
    devices = max(1, jax.sharding.get_abstract_mesh().size)
    devices = 1 if batch % devices else devices
    images = _images_per_product(batch // devices, height * width)
    before = (kernel - 1) // 2

    def add(total: jax.Array, parts: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        x, gradient = parts  # [devices, images, h, w, channels]
        padded = jnp.pad(x, ((0, 0), (0, 0), *2 * [(before, kernel - 1 - before)], (0, 0)))
        columns = [padded[:, :, :, j : j + width] for j in range(kernel)]
        rows = [
            jnp.pad(gradient, ((0, 0), (0, 0), (i, kernel - 1 - i), (0, 0), (0, 0)))
            for i in range(kernel)
        ]
        positions = images * (height + kernel - 1) * width
        product = jnp.einsum(
            "dpj,dpi->dji",
            jnp.concatenate(columns, -1).reshape(devices, positions, kernel * channels_in),
            jnp.concatenate(rows, -1).reshape(devices, positions, kernel * channels_out),
            preferred_element_type=jnp.float32,
        )
        return total + product, None

    def steps(maps: jax.Array) -> jax.Array:
        return jnp.moveaxis(maps.reshape(devices, -1, images, *maps.shape[1:]), 1, 0)

    nothing = jnp.zeros((devices, kernel * channels_in, kernel * channels_out), jnp.float32)
    total, _ = jax.lax.scan(add, nothing, (steps(x), steps(gradient)))
    by_tap = total.sum(0).reshape(kernel, channels_in, kernel, channels_out)
    return by_tap.transpose(2, 0, 1, 3).astype(x.dtype)


def _images_per_product(images: int, positions: int) -> int:
    """The largest divisor of `images` that gives a product `ROWS_PER_PRODUCT` rows at most."""
    most = max(1, ROWS_PER_PRODUCT // positions)
    return max(n for n in range(1, min(most, images) + 1) if images % n == 0)
