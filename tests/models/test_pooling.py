import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from air_jax.models import convolution

# On a CPU, `max_pool` is the first; accelerators take the second.
WAYS = [convolution.max_pool, convolution.max_pool_by_slices, convolution.max_pool_by_window]


def random_maps(shape: tuple[int, ...], seed: int = 0, values: int | None = None) -> jax.Array:
    """Normal values, or whole numbers below `values`, which repeat."""
    random = np.random.default_rng(seed)
    drawn = random.integers(0, values, shape) if values else random.standard_normal(shape)
    return jnp.asarray(drawn, jnp.float32)


def gradient_of(way, x: jax.Array, gradient: jax.Array) -> jax.Array:
    return jax.jit(lambda x, gradient: jax.vjp(way, x)[1](gradient)[0])(x, gradient)


def gradient_by_numpy(x: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Of equal maxima, the first of the window's rows, then columns, gets it."""
    found = np.zeros_like(x)
    for i, j, b, c in np.ndindex(*gradient.shape):
        window = x[2 * i : 2 * i + 2, 2 * j : 2 * j + 2, b, c]
        row, column = divmod(int(window.argmax()), 2)
        found[2 * i + row, 2 * j + column, b, c] = gradient[i, j, b, c]
    return found


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=8, deadline=None)
@given(
    shape=st.tuples(*2 * [st.integers(2, 7)], st.integers(1, 3), st.integers(1, 5)),
    values=st.sampled_from([None, 2, 3]),
)
def test_values_equal_flax_and_gradients_go_to_the_first_maximum(way, shape, values):
    x = random_maps(shape, values=values)
    pooled = way(x)
    expected = nnx.max_pool(convolution.images_first(x), (2, 2), (2, 2))
    np.testing.assert_array_equal(convolution.images_first(pooled), expected)
    gradient = random_maps(pooled.shape, seed=1)
    expected = gradient_by_numpy(np.asarray(x), np.asarray(gradient))
    np.testing.assert_array_equal(gradient_of(way, x, gradient), expected)


def test_a_gradient_reaches_every_window_of_a_map_computed_anew():
    """Of a multiply-add, which another fusion may round in another way."""
    x, scale, shift = random_maps((16, 16, 8, 8)), random_maps((8,), 1), random_maps((8,), 2)

    @jax.jit
    @jax.grad
    def gradient(shift: jax.Array) -> jax.Array:
        return jnp.sum(convolution.max_pool(x * scale + shift))

    np.testing.assert_array_equal(gradient(shift), np.full(8, 8 * 8 * 8))


@pytest.mark.parametrize("way", WAYS)
def test_maps_in_bfloat16_have_gradients_in_bfloat16(way):
    x = random_maps((4, 4, 2, 3)).astype(jnp.bfloat16)
    assert way(x).dtype == jnp.bfloat16
    assert gradient_of(way, x, jnp.ones((2, 2, 2, 3), jnp.bfloat16)).dtype == jnp.bfloat16
