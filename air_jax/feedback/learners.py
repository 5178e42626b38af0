"""Learners: what turns marks on images into a new ranking of the database (section III.2).

A learner sees codes and marks, never a label. Learners are chosen by name from `LEARNERS`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from air_jax.feedback import svm
from air_jax.runtime.checksums import hash_of_code
from air_jax.search import scorers
from air_jax.search.codes import Codes
from air_jax.search.scorers import OUTSIDE, Kernel, Linear, Machine, Mixture, Near, Scorer


class Marks(NamedTuple):
    """What users said of shown images, B queries in a block.

    Attributes:
        positions: [B, M] int32 in the database.
        relevant: [B, M] bool.
    """

    positions: np.ndarray
    relevant: np.ndarray


class Lesson(NamedTuple):
    """What a learner makes of marks.

    Attributes:
        scorer: the new ranking.
        learnt: [B] bool: false where the marks were of one kind only, nothing could be learnt,
            and the ranking stays as it was.
        pseudo_negatives: [B, P] database positions that it took for irrelevant unseen; P may be 0.
        unconverged: queries whose machine was not solved to its tolerance.
        signed: whether scores are positive for what it takes for relevant.
    """

    scorer: Scorer
    learnt: np.ndarray
    pseudo_negatives: np.ndarray
    unconverged: int = 0
    signed: bool = False


# learner(codes, centred queries [B, D], marks, one seed for each query) -> Lesson
Learner = Callable[[Codes, np.ndarray, Marks, list[list[int]]], Lesson]


def no_feedback(codes: Codes, queries: np.ndarray, marks: Marks, seeds: list[list[int]]) -> Lesson:
    """The paper's Baseline: distances to the query, whatever was marked."""
    return Lesson(Near(queries), np.ones(len(queries), bool), _nothing(queries))


def rocchio(
    codes: Codes,
    queries: np.ndarray,
    marks: Marks,
    seeds: list[list[int]],
    *,
    alpha: float,
    beta: float,
    gamma: float,
) -> Lesson:
    """Rocchio's query: alpha q + beta mean(relevant) - gamma mean(irrelevant), then distances."""
    marked = codes.take(marks.positions)
    moved = alpha * queries
    for weight, chosen in ((beta, marks.relevant), (-gamma, ~marks.relevant)):
        count = chosen.sum(axis=1, keepdims=True)
        total = np.einsum("bm,bmd->bd", chosen.astype(np.float32), marked)
        moved = moved + weight * total / np.maximum(count, 1)
    scorer = Near(moved.astype(np.float32))
    return Lesson(scorer, np.ones(len(queries), bool), _nothing(queries))


def mean_difference(
    codes: Codes, queries: np.ndarray, marks: Marks, seeds: list[list[int]], *, away: float
) -> Lesson:
    """Distances to mean+ + away (mean+ - mean-), the means of relevant (the query too) and not."""
    positive, negative = _means(codes, queries, marks)
    scorer = Near((positive + away * (positive - negative)).astype(np.float32))
    return Lesson(scorer, np.ones(len(queries), bool), _nothing(queries))


def _means(codes: Codes, queries: np.ndarray, marks: Marks) -> tuple[np.ndarray, np.ndarray]:
    """Mean codes [B, D] of relevant images, the query among them, and of irrelevant ones.

    The latter is the former where there are none, so that their difference is zero.
    """
    marked = codes.take(marks.positions)
    relevant = marks.relevant[:, :, None]
    positive = (queries + np.where(relevant, marked, 0).sum(axis=1)) / (1 + relevant.sum(axis=1))
    count = (~relevant).sum(axis=1)
    negative = np.where(relevant, 0, marked).sum(axis=1) / np.maximum(count, 1)
    return positive, np.where(count > 0, negative, positive)


def discriminant(
    codes: Codes,
    queries: np.ndarray,
    marks: Marks,
    seeds: list[list[int]],
    *,
    shrinkage: float,
    away: float,
) -> Lesson:
    """Fisher's linear discriminant, with the whole database's covariance for that of a class.

    Nearly all of a large database is irrelevant to a query, so it needs no drawn negatives: the
    relevant mean, moved by `away` times its difference from the irrelevant one, is told from the
    database's mean. The hyperplane lies half way between the two. Marks of one kind teach it, too.

    Args:
        codes: of the database.
        queries: [B, D] centred.
        marks: of each.
        seeds: not used.
        shrinkage: what is added to the covariance's diagonal, in units of the mean variance.
        away: see above.
    """
    positive, negative = _means(codes, queries, marks)
    target = positive + away * (positive - negative)
    dimension = codes.dimension
    covariance = codes.covariance.astype(np.float64)
    mean_variance = max(np.trace(covariance) / dimension, np.finfo(np.float32).tiny)
    covariance = covariance + shrinkage * mean_variance * np.eye(dimension)
    with svm.one_blas_thread():
        normals = np.linalg.solve(covariance, target.T).T
    intercept = -(normals * target).sum(axis=1) / 2
    weights = normals * codes.deviation  # of standardised codes
    scorer = Linear(weights.astype(np.float32), intercept.astype(np.float32))
    return Lesson(scorer, np.ones(len(queries), bool), _nothing(queries), signed=True)


