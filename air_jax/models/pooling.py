"""Max pooling by 2 x 2, with a gradient that is fast on a CPU.

`nnx.max_pool` finds the maxima again in its gradient and scatters to them. On a CPU that takes ten
times as long as what is here (`benchmarks/NOTES.md`): the maximum of four strided slices, and one
byte that says which of them it was.
"""

import jax
import jax.numpy as jnp
from flax import nnx


def max_pool(x: jax.Array) -> jax.Array:
    """Maps [B, h, w, C] -> [B, h // 2, w // 2, C]: the largest of each 2 x 2 positions (eq 6).

    The same values as `nnx.max_pool(x, (2, 2), (2, 2))`; a last odd row or column is left out. The
    gradient goes to one of the four positions: of equal maxima, to the first in the order of rows,
    then columns, on a CPU and on accelerators alike.
    """
    return jax.lax.platform_dependent(x, cpu=max_pool_by_slices, default=max_pool_by_window)


def max_pool_by_window(x: jax.Array) -> jax.Array:
    """`max_pool` as XLA's window reduction, for accelerators."""
    return nnx.max_pool(x, (2, 2), strides=(2, 2))


@jax.custom_vjp
def max_pool_by_slices(x: jax.Array) -> jax.Array:
    """`max_pool` as the maximum of four slices, for a CPU."""
    first, second, third, fourth = _quarters(x)
    return jnp.maximum(jnp.maximum(first, second), jnp.maximum(third, fourth))


def _quarters(x: jax.Array) -> list[jax.Array]:
    """The four positions of all windows, each [B, h // 2, w // 2, C], row by row."""
    height, width = (side // 2 * 2 for side in x.shape[1:3])
    return [x[:, row:height:2, column:width:2] for row in (0, 1) for column in (0, 1)]


def _forward(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # Not `x` is kept but where its maxima are, so that no later computation of `x` that rounds in
    # another way (a fused multiply-add) could miss all four.
    first, second, third, _ = _quarters(x)
    largest = max_pool_by_slices(x)
    which = jnp.where(third == largest, 2, 3)
    which = jnp.where(first == largest, 0, jnp.where(second == largest, 1, which))
    return largest, (which.astype(jnp.int8), jnp.zeros((*x.shape[1:3], 0)))


def _backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array]:
    which, of_sides = kept  # the second is empty: it carries the sides of the maps alone
    batch, height, width, channels = gradient.shape
    position = jnp.arange(4, dtype=jnp.int8).reshape(2, 1, 2, 1)  # as [row, _, column, _] of which
    spread = jnp.where(
        which[:, :, None, :, None] == position, gradient[:, :, None, :, None], 0
    ).reshape(batch, 2 * height, 2 * width, channels)
    odd = [(0, side % 2) for side in of_sides.shape[:2]]
    return (jnp.pad(spread, ((0, 0), *odd, (0, 0))),)


max_pool_by_slices.defvjp(_forward, _backward)
