"""How parameters move: the learning rate, SGD with momentum or AdamW, clipping, weight decay.

The paper, section III.1, "Training parameters".
"""

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import nnx

LR_SCHEDULES = ("constant", "cosine")
OPTIMIZERS = ("sgd", "adamw")
SECOND_MOMENT = 0.95  # of AdamW: of short trainings; 0.999 remembers a thousand steps


def learning_rate(train: ml_collections.ConfigDict, total_steps: int) -> optax.Schedule:
    """Linear warm-up over `warmup_steps` (half of all at most), then constant or a cosine to 0.

    Args:
        train: `config.train`.
        total_steps: of the phase of training that the schedule is for.
    """
    warmup = min(train.warmup_steps, total_steps // 2)
    after = {
        "constant": lambda: optax.constant_schedule(train.learning_rate),
        "cosine": lambda: optax.cosine_decay_schedule(train.learning_rate, total_steps - warmup),
    }[train.lr_schedule]()
    if not warmup:
        return after
    # (step + 1) / warmup of the full rate: the first step learns, the last one in full.
    step = train.learning_rate / warmup
    ramp = optax.linear_schedule(step, train.learning_rate + step, warmup)
    return optax.join_schedules([ramp, after], [warmup])


def make_optimizer(
    train: ml_collections.ConfigDict, total_steps: int
) -> optax.GradientTransformation:
    """SGD with momentum (the paper's), or AdamW whose first moment is the momentum.

    Clipping by global norm and weight decay where they are not zero. SGD decays all parameters;
    AdamW only matrices and kernels, apart from the gradient.
    """
    rate = learning_rate(train, total_steps)
    parts = []
    if train.clip_norm:
        parts.append(_clip_by_global_norm(train.clip_norm))
    if train.optimizer == "adamw":
        parts.append(
            optax.adamw(
                rate,
                b1=train.momentum,
                b2=SECOND_MOMENT,
                weight_decay=train.weight_decay,
                mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
            )
        )
        return optax.chain(*parts)
    if train.weight_decay:
        parts.append(optax.add_decayed_weights(train.weight_decay))
    parts.append(optax.sgd(rate, momentum=train.momentum or None))
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