class _Samples(NamedTuple):
    """What a kernel learner is given for each of B queries: the query, marked images, others.

    Attributes:
        positions: [B, M] in the database; `OUTSIDE` for the query, which is the first.
        codes: [B, M, D] float32 standardised.
        relevant: [B, M] bool.
    """

    positions: np.ndarray
    codes: np.ndarray
    relevant: np.ndarray


def _samples(codes: Codes, queries: np.ndarray, marks: Marks, others: np.ndarray) -> _Samples:
    """`others` [B, P] are taken for irrelevant."""
    positions = np.concatenate([marks.positions, others], axis=1)
    taken = np.concatenate([queries[:, None], codes.take(positions)], axis=1)
    relevant = np.concatenate(
        [np.ones((len(queries), 1), bool), marks.relevant, np.zeros(others.shape, bool)], axis=1
    )
    positions = np.pad(positions, ((0, 0), (1, 0)), constant_values=OUTSIDE)
    return _Samples(positions, taken / codes.deviation, relevant)


def support_vector(
    codes: Codes,
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
    solver: str = "smo",
) -> Lesson:
    """An SVM on the marked images and the query; signed distance to its hyperplane.

    Args:
        codes: of the database.
        queries: [B, D] centred.
        marks: of each.
        seeds: of each.
        kernel: "linear" or "rbf".
        C: penalty.
        class_weight: None or "balanced".
        pseudo_negatives: so many unmarked images join the irrelevant ones: most of a large database
            is irrelevant to any query.
        farthest: these are the images farthest from the query; else they are drawn at random.
        distance_weight: by which the first retrieval's score is added; both scores are first taken
            to unit deviation over some of the database. Where nothing can be learnt, only the first
            retrieval's score counts.
        solver: of the machine; one of `svm.SOLVERS`.
    """
    if farthest and pseudo_negatives:
        drawn = _farthest_unmarked(codes, queries, marks, pseudo_negatives)
    else:
        size = len(codes)
        drawn = np.stack(
            [
                _draw_unmarked(size, positions, pseudo_negatives, np.random.default_rng(seed))
                for positions, seed in zip(marks.positions, seeds, strict=True)
            ]
        )
    samples = _samples(codes, queries, marks, drawn)
    machines, convergence = svm.fit(
        samples.codes,
        np.where(samples.relevant, 1, -1),
        kernel=kernel,
        C=C,
        class_weight=class_weight,
        solver=solver,
    )
    learnt = np.any(~samples.relevant, axis=1)
    unconverged = int(np.count_nonzero(learnt & ~convergence.converged))
    if kernel == "linear":
        linear = Linear(scorers.linear_weights(machines), machines.intercept)
        return Lesson(linear, learnt, drawn, unconverged, signed=True)
    kernels = Kernel(machines, samples.positions)
    if distance_weight:
        mixture = _with_distances(codes, kernels, Near(queries), distance_weight)
        return Lesson(mixture, np.ones(len(queries), bool), drawn, unconverged)
    return Lesson(kernels, learnt, drawn, unconverged, signed=True)


def _with_distances(codes: Codes, kernel: Kernel, near: Near, weight: float) -> Mixture:
    """Both at unit deviation over evenly spaced images of the database."""
    size = len(codes)
    some = codes.take(np.linspace(0, size - 1, min(size, SAMPLE)).astype(int))
    weights = []
    fewer = scorers.without_idle_samples(kernel)
    for scorer, factor in ((fewer, 1.0), (near, weight)):
        scores = np.asarray(scorers.of_codes(scorer, some, codes.deviation))
        deviation = scores.std(axis=1, dtype=np.float64)
        weights.append(factor / np.where(deviation > 0, deviation, 1))
    return Mixture(kernel, near, np.stack(weights, axis=1).astype(np.float32))


