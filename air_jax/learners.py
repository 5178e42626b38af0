"""Learners: what turns marks on images into a new ranking of the database (section III.2).

A learner sees codes and marks, never a label. They are chosen by name from `LEARNERS`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from air_jax import retrieval, svm
from air_jax.retrieval import Database


class Space(NamedTuple):
    """The database as learners see it: without labels.

    Attributes:
        database: codes as the Baseline measures distances on them.
        standardised: [N, D] float32, the same with unit variance in each dimension, for SVMs.
        norms: [N] float32, the squared lengths of those.
        scale: [D] float32, the deviations that they were divided by.
    """

    database: Database
    standardised: jax.Array
    norms: jax.Array
    scale: jax.Array


class Marks(NamedTuple):
    """What users said of shown images, B queries in a block.

    Attributes:
        positions: [B, M] int32 in the database.
        relevant: [B, M] bool.
    """

    positions: np.ndarray
    relevant: np.ndarray


class Ranking(NamedTuple):
    """What a learner makes of marks.

    Attributes:
        scores: [B, N] float32, higher is better.
        learnt: [B] bool: false where the marks were of one kind only, nothing could be learnt,
            and the ranking stays as it was.
        pseudo_negatives: [B, P] database positions that it took for irrelevant unseen; P may be 0.
        unconverged: queries whose machine was not solved to its tolerance.
        signed: whether scores are positive for what it takes for relevant.
    """

    scores: jax.Array
    learnt: np.ndarray
    pseudo_negatives: np.ndarray
    unconverged: int = 0
    signed: bool = False


# learner(space, centred queries [B, D], marks, one seed for each query) -> Ranking
Learner = Callable[[Space, np.ndarray, Marks, list[list[int]]], Ranking]


def make_space(codes: np.ndarray) -> Space:
    """Prepare database codes [N, D] for learners."""
    database = retrieval.make_database(codes)
    std = jnp.std(database.codes, axis=0)
    scale = jnp.where(std > 1e-12, std, 1)
    standardised = database.codes / scale
    return Space(database, standardised, jnp.sum(standardised**2, axis=1), scale)


def baseline_scores(space: Space, queries: np.ndarray) -> jax.Array:
    """The first retrieval's ranking: minus the squared distance, [B, N]; `queries` centred."""
    return retrieval.negative_distances(jnp.asarray(queries), space.database)


def no_feedback(space: Space, queries: np.ndarray, marks: Marks, seeds: list[list[int]]) -> Ranking:
    """The paper's Baseline: distances to the query, whatever was marked."""
    everyone = np.ones(len(queries), bool)
    return Ranking(baseline_scores(space, queries), everyone, _nothing(queries))


def rocchio(
    space: Space,
    queries: np.ndarray,
    marks: Marks,
    seeds: list[list[int]],
    *,
    alpha: float,
    beta: float,
    gamma: float,
) -> Ranking:
    """Rocchio's query: alpha q + beta mean(relevant) - gamma mean(irrelevant), then distances."""
    codes = np.asarray(space.database.codes[marks.positions])
    moved = alpha * queries
    for weight, chosen in ((beta, marks.relevant), (-gamma, ~marks.relevant)):
        count = chosen.sum(axis=1, keepdims=True)
        total = np.einsum("bm,bmd->bd", chosen.astype(np.float32), codes)
        moved = moved + weight * total / np.maximum(count, 1)
    everyone = np.ones(len(queries), bool)
    scores = baseline_scores(space, moved.astype(np.float32))
    return Ranking(scores, everyone, _nothing(queries))


def mean_difference(
    space: Space, queries: np.ndarray, marks: Marks, seeds: list[list[int]], *, away: float
) -> Ranking:
    """Distances to mean+ + away (mean+ - mean-), the means of relevant (the query too) and not."""
    codes = np.asarray(space.database.codes)[marks.positions]
    relevant = marks.relevant[:, :, None]
    positive = (queries + np.where(relevant, codes, 0).sum(axis=1)) / (1 + relevant.sum(axis=1))
    negative = np.where(relevant, 0, codes).sum(axis=1) / np.maximum((~relevant).sum(axis=1), 1)
    some = (~marks.relevant).any(axis=1, keepdims=True)
    moved = positive + np.where(some, away * (positive - negative), 0)
    everyone = np.ones(len(queries), bool)
    scores = baseline_scores(space, moved.astype(np.float32))
    return Ranking(scores, everyone, _nothing(queries))


