"""Winograd's convolution against the sum over nine shifts, in float64 by NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from air_jax.models import convolution, winograd


def by_numpy(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    height, width = x.shape[:2]
    padded = np.pad(x.astype(np.float64), ((1, 1), (1, 1), (0, 0), (0, 0)))
    return sum(
        padded[row : row + height, column : column + width] @ kernel[row, column]
        for row in range(3)
        for column in range(3)
    )


def gradients_by_numpy(
    x: np.ndarray, kernel: np.ndarray, gradient: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    of_x = by_numpy(gradient, kernel[::-1, ::-1].swapaxes(2, 3))
    height, width = x.shape[:2]
    padded = np.pad(x.astype(np.float64), ((1, 1), (1, 1), (0, 0), (0, 0)))
    of_kernel = np.empty(kernel.shape)
    for row, column in np.ndindex(3, 3):
        seen = padded[row : row + height, column : column + width]
        of_kernel[row, column] = np.einsum("hwbc,hwbk->ck", seen, gradient)
    return of_x, of_kernel


@settings(max_examples=12, deadline=None)
@given(
    sides=st.tuples(*2 * [st.sampled_from([4, 8, 12, 32])]),
    batch=st.integers(1, 3),
    channels=st.tuples(*2 * [st.integers(1, 20)]),
)
def test_maps_and_both_gradients_equal_the_sum_over_nine_shifts(sides, batch, channels):
    random = np.random.default_rng(0)
    x = random.standard_normal((*sides, batch, channels[0])).astype(np.float32)
    kernel = random.standard_normal((3, 3, *channels)).astype(np.float32)
    gradient = random.standard_normal((*sides, batch, channels[1])).astype(np.float32)
    made, back = jax.vjp(winograd.convolve, jnp.asarray(x), jnp.asarray(kernel))
    found = (made, *back(jnp.asarray(gradient)))
    expected = (by_numpy(x, kernel), *gradients_by_numpy(x, kernel, gradient))
    for own, exact in zip(found, expected, strict=True):
        assert np.abs(own - exact).max() < 3e-5 * max(1, np.abs(exact).max())


@pytest.mark.parametrize(
    ("shape", "kernel", "dtype"),
    [
        ((8, 8, 2, 16), (5, 5, 16, 16), jnp.float32),
        ((8, 8, 2, 16), (1, 1, 16, 16), jnp.float32),
        ((8, 6, 2, 16), (3, 3, 16, 16), jnp.float32),
        ((2, 2, 2, 16), (3, 3, 16, 16), jnp.float32),
        ((8, 8, 2, 3), (3, 3, 3, 16), jnp.float32),
        ((8, 8, 2, 16), (3, 3, 16, 16), jnp.bfloat16),
    ],
)
def test_what_tiles_do_not_fit_is_convolved_directly(shape, kernel, dtype):
    x, weights = jnp.ones(shape, dtype), jnp.ones(kernel, dtype)
    assert not winograd.applies(x, weights)
    np.testing.assert_array_equal(
        convolution.convolve(x, weights), convolution.convolve_directly(x, weights)
    )


def test_accelerators_are_given_xlas_convolution():
    x, kernel = jnp.ones((8, 8, 2, 16)), jnp.ones((3, 3, 16, 16))
    assert winograd.applies(x, kernel)
    traced = jax.jit(convolution.convolve).trace(x, kernel)
    assert "stablehlo.convolution" in traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "stablehlo.convolution" not in traced.lower(lowering_platforms=("cpu",)).as_text()