def kernel_ridge(
    codes: Codes,
    queries: np.ndarray,
    marks: Marks,
    seeds: list[list[int]],
    *,
    ridge: float,
    pseudo_negatives: int = 0,
) -> Lesson:
    """Regression of +1 and -1 with the RBF kernel, in closed form: (K + ridge I) c = y.

    It has no intercept: far from all marks its score is 0. Marks of one kind teach it, too.
    `pseudo_negatives` as for `support_vector`, the farthest.
    """
    drawn = _farthest_unmarked(codes, queries, marks, pseudo_negatives)
    samples = _samples(codes, queries, marks, drawn)
    variance = samples.codes.var(axis=(1, 2), dtype=np.float64)
    gamma = np.where(variance > 0, 1 / (codes.dimension * np.where(variance > 0, variance, 1)), 1)
    gamma = gamma.astype(np.float32)
    # Marks grow by a few a round, and every number of samples is compiled for.
    targets = svm.padded(np.where(samples.relevant, np.float32(1), np.float32(-1)), axis=1)
    coefficients = _solve_ridge(svm.padded(samples.codes, axis=1), targets, gamma, ridge)
    coefficients = np.asarray(coefficients)[:, : samples.relevant.shape[1]]
    zeros = np.zeros(len(queries), np.float32)
    machines = Machine(samples.codes, coefficients, zeros, gamma)
    scorer = Kernel(machines, samples.positions)
    return Lesson(scorer, np.ones(len(queries), bool), drawn, signed=True)


@jax.jit
def _solve_ridge(codes: jax.Array, targets: jax.Array, gamma: jax.Array, ridge: float) -> jax.Array:
    """Coefficients [B, M]; targets are 1 and -1, and 0 for padding, whose coefficients are 0."""
    lengths = jnp.sum(codes**2, axis=2)
    products = jnp.einsum("bmd,bnd->bmn", codes, codes, precision="highest")
    distances = jnp.maximum(lengths[:, :, None] + lengths[:, None] - 2 * products, 0)
    real = targets != 0
    kernel = jnp.exp(-gamma[:, None, None] * distances) * (real[:, :, None] & real[:, None])
    kernel = kernel + ridge * jnp.eye(codes.shape[1])
    return jnp.linalg.solve(kernel, targets[..., None])[..., 0]


def _farthest_unmarked(codes: Codes, queries: np.ndarray, marks: Marks, count: int) -> np.ndarray:
    """[B, count] positions of the unmarked images farthest from each query; fewer if there are."""
    inside = (marks.positions < len(codes)).any(axis=0)  # others are examples
    without = marks.positions[:, inside]
    count = min(count, len(codes) - without.shape[1])
    if not count:
        return _nothing(queries)
    return codes.top(Near(queries), count, without, show="worst").positions


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


SAMPLE = 4096  # images of the database that deviations of scores are taken over

LEARNERS: dict[str, Learner] = {
    "none": no_feedback,
    "svc": partial(support_vector, kernel="rbf", C=10.0),
    "svc_linear": partial(support_vector, kernel="linear", C=1.0),
    "svc_pseudo": partial(
        support_vector, kernel="rbf", C=10.0, class_weight="balanced", pseudo_negatives=200
    ),
    "rocchio": partial(rocchio, alpha=1.0, beta=0.75, gamma=0.15),
    # The others' constants were chosen on validation queries by `air_jax.compare`, but for `means`.
    "svc_balanced": partial(support_vector, kernel="rbf", C=1.0, class_weight="balanced"),
    "svc_farthest": partial(
        support_vector,
        kernel="rbf",
        C=1.0,
        class_weight="balanced",
        pseudo_negatives=200,
        farthest=True,
    ),
    "svc_distance": partial(support_vector, kernel="rbf", C=1.0, distance_weight=2.0),
    "ridge": partial(kernel_ridge, ridge=0.1),
    "ridge_pseudo": partial(kernel_ridge, ridge=0.1, pseudo_negatives=50),
    "means": partial(mean_difference, away=1.0),
    "discriminant": partial(discriminant, shrinkage=3.0, away=1.0),
}


def makes_kernels(learner: str) -> bool:
    """Whether a learner's scorer is a `Kernel` or a `Mixture`, which not all codes rank by."""
    fixed = LEARNERS[learner]
    if not isinstance(fixed, partial):
        return False
    return fixed.func is kernel_ridge or fixed.keywords.get("kernel") == "rbf"


def with_solver(learner: str, solver: str) -> Learner:
    """A learner of `LEARNERS`; those that fit an SVM do so by one of `svm.SOLVERS`."""
    fixed = LEARNERS[learner]
    if isinstance(fixed, partial) and fixed.func is support_vector:
        return partial(fixed, solver=solver)
    return fixed


def parameters(learner: str, solver: str = "smo") -> dict[str, Any]:
    """What a learner was fixed to, for the report."""
    fixed = with_solver(learner, solver)
    if not isinstance(fixed, partial):
        return {}
    machine = {"gamma": "scale", "codes": "standardised"}
    if fixed.func is support_vector:
        return fixed.keywords | machine | {"tolerance": svm.TOLERANCE}
    return fixed.keywords | (machine if fixed.func is kernel_ridge else {})


def made_from(learner: str, solver: str = "smo") -> dict[str, Any]:
    """All that a learner's results depend on: what it was fixed to, and a hash of its code."""
    return parameters(learner, solver) | {"code": hash_of_code(LEARNERS[learner])}
