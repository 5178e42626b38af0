"""Unsupervised training of an autoencoder by SGD (paper, section III.1, "Training parameters")."""

import contextlib
import importlib.util
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from air_jax import models, sharding
from air_jax.checkpoint import Checkpoints
from air_jax.files import write_json
from air_jax.input_pipeline import Loader, make_loader
from air_jax.models import Net
from air_jax.progress import Progress, duration, say
from air_jax.training_log import NonFiniteError, TrainingLog
from air_jax.workdir import CHECKPOINTS, METRICS_FILE, MODEL_FILE

LR_SCHEDULES = ("constant", "cosine")
DTYPES = ("float32", "bfloat16")
CORRUPTIONS = ("none", "mask", "noise")
MASK_BLOCK = 4  # pixels
STEPS_BEFORE_ESTIMATE = 10


class TrainState(NamedTuple):
    """What changes in training.

    Attributes:
        step: steps done, int32 [].
        params: the net's parameters, float32.
        stats: its running statistics, if it has batch normalisation.
        opt_state: the optimiser's momentum.
    """

    step: jax.Array
    params: nnx.State
    stats: nnx.State
    opt_state: optax.OptState


class TrainResult(NamedTuple):
    """What training leaves.

    Attributes:
        net: the trained net.
        steps: steps done in all.
        seconds: spent on them, those of earlier runs that were resumed included, compiling not.
        compile_seconds: of compiling the step, in the run that ended the training.
    """

    net: Net
    steps: int
    seconds: float
    compile_seconds: float


