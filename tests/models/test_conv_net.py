"""The plain convolutional encoder: counts, shapes, what is refused; and the projector."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from air_jax.models import winograd
from air_jax.models.conv_net import ConvArchitecture, ConvEncoder, Embedder
from air_jax.models.convolution import positions_first
from air_jax.models.net import architecture_of, make_module

SMALL = {"widths": (32, 64, 128), "blocks": (1, 2, 2)}
RESNET18 = {"widths": (64, 128, 256, 512), "blocks": (2, 2, 2, 2), "residual": True}


def parameters(model):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def abstract(choices, kind=Embedder):
    architecture = ConvArchitecture(**choices)
    return nnx.eval_shape(lambda: kind(architecture, dtype=jnp.float32, rngs=nnx.Rngs(0)))


def test_the_small_net_with_its_projector_has_the_known_number_of_parameters():
    convolutions = 9 * (3 * 32 + 32 * 64 + 64 * 64 + 64 * 128 + 128 * 128)
    norms = 2 * (32 + 64 + 64 + 128 + 128)
    projector = 128 * 512 + 2 * 512 + 512 * 128 + 128
    assert parameters(abstract(SMALL)) == convolutions + norms + projector


def test_resnet18_has_its_published_number_of_parameters():
    """11,689,512 with a 7x7 first convolution and 1,000 classes; 3x3 and none here."""
    published = 11_689_512 - (512 * 1000 + 1000) - 64 * 3 * (49 - 9)
    assert parameters(abstract(RESNET18, ConvEncoder)) == published


@pytest.mark.parametrize("choices", [SMALL, RESNET18])
def test_counted_weights_are_those_of_the_kernels(choices):
    architecture = ConvArchitecture(**choices)
    state = nnx.state(abstract(choices, ConvEncoder), nnx.Param)
    kernels = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim == 4]
    assert architecture.least_parameters() == sum(kernel.size for kernel in kernels)


def test_multiplications_are_those_that_xla_counts(monkeypatch):
    monkeypatch.setattr(winograd, "applies", lambda x, kernel: False)
    choices = {"widths": (8, 16), "blocks": (1, 2), "residual": True, "image_shape": (16, 16, 3)}
    architecture = ConvArchitecture(**choices)
    encoder = ConvEncoder(architecture, dtype=jnp.float32, rngs=nnx.Rngs(0))
    definition, state = nnx.split(encoder)
    images = jnp.ones((1, 16, 16, 3))

    def encode(state, images):
        model = nnx.merge(definition, state)
        model.eval()
        return model(images)[0]

    counted = jax.jit(encode).lower(state, images).cost_analysis()["flops"]
    # XLA leaves out products with the padding, and counts norms and activations.
    assert counted == pytest.approx(2 * architecture.multiplications(), rel=0.2)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("side", [8, 16, 24])
def test_images_of_any_fitting_side_have_a_code(residual, side):
    architecture = ConvArchitecture(
        widths=(4, 8), blocks=(1, 2), residual=residual, image_shape=(16, 16, 3)
    )
    encoder = ConvEncoder(architecture, dtype=jnp.float32, rngs=nnx.Rngs(0))
    codes, maps = encoder(jnp.ones((3, side, side, 3)))
    assert codes.shape == (3, 8)
    assert [m.shape for m in maps] == [(side, side, 3, 4), (side // 2, side // 2, 3, 8)]


def test_a_residual_block_adds_its_input():
    architecture = ConvArchitecture(widths=(4,), blocks=(1,), residual=True, image_shape=(8, 8, 3))
    encoder = ConvEncoder(architecture, dtype=jnp.float32, rngs=nnx.Rngs(0))
    images = jnp.asarray(np.random.default_rng(0).standard_normal((5, 8, 8, 3)), jnp.float32)
    block = encoder.stages[0][0]
    block.convs[1].norm.scale[...] = jnp.zeros(4)
    np.testing.assert_allclose(
        encoder(images)[0], encoder.stem(positions_first(images)).mean(axis=(0, 1)), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"widths": (), "blocks": ()}, "model.widths"),
        ({"widths": (8, 0), "blocks": (1, 1)}, "model.widths"),
        ({"widths": (8, 8), "blocks": (1,)}, "a number of blocks for each width"),
        ({"widths": (8,) * 7, "blocks": (1,) * 7}, "multiple of 64"),
    ],
)
def test_encoders_that_cannot_be_are_refused_by_name(choices, message):
    with pytest.raises(ValueError, match=message):
        ConvArchitecture(**choices)


def test_the_keys_of_either_encoder_make_it(small_config):
    shape = (8, 8, 3)
    assert architecture_of(small_config.model, shape).depth == 4
    small_config.model.update(encoder="conv", widths=(4, 8), blocks=(1, 1))
    assert architecture_of(small_config.model, shape).code_dim == 8
    older = {"depth": 4, "width": 8}  # a config of before there was a choice
    assert architecture_of(older, shape).depth == 4
    with pytest.raises(ValueError, match="model.encoder='vit': expected one of paper, conv"):
        architecture_of({"encoder": "vit"}, shape)


def test_a_net_that_compares_views_has_no_decoder_and_one_that_reconstructs_has(small_config):
    def made(objective):
        return make_module(
            architecture_of(small_config.model, (8, 8, 3)),
            objective,
            remat=False,
            dtype=jnp.float32,
            rngs=nnx.Rngs(0),
        )

    assert hasattr(made("reconstruction"), "decoder")
    assert not hasattr(made("contrastive"), "decoder")
    small_config.model.encoder = "conv"
    with pytest.raises(ValueError, match="the decoder mirrors the paper's encoder only"):
        made("reconstruction")
