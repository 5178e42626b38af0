"""Unsupervised training of an autoencoder by SGD (paper, section III.1, "Training parameters")."""

import contextlib
import importlib.util
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from air_jax.data.loaders import make_loader, resident
from air_jax.models import autoencoder
from air_jax.models.autoencoder import Net
from air_jax.runtime import distributed, sharding, signals
from air_jax.runtime.checksums import read_checked_json, write_checked_json
from air_jax.runtime.progress import Progress, duration, say
from air_jax.training.checkpoints import CHECKPOINTS, Checkpoints
from air_jax.training.profiling import PROFILE, Profile
from air_jax.training.sgd import (
    Phase,
    TrainState,
    compile_step,
    initial_state,
    learning_rate,
    make_optimizer,
    parameter_names,
)
from air_jax.training.training_log import GRADIENTS_FILE, METRICS_FILE, NonFiniteError, TrainingLog

MODEL_FILE = "model.json"  # image shape and pixel statistics, beside the checkpoints
SCHEDULES = ("joint", "greedy")
LR_SCHEDULES = ("constant", "cosine")
DTYPES = ("float32", "bfloat16")
CORRUPTIONS = ("none", "mask", "noise")
STEPS_BEFORE_ESTIMATE = 10
MOST_STEPS = 2**31 - 1  # they are counted in an int32


class TrainResult(NamedTuple):
    """What training leaves.

    Attributes:
        net: the trained net.
        steps: steps done in all.
        seconds: spent on them, those of earlier runs that were resumed included, compiling not;
            nets trained together share them.
        compile_seconds: of compiling the step, once for each phase and each run.
    """

    net: Net
    steps: int
    seconds: float
    compile_seconds: float


def validate(config: ml_collections.ConfigDict, training_images: int, devices: int) -> None:
    """Raise ValueError, naming the key, if nothing can be trained by `config.train`."""
    train = config.train
    for key, known in (
        ("schedule", SCHEDULES),
        ("lr_schedule", LR_SCHEDULES),
        ("dtype", DTYPES),
        ("corruption", CORRUPTIONS),
    ):
        if train[key] not in known:
            raise ValueError(f"train.{key}={train[key]!r}: expected one of {', '.join(known)}")
    for key in ("epochs", "batch", "steps_per_batch"):
        if train[key] < 1:
            raise ValueError(f"train.{key}={train[key]}: expected at least 1")
    if not (math.isfinite(train.learning_rate) and train.learning_rate > 0):
        raise ValueError(f"train.learning_rate={train.learning_rate}: expected a positive number")
    if not 0 <= train.momentum < 1:
        raise ValueError(f"train.momentum={train.momentum}: expected from 0 to below 1")
    for key in (
        "weight_decay",
        "clip_norm",
        "warmup_steps",
        "corruption_amount",
        "steps_per_call",
    ):
        if not train[key] >= 0:
            raise ValueError(f"train.{key}={train[key]}: expected 0 or more")
    if (train.corruption == "none") != (train.corruption_amount == 0):
        raise ValueError(
            f"train.corruption={train.corruption!r} with "
            f"train.corruption_amount={train.corruption_amount}: expected both or neither"
        )
    if train.corruption == "mask" and train.corruption_amount >= 1:
        raise ValueError(
            f"train.corruption_amount={train.corruption_amount}: with corruption 'mask' it is "
            "the masked share of the image, below 1"
        )
    for key in ("every_steps", "checkpoint_steps"):
        if config.log[key] < 1:
            raise ValueError(f"log.{key}={config.log[key]}: expected at least 1")
    if config.seed < 0:
        raise ValueError(f"seed={config.seed}: expected 0 or more")
    if config.log.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise ValueError(
            "log.tensorboard=True needs tensorboardX: pip install 'air_jax[tensorboard]'"
        )
    if not 0 < train.greedy_share < 1:
        raise ValueError(
            f"train.greedy_share={train.greedy_share}: expected above 0 and below 1; the other "
            "steps fine-tune the whole net"
        )
    if train.batch % devices:
        raise ValueError(
            f"train.batch={train.batch} does not divide over {devices} devices; "
            f"the nearest that does is {max(1, round(train.batch / devices)) * devices}"
        )
    if train.batch > training_images:
        raise ValueError(
            f"train.batch={train.batch} is larger than the training set of {training_images} "
            "images (data.queries_per_class, data.keep_database_per_class and data.train_images "
            "say of how many)"
        )
    if count_steps(train, training_images) > MOST_STEPS:
        raise ValueError(
            f"train.epochs={train.epochs}, train.steps_per_batch={train.steps_per_batch}: "
            f"{count_steps(train, training_images):,} steps; expected {MOST_STEPS:,} at most"
        )
    pairs = config.model.depth // 2 + 1
    steps = int(count_steps(train, training_images) * train.greedy_share)
    if train.schedule == "greedy" and steps < pairs:
        raise ValueError(
            f"train.schedule='greedy': {steps} steps (train.greedy_share={train.greedy_share} of "
            f"all) are too few for the {pairs} pairs of layers, one step each at least"
        )


