"""The nets: shapes, shortcuts, and that each of the paper's can be trained."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from air_jax.models import winograd
from air_jax.models.architecture import CONFIGURATIONS, Architecture, configuration_name
from air_jax.models.autoencoder import Autoencoder, pair_parameters
from air_jax.models.convolution import images_first, positions_first
from air_jax.models.net import count_parameters, make_net, parameter_names
from air_jax.training import loop, objectives
from air_jax.training.step import TrainState, train_step

IMAGE = (32, 32, 3)


def build(depth=10, dtype=jnp.float32, **choices):
    architecture = Architecture(**{"depth": depth, "width": 8, **choices})
    return Autoencoder(architecture, dtype=dtype, rngs=nnx.Rngs(0))


def traced(shape=(2, *IMAGE), **choices):
    """Codes, maps and reconstructions as shapes and dtypes, without computing them."""

    def run(images):
        model = build(**choices)
        return *model.encoder(images), model(images)

    return jax.eval_shape(run, jnp.zeros(shape))


@pytest.mark.parametrize("depth", [10, 20, 40, 60])
@pytest.mark.parametrize("name", list(CONFIGURATIONS))
def test_each_of_the_papers_nets_codes_in_128_d_and_reconstructs(name, depth):
    codes, _, made = traced(depth=depth, **CONFIGURATIONS[name])
    assert (codes.shape, made.shape) == ((2, 128), (2, *IMAGE))


@pytest.mark.parametrize(
    ("name", "depth"),
    [*((name, 10) for name in CONFIGURATIONS), *(("Sortcut", depth) for depth in (20, 40, 60))],
)
def test_each_of_the_papers_nets_learns_from_a_step(name, depth):
    model = build(depth, image_shape=(16, 16, 3), **CONFIGURATIONS[name])
    net = make_net(model, np.full(3, 0.5), np.full(3, 0.25))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.01))
    state = TrainState(jnp.int32(0), net.params, net.stats, optimizer.init(net.params))
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3)), jnp.uint8)
    step = jax.jit(
        partial(train_step, net=net, optimizer=optimizer, objective=objectives.reconstruction)
    )
    key = jax.random.key(0)
    state, before = step(state, images, key)
    _, after = step(state, images, key)
    assert float(after["loss"]) < float(before["loss"])


@pytest.mark.parametrize(
    ("depth", "expected"),
    [(4, (1,)), (6, (1, 2)), (8, (1, 2, 3)), (20, (2, 5, 8)), (40, (5, 10, 15)), (60, (8, 15, 22))],
)
def test_poolings_are_spread_evenly_and_at_most_three(depth, expected):
    assert Architecture(depth=depth).pooled_after == expected
    assert Architecture(depth=depth, pool=False).pooled_after == ()


@pytest.mark.parametrize("name", list(CONFIGURATIONS))
def test_parameter_count_is_that_of_the_closed_form(name):
    depth, width, code = 10, 8, 128
    model = build(depth, **CONFIGURATIONS[name])
    cells = 16 if CONFIGURATIONS[name]["pool"] else 1024
    convolutions = 2 * (9 * 3 * width) + (depth - 2) * 9 * width**2 + (depth - 1) * width + 3
    dense = 2 * cells * width * code + code + cells * width
    assert count_parameters(nnx.state(model, nnx.Param)) == convolutions + dense
    biases = (depth - 1) * width + 3 + code + cells * width
    least = Architecture(depth=depth, width=width, **CONFIGURATIONS[name]).least_parameters()
    assert least == convolutions + dense - biases


def test_pooled_maps_shrink_to_4x4_and_unpooled_ones_stay():
    _, maps, _ = traced(depth=20)
    assert [m.shape[1] for m in maps] == [32, 32, 16, 16, 16, 8, 8, 8, 4, 4, 4]
    _, maps, _ = traced(depth=20, pool=False)
    assert {m.shape[1] for m in maps} == {32}


def test_decoder_mirrors_the_encoders_map_sizes():
    assert sorted(Architecture(depth=20).upsampled_before) == [3, 6, 9]


def test_asymmetric_shortcut_adds_the_first_layers_pooled_maps_before_relu():
    # With all later kernels zero and biases zero, a layer with a shortcut returns it.
    model = build(depth=10, skip="asymmetric")
    for conv in model.encoder.convs[1:]:
        conv.conv.kernel[...] = jnp.zeros_like(conv.conv.kernel[...])
    images = jax.random.normal(jax.random.key(0), (2, *IMAGE))
    _, maps = model.encoder(images)
    first = np.asarray(model.encoder.convs[0](maps[0]))

    def pooled(x, window):
        h, w, b, c = x.shape
        return x.reshape(h // window, window, w // window, window, b, c).max(axis=(1, 3))

    # Poolings follow layers 1, 2 and 4; shortcuts land in layers 2 and 4.
    np.testing.assert_allclose(maps[1], pooled(first, 2), rtol=1e-6)
    np.testing.assert_allclose(maps[2], pooled(first, 4), rtol=1e-6)
    assert not np.asarray(maps[3]).any()
    np.testing.assert_allclose(maps[4], pooled(first, 8), rtol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "sees_image"),
    [
        ({"skip": "none"}, False),
        ({"skip": "asymmetric"}, False),
        ({"skip": "asymmetric", "skip_into": "both"}, True),
        ({"skip": "symmetric"}, True),
        ({"skip": "symmetric", "pool": False}, True),
        ({"skip": "none", "input_residual": True}, True),
    ],
)
def test_only_shortcuts_into_the_decoder_let_it_see_the_image_around_the_code(kwargs, sees_image):
    model = build(**kwargs)
    images = jax.random.normal(jax.random.key(0), (2, *IMAGE))
    codes, maps = model.encoder(images)
    other = [m + 1 for m in maps]
    same = np.array_equal(model.decoder(codes, maps), model.decoder(codes, other))
    assert same != sees_image


def test_symmetric_shortcuts_join_every_second_deconvolution_with_the_maps_it_mirrors():
    model = build(depth=10, skip="symmetric", pool=False)
    codes, maps = model.encoder(jax.random.normal(jax.random.key(0), (2, *IMAGE)))
    whole = model.decoder(codes, maps)

    def read(decoder):
        """Which of the maps change what the decoder makes."""
        changed = ([m + (j == i) for j, m in enumerate(maps)] for i in range(len(maps)))
        return [
            i
            for i, m in enumerate(changed)
            if not np.array_equal(decoder(codes, m), decoder(codes, maps))
        ]

    assert read(model.decoder) == [2, 4]
    # Deconvolution 2 made zero hides what came before it: maps 4, which deconvolution 1 mirrors.
    model.decoder.deconvs[1].conv.kernel[...] = jnp.zeros((3, 3, 8, 8))
    assert read(model.decoder) == [2]
    assert not np.array_equal(model.decoder(codes, maps), whole)


@pytest.mark.parametrize("code", ["dense", "pooled", "conv"])
@pytest.mark.parametrize("norm", ["none", "batch", "group"])
def test_every_kind_of_code_and_norm_reconstructs_shape(code, norm):
    codes, _, made = traced(code=code, norm=norm)
    assert (codes.shape, made.shape) == ((2, 128), (2, *IMAGE))


def test_bfloat16_computes_in_bfloat16_with_float32_parameters():
    assert traced(dtype=jnp.bfloat16)[-1].dtype == jnp.bfloat16
    leaves = jax.tree.leaves(nnx.state(build(depth=4, dtype=jnp.bfloat16), nnx.Param))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float32)}


def test_other_square_sizes_work():
    assert traced((2, 24, 24, 1), image_shape=(24, 24, 1))[-1].shape == (2, 24, 24, 1)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"depth": 7}, "model.depth=7"),
        ({"depth": 2}, "model.depth=2"),
        ({"image_shape": (28, 28, 3)}, "28x28 pixels.*multiple of 8"),
        ({"image_shape": (32, 24, 3)}, "square"),
        ({"width": 0}, "model.width=0"),
        ({"skip": "both"}, "model.skip='both'"),
        ({"skip": "none", "skip_into": "both"}, "skip_into"),
        ({"code": "max"}, "model.code='max'"),
        ({"code": "conv", "code_dim": 100}, "multiple of 16"),
        ({"norm": "layer"}, "model.norm='layer'"),
        ({"norm": "group", "width": 17}, "model.width=17 does not divide into 2"),
    ],
)
def test_what_cannot_be_built_is_an_error_that_names_it(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Architecture(**{"depth": 10, **kwargs})


def test_paper_names_follow_from_pooling_and_shortcuts():
    assert all(configuration_name(**choices) == name for name, choices in CONFIGURATIONS.items())
    assert configuration_name(False, "symmetric", True) == "EDSSCIR"
    assert configuration_name(True, "symmetric", True) is None
    assert configuration_name(False, "none") is None


def test_standardised_training_images_have_zero_mean_and_unit_variance():
    images = np.random.default_rng(0).integers(0, 256, (64, *IMAGE)).astype(np.uint8)
    net = make_net(build(), *loop.channel_statistics(images))
    out = np.asarray(net.standardise(jnp.asarray(images)))
    np.testing.assert_allclose(out.mean(axis=(0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(out.std(axis=(0, 1, 2)), 1, atol=1e-4)


@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("depth", [4, 10])
def test_counted_multiplications_are_those_that_xla_counts(depth, pool, monkeypatch):
    monkeypatch.setattr(winograd, "applies", lambda x, kernel: False)
    model = build(depth=depth, pool=pool, skip="none")
    graphdef, state = nnx.split(model)
    net = jax.jit(lambda state, images: nnx.merge(graphdef, state)(images))
    analysis = net.lower(state, jnp.zeros((1, *IMAGE))).compile().cost_analysis()
    counted = Architecture(depth=depth, width=8, pool=pool).multiplications()
    # XLA counts additions as well, and leaves out what falls on the padding of "SAME".
    assert 0.8 * 2 * counted < analysis["flops"] < 1.1 * 2 * counted


def test_fewer_poolings_leave_larger_maps():
    _, maps, made = traced(depth=20, pools=2)
    assert maps[-1].shape[:2] == (8, 8)
    assert made.shape == (2, *IMAGE)


@pytest.mark.parametrize("skip", ["none", "symmetric", "asymmetric"])
@pytest.mark.parametrize("pool", [True, False])
def test_undoing_every_pair_one_after_another_is_decoding_without_shortcuts(pool, skip):
    model = build(depth=10, pool=pool, skip=skip)
    images = jax.random.normal(jax.random.key(0), (2, *IMAGE))
    codes, maps = model.encoder(images)
    for pair in range(1, 7):
        undone, wanted = model.undo_pair(images, pair)
        assert undone.shape == wanted.shape
        np.testing.assert_array_equal(wanted, images_first(maps[pair - 1]))
    side, _, count, width = maps[-1].shape
    x = positions_first(model.decoder.expand(codes).reshape(count, side, side, width))
    for layer in range(5, 0, -1):
        x = model.decoder.undo(layer, x)
    if skip != "symmetric":
        np.testing.assert_allclose(
            images_first(x), model.decoder(codes, maps), rtol=1e-5, atol=1e-6
        )


def test_every_parameter_belongs_to_one_pair():
    depth = 10
    names = parameter_names(nnx.state(build(depth=depth), nnx.Param))
    prefixes = [pair_parameters(pair, depth) for pair in range(1, depth // 2 + 2)]
    owners = [sum(name.startswith(own) for own in prefixes) for name in names]
    assert owners == [1] * len(names)
