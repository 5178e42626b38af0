"""Training without labels, by SGD or AdamW (paper, section III.1, "Training parameters")."""

import collections
import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from threadpoolctl import threadpool_limits

from air_jax.data.loaders import make_loader, resident
from air_jax.models.net import Net, architecture_of, parameter_names, untrained_net
from air_jax.runtime import cpu, distributed, sharding, signals
from air_jax.runtime.checksums import read_checked_json, write_checked_json
from air_jax.runtime.progress import Progress, duration, say
from air_jax.training.checkpoints import CHECKPOINTS, Checkpoints
from air_jax.training.optimizer import make_optimizer
from air_jax.training.profiling import PROFILE, PROFILED_STEPS, Profile
from air_jax.training.step import Phase, TrainState, compile_step, initial_state
from air_jax.training.training_log import (
    CollapseError,
    NonFiniteError,
    TrainingLog,
    append_line,
    reopen,
)

PROBES_FILE = "probes.jsonl"
MODEL_FILE = "model.json"  # image shape and pixel statistics, beside the checkpoints
SCHEDULES = ("joint", "greedy")
STEPS_BEFORE_ESTIMATE = 10
CALLS_AHEAD = 1  # that wait behind the one on the devices: Ctrl-C waits for both
STACK_BYTES = 2**26  # of images that are streamed for one call of several steps


# probe(net) -> what a thermometer shows, by name; it may look at labels, training does not.
Probe = Callable[[Net], dict[str, float]]


class TrainResult(NamedTuple):
    """What training leaves.

    Attributes:
        net: the trained net.
        steps: steps done in all.
        seconds: spent on the steps, also in earlier runs that were resumed; without those below.
        compile_seconds: of compiling the step, once for each phase and each run.
        probe_seconds: of probing.
        saving_seconds: that training waited for checkpoints.
    """

    net: Net
    steps: int
    seconds: float
    compile_seconds: float
    probe_seconds: float = 0.0
    saving_seconds: float = 0.0


PAUSES = ("probe_seconds", "saving_seconds")  # that stop the clock of `seconds`


def count_steps(train: ml_collections.ConfigDict, training_images: int) -> int:
    """Steps of a whole training; the last, partial batch of an epoch is left out."""
    return training_images // train.batch * train.steps_per_batch * train.epochs


