"""Learners: what turns marks on images into a new ranking of the database (section III.2).

A learner sees codes and marks, never a label. Learners are chosen by name from `LEARNERS`.

The functions below take arrays of NumPy and, traced within `device_sessions`, arrays of JAX: `xp`
is the namespace of either, as the array API has it.
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
        positions: [B, M] int32 in the database; `OUTSIDE` for marks that are not made yet, so that
            one compilation serves all rounds of a session.
        relevant: [B, M] bool; false for marks that are not made yet.
    """

    positions: np.ndarray
    relevant: np.ndarray

    @property
    def irrelevant(self) -> np.ndarray:
        """[B, M] bool."""
        return ~self.relevant & (self.positions != OUTSIDE)


class Lesson(NamedTuple):
    """What a learner makes of marks.

    Attributes:
        scorer: the new ranking.
        learnt: [B] bool: false where the marks were of one kind only, nothing could be learnt,
            and the ranking stays as it was.
        pseudo_negatives: [B, P] database positions that it took for irrelevant unseen, `OUTSIDE`
            where there are fewer; P may be 0.
        unconverged: [B] bool: whether the query's machine was not solved to its tolerance.
        signed: whether scores are positive for what it takes for relevant.
    """

    scorer: Scorer
    learnt: np.ndarray
    pseudo_negatives: np.ndarray
    unconverged: np.ndarray | bool = False
    signed: bool = False


# learner(codes, centred queries [B, D], marks, one seed for each query) -> Lesson
Learner = Callable[[Codes, np.ndarray, Marks, list[list[int]]], Lesson]


def no_feedback(codes: Codes, queries: np.ndarray, marks: Marks, seeds: list[list[int]]) -> Lesson:
    """The paper's Baseline: distances to the query, whatever was marked."""
    return Lesson(Near(queries), _all(queries), _nothing(queries))


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
    xp = queries.__array_namespace__()
    marked = codes.take(marks.positions)
    moved = alpha * queries
    for weight, chosen in ((beta, marks.relevant), (-gamma, marks.irrelevant)):
        count = chosen.sum(axis=1, keepdims=True)
        total = xp.einsum("bm,bmd->bd", chosen.astype(np.float32), marked)
        moved = moved + weight * total / xp.maximum(count, 1)
    return Lesson(Near(moved.astype(np.float32)), _all(queries), _nothing(queries))


def mean_difference(
    codes: Codes, queries: np.ndarray, marks: Marks, seeds: list[list[int]], *, away: float
) -> Lesson:
    """Distances to mean+ + away (mean+ - mean-), the means of relevant (the query too) and not."""
    positive, negative = _means(codes, queries, marks)
    scorer = Near((positive + away * (positive - negative)).astype(np.float32))
    return Lesson(scorer, _all(queries), _nothing(queries))


def _means(codes: Codes, queries: np.ndarray, marks: Marks) -> tuple[np.ndarray, np.ndarray]:
    """Mean codes [B, D] of relevant images, the query among them, and of irrelevant ones.

    The latter is the former where there are none, so that their difference is zero.
    """
    xp = queries.__array_namespace__()
    marked = codes.take(marks.positions)
    relevant, irrelevant = marks.relevant[:, :, None], marks.irrelevant[:, :, None]
    positive = (queries + xp.where(relevant, marked, 0).sum(axis=1)) / (1 + relevant.sum(axis=1))
    count = irrelevant.sum(axis=1)
    negative = xp.where(irrelevant, marked, 0).sum(axis=1) / xp.maximum(count, 1)
    return positive, xp.where(count > 0, negative, positive)


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
    xp = queries.__array_namespace__()
    covariance = codes.covariance.astype(np.float64)
    mean_variance = xp.maximum(covariance.trace() / dimension, np.finfo(np.float32).tiny)
    covariance = covariance + shrinkage * mean_variance * np.eye(dimension)
    with svm.one_blas_thread():
        normals = xp.linalg.solve(covariance, target.T.astype(np.float64)).T
    intercept = -(normals * target).sum(axis=1) / 2
    weights = normals * codes.deviation  # of standardised codes
    scorer = Linear(weights.astype(np.float32), intercept.astype(np.float32))
    return Lesson(scorer, _all(queries), _nothing(queries), signed=True)