def count_steps(train: ml_collections.ConfigDict, training_images: int) -> int:
    """Steps of a whole training; the last, partial batch of an epoch is left out."""
    return training_images // train.batch * train.steps_per_batch * train.epochs


def steps_per_call(config: ml_collections.ConfigDict, images: np.ndarray, mesh: Mesh) -> int:
    """How many steps the devices do in one call: `train.steps_per_call`, or for 0 what is best.

    On an accelerator that the images [N, S, S, C] lie on that is an epoch, or as many steps as
    there are between checkpoints if that is fewer; one else. On a CPU a loop of steps takes
    several times as long as the same steps called one by one (`benchmarks/NOTES.md`).
    """
    if config.train.steps_per_call:
        return config.train.steps_per_call
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    if on_cpu or not resident(config.data.loader, images, mesh):
        return 1
    epoch = len(images) // config.train.batch * config.train.steps_per_batch
    return min(epoch, config.log.checkpoint_steps)


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
    phases = [Phase(*bounds[pair - 1 : pair + 1], pair) for pair in range(1, pairs + 1)]
    return [*phases, Phase(bounds[-1], total, None)]


def new_net(
    config: ml_collections.ConfigDict,
    image_shape: tuple[int, int, int],
    mean: np.ndarray,
    std: np.ndarray,
    mesh: Mesh,
) -> Net:
    """An untrained net as `config.model`, `config.train.dtype` and `config.seed` say.

    Args:
        config: the run's.
        image_shape: (S, S, C).
        mean: [C] of the training images' pixels in [0, 1].
        std: [C] likewise.
        mesh: each of its devices gets a copy.
    """
    model = autoencoder.Autoencoder(
        **config.model,
        image_shape=image_shape,
        dtype=jnp.dtype(config.train.dtype),
        remat=config.train.remat,
        rngs=nnx.Rngs(config.seed),
    )
    return sharding.put(autoencoder.make_net(model, mean, std), sharding.replicated(mesh))


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
    config: ml_collections.ConfigDict, images: np.ndarray, mesh: Mesh, directory: Path
) -> TrainResult:
    """Train for `config.train.epochs`, going on from the newest checkpoint if there is one.

    Leaves in `directory`: `model.json`, `checkpoints/`, `metrics.jsonl` with a line for every
    `config.log.every_steps` steps, and `gradients.jsonl` with gradient norms by parameter at the
    start and after an epoch; with `config.profile` a trace of a few steps in `profile/`. A
    checkpoint is saved only after the losses and gradient norms of all its steps were seen finite.

    Args:
        config: the run's; `seed`, `model`, `train`, `data.loader`, `log` and `profile` are
            read.
        images: the training images [N, S, S, C] uint8.
        mesh: devices to train on.
        directory: the run's.

    Raises:
        ValueError: the config and the images do not fit, or a checkpoint is damaged.
        NonFiniteError: the loss or gradient became NaN or infinite.
        OSError: a checkpoint or log cannot be written.
        KeyboardInterrupt: by Ctrl-C or SIGTERM, after saving a checkpoint.
    """
    return train_together(config, images, mesh, {config.seed: directory})[0]