def steps_per_call(config: ml_collections.ConfigDict, images: np.ndarray, mesh: Mesh) -> int:
    """How many steps the devices do in one call: `train.steps_per_call`, or for 0 what is best.

    On an accelerator that is an epoch, or as many steps as there are between checkpoints if that is
    fewer; in a run with `profile` no more than the trace holds. Of images [N, S, S, C] that do not
    lie on the accelerator, no more than `STACK_BYTES` hold. On a CPU one: there a loop of steps
    takes several times as long as the same steps called one by one (`benchmarks/NOTES.md`).
    """
    train = config.train
    if train.steps_per_call:
        return train.steps_per_call
    if sharding.on_cpu():
        return 1
    most = [len(images) // train.batch * train.steps_per_batch]
    if config.log.checkpoint_steps:
        most.append(config.log.checkpoint_steps)
    if config.profile:
        most.append(PROFILED_STEPS)
    if not resident(config.data.loader, images.nbytes, mesh):
        most.append(max(1, STACK_BYTES // (images[0].nbytes * train.batch)))
    return min(most)


def plan_phases(train: ml_collections.ConfigDict, depth: int, training_images: int) -> list[Phase]:
    """The phases of a training: one, or with `schedule="greedy"` one for each pair of layers first.

    The pairs share `greedy_share` of the steps evenly, outermost first ("the unsupervised greedy
    training autoencoder", section III.1); the rest fine-tunes the whole net.
    """
    total = count_steps(train, training_images)
    if train.schedule == "joint":
        return [Phase(0, total, None)]
    pairs = depth // 2 + 1
    bounds = [int(total * train.greedy_share) * pair // pairs for pair in range(pairs + 1)]
    phases = [Phase(bounds[pair - 1], bounds[pair], pair) for pair in range(1, pairs + 1)]
    return [*phases, Phase(bounds[-1], total, None)]


def new_net(
    config: ml_collections.ConfigDict,
    image_shape: tuple[int, int, int],
    mean: np.ndarray | jax.Array,
    std: np.ndarray | jax.Array,
    mesh: Mesh,
) -> Net:
    """An untrained net as `config.model`, `config.train.dtype` and `config.seed` say.

    It is made on the devices in one call.

    Args:
        config: the run's.
        image_shape: (S, S, C).
        mean: [C] of the training images' pixels in [0, 1].
        std: [C] likewise.
        mesh: each of its devices gets a copy.
    """
    return _born(_new_net(config, image_shape), mesh)(np.uint32(config.seed), mean, std)


def new_net_and_state(
    config: ml_collections.ConfigDict,
    image_shape: tuple[int, int, int],
    mean: np.ndarray,
    std: np.ndarray,
    mesh: Mesh,
    total_steps: int,
) -> tuple[Net, TrainState]:
    """An untrained net and the state that its training starts from, in one call on the devices.

    Arguments as for `new_net`; `total_steps` are those of the training.
    """
    make, optimizer = _new_net(config, image_shape), make_optimizer(config.train, total_steps)

    def new_net_and_state(*args: jax.Array) -> tuple[Net, TrainState]:
        net = make(*args)
        return net, initial_state(net, optimizer)

    return _born(new_net_and_state, mesh)(np.uint32(config.seed), mean, std)


def _new_net(
    config: ml_collections.ConfigDict, image_shape: tuple[int, int, int]
) -> Callable[[jax.Array, jax.Array, jax.Array], Net]:
    """The net as a function of seed, mean and std: all seeds share a compilation."""
    architecture = architecture_of(config.model, image_shape)

    def new_net(seed: jax.Array, mean: jax.Array, std: jax.Array) -> Net:
        return untrained_net(
            architecture,
            mean,
            std,
            objective=config.train.objective,
            dtype=config.train.dtype,
            remat=config.train.remat,
            rngs=nnx.Rngs(jax.random.key(seed)),
        )

    return new_net


def _born(make: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """A function that runs once, jitted; its results are copied to each device.

    On a CPU it is compiled in a hurry: for 40 layers XLA takes ten times as long to optimise it.
    """
    hurry = {"xla_backend_optimization_level": 0} if sharding.on_cpu() else None
    return jax.jit(make, out_shardings=sharding.replicated(mesh), compiler_options=hurry)


def channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation [C] float32 by channel, of uint8 images taken to [0, 1].

    A channel that is constant gets deviation 1, so that it standardises to zero.
    """
    counts = [np.bincount(images[..., c].ravel(), minlength=256) for c in range(images.shape[-1])]
    values = np.arange(256) / 255
    mean = np.array([count @ values / count.sum() for count in counts])
    variance = np.array([count @ values**2 / count.sum() for count in counts]) - mean**2
    std = np.sqrt(np.maximum(variance, 0))
    return mean.astype(np.float32), np.where(std > 1e-6, std, 1).astype(np.float32)


def train(
    config: ml_collections.ConfigDict,
    images: np.ndarray,
    mesh: Mesh,
    directory: Path,
    probe: Probe | None = None,
) -> TrainResult:
    """Train for `config.train.epochs`, going on from the newest checkpoint if there is one.

    Leaves in `directory`: `model.json`, `checkpoints/`, `metrics.jsonl` with a line for every
    `config.log.every_steps` steps, and `gradients.jsonl` with gradient norms by parameter at the
    start and after an epoch; with `config.profile` a trace of a few steps in `profile/`; with a
    probe `probes.jsonl`, a line for every `config.log.probe_steps` steps. A checkpoint is saved
    every `config.log.checkpoint_minutes`, at the end of a line, every `config.log.checkpoint_steps`
    steps and at the end, and only after the losses and gradient norms of all its steps were seen
    finite. Training goes on while it is written.

    Args:
        config: the run's, as `run.config_checks` lets pass; `seed`, `model`, `train`,
            `data.loader`, `log` and `profile` are read.
        images: the training images [N, S, S, C] uint8.
        mesh: devices to train on.
        directory: the run's.
        probe: called after every `config.log.probe_steps` steps; None: never.

    Raises:
        ValueError: all checkpoints are damaged, or of another net.
        CollapseError: the net gives all images the same embedding.
        NonFiniteError: the loss or gradient became NaN or infinite.
        OSError: a checkpoint or log cannot be written.
        KeyboardInterrupt: by Ctrl-C or SIGTERM, after saving a checkpoint.
    """
    phases = plan_phases(config.train, config.model.depth, len(images))
    total_steps = phases[-1].end
    mean, std = channel_statistics(images)
    net, state = new_net_and_state(config, images.shape[1:], mean, std, mesh, total_steps)
    if distributed.is_first():
        write_checked_json(
            directory / MODEL_FILE,
            {"image_shape": list(images.shape[1:]), "mean": mean.tolist(), "std": std.tolist()},
        )
    step = 0
    info: dict[str, Any] = dict.fromkeys(("seconds", "compile_seconds", *PAUSES), 0.0)
    with Checkpoints(directory / CHECKPOINTS) as checkpoints:
        if found := checkpoints.restore_newest(like=state):
            step, state, info = found.step, found.state, info | found.info
            say(f"train: going on from the checkpoint of step {step:,} of {total_steps:,}")
        window = info.pop("window", [])
        training = _Training(config, images, mesh, directory, net, phases, info, probe)
        try:
            if step < total_steps:
                cpu.keep_freed_memory()
                # OpenBLAS's threads spin while they wait, on the cores that XLA computes on.
                with threadpool_limits(1, user_api="blas"):
                    state = _train_on(training, step, state, window, checkpoints)
        except (NonFiniteError, CollapseError) as error:
            good = checkpoints.latest_step()
            kept = f"the checkpoint of step {good:,} is good" if good else "no checkpoint was made"
            raise type(error)(
                f"training stopped at {error}; {kept}. A lower train.learning_rate or a "
                "train.clip_norm may help (in another --workdir, or with --overwrite)."
            ) from None
    return TrainResult(net._replace(params=state.params, stats=state.stats), total_steps, **info)


class _Training(NamedTuple):
    """What stays the same from the first step to the last, and the seconds so far.

    Attributes:
        config: as for `train`.
        images: as for `train`.
        mesh: as for `train`.
        directory: as for `train`.
        net: gives structure and standardisation.
        phases: in order.
        seconds: {"seconds", "compile_seconds", "probe_seconds", "saving_seconds"} as in
            `TrainResult`, brought up to date after each call.
        probe: as for `train`.
    """

    config: ml_collections.ConfigDict
    images: np.ndarray
    mesh: Mesh
    directory: Path
    net: Net
    phases: list[Phase]
    seconds: dict[str, float]
    probe: Probe | None


def _train_on(
    training: _Training,
    step: int,
    state: TrainState,
    window: Sequence[dict[str, float]],
    checkpoints: Checkpoints,
) -> TrainState:
    """The state after the last step; logs and saves checkpoints on the way.

    Args:
        training: what to train, and how.
        step: that training goes on from.
        state: after that step; donated.
        window: of the log at that step.
        checkpoints: of the run.
    """
    batch, log_keys, total = (
        training.config.train.batch,
        training.config.log,
        training.phases[-1].end,
    )
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(contextlib.closing(_open_log(training, step, window)))
        progress = stack.enter_context(Progress("train", total * batch, done=step * batch))
        traced = training.config.profile and distributed.is_first()
        profile = stack.enter_context(Profile(training.directory / PROFILE if traced else None))
        estimate_at = step + STEPS_BEFORE_ESTIMATE
        asked = stack.enter_context(signals.deferred())
        kept: _Kept | None = None
        kept_at = time.monotonic()
        for call in _calls(training, step, state, profile):
            if kept:  # The devices are at work on the next call, so they do not wait.
                _save(training, log, checkpoints, kept)
                kept = None
            checkpoints.check()
            before, step, state = call.before, call.step, call.state
            log.add(step, call.metrics, call.dispatched)
            progress.advance((step - before) * batch, log.note)
            if before < estimate_at <= step < total:
                log.settle()
                say(_estimate(progress))
            every = log_keys.probe_steps
            if training.probe and (step // every > before // every or step == total):
                log.settle()
                _probe(training, step, state)
            stop = asked()
            if stop or step == total:
                log.finish() if step == total else log.settle()
                _save(training, log, checkpoints, _Kept(step, *_copied(state)))
                with _paused(training, "saving_seconds"):
                    checkpoints.wait()
            elif _is_due(log_keys, before, step, kept_at):
                kept, kept_at = _Kept(step, *_copied(state)), time.monotonic()
            if stop:
                raise stop(f"stopped at step {step:,}")
    return state


class _Kept(NamedTuple):
    """A copy of a state, which is saved while the next call donates the state away.

    Attributes:
        step: of training.
        state: the copy.
        norm: of its parameters.
    """

    step: int
    state: TrainState
    norm: jax.Array


@jax.jit
def _copied(state: TrainState) -> tuple[TrainState, jax.Array]:
    return jax.tree.map(jnp.copy, state), optax.tree.norm(state.params)


def _is_due(log: ml_collections.ConfigDict, before: int, step: int, kept_at: float) -> bool:
    """Whether the state after a call is to be saved, by the keys of `config.log`.

    Args:
        log: `config.log`.
        before: the step before the call.
        step: the step after it.
        kept_at: when the last state was copied (`time.monotonic`).
    """
    if (every := log.checkpoint_steps) and step // every > before // every:
        return True
    if step // log.every_steps == before // log.every_steps:
        return False  # so that several processes do not ask the first one after every step
    return distributed.from_first(lambda: time.monotonic() - kept_at >= 60 * log.checkpoint_minutes)


def _save(training: _Training, log: TrainingLog, checkpoints: Checkpoints, kept: _Kept) -> None:
    """Start to save a state, if it and the steps to it are finite."""
    log.settle()
    # The loss of a step tells of the parameters before it; this of those it made.
    norm = float(jax.device_get(kept.norm))
    if not math.isfinite(norm):
        raise NonFiniteError(f"step {kept.step:,}: norm of the parameters {norm}")
    with _paused(training, "saving_seconds"):
        info = training.seconds | {"window": list(log.window)}
        checkpoints.save_meanwhile(kept.step, kept.state, info)


@contextlib.contextmanager
def _paused(training: _Training, name: str) -> Iterator[None]:
    """Add what is done within to one of `PAUSES`."""
    started = time.monotonic()
    yield
    training.seconds[name] += time.monotonic() - started


def _probe(training: _Training, step: int, state: TrainState) -> None:
    """Write a line of `probes.jsonl`; the training's seconds do not hold what it takes."""
    assert training.probe
    jax.block_until_ready(state)
    with _paused(training, "probe_seconds"):
        found = training.probe(training.net._replace(params=state.params, stats=state.stats))
        if distributed.is_first():
            # Lines of later steps are of a run that was cut off and went on from a checkpoint.
            with reopen(training.directory / PROBES_FILE, step - 1) as file:
                append_line(file, {"step": step, "seconds": training.seconds["seconds"], **found})


class _Call(NamedTuple):
    """A call of one or more steps, which the devices may still be at work on.

    Attributes:
        before: the step before it.
        step: the step after it.
        state: after it; the next call donates it.
        metrics: of its steps.
        dispatched: when it began (`time.monotonic`).
    """

    before: int
    step: int
    state: TrainState
    metrics: dict[str, jax.Array]
    dispatched: float


def _calls(training: _Training, step: int, state: TrainState, profile: Profile) -> Iterator[_Call]:
    """Do the steps that are left, one call on the devices after another."""
    config, images, mesh = training.config, training.images, training.mesh
    _, step_key = jax.random.split(jax.random.key(config.seed))
    step_key = sharding.put(step_key, sharding.replicated(mesh))
    per_call = steps_per_call(config, images, mesh)
    load = make_loader(
        config.data.loader,
        images,
        config.train.batch,
        config.seed,
        mesh,
        config.train.steps_per_batch,
        per_call,
    )
    for phase in training.phases:
        if step >= phase.end:
            continue
        if step == phase.start > 0:  # no momentum of other objectives, the schedule anew
            optimizer = make_optimizer(config.train, phase.end - phase.start)
            renew = jax.jit(optimizer.init, out_shardings=sharding.replicated(mesh))
            state = state._replace(opt_state=renew(state.params))
        compiled = _compile(training, state, phase, per_call, phase.end - step)
        distributed.barrier()  # Gloo gives up on a process that compiles for longer
        under_way: collections.deque[jax.Array] = collections.deque()
        seconds_before, started = _seconds_and_pauses(training), time.monotonic()
        for batches in load(step, phase.end):
            steps = min(per_call, phase.end - step)
            profile.before_call()
            dispatched = time.monotonic()
            state, metrics = compiled[steps](state, batches, step_key)
            step += steps
            under_way.append(metrics["loss"])
            if len(under_way) > CALLS_AHEAD:
                under_way.popleft().block_until_ready()
            profile.after_call(state, steps)
            if step == phase.end:
                jax.block_until_ready(state)
            in_all = seconds_before + time.monotonic() - started
            training.seconds["seconds"] += in_all - _seconds_and_pauses(training)
            yield _Call(step - steps, step, state, metrics, dispatched)


def _seconds_and_pauses(training: _Training) -> float:
    return sum(training.seconds[name] for name in ("seconds", *PAUSES))


def _compile(
    training: _Training, state: TrainState, phase: Phase, per_call: int, left: int
) -> dict[int, jax.stages.Compiled]:
    """The calls of a phase of which `left` steps are left, by their number of steps.

    What is left over after calls of `per_call` steps is a call of its own.
    """
    compiled = {}
    loader, size = training.config.data.loader, training.images.nbytes
    resident_images = resident(loader, size, training.mesh)
    shape = training.images.shape[1:]
    for steps in {min(per_call, left), left % per_call} - {0}:
        compiled[steps], seconds = compile_step(
            training.config,
            training.net,
            state,
            phase,
            shape,
            training.mesh,
            steps,
            len(training.images) if resident_images else 0,
        )
        training.seconds["compile_seconds"] += seconds
    return compiled


def _open_log(training: _Training, step: int, window: Sequence[dict[str, float]]) -> TrainingLog:
    total = training.phases[-1].end
    return TrainingLog(
        training.directory,
        resumed_at=step,
        window=window,
        every_steps=training.config.log.every_steps,
        batch=training.config.train.batch,
        # At the start and after an epoch: whether gradients vanish on their way.
        gradients_at=(1, min(total // training.config.train.epochs + 1, total)),
        parameters=parameter_names(training.net.params),
        tensorboard=training.config.log.tensorboard,
    )


def _estimate(progress: Progress) -> str:
    total = duration(progress.total / progress.rate)
    return f"train: about {total} in all, at {progress.rate:,.0f} images/s"


def load_net(
    config: ml_collections.ConfigDict, directory: Path, mesh: Mesh, step: int | None = None
) -> Net:
    """The net of a checkpoint that `train` left in `directory`.

    Args:
        config: the one that it was trained with.
        directory: the run's.
        mesh: each of its devices gets a copy.
        step: which checkpoint; the newest by default.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is damaged.
    """
    with Checkpoints(directory / CHECKPOINTS) as checkpoints:
        found = checkpoints.latest_step() if step is None else step
        if found is None or not (directory / CHECKPOINTS / str(found)).is_dir():
            which = "" if step is None else f" of step {step:,}"
            raise FileNotFoundError(f"{directory / CHECKPOINTS} holds no checkpoint{which}")
        model = read_checked_json(directory / MODEL_FILE)
        mean, std = (np.array(model[key], np.float32) for key in ("mean", "std"))
        make = _new_net(config, tuple(model["image_shape"]))
        net = jax.eval_shape(make, np.uint32(0), mean, std)
        # Only the structure is used, so the horizon of the learning rate does not matter.
        optimizer = make_optimizer(config.train, total_steps=1)
        like = jax.eval_shape(lambda net: initial_state(net, optimizer), net)
        state = checkpoints.restore(found, _on(mesh, like)).state
    mean, std = sharding.put((mean, std), sharding.replicated(mesh))
    return net._replace(params=state.params, stats=state.stats, mean=mean, std=std)


def _on(mesh: Mesh, like: Any) -> Any:
    """Shapes and dtypes of arrays that each device of a mesh has a copy of."""
    whole = sharding.replicated(mesh)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), like
    )
