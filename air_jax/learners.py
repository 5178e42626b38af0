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
        scale: [D] float32, the deviations that they were divided by.
    """

    database: Database
    standardised: jax.Array
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
    """

    scores: jax.Array
    learnt: np.ndarray
    pseudo_negatives: np.ndarray
    unconverged: int = 0


# learner(space, centred queries [B, D], marks, one seed for each query) -> Ranking
Learner = Callable[[Space, np.ndarray, Marks, list[list[int]]], Ranking]


def make_space(codes: np.ndarray) -> Space:
    """Prepare database codes [N, D] for learners."""
    database = retrieval.make_database(codes)
    std = jnp.std(database.codes, axis=0)
    scale = jnp.where(std > 1e-12, std, 1)
    return Space(database, database.codes / scale, scale)


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
) -> Ranking:
    """An SVM on the marked images and the query; signed distance to its hyperplane.

    With `pseudo_negatives` as many random images of the database that are not marked join the
    irrelevant ones: most of a large database is irrelevant to any query.
    """
    size = len(space.standardised)
    drawn = np.stack(
        [
            _draw_unmarked(size, positions, pseudo_negatives, np.random.default_rng(seed))
            for positions, seed in zip(marks.positions, seeds, strict=True)
        ]
    )
    positions = np.concatenate([marks.positions, drawn], axis=1)
    own = queries / np.asarray(space.scale)
    codes = np.asarray(space.standardised)[positions]
    samples = np.concatenate([own[:, None], codes], axis=1)
    relevant = np.concatenate(
        [np.ones((len(queries), 1), bool), marks.relevant, np.zeros(drawn.shape, bool)], axis=1
    )
    machines, convergence = svm.fit(
        samples, np.where(relevant, 1, -1), kernel=kernel, C=C, class_weight=class_weight
    )
    if kernel == "rbf" and jax.default_backend() == "cpu":
        # Sessions mark many of the same images.
        used, places = np.unique(positions, return_inverse=True)
        rows = np.concatenate([np.asarray(space.standardised)[used], own])
        own_place = len(used) + np.arange(len(own))[:, None]
        places = np.concatenate([own_place, places.reshape(positions.shape)], axis=1)
        scores = svm.rbf_decisions_of_shared(rows, places, machines, space.standardised)
        scores = jnp.asarray(scores)
    else:
        scores = svm.decisions(kernel, machines, space.standardised)
    learnt = ~relevant.all(axis=1)
    return Ranking(scores, learnt, drawn, np.count_nonzero(learnt & ~convergence.converged))


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
}


def parameters(learner: str) -> dict[str, Any]:
    """What a learner was fixed to, for the report."""
    fixed = LEARNERS[learner]
    if not isinstance(fixed, partial):
        return {}
    svm_space = {"gamma": "scale", "codes": "standardised", "tolerance": svm.TOLERANCE}
    return fixed.keywords | (svm_space if fixed.func is support_vector else {})