def train_together(
    config: ml_collections.ConfigDict,
    images: np.ndarray,
    mesh: Mesh,
    directories: dict[int, Path],
) -> list[TrainResult]:
    """Train several seeds of a net at once, each as `train` would alone, in one step (`vmap`).

    Args:
        config: all of them have it, but for the seed.
        images: as for `train`.
        mesh: as for `train`.
        directories: by seed. Their newest checkpoints must be of the same step.

    Raises:
        As `train`, and ValueError if their checkpoints are of different steps. If one becomes
        non-finite all of them stop; those before have their checkpoints.
    """
    validate(config, len(images), mesh.size)
    batch, together = config.train.batch, len(directories)
    phases = plan_phases(config.train, config.model.depth, len(images))
    total_steps = phases[-1].end
    image_shape = images.shape[1:]
    mean, std = channel_statistics(images)
    nets, states = [], []
    for seed, directory in directories.items():
        seeded = config.copy_and_resolve_references()
        with seeded.unlocked():
            seeded.seed = seed
        nets.append(new_net(seeded, image_shape, mean, std, mesh))
        states.append(initial_state(nets[-1], make_optimizer(config.train, total_steps), mesh))
        if distributed.is_first():
            write_checked_json(
                directory / MODEL_FILE,
                {"image_shape": list(image_shape), "mean": mean.tolist(), "std": std.tolist()},
            )
    step, info = 0, {"seconds": 0.0, "compile_seconds": 0.0}
    windows: list[list[list[float]]] = [[] for _ in directories]

    with contextlib.ExitStack() as stack:
        checkpoints = [
            stack.enter_context(Checkpoints(directory / CHECKPOINTS))
            for directory in directories.values()
        ]
        pairs = zip(checkpoints, states, strict=True)
        restored = [own.restore_newest(like=state) for own, state in pairs]
        newest = {one and one.step for one in restored}
        if len(newest) > 1:
            raise ValueError(f"checkpoints of steps {newest}: these seeds cannot go on together")
        if restored[0] is not None:
            states = [one.state for one in restored]
            step, info = restored[0].step, restored[0].info
            windows = [one.info.pop("window", []) for one in restored]
            say(f"train: going on from the checkpoint of step {step:,} of {total_steps:,}")

        def results() -> list[TrainResult]:
            return [
                TrainResult(net._replace(params=own.params, stats=own.stats), total_steps, **info)
                for net, own in zip(nets, _apart(state, together), strict=True)
            ]

        state = _joined(states, mesh)
        if step == total_steps:
            return results()
        keys = [jax.random.split(jax.random.key(seed)) for seed in directories]
        noise_key = _joined([noise for _, noise in keys], mesh)
        per_call = steps_per_call(config, images, mesh)
        load = make_loader(
            config.data.loader,
            images,
            batch,
            [order for order, _ in keys],
            mesh,
            config.train.steps_per_batch,
            per_call,
        )
        logs = [
            stack.enter_context(
                contextlib.closing(
                    TrainingLog(
                        directory / METRICS_FILE,
                        resumed_at=step,
                        window=windows[place],
                        every_steps=config.log.every_steps,
                        batch=batch,
                        learning_rate=_rate_of_step(config.train, phases),
                        gradients=directory / GRADIENTS_FILE,
                        # At the start and after an epoch: whether gradients vanish on their way.
                        gradients_at=(1, min(total_steps // config.train.epochs + 1, total_steps)),
                        parameters=parameter_names(states[0].params),
                        tensorboard=directory / "tensorboard" if config.log.tensorboard else None,
                        place=place if together > 1 else None,
                    )
                )
            )
            for place, directory in enumerate(directories.values())
        ]
        del states  # their buffers are donated
        progress = stack.enter_context(
            Progress("train", total_steps * batch * together, done=step * batch * together)
        )
        estimate_at = step + STEPS_BEFORE_ESTIMATE
        first_directory = next(iter(directories.values()))
        profile = stack.enter_context(
            Profile(
                first_directory / PROFILE if config.profile and distributed.is_first() else None
            )
        )

        def save() -> None:
            for log in logs:
                log.finish() if step == total_steps else log.settle()
            _check_finite(step, state)
            for own, saved, log in zip(_apart(state, together), checkpoints, logs, strict=True):
                saved.save(step, own, info | {"window": log.window})

        try:
            with signals.deferred() as asked:
                for phase in (p for p in phases if step < p.end):
                    if step == phase.start:
                        optimizer = make_optimizer(config.train, phase.end - phase.start)
                        state = _with_new_optimiser(state, optimizer, together, mesh)
                    # What is left over after calls of `per_call` steps is a call of its own.
                    left = phase.end - step
                    run = {}
                    for steps in {min(per_call, left), left % per_call} - {0}:
                        run[steps], seconds = compile_step(
                            config,
                            nets[0],
                            state,
                            phase,
                            image_shape,
                            mesh,
                            together,
                            steps,
                            len(images),
                        )
                        info["compile_seconds"] += seconds
                    distributed.barrier()  # Gloo gives up on a process that compiles for longer
                    before, started = info["seconds"], time.monotonic()
                    for batches in load(step, phase.end):
                        steps = min(per_call, phase.end - step)
                        profile.before_call()
                        dispatched = time.monotonic()
                        state, metrics = run[steps](state, batches, noise_key)
                        step += steps
                        profile.after_call(state, steps)
                        for log in logs:
                            log.add(step, metrics, dispatched)
                        progress.advance(steps * batch * together, logs[0].note)
                        if step - steps < estimate_at <= step < total_steps:
                            logs[0].settle()
                            say(_estimate(progress))
                        if step == phase.end:
                            jax.block_until_ready(state)
                        info["seconds"] = before + (time.monotonic() - started) / together
                        every = config.log.checkpoint_steps
                        due = step // every > (step - steps) // every or step == total_steps
                        stop = asked()
                        if due or stop:
                            save()
                        if stop:
                            raise stop(f"stopped at step {step:,}")
        except NonFiniteError as error:
            good = checkpoints[0].latest_step()
            kept = f"the checkpoint of step {good:,} is good" if good else "no checkpoint was made"
            raise NonFiniteError(
                f"training stopped at {error}; {kept}. A lower train.learning_rate or a "
                "train.clip_norm may help (in another --workdir, or with --overwrite)."
            ) from None
        return results()


def _joined(trees: Sequence[Any], mesh: Mesh) -> Any:
    """Pytrees of several nets as one with a leading axis; the only one as it is."""
    if len(trees) == 1:
        return sharding.put(trees[0], sharding.replicated(mesh))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    return sharding.put(stacked, sharding.replicated(mesh))


def _apart(tree: Any, count: int) -> list[Any]:
    """The inverse of `_joined`."""
    if count == 1:
        return [tree]
    return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(count)]


def _with_new_optimiser(
    state: TrainState, optimizer: optax.GradientTransformation, together: int, mesh: Mesh
) -> TrainState:
    """The state at a phase's start: no momentum of other objectives, the schedule anew."""
    fresh = [optimizer.init(own.params) for own in _apart(state, together)]
    return state._replace(opt_state=_joined(fresh, mesh))


def _rate_of_step(train: ml_collections.ConfigDict, phases: list[Phase]) -> optax.Schedule:
    """The learning rate by step of the whole training, for the log."""
    schedules = [learning_rate(train, phase.end - phase.start) for phase in phases]
    return optax.join_schedules(schedules, [phase.start for phase in phases[1:]])


def _check_finite(step: int, state: TrainState) -> None:
    """The loss of a step tells of the parameters before it; this of those it made."""
    norm = float(optax.tree.norm(state.params))
    if not math.isfinite(norm):
        raise NonFiniteError(f"step {step:,}: norm of the parameters {norm}")


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
        net = new_net(config, tuple(model["image_shape"]), mean, std, mesh)
        # The horizon of the learning rate does not matter: only the state's structure is used.
        like = initial_state(net, make_optimizer(config.train, total_steps=1), mesh)
        state = checkpoints.restore(found, like).state
    return net._replace(params=state.params, stats=state.stats)