class _Samples(NamedTuple):
    """What a kernel learner is given for each of B queries: the query, marked images, others.

    Attributes:
        positions: [B, M - 1] in the database, of all but the query.
        codes: [B, M, D] float32 standardised, the query first.
        relevant: [B, M] bool.
        own: [B, D] float32, the query alone.
    """

    positions: np.ndarray
    codes: np.ndarray
    relevant: np.ndarray
    own: np.ndarray


def _samples(space: Space, queries: np.ndarray, marks: Marks, others: np.ndarray) -> _Samples:
    """`others` [B, P] are taken for irrelevant."""
    positions = np.concatenate([marks.positions, others], axis=1)
    own = queries / np.asarray(space.scale)
    codes = np.concatenate([own[:, None], np.asarray(space.standardised)[positions]], axis=1)
    relevant = np.concatenate(
        [np.ones((len(queries), 1), bool), marks.relevant, np.zeros(others.shape, bool)], axis=1
    )
    return _Samples(positions, codes, relevant, own)


def _decisions(space: Space, kernel: str, machines: svm.Machine, samples: _Samples) -> jax.Array:
    """Decision values [B, N] of machines fitted on these samples, for the whole database."""
    if kernel != "rbf" or jax.default_backend() != "cpu":
        return svm.decisions(kernel, machines, space.standardised)
    # Sessions mark many of the same images.
    used, places = np.unique(samples.positions, return_inverse=True)
    rows = np.concatenate([np.asarray(space.standardised)[used], samples.own])
    own_place = len(used) + np.arange(len(samples.own))[:, None]
    places = np.concatenate([own_place, places.reshape(samples.positions.shape)], axis=1)
    return jnp.asarray(
        svm.rbf_decisions_of_shared(rows, places, machines, space.standardised, space.norms)
    )


def support_vector(
    space: Space,
    queries: np.ndarray,
    marks: Marks,
    seeds: list[list[int]],
    *,
    kernel: str,
    C: float,
    class_weight: str | None = None,
    pseudo_negatives: int = 0,
    farthest: bool = False,
    distance_weight: float = 0.0,
) -> Ranking:
    """An SVM on the marked images and the query; signed distance to its hyperplane.

    Args:
        space: the database.
        queries: [B, D] centred.
        marks: of each.
        seeds: of each.
        kernel: "linear" or "rbf".
        C: penalty.
        class_weight: None or "balanced".
        pseudo_negatives: so many unmarked images join the irrelevant ones: most of a large database
            is irrelevant to any query. Drawn at random,
        farthest: or the farthest from the query.
        distance_weight: what the first retrieval's score adds; both are taken to unit deviation
            over the database first. Where nothing can be learnt it is all there is.
    """
    if farthest and pseudo_negatives:
        drawn = _farthest_unmarked(space, queries, marks, pseudo_negatives)
    else:
        size = len(space.standardised)
        drawn = np.stack(
            [
                _draw_unmarked(size, positions, pseudo_negatives, np.random.default_rng(seed))
                for positions, seed in zip(marks.positions, seeds, strict=True)
            ]
        )
    samples = _samples(space, queries, marks, drawn)
    machines, convergence = svm.fit(
        samples.codes,
        np.where(samples.relevant, 1, -1),
        kernel=kernel,
        C=C,
        class_weight=class_weight,
    )
    scores = _decisions(space, kernel, machines, samples)
    learnt = ~samples.relevant.all(axis=1)
    unconverged = np.count_nonzero(learnt & ~convergence.converged)
    if distance_weight:
        scores = _with_distances(scores, baseline_scores(space, queries), distance_weight)
        return Ranking(scores, np.ones(len(queries), bool), drawn, unconverged)
    return Ranking(scores, learnt, drawn, unconverged, signed=True)


@jax.jit
def _with_distances(scores: jax.Array, first: jax.Array, weight: float) -> jax.Array:
    def unit(values: jax.Array) -> jax.Array:
        deviation = jnp.std(values, axis=1, keepdims=True)
        return values / jnp.where(deviation > 0, deviation, 1)

    return unit(scores) + weight * unit(first)