class _Samples(NamedTuple):
    """What a kernel learner is given for each of B queries: the query, marked images, others.

    Attributes:
        positions: [B, M] in the database; `OUTSIDE` for the query, which is the first, and for
            padding.
        codes: [B, M, D] float32 standardised; of no meaning for padding.
        labels: [B, M], 1 relevant, -1 not, 0 for padding.
    """

    positions: np.ndarray
    codes: np.ndarray
    labels: np.ndarray


def _samples(codes: Codes, queries: np.ndarray, marks: Marks, others: np.ndarray) -> _Samples:
    """`others` [B, P] are taken for irrelevant, those that are not `OUTSIDE`."""
    xp = queries.__array_namespace__()
    positions = xp.concat([marks.positions, others], axis=1)
    taken = xp.concat([queries[:, None], codes.take(positions)], axis=1)
    query = xp.ones((len(queries), 1), np.int32)
    irrelevant = xp.concat([marks.irrelevant, others != OUTSIDE], axis=1)
    labels = xp.concat([query, -irrelevant.astype(np.int32)], axis=1)
    relevant = xp.pad(marks.relevant, ((0, 0), (1, others.shape[1])))
    positions = xp.pad(positions, ((0, 0), (1, 0)), constant_values=OUTSIDE)
    return _Samples(positions, taken / codes.deviation, labels + relevant)


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
    distance_weight: float | None = None,
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
            retrieval's score counts. None: it is not added.
        solver: of the machine; one of `svm.SOLVERS`.
    """
    if farthest and pseudo_negatives:
        drawn = _farthest_unmarked(codes, queries, marks, pseudo_negatives)
    else:
        drawn = _drawn_unmarked(codes, marks, pseudo_negatives, seeds)
    samples = _samples(codes, queries, marks, drawn)
    options: dict[str, Any] = {"kernel": kernel, "C": C, "class_weight": class_weight}
    if isinstance(queries, np.ndarray):
        fitted = svm.fit(samples.codes, samples.labels, solver=solver, **options)
        machines, converged = fitted[0], fitted[1].converged
    else:
        machines, converged = svm.fit_traced(samples.codes, samples.labels, **options)
    learnt = queries.__array_namespace__().any(samples.labels < 0, axis=1)
    unconverged = learnt & ~converged
    if kernel == "linear":
        linear = Linear(scorers.linear_weights(machines), machines.intercept)
        return Lesson(linear, learnt, drawn, unconverged, signed=True)
    kernels = Kernel(machines, samples.positions)
    if distance_weight is not None:
        mixture = _with_distances(codes, kernels, Near(queries), distance_weight)
        return Lesson(mixture, _all(queries), drawn, unconverged)
    return Lesson(kernels, learnt, drawn, unconverged, signed=True)


def _with_distances(codes: Codes, kernel: Kernel, near: Near, weight: float) -> Mixture:
    """Both at unit deviation over evenly spaced images of the database."""
    size = len(codes)
    xp = near.points.__array_namespace__()
    some = codes.take(np.linspace(0, size - 1, min(size, SAMPLE)).astype(int))
    weights = []
    fewer = scorers.without_idle_samples(kernel) if xp is np else kernel
    for scorer, factor in ((fewer, 1.0), (near, weight)):
        scores = xp.asarray(scorers.of_codes(scorer, some, codes.deviation))
        deviation = scores.std(axis=1, dtype=np.float64)
        weights.append(factor / xp.where(deviation > 0, deviation, 1))
    return Mixture(kernel, near, xp.stack(weights, axis=1).astype(np.float32))


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
    xp = queries.__array_namespace__()
    real = (samples.labels != 0)[:, :, None]
    count = real.sum(axis=(1, 2)) * codes.dimension
    mean = xp.where(real, samples.codes, 0).sum(axis=(1, 2), dtype=np.float64) / count
    squares = xp.where(real, samples.codes - mean[:, None, None], 0) ** 2
    variance = squares.sum(axis=(1, 2)) / count
    gamma = xp.where(variance > 0, 1 / (codes.dimension * xp.where(variance > 0, variance, 1)), 1)
    gamma = gamma.astype(np.float32)
    targets = samples.labels.astype(np.float32)
    if xp is np:  # marks grow by a few a round, and every number of samples is compiled for
        padded = svm.padded(samples.codes, axis=1), svm.padded(targets, axis=1)
        coefficients = np.asarray(_solve_ridge(*padded, gamma, ridge))[:, : targets.shape[1]]
    else:
        coefficients = _solve_ridge(samples.codes, targets, gamma, ridge)
    zeros = xp.zeros(len(queries), np.float32)
    machines = Machine(samples.codes, coefficients, zeros, gamma)
    scorer = Kernel(machines, samples.positions)
    return Lesson(scorer, _all(queries), drawn, signed=True)


@jax.jit
def _solve_ridge(codes: jax.Array, targets: jax.Array, gamma: jax.Array, ridge: float) -> jax.Array:
    """Coefficients [B, M]; targets are 1 and -1, and 0 for padding, whose coefficients are 0."""
    lengths = jnp.sum(codes**2, axis=2)
    products = jnp.einsum("bmd,bnd->bmn", codes, codes, precision="highest")
    distances = jnp.maximum(lengths[:, :, None] + lengths[:, None] - 2 * products, 0)
    real = targets != 0
    kernel = jnp.exp(-gamma[:, None, None] * distances) * (real[:, :, None] & real[:, None])
    kernel = kernel + jnp.asarray(ridge, codes.dtype) * jnp.eye(codes.shape[1], dtype=codes.dtype)
    return jnp.linalg.solve(kernel, targets[..., None])[..., 0]


def _farthest_unmarked(codes: Codes, queries: np.ndarray, marks: Marks, count: int) -> np.ndarray:
    """[B, count] positions of the unmarked images farthest from each query; fewer if there are."""
    if not count:
        return _nothing(queries)
    xp = queries.__array_namespace__()
    inside = (marks.positions != OUTSIDE) & (marks.positions < len(codes))  # others are examples
    without = xp.where(inside, marks.positions, len(codes))
    if xp is np:
        without = without[:, inside.any(axis=0)]
        count = min(count, len(codes) - without.shape[1])
        if not count:
            return _nothing(queries)
    found = codes.top(Near(queries), min(count, len(codes)), without, show="worst")
    return xp.where(xp.isfinite(found.scores), found.positions, OUTSIDE)


def _drawn_unmarked(codes: Codes, marks: Marks, count: int, seeds: Any) -> np.ndarray:
    """[B, count] positions of unmarked images drawn at random; fewer if there are.

    `seeds` are of each query; or `candidates` [B, C], where JAX traces this.
    """
    if not count:
        return _nothing(marks.positions)
    if isinstance(marks.positions, np.ndarray):
        made = (marks.positions != OUTSIDE).sum(axis=1)
        seeds = np.stack(
            [
                candidates(len(codes), count + marked, seed)
                for marked, seed in zip(made, seeds, strict=True)
            ]
        )
    xp = marks.positions.__array_namespace__()
    marked = (seeds[:, :, None] == marks.positions[:, None]).any(axis=2) | (seeds == OUTSIDE)
    order = xp.argsort(marked, axis=1, stable=True)[:, :count]
    drawn = xp.where(marked, OUTSIDE, seeds)
    drawn = xp.take_along_axis(drawn, order, axis=1)
    return drawn[:, (drawn != OUTSIDE).any(axis=0)] if xp is np else drawn


def candidates(size: int, count: int, seed: list[int]) -> np.ndarray:
    """[count] different positions below `size`, in random order; fewer if there are no more."""
    return np.random.default_rng(seed).choice(size, min(size, count), replace=False)


def _nothing(queries: np.ndarray) -> np.ndarray:
    return np.zeros((len(queries), 0), np.int64)


def _all(queries: np.ndarray) -> np.ndarray:
    return np.ones(len(queries), bool)


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


# These take marks at a session's full width, and arrays of JAX.
_TRACEABLE = (no_feedback, rocchio, mean_difference, discriminant, support_vector, kernel_ridge)


def takes_unmade_marks(learner: Learner) -> bool:
    """Whether a learner takes marks of which some are not made yet; others get those made."""
    return (isinstance(learner, partial) and learner.func in _TRACEABLE) or learner is no_feedback


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
