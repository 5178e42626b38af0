"""One step of training: the loss, its gradient, the update; and its compilation."""

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
from air_jax.models.autoencoder import pair_parameters
from air_jax.models.net import Net, parameter_names
from air_jax.runtime import sharding
from air_jax.training.objectives import Metrics, Objective, make_objective
from air_jax.training.optimizer import learning_rate, make_optimizer, norms


class TrainState(NamedTuple):
    """What changes in training.

    Attributes:
        step: steps done, int32 [].
        params: the net's parameters, float32.
        stats: its running statistics, if it has batch normalisation.
        opt_state: the optimiser's moments.
    """

    step: jax.Array
    params: nnx.State
    stats: nnx.State
    opt_state: optax.OptState


# A state and the metrics of the steps to it.
Stepped = tuple[TrainState, dict[str, jax.Array]]


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


def train_step(
    state: TrainState,
    images: jax.Array,
    key: jax.Array,
    *,
    net: Net,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    pair: int | None = None,
) -> Stepped:
    """One step down the gradient of an objective (section III.1, "Training parameters").

    Args:
        state: before the step.
        images: a batch [B, S, S, C] uint8.
        key: of the run; the step's own is folded in.
        net: gives structure and standardisation; its parameters are not used.
        optimizer: as `state.opt_state` is of.
        objective: what the loss is; see `objectives`.
        pair: update this pair of layers alone; the objective has to be of the pair, too.

    Returns:
        The state after the step, and from before it the loss float32 [], the gradient's norm
        float32 [], its norm by parameter, in the order of `parameter_names`, float32 [P], and what
        the objective tells beside: {"loss", "grad_norm", "grad_norms", ...}.
    """
    step_key = jax.random.fold_in(key, state.step)

    def loss_fn(params: nnx.State) -> tuple[jax.Array, tuple[nnx.State, Metrics]]:
        model = nnx.merge(net.graphdef, params, state.stats, copy=True)
        model.train()
        loss, told = objective(model, net, images, step_key)
        return loss, (nnx.state(model, nnx.BatchStat), told)

    (loss, (stats, told)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    if pair is not None:
        grads = _of_pair(grads, pair, net)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    if pair is not None:  # weight decay would move the others as well
        updates = _of_pair(updates, pair, net)
    params = optax.apply_updates(state.params, updates)
    layer_norms = norms(grads)
    metrics = {
        "loss": loss,
        "grad_norm": jnp.linalg.norm(layer_norms),
        "grad_norms": layer_norms,
        **told,
    }
    return TrainState(state.step + 1, params, stats, opt_state), metrics


def _of_pair(tree: nnx.State, pair: int, net: Net) -> nnx.State:
    """Gradients or updates of one pair's parameters, zero for all others."""
    prefixes = pair_parameters(pair, net.depth)
    leaves, structure = jax.tree.flatten(tree)
    kept = [
        leaf if name.startswith(prefixes) else jnp.zeros_like(leaf)
        for name, leaf in zip(parameter_names(tree), leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, kept)


def initial_state(net: Net, optimizer: optax.GradientTransformation) -> TrainState:
    """The state of step 0. For use in jit, with `net` made outside or inside of it.

    It shares no buffer with `net`: the train step donates its state, and `net` stays usable.
    """
    params, stats = jax.tree.map(jnp.copy, (net.params, net.stats))
    return TrainState(jnp.int32(0), params, stats, optimizer.init(params))


def compile_step(
    config: ml_collections.ConfigDict,
    net: Net,
    state: TrainState,
    phase: Phase,
    image_shape: tuple[int, ...],
    mesh: Mesh,
    steps: int = 1,
    resident_images: int = 0,
) -> tuple[jax.stages.Compiled, float]:
    """Compile `train_step` ahead of time: the state donated, the batch split over the mesh.

    Args:
        config: the run's.
        net: gives structure and standardisation.
        state: before the first step.
        phase: of the training.
        image_shape: (S, S, C).
        mesh: devices to train on.
        steps: done in one call. Several are a loop on the device.
        resident_images: of the set that several steps take their batches from; 0: they are given
            a stack of batches.

    Returns:
        run(state, batch, key) and the seconds that compiling took. `batch` is [B, S, S, C] uint8;
        of several steps `Batches`, or [steps, B, S, S, C] uint8. The metrics that it returns are
        those of `train_step` and the "learning_rate", and have a leading axis for steps.
    """
    of_phase = partial(
        train_step,
        net=net,
        optimizer=make_optimizer(config.train, phase.end - phase.start),
        objective=make_objective(config.train, image_shape[0], phase.pair),
        pair=phase.pair,
    )
    rate = learning_rate(config.train, phase.end - phase.start)
    whole, rows, batch = sharding.replicated(mesh), sharding.by_rows(mesh), config.train.batch

    def one_step(state: TrainState, images: jax.Array, key: jax.Array) -> Stepped:
        after, metrics = of_phase(state, images, key)
        return after, metrics | {"learning_rate": jnp.float32(rate(state.step - phase.start))}

    # The names are those that profiles and logs of compilations show.
    def train_one_step(state: TrainState, images: jax.Array, key: jax.Array) -> Stepped:
        state, metrics = one_step(state, images, key)
        return state, {name: value[None] for name, value in metrics.items()}

    def train_steps(state: TrainState, batches: Batches | jax.Array, key: jax.Array) -> Stepped:
        def body(state: TrainState, taken: jax.Array) -> Stepped:
            images = batches.images[taken] if isinstance(batches, Batches) else taken
            return one_step(state, jax.lax.with_sharding_constraint(images, rows), key)

        each = batches.positions if isinstance(batches, Batches) else batches
        return jax.lax.scan(body, state, each)

    function: Callable[..., Stepped] = train_one_step if steps == 1 else train_steps
    split: Any = rows if steps == 1 else sharding.by_columns(mesh)
    stack = (batch,) if steps == 1 else (steps, batch)
    shapes: Any = jax.ShapeDtypeStruct((*stack, *image_shape), jnp.uint8)
    if steps > 1 and resident_images:
        split = Batches._make((whole, split))
        set_of_images = jax.ShapeDtypeStruct((resident_images, *image_shape), jnp.uint8)
        shapes = Batches._make((set_of_images, jax.ShapeDtypeStruct(stack, jnp.int32)))
    jitted = jax.jit(
        function,
        donate_argnums=0,
        in_shardings=(whole, split, whole),
        out_shardings=(whole, whole),
    )
    started = time.monotonic()
    with net.computing():
        compiled = jitted.lower(state, shapes, jax.random.key(0)).compile()
    return compiled, time.monotonic() - started
