"""Training: the optimiser's arithmetic, sharding, resuming, and what stops it."""

import contextlib
import gzip
import json
import os
import shutil
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from accelerator import counting
from conftest import class_images
from flax import nnx

from air_jax.data.loaders import epoch_order
from air_jax.models import encode
from air_jax.models.autoencoder import pair_parameters
from air_jax.models.net import parameter_names
from air_jax.training import loop, step
from air_jax.training.checkpoints import Checkpoints, newest_step
from air_jax.training.optimizer import learning_rate, make_optimizer
from air_jax.training.profiling import PROFILED_STEPS
from air_jax.training.training_log import NonFiniteError

IMAGES, _ = class_images(80)


def leaves(net):
    return [np.asarray(leaf) for leaf in jax.tree.leaves((net.params, net.stats))]


@contextlib.contextmanager
def stopped_after(last):
    """A training within it is cut off by an exception after the step `last`."""

    class Stop(Exception):
        pass

    def add_and_stop(self, step, *args, add=loop.TrainingLog.add):
        add(self, step, *args)
        if step >= last:
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.TrainingLog, "add", add_and_stop)
        with pytest.raises(Stop):
            yield


def assert_bit_equal(net, other):
    for ours, theirs in zip(leaves(net), leaves(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_training_lowers_the_loss_and_logs_every_window(small_config, mesh, tmp_path):
    small_config.train.epochs = 6
    result = loop.train(small_config, IMAGES, mesh, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert result.steps == 30
    assert [line["step"] for line in lines] == list(range(2, 31, 2))
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    assert all(line["grad_norm"] > 0 and line["learning_rate"] >= 0 for line in lines)


@pytest.mark.parametrize(("norm", "corruption"), [("none", "none"), ("batch", "noise")])
def test_a_run_stopped_and_resumed_equals_an_uninterrupted_one(
    small_config, mesh, tmp_path, norm, corruption
):
    small_config.model.norm = norm
    small_config.train.update(
        corruption=corruption, corruption_amount=0.0 if corruption == "none" else 0.5
    )
    whole = loop.train(small_config, IMAGES, mesh, tmp_path / "whole")
    with stopped_after(8):
        loop.train(small_config, IMAGES, mesh, tmp_path / "parts")
    with Checkpoints(tmp_path / "parts" / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() == 6
    resumed = loop.train(small_config, IMAGES, mesh, tmp_path / "parts")
    assert_bit_equal(whole.net, resumed.net)
    logs = [
        [json.loads(line) for line in (tmp_path / d / "metrics.jsonl").read_text().splitlines()]
        for d in ("whole", "parts")
    ]
    assert [(m["step"], m["loss"]) for m in logs[0]] == [(m["step"], m["loss"]) for m in logs[1]]


@pytest.mark.parametrize(("devices", "corruption"), [("mesh", "none"), ("mesh4", "noise")])
def test_several_steps_in_a_call_train_as_one_by_one(
    small_config, tmp_path, devices, corruption, request
):
    mesh = request.getfixturevalue(devices)
    small_config.train.update(
        corruption=corruption, corruption_amount=0.0 if corruption == "none" else 0.5
    )
    single = loop.train(small_config, IMAGES, mesh, tmp_path / "single")
    small_config.train.steps_per_call = 4  # ten steps: two calls, and one of two
    several = loop.train(small_config, IMAGES, mesh, tmp_path / "several")
    for ours, theirs in zip(leaves(several.net), leaves(single.net), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    for name, figure in (("metrics.jsonl", "loss"), ("gradients.jsonl", "norms")):
        logs = [
            [json.loads(line) for line in (tmp_path / d / name).open()]
            for d in ("single", "several")
        ]
        assert [line["step"] for line in logs[0]] == [line["step"] for line in logs[1]]
        for one, other in zip(*logs, strict=True):
            assert one[figure] == pytest.approx(other[figure], rel=1e-3)


def test_calls_of_several_steps_stopped_and_resumed_equal_uninterrupted_ones(
    small_config, mesh, tmp_path
):
    small_config.train.steps_per_call = 2
    whole = loop.train(small_config, IMAGES, mesh, tmp_path / "whole")
    with stopped_after(8):
        loop.train(small_config, IMAGES, mesh, tmp_path / "parts")
    with Checkpoints(tmp_path / "parts" / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() == 6  # checkpoint_steps=3 passed within calls, at 4 and 6
    assert_bit_equal(whole.net, loop.train(small_config, IMAGES, mesh, tmp_path / "parts").net)


def test_a_cpu_does_one_step_in_a_call(small_config, mesh):
    assert loop.steps_per_call(small_config, IMAGES, mesh) == 1
    small_config.train.steps_per_call = 7
    assert loop.steps_per_call(small_config, IMAGES, mesh) == 7


def test_an_accelerator_does_an_epoch_in_a_call(small_config, mesh, plays_accelerator, monkeypatch):
    small_config.log.checkpoint_steps = 0
    assert loop.steps_per_call(small_config, IMAGES, mesh) == 80 // 16
    small_config.log.checkpoint_steps = 3
    assert loop.steps_per_call(small_config, IMAGES, mesh) == 3
    small_config.profile = True  # whole calls are traced: they hold no more than the trace shall
    small_config.update_from_flattened_dict({"log.checkpoint_steps": 100, "train.batch": 8})
    assert loop.steps_per_call(small_config, IMAGES, mesh) == PROFILED_STEPS < 80 // 8
    small_config.profile = False
    small_config.data.loader = "host"
    assert loop.steps_per_call(small_config, IMAGES, mesh) == 80 // 8
    monkeypatch.setattr(loop, "STACK_BYTES", IMAGES[:25].nbytes)
    assert loop.steps_per_call(small_config, IMAGES, mesh) == 25 // 8


def test_recomputed_activations_train_the_same_net(small_config, mesh, tmp_path):
    small_config.model.update(depth=8, norm="batch", skip="symmetric")
    kept = loop.train(small_config, IMAGES, mesh, tmp_path / "kept")
    small_config.train.remat = True
    again = loop.train(small_config, IMAGES, mesh, tmp_path / "again")
    for ours, theirs in zip(leaves(again.net), leaves(kept.net), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_recomputing_activations_keeps_fewer_of_them_for_the_backward_pass(small_config, mesh):
    """Counted before XLA, which may keep what it was told to compute again (jaxlib 0.10, CPU)."""
    small_config.model.update(depth=40, pool=False)
    images, kept = IMAGES[:16] / np.float32(255), {}
    for remat in (False, True):
        small_config.train.remat = remat
        net = loop.new_net(small_config, (8, 8, 3), *loop.channel_statistics(IMAGES), mesh)

        def reconstruct(params, net=net):
            return nnx.merge(net.graphdef, params, net.stats, copy=True)(images)

        _, backward = jax.vjp(reconstruct, net.params)
        kept[remat] = sum(leaf.nbytes for leaf in jax.tree.leaves(backward))
    assert kept[True] < 0.6 * kept[False]


def test_greedy_training_moves_one_pair_at_a_time_then_the_whole_net(
    small_config, mesh, tmp_path, monkeypatch
):
    small_config.train.update(schedule="greedy", epochs=6, weight_decay=0.1)
    small_config.log.checkpoint_steps = 5
    phases = loop.plan_phases(small_config.train, small_config.model.depth, len(IMAGES))
    assert phases == [(0, 5, 1), (5, 10, 2), (10, 15, 3), (15, 30, None)]
    net = loop.new_net(small_config, (8, 8, 3), *loop.channel_statistics(IMAGES), mesh)
    names = parameter_names(net.params)
    saved = {0: leaves(net)}

    def keep(self, step, state, info, save=Checkpoints.save_meanwhile):
        saved[step] = leaves(state)
        save(self, step, state, info)

    monkeypatch.setattr(Checkpoints, "save_meanwhile", keep)
    loop.train(small_config, IMAGES, mesh, tmp_path)
    for phase in phases:
        before, after = saved[phase.start], saved[phase.end]
        moved = {name for name, a, b in zip(names, before, after, strict=True) if (a != b).any()}
        if phase.pair is None:
            assert moved == set(names)
        else:
            own = pair_parameters(phase.pair, small_config.model.depth)
            assert moved == {name for name in names if name.startswith(own)}


def test_greedy_training_resumed_in_any_phase_equals_an_uninterrupted_one(
    small_config, mesh, tmp_path
):
    small_config.train.update(schedule="greedy", epochs=4)
    small_config.log.checkpoint_steps = 1
    whole = loop.train(small_config, IMAGES, mesh, tmp_path / "whole")
    for checkpoint in (2, 3, 7, 12):  # in a phase, at the end of one, in the last
        with stopped_after(checkpoint + 1):
            loop.train(small_config, IMAGES, mesh, tmp_path / "parts")
    resumed = loop.train(small_config, IMAGES, mesh, tmp_path / "parts")
    assert_bit_equal(whole.net, resumed.net)


def test_gradient_norms_by_layer_are_kept_at_the_start_and_after_an_epoch(
    small_config, mesh, tmp_path
):
    loop.train(small_config, IMAGES, mesh, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "gradients.jsonl").open()]
    assert [line["step"] for line in lines] == [1, 6]
    # Of the first step, against a gradient taken by hand.
    mean, std = loop.channel_statistics(IMAGES)
    net = loop.new_net(small_config, (8, 8, 3), mean, std, mesh)
    batch = jnp.asarray(IMAGES[epoch_order(small_config.seed, 0, len(IMAGES))[:16]])
    target = net.standardise(batch)

    def loss(params):
        model = nnx.merge(net.graphdef, params, net.stats)
        return jnp.mean((model(target) - target) ** 2)

    grads = jax.grad(loss)(net.params)
    kernel = grads["encoder"]["convs"][1]["conv"]["kernel"]
    expected = float(jnp.linalg.norm(kernel[...]))
    assert lines[0]["norms"]["encoder.convs.1.conv.kernel"] == pytest.approx(expected, rel=1e-4)
    assert len(lines[0]["norms"]) == len(jax.tree.leaves(grads))


def test_steps_are_whole_batches_times_steps_on_each_times_epochs(small_config, mesh, tmp_path):
    small_config.train.steps_per_batch = 3
    assert loop.count_steps(small_config.train, 95) == 5 * 3 * 2
    assert loop.train(small_config, IMAGES, mesh, tmp_path).steps == 30


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("loader", ["host", "tfdata"])
def test_every_loader_trains_the_same_parameters(small_config, mesh, tmp_path, loader, steps):
    small_config.data.loader = "resident"
    small_config.train.steps_per_call = steps
    resident = loop.train(small_config, IMAGES, mesh, tmp_path / "resident")
    small_config.data.loader = loader
    other = loop.train(small_config, IMAGES, mesh, tmp_path / loader)
    assert_bit_equal(resident.net, other.net)


@pytest.mark.gpu
@pytest.mark.parametrize("loader", ["resident", "host", "tfdata"])
def test_an_accelerator_waits_for_python_twice_an_epoch_at_most(
    small_config, mesh, tmp_path, plays_accelerator, monkeypatch, loader
):
    """And moves nothing that it is not told to, and compiles nothing after the first epochs."""
    if loader == "tfdata":
        pytest.importorskip("tensorflow")
    small_config.data.loader = loader
    small_config.train.epochs = 8
    small_config.log.checkpoint_steps = 0
    seen = []

    def count(self, step, *args, add=loop.TrainingLog.add):
        add(self, step, *args)
        seen.append((step, len(counts.round_trips), len(counts.compilations)))

    def guarded(*args, calls=loop._calls):
        each = calls(*args)
        yield next(each)  # after compiling
        with jax.transfer_guard("disallow"):
            yield from each

    monkeypatch.setattr(loop.TrainingLog, "add", count)
    with counting() as counts:
        loop.train(small_config, IMAGES, mesh, tmp_path / "warm")
        assert len(counts.compilations) <= 15, counts.compilations  # the step, the net, a few small
        seen.clear()
        monkeypatch.setattr(loop, "_calls", guarded)
        loop.train(small_config, IMAGES, mesh, tmp_path / "counted")
    steps, round_trips, compilations = zip(*seen, strict=True)
    assert steps == tuple(range(5, 41, 5))
    assert compilations[2] == compilations[7]
    assert round_trips[6] - round_trips[2] <= 2 * 4, counts.round_trips


@pytest.mark.gpu
def test_checkpoints_come_by_the_clock_and_training_goes_on_while_one_is_written(
    small_config, mesh, tmp_path, plays_accelerator, monkeypatch
):
    small_config.train.epochs = 8
    small_config.log.update(checkpoint_steps=0, checkpoint_minutes=1e-9)
    written, write = threading.Event(), Checkpoints._save
    done, saved = [], []

    def slowly(self, step, *args):
        if not saved:
            assert written.wait(60)  # until training has done more steps
        saved.append(step)
        write(self, step, *args)

    def add(self, step, *args, add=loop.TrainingLog.add):
        add(self, step, *args)
        done.append(step)
        if step == 10:
            written.set()

    monkeypatch.setattr(Checkpoints, "_save", slowly)
    monkeypatch.setattr(loop.TrainingLog, "add", add)
    parts = loop.train(small_config, IMAGES, mesh, tmp_path / "parts")
    assert saved[0] == 5
    assert saved[-1] == 40
    assert parts.saving_seconds > 0
    monkeypatch.undo()
    small_config.log.checkpoint_minutes = 60.0
    whole = loop.train(small_config, IMAGES, mesh, tmp_path / "whole")
    assert newest_step(tmp_path / "whole" / "checkpoints") == 40
    assert len(list((tmp_path / "whole" / "checkpoints").glob("[0-9]*"))) == 1
    for ours, theirs in zip(leaves(parts.net), leaves(whole.net), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_four_devices_train_as_one_does(small_config, mesh, mesh4, tmp_path):
    one = loop.train(small_config, IMAGES, mesh, tmp_path / "1")
    four = loop.train(small_config, IMAGES, mesh4, tmp_path / "4")
    for ours, theirs in zip(leaves(one.net), leaves(four.net), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_loaded_net_is_the_trained_one(small_config, mesh, tmp_path):
    trained = loop.train(small_config, IMAGES, mesh, tmp_path).net
    loaded = loop.load_net(small_config, tmp_path, mesh)
    assert_bit_equal(trained, loaded)
    np.testing.assert_array_equal(trained.mean, loaded.mean)
    assert trained.graphdef == loaded.graphdef


def test_nothing_to_load_is_an_error(small_config, mesh, tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        loop.load_net(small_config, tmp_path, mesh)


def test_the_last_state_and_no_earlier_one_is_loaded_when_it_is_asked_for(
    small_config, mesh, tmp_path
):
    result = loop.train(small_config, IMAGES, mesh, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / str(result.steps))
    loop.load_net(small_config, tmp_path, mesh)
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 10"):
        loop.load_net(small_config, tmp_path, mesh, result.steps)


def test_a_loss_that_blows_up_stops_training_and_leaves_only_good_checkpoints(
    small_config, mesh, tmp_path
):
    small_config.train.update(
        learning_rate=1e6, clip_norm=0.0, warmup_steps=0, lr_schedule="constant"
    )
    small_config.log.checkpoint_steps = 1
    with pytest.raises(NonFiniteError, match=r"stopped at step \d+: loss .*lower"):
        loop.train(small_config, IMAGES, mesh, tmp_path)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        good = checkpoints.latest_step()
    assert good is not None
    assert all(
        np.isfinite(leaf).all() for leaf in leaves(loop.load_net(small_config, tmp_path, mesh))
    )


def test_parameters_that_are_not_finite_are_not_saved(small_config, mesh, tmp_path, monkeypatch):
    # The loss of a step is that of the parameters before it: here the last update breaks them.
    def poison(state, *args, real=step.train_step, **kwargs):
        state, metrics = real(state, *args, **kwargs)
        broken = jax.tree.map(lambda p: jnp.where(state.step == 10, jnp.nan, p), state.params)
        return state._replace(params=broken), metrics

    monkeypatch.setattr(step, "train_step", poison)
    with pytest.raises(
        NonFiniteError, match=r"step 10: norm of the parameters nan.*step 9 is good"
    ):
        loop.train(small_config, IMAGES, mesh, tmp_path)


def test_ctrl_c_saves_the_step_and_the_same_call_goes_on(small_config, mesh, tmp_path, monkeypatch):
    def press_at_step_4(self, step, *args, add=loop.TrainingLog.add):
        add(self, step, *args)
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    whole = loop.train(small_config, IMAGES, mesh, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(loop.TrainingLog, "add", press_at_step_4)
        with pytest.raises(KeyboardInterrupt):
            loop.train(small_config, IMAGES, mesh, tmp_path / "parts")
    with Checkpoints(tmp_path / "parts" / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() == 4
    assert_bit_equal(whole.net, loop.train(small_config, IMAGES, mesh, tmp_path / "parts").net)


def test_a_profiled_run_leaves_a_trace_that_perfetto_reads(small_config, mesh, tmp_path):
    small_config.profile = True
    small_config.train.epochs = 2
    loop.train(small_config, IMAGES, mesh, tmp_path)
    (trace,) = (tmp_path / "profile").rglob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert any("train_one_step" in event.get("name", "") for event in events)


def test_a_whole_run_compiles_its_step_and_its_encoder_once_each(
    small_config, mesh, tmp_path, caplog
):
    jax.clear_caches()
    images = IMAGES[:77]  # neither an epoch nor the encoding divides into whole batches
    with jax.log_compiles():
        net = loop.train(small_config, images, mesh, tmp_path).net
        encode.encode(net, images, mesh, batch=32, label=None)
        encode.encode(net, images[:5], mesh, batch=32, label=None)
    compiled = [record.getMessage() for record in caplog.records]
    for name in ("train_one_step", "encode_batch"):
        lines = [x for x in compiled if "Finished XLA compilation" in x and name in x]
        assert len(lines) == 1, compiled


def test_a_finished_run_trains_no_more(small_config, mesh, tmp_path):
    first = loop.train(small_config, IMAGES, mesh, tmp_path)
    again = loop.train(small_config, IMAGES, mesh, tmp_path)
    assert_bit_equal(first.net, again.net)


def test_optimiser_is_sgd_with_momentum_decay_and_clipping(small_config):
    settings = small_config.train
    settings.update(
        learning_rate=0.1,
        momentum=0.9,
        weight_decay=0.01,
        clip_norm=1.0,
        lr_schedule="constant",
        warmup_steps=0,
    )
    optimizer = make_optimizer(settings, total_steps=10)
    params = np.array([1.0, -2.0, 3.0])
    state, velocity, ours = optimizer.init(jnp.asarray(params)), np.zeros(3), jnp.asarray(params)
    for gradient in np.random.default_rng(0).normal(size=(5, 3)) * 3:
        updates, state = optimizer.update(jnp.asarray(gradient), state, ours)
        ours = optax.apply_updates(ours, updates)
        clipped = gradient * min(1, 1 / np.linalg.norm(gradient))
        velocity = 0.9 * velocity + clipped + 0.01 * params
        params = params - 0.1 * velocity
        np.testing.assert_allclose(ours, params, rtol=1e-5)


def test_learning_rate_warms_up_and_falls_as_a_cosine(small_config):
    settings = small_config.train
    settings.update(learning_rate=0.2, warmup_steps=10, lr_schedule="cosine")
    rate = learning_rate(settings, total_steps=110)
    assert [float(rate(s)) for s in (0, 4, 9)] == pytest.approx([0.02, 0.1, 0.2 * 1.0])
    assert float(rate(60)) == pytest.approx(0.1, rel=1e-5)
    assert float(rate(110)) == pytest.approx(0, abs=1e-7)
    settings.lr_schedule = "constant"
    assert float(learning_rate(settings, 110)(100)) == pytest.approx(0.2)


def test_channel_statistics_are_numpys():
    pixels = IMAGES.astype(np.float64) / 255
    mean, std = loop.channel_statistics(IMAGES)
    np.testing.assert_allclose(mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std, pixels.std(axis=(0, 1, 2)), rtol=1e-5)


def test_channel_statistics_of_cifar100_are_the_known_ones(cifar100):
    mean, std = loop.channel_statistics(cifar100.images[:50_000])
    np.testing.assert_allclose(mean, (0.50708, 0.48655, 0.44092), atol=1e-5)
    np.testing.assert_allclose(std, (0.26733, 0.25644, 0.27615), atol=1e-5)


def test_a_constant_channel_standardises_to_zero():
    mean, std = loop.channel_statistics(np.full((4, 8, 8, 1), 7, np.uint8))
    assert std.tolist() == [1.0]
    assert mean[0] == pytest.approx(7 / 255)


def test_bfloat16_trains_about_as_float32_does(small_config, mesh, tmp_path):
    small_config.train.epochs = 6
    losses = {}
    for dtype in ("float32", "bfloat16"):
        small_config.train.dtype = dtype
        loop.train(small_config, IMAGES, mesh, tmp_path / dtype)
        last = (tmp_path / dtype / "metrics.jsonl").read_text().splitlines()[-1]
        losses[dtype] = json.loads(last)["loss"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05)