def kernel_ridge(
    space: Space,
    queries: np.ndarray,
    marks: Marks,
    seeds: list[list[int]],
    *,
    ridge: float,
    pseudo_negatives: int = 0,
) -> Ranking:
    """Regression of +1 and -1 with the RBF kernel, in closed form: (K + ridge I) c = y.

    It has no intercept: far from all marks its score is 0. Marks of one kind teach it, too.
    `pseudo_negatives` as for `support_vector`, the farthest.
    """
    drawn = _farthest_unmarked(space, queries, marks, pseudo_negatives)
    samples = _samples(space, queries, marks, drawn)
    gamma, coefficients = _solve_ridge(samples.codes, samples.relevant, ridge)
    zeros = np.zeros(len(queries), np.float32)
    machines = svm.Machine(samples.codes, np.asarray(coefficients), zeros, np.asarray(gamma))
    scores = _decisions(space, "rbf", machines, samples)
    return Ranking(scores, np.ones(len(queries), bool), drawn, signed=True)


@jax.jit
def _solve_ridge(
    codes: jax.Array, relevant: jax.Array, ridge: float
) -> tuple[jax.Array, jax.Array]:
    """Gammas [B] ("scale") and coefficients [B, M]."""
    variance = codes.var(axis=(1, 2))
    gamma = jnp.where(variance > 0, 1 / (codes.shape[2] * variance), 1)
    lengths = jnp.sum(codes**2, axis=2)
    products = jnp.einsum("bmd,bnd->bmn", codes, codes, precision="highest")
    distances = jnp.maximum(lengths[:, :, None] + lengths[:, None] - 2 * products, 0)
    kernel = jnp.exp(-gamma[:, None, None] * distances) + ridge * jnp.eye(codes.shape[1])
    targets = jnp.where(relevant, 1.0, -1.0)
    return gamma, jnp.linalg.solve(kernel, targets[..., None])[..., 0]


def _farthest_unmarked(space: Space, queries: np.ndarray, marks: Marks, count: int) -> np.ndarray:
    """[B, count] positions of the unmarked images farthest from each query."""
    if not count:
        return _nothing(queries)
    count = min(count, len(space.standardised) - marks.positions.shape[1])
    return np.asarray(
        retrieval.best_unmarked(-baseline_scores(space, queries), marks.positions, count)
    )


def _draw_unmarked(
    size: int, marked: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """`count` different positions below `size` that are not in `marked`; fewer if there are."""
    if not count:
        return np.zeros(0, np.int64)
    candidates = rng.choice(size, min(size, count + len(marked)), replace=False)
    return candidates[~np.isin(candidates, marked)][:count]


def _nothing(queries: np.ndarray) -> np.ndarray:
    return np.zeros((len(queries), 0), np.int64)


LEARNERS: dict[str, Learner] = {
    "none": no_feedback,
    "svc": partial(support_vector, kernel="rbf", C=10.0),
    "svc_linear": partial(support_vector, kernel="linear", C=1.0),
    "svc_pseudo": partial(
        support_vector, kernel="rbf", C=10.0, class_weight="balanced", pseudo_negatives=200
    ),
    "rocchio": partial(rocchio, alpha=1.0, beta=0.75, gamma=0.15),
    # The others' constants were chosen on validation queries by `air_jax.compare`.
    "svc_balanced": partial(support_vector, kernel="rbf", C=10.0, class_weight="balanced"),
    "svc_farthest": partial(
        support_vector,
        kernel="rbf",
        C=10.0,
        class_weight="balanced",
        pseudo_negatives=50,
        farthest=True,
    ),
    "svc_distance": partial(support_vector, kernel="rbf", C=10.0, distance_weight=1.0),
    "ridge": partial(kernel_ridge, ridge=1.0),
    "ridge_pseudo": partial(kernel_ridge, ridge=1.0, pseudo_negatives=50),
    "means": partial(mean_difference, away=1.0),
}


def parameters(learner: str) -> dict[str, Any]:
    """What a learner was fixed to, for the report."""
    fixed = LEARNERS[learner]
    if not isinstance(fixed, partial):
        return {}
    spaces = {
        support_vector: {"gamma": "scale", "codes": "standardised", "tolerance": svm.TOLERANCE},
        kernel_ridge: {"gamma": "scale", "codes": "standardised"},
    }
    return fixed.keywords | spaces.get(fixed.func, {})
