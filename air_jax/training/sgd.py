"""One step of SGD (paper, section III.1, "Training parameters"), and its compilation."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import nnx
from jax.sharding import Mesh

from air_jax.data.loaders import Batches
from air_jax.models import autoencoder
from air_jax.models.autoencoder import Net
from air_jax.runtime import sharding

MASK_BLOCK = 4  # pixels


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


class Phase(NamedTuple):
    """A stretch of training with one objective.

    Attributes:
        start: steps before it.
        end: steps at its end.
        pair: the pair of layers that is trained, from 1; None: the whole net.
    """

    start: int
    end: int
    pair: int | None


def learning_rate(train: ml_collections.ConfigDict, total_steps: int) -> optax.Schedule:
    """Linear warm-up over `warmup_steps` (half of all at most), then constant or a cosine to 0."""
    warmup = min(train.warmup_steps, total_steps // 2)
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
        parts.append(_clip_by_global_norm(train.clip_norm))
    if train.weight_decay:
        parts.append(optax.add_decayed_weights(train.weight_decay))
    parts.append(optax.sgd(learning_rate(train, total_steps), momentum=train.momentum or None))
    return optax.chain(*parts)


def _clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm`, with the norms that are logged: they are computed once."""

    def update(
        updates: nnx.State, state: optax.EmptyState, params: nnx.State | None = None
    ) -> tuple[nnx.State, optax.EmptyState]:
        norm = jnp.linalg.norm(norms(updates))
        scale = jnp.where(norm < max_norm, 1.0, max_norm / norm)
        return jax.tree.map(lambda leaf: leaf * scale, updates), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def norms(tree: nnx.State) -> jax.Array:
    """The norm of each leaf, float32 [P].

    As inner products: a reduction of a large array to one number is slow in XLA on a CPU.
    """

    def squared(leaf: jax.Array) -> jax.Array:
        axes = tuple(range(leaf.ndim))
        return jax.lax.dot_general(leaf, leaf, ((axes, axes), ((), ())), precision="highest")

    return jnp.sqrt(jnp.stack([squared(leaf) for leaf in jax.tree.leaves(tree)]))


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
    pair: int | None = None,
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
        pair: train this pair of layers alone, on the maps that it reads; see
            `Autoencoder.undo_pair`.

    Returns:
        The state after the step, and from before it the loss float32 [], the gradient's norm
        float32 [], and its norm by parameter, in the order of `parameter_names`, float32 [P]:
        {"loss", "grad_norm", "grad_norms"}.
    """
    target = net.standardise(images)
    noise_key = jax.random.fold_in(key, state.step)
    source = corrupt(target, corruption, corruption_amount, noise_key)

    def loss_fn(params: nnx.State) -> tuple[jax.Array, nnx.State]:
        model = nnx.merge(net.graphdef, params, state.stats, copy=True)
        model.train()
        if pair is None:
            output, wanted = model(source), target
        else:
            output, wanted = model.undo_pair(source, pair)
            wanted = target if pair == 1 else jax.lax.stop_gradient(wanted)
        error = output.astype(jnp.float32) - wanted.astype(jnp.float32)
        return jnp.mean(jnp.square(error)), nnx.state(model, nnx.BatchStat)

    (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    if pair is not None:
        grads = _of_pair(grads, pair, net)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    if pair is not None:  # weight decay would move the others as well
        updates = _of_pair(updates, pair, net)
    params = optax.apply_updates(state.params, updates)
    layer_norms = norms(grads)
    metrics = {"loss": loss, "grad_norm": jnp.linalg.norm(layer_norms), "grad_norms": layer_norms}
    return TrainState(state.step + 1, params, stats, opt_state), metrics


def _of_pair(tree: nnx.State, pair: int, net: Net) -> nnx.State:
    """Gradients or updates of one pair's parameters, zero for all others."""
    prefixes = autoencoder.pair_parameters(pair, net.depth)
    leaves, structure = jax.tree.flatten(tree)
    kept = [
        leaf if name.startswith(prefixes) else jnp.zeros_like(leaf)
        for name, leaf in zip(parameter_names(tree), leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, kept)


def parameter_names(params: nnx.State) -> list[str]:
    """Dotted names of all parameters: `encoder.convs.0.conv.kernel`, ..."""
    paths = [path for path, _ in nnx.to_flat_state(params)]
    return [".".join(map(str, path)) for path in paths]


def initial_state(net: Net, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The state of step 0, a copy on each device of the mesh.

    It shares no buffer with `net`: the train step donates its state, and `net` stays usable.
    """
    params, stats = jax.tree.map(jnp.copy, (net.params, net.stats))
    state = TrainState(jnp.int32(0), params, stats, optimizer.init(params))
    return sharding.put(state, sharding.replicated(mesh))


def compile_step(
    config: ml_collections.ConfigDict,
    net: Net,
    state: TrainState,
    phase: Phase,
    image_shape: tuple[int, int, int],
    mesh: Mesh,
    together: int = 1,
    steps: int = 1,
    resident_images: int = 0,
) -> tuple[jax.stages.Compiled, float]:
    """Compile `train_step` ahead of time: the state donated, the batch split over the mesh.

    Args:
        config: the run's.
        net: gives structure and standardisation.
        state: of one net, or of `together` nets, stacked.
        phase: of the training.
        image_shape: (S, S, C).
        mesh: devices to train on.
        together: nets that are trained in one call; state, images and key then have a leading axis
            for them.
        steps: done in one call. Several are a loop on the device.
        resident_images: of the set that they take their batches from.

    Returns:
        run(state, batch, key) and the seconds that compiling took. `batch` is [B, S, S, C] uint8,
        or `Batches` of several steps; the metrics that it returns have a leading axis for steps.
    """
    one_step = partial(
        train_step,
        net=net,
        optimizer=make_optimizer(config.train, phase.end - phase.start),
        corruption=config.train.corruption,
        corruption_amount=config.train.corruption_amount,
        pair=phase.pair,
    )
    rows, of_nets, keys = sharding.by_rows(mesh), (), jax.random.key(0)
    if together > 1:
        on_cpu = mesh.devices.flat[0].platform == "cpu"
        one_step = _of_each_net(one_step, together) if on_cpu else jax.vmap(one_step)
        rows = sharding.by_columns(mesh)
        of_nets, keys = (together,), jnp.stack([keys] * together)
    whole, batch = sharding.replicated(mesh), (*of_nets, config.train.batch)

    # The names are those that profiles and logs of compilations show.
    def train_one_step(
        state: TrainState, images: jax.Array, key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        state, metrics = one_step(state, images, key)
        return state, {name: value[None] for name, value in metrics.items()}

    def train_steps(
        state: TrainState, batches: Batches, key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        def body(
            state: TrainState, positions: jax.Array
        ) -> tuple[TrainState, dict[str, jax.Array]]:
            images = jax.lax.with_sharding_constraint(batches.images[positions], rows)
            return one_step(state, images, key)

        return jax.lax.scan(body, state, batches.positions)

    if steps == 1:
        function, split = train_one_step, rows
        shapes = jax.ShapeDtypeStruct((*batch, *image_shape), jnp.uint8)
    else:
        function, split = train_steps, Batches(whole, sharding.of_steps(rows))
        shapes = Batches(
            jax.ShapeDtypeStruct((resident_images, *image_shape), jnp.uint8),
            jax.ShapeDtypeStruct((steps, *batch), jnp.int32),
        )
    jitted = jax.jit(
        function,
        donate_argnums=0,
        in_shardings=(whole, split, whole),
        out_shardings=(whole, whole),
    )
    started = time.monotonic()
    compiled = jitted.lower(state, shapes, keys).compile()
    return compiled, time.monotonic() - started


def _of_each_net(one_step: Callable[..., Any], nets: int) -> Callable[..., Any]:
    """As `jax.vmap(one_step)`, one net after another.

    `vmap` makes one grouped convolution of several nets' convolutions. XLA's for CPUs is slow at
    those, and gathers every map of a batch that is split over devices for them.
    """

    def run(*arguments: Any) -> Any:
        results = [
            one_step(*jax.tree.map(lambda leaf, i=i: leaf[i], arguments)) for i in range(nets)
        ]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)

    return run
