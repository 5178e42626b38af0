"""What nets are trained for: losses against NumPy in float64, and trainings by them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import class_images, drawn
from hypothesis import given
from hypothesis import strategies as st

from air_jax.training import loop, objectives, step
from air_jax.training.training_log import CollapseError, TrainingLog

IMAGES, _ = class_images(80)


def unit_vectors(images, views, dimensions, seed=0):
    z = np.random.default_rng(seed).standard_normal((images, views, dimensions))
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def contrastive_by_loops(z, temperature):
    """The formula, view by view."""
    images, views, _ = z.shape
    losses = []
    for b in range(images):
        for v in range(views):
            positive = [z[b, v] @ z[b, w] / temperature for w in range(views) if w != v]
            negative = [
                np.exp(z[b, v] @ z[c, w] / temperature)
                for c in range(images)
                for w in range(views)
                if c != b
            ]
            losses.append(np.log(sum(negative)) - np.mean(positive))
    return np.mean(losses)


def coding_rate_by_determinants(z, invariance, distortion):
    images, views, dimensions = z.shape
    centres = z.mean(axis=1)
    cosines = [
        z[b, v] @ centres[b] / np.linalg.norm(centres[b])
        for b in range(images)
        for v in range(views)
    ]
    rates = [
        np.linalg.slogdet(
            np.eye(dimensions) + dimensions / (images * distortion) * z[:, v].T @ z[:, v]
        )[1]
        / 2
        for v in range(views)
    ]
    return -invariance * np.mean(cosines) - np.mean(rates)


@given(st.integers(2, 6), st.integers(2, 4), st.integers(2, 9), st.integers(0, 99))
@drawn
def test_losses_of_views_are_their_formulas_in_float64(images, views, dimensions, seed):
    z = unit_vectors(images, views, dimensions, seed)
    for ours, theirs in (
        (objectives.contrastive(jnp.float32(z), 0.3), contrastive_by_loops(z, 0.3)),
        (
            objectives.coding_rate(jnp.float32(z), 20.0, 0.1),
            coding_rate_by_determinants(z, 20.0, 0.1),
        ),
    ):
        assert float(ours) == pytest.approx(theirs, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("loss", objectives.OF_VIEWS.values())
def test_losses_of_views_do_not_know_order_or_direction(loss):
    z = unit_vectors(6, 3, 5)
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((5, 5)))[0]
    expected = float(loss(jnp.float32(z)))
    for same in (z[::-1], z[:, ::-1], z @ rotation):
        assert float(loss(jnp.float32(same))) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("loss", objectives.OF_VIEWS.values())
def test_views_alike_and_images_apart_are_better_than_neither(loss):
    apart = np.repeat(np.eye(6, 8)[:, None], 3, axis=1)
    collapsed = np.repeat(np.eye(1, 8)[None], 6, axis=0).repeat(3, axis=1)
    good, random, bad = (
        float(loss(jnp.float32(z))) for z in (apart, unit_vectors(6, 3, 8), collapsed)
    )
    assert good < random
    assert good < bad


@pytest.mark.parametrize("loss", objectives.OF_VIEWS.values())
def test_the_gradient_of_a_loss_is_finite_where_all_views_are_the_same(loss):
    z = jnp.full((4, 2, 4), 0.5)
    assert np.isfinite(jax.grad(loss)(z)).all()


def test_spread_is_its_definitions_in_float64():
    z, codes = unit_vectors(7, 3, 5), np.random.default_rng(2).standard_normal((21, 6)) ** 3
    found = objectives.spread(jnp.float32(codes), jnp.float32(z))
    values = np.linalg.eigvalsh(np.cov(codes.T))
    distances = [
        np.sum((z[b, v] - z[b, w]) ** 2)
        for b in range(7)
        for v in range(3)
        for w in range(3)
        if v != w
    ]
    between = [np.sum((z[b, 0] - z[c, 0]) ** 2) for b in range(7) for c in range(7) if b != c]
    second_moments = np.linalg.eigvalsh(z[:, 0].T @ z[:, 0] / 7)
    expected = {
        "effective_rank": values.sum() ** 2 / (values**2).sum(),
        "embedding_rank": 1 / (second_moments**2).sum(),
        "alignment": np.mean(distances),
        "uniformity": np.log(np.mean(np.exp(-2 * np.array(between)))),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-4), name


def test_embeddings_that_are_all_the_same_have_rank_one():
    z = jnp.full((9, 2, 4), 0.5)
    found = objectives.spread(jnp.ones((18, 3)), z)
    assert float(found["embedding_rank"]) == pytest.approx(1)
    assert float(found["effective_rank"]) == 0
    assert float(found["uniformity"]) == pytest.approx(0)


@pytest.fixture
def views_config(small_config):
    """A training that compares views, of a net with two stages."""
    small_config.model.update(encoder="conv", widths=(8, 16), blocks=(1, 1))
    small_config.train.update(
        objective="coding_rate", optimizer="adamw", learning_rate=0.01, views=2, epochs=3
    )
    return small_config


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("objective", objectives.OF_VIEWS)
@pytest.mark.parametrize("encoder", ["paper", "conv"])
def test_a_net_learns_by_comparing_views(views_config, mesh, tmp_path, objective, encoder):
    views_config.model.encoder = encoder
    views_config.train.update(objective=objective, epochs=6)
    result = loop.train(views_config, IMAGES, mesh, tmp_path)
    lines = read(tmp_path / "metrics.jsonl")
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert {"effective_rank", "embedding_rank", "alignment", "uniformity"} <= lines[0].keys()
    assert "decoder" not in result.net.params


@pytest.mark.parametrize("objective", objectives.OF_VIEWS)
def test_the_loss_of_views_is_the_same_on_four_devices(
    views_config, mesh, mesh4, tmp_path, objective
):
    views_config.train.objective = objective
    logs = []
    for devices in (mesh, mesh4):
        out = tmp_path / str(devices.size)
        loop.train(views_config, IMAGES, devices, out)
        logs.append([line["loss"] for line in read(out / "metrics.jsonl")])
    np.testing.assert_allclose(*logs, rtol=2e-3)


def test_a_training_by_views_that_goes_on_equals_an_uninterrupted_one(views_config, mesh, tmp_path):
    whole = loop.train(views_config, IMAGES, mesh, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        real = TrainingLog.add

        def stop(log, last, *args):
            real(log, last, *args)
            if last == 8:
                raise RuntimeError("stopped")

        patch.setattr(TrainingLog, "add", stop)
        with pytest.raises(RuntimeError, match="stopped"):
            loop.train(views_config, IMAGES, mesh, tmp_path / "parts")
    parts = loop.train(views_config, IMAGES, mesh, tmp_path / "parts")
    for one, other in zip(*(jax.tree.leaves(r.net) for r in (whole, parts)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_collapse_is_an_error_that_says_so(views_config, mesh, tmp_path, monkeypatch):
    monkeypatch.setitem(objectives.OF_VIEWS, "coding_rate", lambda z: -jnp.sum(z[..., 0]))
    views_config.train.update(epochs=40, learning_rate=0.1)
    with pytest.raises(CollapseError, match=r"step \d+: the embeddings of all images are nearly"):
        loop.train(views_config, IMAGES, mesh, tmp_path)


def test_a_probe_is_called_and_its_time_is_not_the_trainings(views_config, mesh, tmp_path):
    views_config.log.probe_steps = 5
    steps = []

    def probe(net):
        steps.append(net)
        return {"knn_accuracy": 0.5}

    result = loop.train(views_config, IMAGES, mesh, tmp_path, probe)
    lines = read(tmp_path / "probes.jsonl")
    assert [line["step"] for line in lines] == [5, 10, 15]
    assert all(line["knn_accuracy"] == 0.5 for line in lines)
    assert lines[0]["seconds"] <= lines[-1]["seconds"] <= result.seconds
    assert result.probe_seconds > 0


def test_masking_hides_whole_blocks_and_about_the_share_asked_for():
    images = jnp.ones((200, 32, 32, 3))
    masked = np.asarray(objectives.corrupt(images, "mask", 0.4, jax.random.key(0)))
    blocks = masked.reshape(200, 8, 4, 8, 4, 3)
    assert (blocks == blocks[:, :, :1, :, :1, :1]).all()
    assert masked.mean() == pytest.approx(0.6, abs=0.02)


def test_noise_has_the_deviation_asked_for_and_depends_on_the_key():
    images = jnp.zeros((50, 32, 32, 3))
    first, other = (
        objectives.corrupt(images, "noise", 0.5, jax.random.key(seed)) for seed in (0, 1)
    )
    assert float(first.std()) == pytest.approx(0.5, rel=0.02)
    assert (np.asarray(first) != np.asarray(other)).any()
    assert objectives.corrupt(images, "none", 0.5, jax.random.key(0)) is images


def test_the_target_of_denoising_is_the_clean_image(small_config, mesh):
    net = loop.new_net(small_config, (8, 8, 3), *loop.channel_statistics(IMAGES), mesh)
    optimizer = optax.sgd(0.0)
    state = step.initial_state(net, optimizer)
    batch = jnp.asarray(IMAGES[:16])
    small_config.train.update(corruption="mask", corruption_amount=1.0)
    objective = objectives.make_objective(small_config.train, image_size=8)
    # Full masking leaves the net nothing to see: its output is the same for every image.
    _, metrics = step.train_step(
        state, batch, jax.random.key(0), net=net, optimizer=optimizer, objective=objective
    )
    target = net.standardise(batch)
    constant = net.module()(jnp.zeros_like(target[:1]))
    expected = float(jnp.mean((constant - target) ** 2))
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-5)
