"""Codes are those of the encoder, whatever the batches and devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from accelerator import counting
from conftest import class_images

from air_jax.models import encode
from air_jax.models.net import make_net
from air_jax.training import loop

IMAGES, _ = class_images(75)


@pytest.fixture
def net(small_config, mesh):
    return loop.new_net(small_config, (8, 8, 3), *loop.channel_statistics(IMAGES), mesh)


def test_codes_are_those_of_one_image_at_a_time(net, mesh):
    codes = encode.encode(net, IMAGES, mesh, batch=32, label=None)
    assert codes.shape == (75, 16)
    assert codes.dtype == np.float32
    model = net.module()
    for i in (0, 31, 32, 74):
        own = model.encode(net.standardise(jnp.asarray(IMAGES[i : i + 1])))[0]
        np.testing.assert_allclose(codes[i], own, rtol=1e-4, atol=1e-5)


def test_four_devices_encode_as_one(net, mesh, mesh4):
    one = encode.encode(net, IMAGES, mesh, batch=32, label=None)
    whole = jax.device_put(net, encode.sharding.replicated(mesh4))
    four = encode.encode(whole, IMAGES, mesh4, batch=32, label=None)
    np.testing.assert_allclose(one, four, rtol=1e-4, atol=1e-5)


def test_padding_of_the_last_batch_compiles_nothing_more(net, mesh):
    encode.encode(net, IMAGES[:32], mesh, batch=32, label=None)
    compiled = encode.encode_batch._cache_size()
    encode.encode(net, IMAGES, mesh, batch=32, label=None)
    assert encode.encode_batch._cache_size() == compiled


@pytest.mark.gpu
@pytest.mark.parametrize("devices", ["mesh", "mesh4"])
def test_images_on_an_accelerator_are_encoded_where_they_lie(
    small_config, devices, request, plays_accelerator
):
    mesh = request.getfixturevalue(devices)
    net = loop.new_net(small_config, (8, 8, 3), *loop.channel_statistics(IMAGES), mesh)
    expected = encode.encode(net, IMAGES, mesh, batch=32, label=None)
    resident = encode.on_devices(IMAGES, mesh)
    assert isinstance(resident, jax.Array)
    encode.encode(net, resident, mesh, batch=32, label=None)
    with counting() as counts, jax.transfer_guard_host_to_device("disallow"):
        codes = encode.encode(net, resident, mesh, batch=32, label=None)
    np.testing.assert_allclose(codes, expected, rtol=1e-4, atol=1e-5)
    assert not counts.compilations
    assert len(counts.round_trips) == 3  # a batch each


def test_a_batch_suits_the_devices_unless_it_is_asked_for(mesh4, mesh, plays_accelerator):
    assert encode.batch_size(7, (32, 32, 3), 64, mesh) == 7
    assert encode.batch_size(0, (32, 32, 3), 64, mesh) == 2048
    assert encode.batch_size(0, (32, 32, 3), 64, mesh4) == 4 * 2048
    assert encode.batch_size(0, (224, 224, 3), 64, mesh) == 2**30 // (4 * 224 * 224 * 64)


def test_a_cpu_keeps_batches_that_its_cache_holds(mesh, mesh4):
    assert encode.batch_size(0, (32, 32, 3), 64, mesh) == 512
    assert encode.batch_size(0, (32, 32, 3), 64, mesh4) == 512
    assert encode.on_devices(IMAGES, mesh) is IMAGES


@pytest.mark.parametrize(
    ("dtype", "products"), [("float32", "HIGHEST"), ("tf32", "HIGH"), ("bfloat16", "DEFAULT")]
)
def test_products_have_the_precision_of_the_nets_dtype(small_config, mesh, dtype, products):
    small_config.train.dtype = dtype
    net = loop.new_net(small_config, (8, 8, 3), *loop.channel_statistics(IMAGES), mesh)
    lowered = encode.encode_batch.lower(net, IMAGES[:4]).as_text()
    kinds = [
        line for line in lowered.splitlines() if "convolution" in line or "dot_general" in line
    ]
    assert len(kinds) >= 3
    if dtype == "bfloat16":
        assert all("bf16" in line for line in kinds)
        assert not any("HIGH" in line for line in kinds)
    else:
        assert all(
            f"{products}, {products}]" in line.replace("#stablehlo<precision ", "").replace(">", "")
            for line in kinds
        ), kinds


def test_reconstructions_from_own_codes_are_those_of_the_autoencoder(net, mesh):
    codes = encode.encode(net, IMAGES, mesh, batch=32, label=None)
    made = encode.reconstruct(net, IMAGES, codes, mesh, batch=32)
    whole = net.module()(net.standardise(jnp.asarray(IMAGES)))
    np.testing.assert_allclose(made, whole, rtol=1e-3, atol=1e-4)


def test_held_out_losses_are_those_of_own_and_of_other_images_codes(net, mesh):
    losses = encode.held_out_losses(net, IMAGES, mesh, batch=32)
    target = net.standardise(jnp.asarray(IMAGES))
    expected = float(jnp.mean((net.module()(target) - target) ** 2))
    assert losses.loss == pytest.approx(expected, rel=1e-4)
    # With two images there is one way to exchange codes.
    two = encode.held_out_losses(net, IMAGES[:2], mesh, batch=32)
    model, target = net.module(), target[:2]
    codes, maps = model.encoder(target)
    expected = float(jnp.mean((model.decoder(codes[::-1], maps) - target) ** 2))
    assert two.code_shuffled_loss == pytest.approx(expected, rel=1e-4)
    assert encode.held_out_losses(net, IMAGES[:1], mesh, batch=32).code_shuffled_loss is None


def test_a_decoder_fed_around_the_code_shows_in_the_shuffled_loss(small_config, mesh):
    # Zero the projection out of the code: all that is left comes by shortcuts.
    small_config.model.update(skip="symmetric", input_residual=True)
    net = loop.new_net(small_config, (8, 8, 3), *loop.channel_statistics(IMAGES), mesh)
    model = net.module()
    model.decoder.expand.kernel[...] = jnp.zeros_like(model.decoder.expand.kernel[...])
    unused = make_net(model, net.mean, net.std)
    losses = encode.held_out_losses(unused, IMAGES, mesh, batch=32)
    assert losses.loss == losses.code_shuffled_loss
