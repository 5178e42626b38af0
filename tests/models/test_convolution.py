import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from air_jax.models import convolution
from air_jax.runtime import sharding


def maps(shape: tuple[int, ...], seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


@pytest.mark.parametrize("size", [1, 4, 7, 16])
def test_both_gradients_of_a_layer_equal_those_of_flax(size):
    x = maps((size, size, 4, 8))
    settings = {"kernel_init": nnx.initializers.he_normal(), "rngs": nnx.Rngs(0)}
    ours = convolution.Convolution(8, 16, 3, dtype=jnp.float32, **settings)
    flax = nnx.Conv(8, 16, (3, 3), kernel_init=settings["kernel_init"], rngs=nnx.Rngs(0))

    def loss(layer: nnx.Module, x: jax.Array) -> jax.Array:
        own = isinstance(layer, convolution.Convolution)
        made = layer(x) if own else layer(convolution.images_first(x))
        return jnp.sum(jnp.sin(made))

    for own, expected in zip(
        *(jax.tree.leaves(nnx.grad(loss, argnums=(0, 1))(layer, x)) for layer in (ours, flax)),
        strict=True,
    ):
        np.testing.assert_allclose(own, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_each_device_of_the_mesh_convolves_its_own_images_alone(devices):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    if mesh.size < devices:
        pytest.skip("needs several devices")
    split = NamedSharding(mesh, PartitionSpec(None, None, mesh.axis_names[0]))
    whole = sharding.replicated(mesh)
    x, kernel = maps((16, 16, 8, 8)), maps((3, 3, 8, 8), seed=1)

    def gradient(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.grad(lambda kernel: jnp.square(convolution.convolve(x, kernel)).sum())(kernel)

    compiled = (
        jax.jit(gradient, in_shardings=(split, whole), out_shardings=whole)
        .lower(x, kernel)
        .compile()
    )
    text = compiled.as_text()
    assert "all-gather" not in text
    assert text.count(" all-reduce(") == (devices > 1)
    found = compiled(jax.device_put(x, split), jax.device_put(kernel, whole))
    np.testing.assert_allclose(found, gradient(x, kernel), rtol=1e-4, atol=1e-2)


def test_computation_in_bfloat16_gives_maps_and_gradients_of_their_own_types():
    layer = convolution.Convolution(
        8, 8, 3, kernel_init=nnx.initializers.he_normal(), dtype=jnp.bfloat16, rngs=nnx.Rngs(0)
    )
    x = maps((16, 16, 2, 8))
    assert layer(x).dtype == jnp.bfloat16
    gradients = nnx.grad(lambda layer: jnp.sum(layer(x).astype(jnp.float32)))(layer)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("made", [1, 3])
def test_maps_of_few_channels_equal_xlas_convolution_and_its_gradients(side, made):
    x, kernel = maps((6, 5, 2, 7)), maps((side, side, 7, made), seed=1)
    gradient = maps((6, 5, 2, made), seed=2)
    found, expected = (
        (made_maps, *back(gradient))
        for made_maps, back in (
            jax.vjp(way, x, kernel)
            for way in (convolution.convolve_to_few, convolution.convolve_directly)
        )
    )
    for own, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(own, wanted, rtol=1e-4, atol=1e-4)
