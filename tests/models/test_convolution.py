from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from air_jax.models import convolution
from air_jax.runtime import sharding


def maps(shape: tuple[int, ...], seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


weight_gradient = jax.jit(convolution.weight_gradient, static_argnums=2)


@partial(jax.jit, static_argnums=2)
def gradient_by_jax(x: jax.Array, gradient: jax.Array, side: int) -> jax.Array:
    """Of lax's convolution, which has no gradient of ours."""
    kernel = jnp.zeros((side, side, x.shape[-1], gradient.shape[-1]))

    def convolve(kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    return jax.linear_transpose(convolve, kernel)(gradient)[0]


@settings(max_examples=20, deadline=None)
@given(
    batch=st.integers(1, 6),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    channels=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    side=st.integers(1, 5),
)
def test_weight_gradient_equals_that_of_the_convolution(batch, height, width, channels, side):
    x = maps((batch, height, width, channels[0]))
    gradient = maps((batch, height, width, channels[1]), seed=1)
    found = weight_gradient(x, gradient, side)
    expected = gradient_by_jax(x, gradient, side)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fast", [False, True])  # whether XLA's own is said to be fast on a CPU
@pytest.mark.parametrize("size", [4, 7, 16])  # below and above the size from which ours is used
def test_both_gradients_of_a_layer_equal_those_of_flax(size, fast, monkeypatch):
    monkeypatch.setattr(convolution.cpu_flags, "xla_convolves_fast", lambda: fast)
    x = maps((4, size, size, 8))
    settings = {"kernel_init": nnx.initializers.he_normal(), "rngs": nnx.Rngs(0)}
    ours = convolution.Convolution(8, 16, 3, dtype=jnp.float32, **settings)
    flax = nnx.Conv(8, 16, (3, 3), kernel_init=settings["kernel_init"], rngs=nnx.Rngs(0))

    def loss(layer: nnx.Module, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(layer(x)))

    for own, expected in zip(
        *(jax.tree.leaves(nnx.grad(loss, argnums=(0, 1))(layer, x)) for layer in (ours, flax)),
        strict=True,
    ):
        np.testing.assert_allclose(own, expected, rtol=1e-3, atol=1e-4)


def gradient_of_split(mesh: jax.sharding.Mesh) -> jax.stages.Compiled:
    """Of a batch of 8 images that is split over a mesh."""
    split = sharding.by_rows(mesh)
    jitted = jax.jit(
        lambda x, gradient: convolution.weight_gradient(x, gradient, 3),
        in_shardings=(split, split),
        out_shardings=sharding.replicated(mesh),
    )
    with jax.set_mesh(mesh):
        return jitted.lower(*[jax.ShapeDtypeStruct((8, 16, 16, 8), jnp.float32)] * 2).compile()


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_each_device_of_the_mesh_adds_up_its_own_images_alone(devices):
    """However many other devices there are."""
    mesh = sharding.make_mesh(jax.devices()[:devices])
    if mesh.size < devices:
        pytest.skip("needs several devices")
    compiled = gradient_of_split(mesh)
    text = compiled.as_text()
    assert "all-gather" not in text
    assert text.count(" all-reduce(") == (devices > 1)
    x, gradient = maps((8, 16, 16, 8)), maps((8, 16, 16, 8), seed=1)
    split = sharding.by_rows(mesh)
    found = compiled(jax.device_put(x, split), jax.device_put(gradient, split))
    np.testing.assert_allclose(found, gradient_by_jax(x, gradient, 3), rtol=1e-4, atol=1e-3)
    # The sum of products of one device holds no leading axis for devices it has not.
    partial_sums = f"f32[{8 // devices},16,16,8]"
    assert partial_sums in text


def test_computation_in_bfloat16_gives_maps_and_gradients_of_their_own_types():
    layer = convolution.Convolution(
        8, 8, 3, kernel_init=nnx.initializers.he_normal(), dtype=jnp.bfloat16, rngs=nnx.Rngs(0)
    )
    x = maps((2, 16, 16, 8))
    assert layer(x).dtype == jnp.bfloat16
    gradients = nnx.grad(lambda layer: jnp.sum(layer(x).astype(jnp.float32)))(layer)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}