def validate(config: ml_collections.ConfigDict, training_images: int, devices: int) -> None:
    """Raise ValueError, naming the key, if nothing can be trained by `config.train`."""
    train = config.train
    for key, known in (
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
    for key in ("weight_decay", "clip_norm", "warmup_steps", "corruption_amount"):
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
    if train.batch % devices:
        raise ValueError(
            f"train.batch={train.batch} does not divide over {devices} devices; "
            f"the nearest that does is {max(1, round(train.batch / devices)) * devices}"
        )
    if train.batch > training_images:
        raise ValueError(
            f"train.batch={train.batch} is larger than the training set of {training_images} images"
        )


def count_steps(train: ml_collections.ConfigDict, training_images: int) -> int:
    """Steps of a whole training; the last, partial batch of an epoch is left out."""
    return training_images // train.batch * train.steps_per_batch * train.epochs


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
    model = models.Autoencoder(
        **config.model,
        image_shape=image_shape,
        dtype=jnp.dtype(config.train.dtype),
        rngs=nnx.Rngs(config.seed),
    )
    return jax.device_put(models.make_net(model, mean, std), sharding.replicated(mesh))


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


def learning_rate(train: ml_collections.ConfigDict, total_steps: int) -> optax.Schedule:
    """Linear warm-up over `warmup_steps`, then constant or a cosine down to zero."""
    warmup = min(train.warmup_steps, total_steps - 1)
    if train.lr_schedule == "constant":
        after = optax.constant_schedule(train.learning_rate)
    else:
        after = optax.cosine_decay_schedule(train.learning_rate, total_steps - warmup)
    if not warmup:
        return after
    # (step + 1) / warmup of the full rate: the first step learns, the last one in full.
    step = train.learning_rate / warmup
    ramp = optax.linear_schedule(step, train.learning_rate + step, warmup)
    return optax.join_schedules([ramp, after], [warmup])


def make_optimizer(
    train: ml_collections.ConfigDict, total_steps: int
) -> optax.GradientTransformation:
    """SGD with momentum; clipping by global norm and weight decay where they are not zero."""
    parts = []
    if train.clip_norm:
        parts.append(optax.clip_by_global_norm(train.clip_norm))
    if train.weight_decay:
        parts.append(optax.add_decayed_weights(train.weight_decay))
    parts.append(optax.sgd(learning_rate(train, total_steps), momentum=train.momentum or None))
    return optax.chain(*parts)


def corrupt(images: jax.Array, kind: str, amount: float, key: jax.Array) -> jax.Array:
    """What the encoder sees instead of standardised images [B, S, S, C]; same shape.

    "mask" sets `amount` of the 4x4 blocks to zero (the mean), "noise" adds Gaussian noise of
    standard deviation `amount`.
    """
    if kind == "noise":
        return images + amount * jax.random.normal(key, images.shape)
    if kind == "mask":
        batch, size = images.shape[:2]
        blocks = -(-size // MASK_BLOCK)
        kept = jax.random.bernoulli(key, 1 - amount, (batch, blocks, blocks))
        kept = kept.repeat(MASK_BLOCK, axis=1).repeat(MASK_BLOCK, axis=2)[:, :size, :size]
        return images * kept[..., None]
    return images


def train_step(
    state: TrainState,
    images: jax.Array,
    key: jax.Array,
    *,
    net: Net,
    optimizer: optax.GradientTransformation,
    corruption: str = "none",
    corruption_amount: float = 0.0,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of SGD on the mean squared error (eq 4, 5).

    Args:
        state: before the step.
        images: a batch [B, S, S, C] uint8.
        key: of the run; the step's own is folded in.
        net: gives structure and standardisation; its parameters are not used.
        optimizer: as `state.opt_state` is of.
        corruption: what is done to the encoder's input; the target is the clean image.
        corruption_amount: see `corrupt`.

    Returns:
        The state after the step, and {"loss", "grad_norm"} float32 [] before it.
    """
    target = net.standardise(images)
    noise_key = jax.random.fold_in(key, state.step)
    source = corrupt(target, corruption, corruption_amount, noise_key)

    def loss_fn(params: nnx.State) -> tuple[jax.Array, nnx.State]:
        model = nnx.merge(net.graphdef, params, state.stats, copy=True)
        model.train()
        loss = jnp.mean(jnp.square(model(source).astype(jnp.float32) - target))
        return loss, nnx.state(model, nnx.BatchStat)

    (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
    return TrainState(state.step + 1, params, stats, opt_state), metrics


def initial_state(net: Net, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The state of step 0, a copy on each device of the mesh.

    It shares no buffer with `net`: the train step donates its state, and `net` stays usable.
    """
    params, stats = jax.tree.map(jnp.copy, (net.params, net.stats))
    state = TrainState(jnp.int32(0), params, stats, optimizer.init(params))
    return jax.device_put(state, sharding.replicated(mesh))


def compile_step(
    config: ml_collections.ConfigDict,
    net: Net,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    image_shape: tuple[int, int, int],
    mesh: Mesh,
) -> tuple[jax.stages.Compiled, float]:
    """Compile `train_step` ahead of time: the state donated, the batch split over the mesh.

    Returns:
        step(state, images [B, S, S, C] uint8, key) and the seconds that compiling took.
    """
    whole, rows = sharding.replicated(mesh), sharding.by_rows(mesh)
    jitted = jax.jit(
        partial(
            train_step,
            net=net,
            optimizer=optimizer,
            corruption=config.train.corruption,
            corruption_amount=config.train.corruption_amount,
        ),
        donate_argnums=0,
        in_shardings=(whole, rows, whole),
        out_shardings=(whole, whole),
    )
    batch = jax.ShapeDtypeStruct((config.train.batch, *image_shape), jnp.uint8)
    key = jax.eval_shape(jax.random.key, 0)
    started = time.monotonic()
    compiled = jitted.lower(state, batch, key).compile()
    return compiled, time.monotonic() - started


def train(
    config: ml_collections.ConfigDict, images: np.ndarray, mesh: Mesh, directory: Path
) -> TrainResult:
    """Train for `config.train.epochs`, going on from the newest checkpoint if there is one.

    Leaves in `directory`: `model.json`, `checkpoints/`, and `metrics.jsonl` with a line for every
    `config.log.every_steps` steps. A checkpoint is saved only after the losses and gradient norms
    of all its steps were seen finite.

    Args:
        config: the run's; `seed`, `model`, `train`, `data.loader` and `log` are read.
        images: the training images [N, S, S, C] uint8.
        mesh: devices to train on.
        directory: the run's.

    Raises:
        ValueError: the config and the images do not fit, or a checkpoint is damaged.
        NonFiniteError: the loss or gradient became NaN or infinite.
        KeyboardInterrupt: by Ctrl-C, after saving a checkpoint.
    """
    validate(config, len(images), mesh.size)
    batch = config.train.batch
    total_steps = count_steps(config.train, len(images))
    image_shape = images.shape[1:]
    mean, std = channel_statistics(images)
    net = new_net(config, image_shape, mean, std, mesh)
    optimizer = make_optimizer(config.train, total_steps)
    state = initial_state(net, optimizer, mesh)
    write_json(
        directory / MODEL_FILE,
        {"image_shape": list(image_shape), "mean": mean.tolist(), "std": std.tolist()},
    )
    step, info = 0, {"seconds": 0.0, "compile_seconds": 0.0}

    with Checkpoints(directory / CHECKPOINTS) as checkpoints:
        latest = checkpoints.latest_step()
        if latest is not None:
            state, info = checkpoints.restore(latest, like=state)
            step = latest
            say(f"train: going on from the checkpoint of step {step:,} of {total_steps:,}")
        if step == total_steps:
            net = net._replace(params=state.params, stats=state.stats)
            return TrainResult(net, step, **info)
        run_step, compile_seconds = compile_step(config, net, optimizer, state, image_shape, mesh)

        order_key, noise_key = jax.random.split(jax.random.key(config.seed))
        noise_key = jax.device_put(noise_key, sharding.replicated(mesh))
        load = make_loader(config.data.loader, images, batch, order_key, mesh)
        batches = _batches(
            load, step, total_steps, len(images) // batch, config.train.steps_per_batch
        )
        log = TrainingLog(
            directory / METRICS_FILE,
            resumed_at=step,
            every_steps=config.log.every_steps,
            batch=batch,
            learning_rate=learning_rate(config.train, total_steps),
            tensorboard=directory / "tensorboard" if config.log.tensorboard else None,
        )
        progress = Progress("train", total_steps * batch, done=step * batch)
        estimate_at = step + STEPS_BEFORE_ESTIMATE
        started = time.monotonic()

        def times() -> dict[str, float]:
            seconds = info["seconds"] + time.monotonic() - started
            return {"seconds": seconds, "compile_seconds": compile_seconds}

        try:
            with deferred_interrupt() as interrupted:
                for images_of_step in batches:
                    state, metrics = run_step(state, images_of_step, noise_key)
                    step += 1
                    log.add(step, metrics)
                    progress.advance(batch, log.note)
                    if step == estimate_at < total_steps:
                        log.settle()
                        say(_estimate(progress))
                    at_end = step == total_steps
                    if at_end or interrupted() or step % config.log.checkpoint_steps == 0:
                        log.settle()
                        _check_finite(step, state)
                        checkpoints.save(step, state, times())
                    if interrupted():
                        raise KeyboardInterrupt(f"stopped at step {step:,}")
                log.finish()
        except NonFiniteError as error:
            good = checkpoints.latest_step()
            kept = f"the checkpoint of step {good:,} is good" if good else "no checkpoint was made"
            raise NonFiniteError(
                f"training stopped at {error}; {kept}. A lower train.learning_rate or a "
                "train.clip_norm may help (in another --workdir, or with --overwrite)."
            ) from None
        finally:
            log.close()
            progress.close()
    net = net._replace(params=state.params, stats=state.stats)
    return TrainResult(net, total_steps, **times())


def _check_finite(step: int, state: TrainState) -> None:
    """The loss of a step tells of the parameters before it; this of those it made."""
    norm = float(optax.tree.norm(state.params))
    if not math.isfinite(norm):
        raise NonFiniteError(f"step {step:,}: norm of the parameters {norm}")


def _batches(
    load: Loader, step: int, total_steps: int, per_epoch: int, steps_per_batch: int
) -> Iterator[jax.Array]:
    """The batch of every step from `step` on; each is yielded for its `steps_per_batch` steps."""
    while step < total_steps:
        number, done = divmod(step, steps_per_batch)
        for images in load(*divmod(number, per_epoch)):
            for _ in range(done, steps_per_batch):
                yield images
                step += 1
            done = 0


def _estimate(progress: Progress) -> str:
    total = duration(progress.total / progress.rate)
    return f"train: about {total} in all, at {progress.rate:,.0f} images/s"


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Within it Ctrl-C is only noted; the function it yields tells whether it was pressed.

    A step that is cut off has donated its state away: there would be nothing to save. A second
    Ctrl-C interrupts at once. Outside the main thread signals are left alone.
    """
    pressed = False

    def note(signum: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True
        say("stopping after this step; once more to stop at once")

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


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
        model = json.loads((directory / MODEL_FILE).read_text())
        mean, std = (np.array(model[key], np.float32) for key in ("mean", "std"))
        net = new_net(config, tuple(model["image_shape"]), mean, std, mesh)
        # The horizon of the learning rate does not matter: only the state's structure is used.
        like = initial_state(net, make_optimizer(config.train, total_steps=1), mesh)
        state, _ = checkpoints.restore(found, like)
    return net._replace(params=state.params, stats=state.stats)
