"""Support vector machines, many at once: fitted by SMO, evaluated over the whole database.

Section III.2: the database is ranked by the signed distance to the hyperplane, which orders
images as the decision value does.

The solver is sequential minimal optimisation with second-order working sets (Fan, Chen and Lin,
2005), LIBSVM's, in double precision, for a batch of small problems of equal padded size. Its dual
is written in signed multipliers b_i = y_i alpha_i (Bottou and Lin, 2007):

    maximise  sum_i y_i b_i - 1/2 sum_ij b_i K_ij b_j
    subject to  sum_i b_i = 0,  0 <= y_i b_i <= C_i

with gradient g_i = y_i - sum_j K_ij b_j. It is solved once no b_i that can grow has a gradient more
than the tolerance above that of one that can shrink.

Linear machines of many noisy samples need millions of such steps; `interior_point` solves them.
"""

import contextlib
import functools
import math
import os
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import SVC

from air_jax.feedback import interior_point
from air_jax.feedback.interior_point import optimality_gap
from air_jax.runtime import sharding
from air_jax.search.scorers import ROUNDING, Machine

KERNELS = ("linear", "rbf")
SOLVERS = ("smo", "sklearn")
TOLERANCE = 1e-5  # of the gradients' gap
MAX_ITERATIONS = 20_000  # of SMO, and
MAX_ITERATIONS_PER_SAMPLE = 100  # of large problems
TURN = 128  # iterations
# Measured with 128-d codes, one machine at a time. Linear machines of more samples go to the
# interior-point method at once; RBF machines of more go to libsvm, which holds no whole matrix.
MOST_LINEAR, MOST_RBF = 256, 8192  # samples
ROWS = 1024  # of a kernel at a time
SLOTS_ON_CPU, SLOTS = 64, 8192  # problems worked on at a time: as many as a core's cache holds
CORES = os.cpu_count() or 1
SMALLEST_CURVATURE = 1e-12  # of a pair of equal samples, as in LIBSVM

# Multipliers and gradients [S, M], gaps and iterations [S] of S problems.
Carry = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


class Convergence(NamedTuple):
    """How well each problem was solved.

    Attributes:
        converged: [B] bool: the gap is within the tolerance, and the intercept is defined.
        gap: [B] float64, by how much the optimality conditions are violated; 0 or less is exact.
        iterations: [B] int32.
    """

    converged: np.ndarray
    gap: np.ndarray
    iterations: np.ndarray


def fit(
    samples: np.ndarray,
    labels: np.ndarray,
    *,
    kernel: str = "rbf",
    C: float = 10.0,
    class_weight: str | None = None,
    tolerance: float = TOLERANCE,
    max_iterations: int | None = None,
    solver: str = "smo",
) -> tuple[Machine, Convergence]:
    """Fit one machine to each of B sets of samples: scikit-learn's `SVC` with gamma "scale".

    Args:
        samples: [B, M, D].
        labels: [B, M], +1 relevant, -1 not, 0 for padding. A set of one class, or none, gives a
            machine that decides 0 for everything.
        kernel: "linear" or "rbf".
        C: penalty of the margin's violations.
        class_weight: None or "balanced".
        tolerance: of the optimality conditions. SVC's default is 1e-3.
        max_iterations: of SMO, after which it leaves a problem unsolved; by default
            `MAX_ITERATIONS`, or `MAX_ITERATIONS_PER_SAMPLE` times M if that is more.
        solver: "smo", all at once on JAX's default device, and what SMO is slow at by other
            methods; or "sklearn", all by scikit-learn, one after another.

    Raises:
        ValueError: unknown names, shapes that do not fit, C not positive, labels that are none, or
            samples that are not finite.
    """
    samples, labels = np.asarray(samples, np.float32), np.asarray(labels)
    _check(samples, labels, kernel, C, class_weight, solver)
    upper = C * _class_weights(labels, class_weight)
    upper[~_has_two_classes(labels)] = 0
    width = labels.shape[1]
    if max_iterations is None:
        max_iterations = max(MAX_ITERATIONS, MAX_ITERATIONS_PER_SAMPLE * width)
    arrays = samples, labels, upper
    if solver == "sklearn" or (kernel == "rbf" and width > MOST_RBF):
        limit = None if solver == "sklearn" else max_iterations
        solution = _solve_by_sklearn(
            *arrays, kernel=kernel, tolerance=tolerance, max_iterations=limit
        )
    elif kernel == "linear" and width > MOST_LINEAR:
        solution = _solve_by_interior_points(*arrays)
    else:
        solution = _solve_on_all_cores(
            *arrays, kernel=kernel, tolerance=tolerance, max_iterations=max_iterations
        )
        left = np.flatnonzero(solution.gap > tolerance)
        if kernel == "linear" and len(left):
            better = _solve_by_interior_points(*(array[left] for array in arrays))
            for whole, part in zip(solution, better, strict=True):
                whole[left] = part
    machines = Machine(
        samples,
        solution.multipliers.astype(np.float32),
        solution.intercept.astype(np.float32),
        solution.gamma.astype(np.float32),
    )
    converged = ~(solution.gap > tolerance + solution.slack)
    return machines, Convergence(converged, solution.gap, solution.iterations)


def fit_traced(
    samples: Any,
    labels: Any,
    *,
    kernel: str,
    C: Any,
    class_weight: str | None,
) -> tuple[Machine, Any]:
    """`fit` by SMO as a part of a program that JAX traces, with 64-bit numbers enabled.

    All problems go on until the slowest is solved; the host has no part in it.

    Args:
        samples: [B, M, D] float32, an array of JAX.
        labels: [B, M], 1 relevant, -1 not, 0 for padding; likewise.
        kernel, C, class_weight: as of `fit`.

    Returns:
        The machines, and whether each was solved to `TOLERANCE`, [B] bool.
    """
    signs = labels.astype(jnp.float64)
    upper = C * _class_weights(labels, class_weight) * _has_two_classes(labels)[:, None]
    count = len(labels)
    most = max(MAX_ITERATIONS, MAX_ITERATIONS_PER_SAMPLE * labels.shape[1])
    multipliers, _, intercept, gamma, gap, _ = _take_turn(
        samples,
        signs,
        upper,
        jnp.zeros_like(signs),
        signs,  # the gradient, since multipliers are zero
        jnp.zeros(count, jnp.int32),
        jnp.float64(TOLERANCE),
        jnp.int32(most),
        jnp.full(count, most, jnp.int32),
        kernel=kernel,
    )
    machine: tuple[Any, ...] = (multipliers, intercept, gamma)
    values = (array.astype(jnp.float32) for array in machine)
    return Machine(samples, *values), ~(gap > TOLERANCE)


class _Solution(NamedTuple):
    """Signed multipliers [B, M] of B problems, and what belongs to them [B].

    `slack` is what the gap may exceed the tolerance by, where a kernel was kept in float32.
    """

    multipliers: np.ndarray
    intercept: np.ndarray
    gamma: np.ndarray
    gap: np.ndarray
    iterations: np.ndarray
    slack: np.ndarray


@functools.cache
def _blas() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController()


_BLAS_ACCESS = threading.Lock()


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Of so small equations BLAS's threads wait for each other, beside other work long."""
    # Two threads at once would leave the limit behind.
    with _BLAS_ACCESS, _blas().limit(limits=1, user_api="blas"):
        yield


def _check(
    samples: np.ndarray,
    labels: np.ndarray,
    kernel: str,
    C: float,
    class_weight: str | None,
    solver: str,
) -> None:
    for name, value, known in (("kernel", kernel, KERNELS), ("solver", solver, SOLVERS)):
        if value not in known:
            raise ValueError(f"{name}={value!r}: expected one of {', '.join(known)}")
    if class_weight not in (None, "balanced"):
        raise ValueError(f"class_weight={class_weight!r}: expected None or 'balanced'")
    if not (np.isfinite(C) and C > 0):
        raise ValueError(f"C={C}: expected a positive number")
    if samples.ndim != 3 or labels.shape != samples.shape[:2]:
        raise ValueError(
            f"samples of shape {list(samples.shape)} with labels of shape {list(labels.shape)}: "
            "expected [B, M, D] and [B, M]"
        )
    if not np.isin(labels, (-1, 0, 1)).all():
        raise ValueError(
            f"labels hold {sorted(set(np.unique(labels)) - {-1, 0, 1})}; expected +1 relevant, "
            "-1 not, 0 for padding"
        )
    finite = np.isfinite(samples).all(axis=(1, 2))
    if not finite.all():
        raise ValueError(
            f"samples of {np.count_nonzero(~finite)} of {len(samples)} problems hold NaN or "
            f"infinity, the first is problem {int(np.argmin(finite))}"
        )


def _has_two_classes(labels: np.ndarray) -> np.ndarray:
    xp = labels.__array_namespace__()
    two: np.ndarray = xp.any(labels > 0, axis=1) & xp.any(labels < 0, axis=1)
    return two


def _class_weights(labels: np.ndarray, class_weight: str | None) -> np.ndarray:
    """By which C is multiplied for each sample, [B, M] float64; 0 for padding."""
    xp = labels.__array_namespace__()
    weights = (labels != 0).astype(np.float64)
    if class_weight is None:
        return weights
    total = weights.sum(axis=1, keepdims=True)
    for label in (1, -1):
        own = labels == label
        count = own.sum(axis=1, keepdims=True)
        weights = xp.where(own, total / (2 * xp.maximum(count, 1)), weights)
    return weights


def _solve_on_all_cores(*arrays: np.ndarray, **options: Any) -> _Solution:
    """`_solve` in as many threads as help: XLA does a solver's steps in order, on one core."""
    solve = partial(_solve, **options)
    on_cpu = sharding.on_cpu()
    threads = min(CORES, math.ceil(len(arrays[0]) / SLOTS_ON_CPU)) if on_cpu else 1
    if threads <= 1:
        return solve(*arrays)
    with ThreadPoolExecutor(threads) as pool:
        parts = pool.map(solve, *(np.array_split(array, threads) for array in arrays))
        return _Solution(*map(np.concatenate, zip(*parts, strict=True)))


def _solve(
    samples: np.ndarray,
    labels: np.ndarray,
    upper: np.ndarray,
    *,
    kernel: str,
    tolerance: float,
    max_iterations: int,
) -> _Solution:
    """Solve problems by SMO.

    Problems differ tenfold in the iterations they need. So the solver works on some problems at a
    time, `TURN` iterations each, and a solved problem makes room for the next.
    """
    problems = [padded(array, 1) for array in (samples, labels.astype(np.float64), upper)]
    count, width = problems[1].shape
    slots = min(count, SLOTS_ON_CPU if sharding.on_cpu() else SLOTS)
    multipliers = np.zeros((count, width))
    intercepts, gammas, gaps = np.zeros(count), np.zeros(count), np.zeros(count)
    iterations = np.zeros(count, np.int32)
    gradients = np.zeros((slots, width))
    owners = np.arange(slots)  # of each slot; -1 once there is nothing left to do
    waiting = slots
    gradients[:] = problems[1][owners]  # multipliers are zero
    while (owners >= 0).any():
        with jax.enable_x64(True):  # float32 gradients drift off within a few thousand iterations
            found = _take_turn(
                *(array[owners] for array in problems),
                multipliers[owners],
                gradients,
                iterations[owners],
                tolerance,
                # A problem that nothing waits for is worked on to its end: each turn begins with
                # the kernel's matrix.
                TURN if waiting < count else max_iterations,
                np.where(owners >= 0, max_iterations, 0),
                kernel=kernel,
            )
            own, gradients, *figures = (np.array(array) for array in found)
        busy = owners >= 0
        multipliers[owners[busy]] = own[busy]
        kept: tuple[np.ndarray, ...] = (intercepts, gammas, gaps, iterations)
        for array, values in zip(kept, figures, strict=True):
            array[owners[busy]] = values[busy]
        done = busy & (~(gaps[owners] > tolerance) | (iterations[owners] >= max_iterations))
        freed = int(done.sum())
        following = np.arange(waiting, min(waiting + freed, count))
        waiting += len(following)
        owners[done] = np.pad(following, (0, freed - len(following)), constant_values=-1)
        fresh = done & (owners >= 0)
        gradients[fresh] = problems[1][owners[fresh]]
    multipliers = multipliers[:, : labels.shape[1]]
    return _Solution(multipliers, intercepts, gammas, gaps, iterations, np.zeros(count))


@partial(jax.jit, static_argnames="kernel")
def _take_turn(
    samples: jax.Array,
    labels: jax.Array,
    upper: jax.Array,
    multipliers: jax.Array,
    gradient: jax.Array,
    iterations: jax.Array,
    tolerance: jax.Array,
    turn: jax.Array,
    max_iterations: jax.Array,
    *,
    kernel: str,
) -> tuple[jax.Array, ...]:
    """Up to `turn` iterations on each of S problems.

    Returns:
        Multipliers and gradients [S, M], intercepts, gammas, gaps and iterations [S].
    """
    samples = samples.astype(jnp.float64)
    matrix = jnp.einsum("bmd,bnd->bmn", samples, samples, precision="highest")
    diagonal = jnp.diagonal(matrix, axis1=1, axis2=2)
    gamma = _gamma_scale(samples, diagonal, (labels != 0).astype(samples.dtype))
    if kernel == "rbf":
        distances = diagonal[:, :, None] + diagonal[:, None, :] - 2 * matrix
        matrix = jnp.exp(-gamma[:, None, None] * jnp.maximum(distances, 0))
        diagonal = jnp.ones_like(diagonal)
    low, high = jnp.minimum(labels * upper, 0), jnp.maximum(labels * upper, 0)
    count = labels.shape[1]
    places = jnp.arange(count)

    def best(values: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Each row's largest value [B, 1] and its first place [B, 1]."""
        largest = jnp.max(values, axis=1, keepdims=True)
        return largest, jnp.min(
            jnp.where(values == largest, places, count - 1), axis=1, keepdims=True
        )

    def row(of: jax.Array) -> jax.Array:
        return jnp.take_along_axis(matrix, of[:, :, None], axis=1)[:, 0]

    def at(values: jax.Array, of: jax.Array) -> jax.Array:
        return jnp.take_along_axis(values, of, axis=1)

    def gaps(multipliers: jax.Array, gradient: jax.Array) -> tuple[jax.Array, ...]:
        grows = jnp.where(multipliers < high, gradient, -jnp.inf)
        shrinks = jnp.where(multipliers > low, gradient, jnp.inf)
        most, i = best(grows)
        least = jnp.min(shrinks, axis=1, keepdims=True)
        return most, least, i, shrinks

    end = jnp.minimum(iterations + turn, max_iterations)

    def unfinished(carry: Carry) -> jax.Array:
        _, _, gap, iterations = carry
        return jnp.any((gap > tolerance) & (iterations < end))

    def iterate(carry: Carry) -> Carry:
        multipliers, gradient, _, iterations = carry
        most, least, i, shrinks = gaps(multipliers, gradient)
        gap = (most - least)[:, 0]
        going = (gap > tolerance) & (iterations < end)
        row_i = row(i)
        curvature = at(diagonal, i) + diagonal - 2 * row_i
        curvature = jnp.where(curvature > 0, curvature, SMALLEST_CURVATURE)
        violation = most - shrinks
        gain = jnp.where(violation > 0, violation**2 / curvature, -jnp.inf)
        _, j = best(gain)
        room_i = at(high, i) - at(multipliers, i)
        room_j = at(multipliers, j) - at(low, j)
        step = at(violation, j) / at(curvature, j)
        step = jnp.where(going[:, None], jnp.minimum(step, jnp.minimum(room_i, room_j)), 0)
        is_i, is_j = going[:, None] & (places == i), going[:, None] & (places == j)
        moved = multipliers + step * is_i - step * is_j
        # A multiplier at its bound is exactly there, whatever the rounding.
        moved = jnp.where(is_i & (step == room_i), high, moved)
        moved = jnp.where(is_j & (step == room_j), low, moved)
        return moved, gradient - step * (row_i - row(j)), gap, iterations + going

    start = (multipliers, gradient, jnp.full(len(labels), jnp.inf), iterations)
    multipliers, gradient, _, iterations = jax.lax.while_loop(unfinished, iterate, start)
    # On the margin the gradient is the intercept; with no sample there, it lies between the sides.
    free = (multipliers > low) & (multipliers < high)
    on_margin = jnp.sum(jnp.where(free, gradient, 0), axis=1) / jnp.maximum(free.sum(axis=1), 1)
    most, least, _, _ = gaps(multipliers, gradient)
    middle = ((most + least) / 2)[:, 0]
    intercept = jnp.where(free.any(axis=1), on_margin, middle)
    intercept = jnp.where(jnp.isfinite(intercept), intercept, 0)
    return multipliers, gradient, intercept, gamma, (most - least)[:, 0], iterations


def _gamma_scale(samples: jax.Array, squares: jax.Array, real: jax.Array) -> jax.Array:
    """1 / (D var) over the values of each problem's real samples; 1 if they are constant.

    Of samples [B, M, D], their squared lengths [B, M], and 1 for real or 0 for padding [B, M]; all
    float64, in which no float32 values but constant ones have so small a variance.
    """
    dimension = samples.shape[2]
    count = jnp.maximum(real.sum(axis=1) * dimension, 1)
    mean = jnp.einsum("bmd,bm->bd", samples, real, precision="highest").sum(axis=1) / count
    power = (squares * real).sum(axis=1) / count
    variance = power - mean**2
    varies = variance > 1e-14 * power
    return jnp.where(varies, 1 / (dimension * jnp.where(varies, variance, 1)), 1)


def _solve_by_sklearn(
    samples: np.ndarray,
    labels: np.ndarray,
    upper: np.ndarray,
    *,
    kernel: str,
    tolerance: float,
    max_iterations: int | None = None,
) -> _Solution:
    """As `_solve`, one problem after another; without a limit of iterations unless one is given."""
    solution = _unsolved(labels)
    for b in np.flatnonzero(upper.any(axis=1)):
        real = np.flatnonzero(labels[b])
        codes, signs = samples[b, real].astype(np.float64), labels[b, real]
        # gamma="scale" is the default. Half the tolerance leaves room for the float32 kernel.
        svc = SVC(kernel=kernel, C=1, tol=tolerance / 2, max_iter=max_iterations or -1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the gap says it
            svc.fit(codes, signs, sample_weight=upper[b, real])
        multipliers = np.zeros(len(real))
        multipliers[svc.support_] = svc.dual_coef_[0]
        gradient = signs - _products(kernel, codes, svc.support_, svc.dual_coef_[0], svc._gamma)
        solution.multipliers[b, real] = multipliers
        solution.intercept[b], solution.iterations[b] = svc.intercept_[0], svc.n_iter_[0]
        solution.gamma[b] = svc._gamma
        solution.gap[b], _ = optimality_gap(multipliers, gradient, signs * upper[b, real])
        largest = 1 if kernel == "rbf" else np.square(codes).sum(axis=1).max()
        solution.slack[b] = ROUNDING * largest * np.abs(multipliers).sum()
    return solution


def _unsolved(labels: np.ndarray) -> _Solution:
    count = len(labels)
    zeros = [np.zeros(count) for _ in range(4)]
    zeros[1] += 1
    intercept, gamma, gap, slack = zeros
    iterations = np.zeros(count, np.int32)
    return _Solution(np.zeros(labels.shape), intercept, gamma, gap, iterations, slack)


def _products(
    kernel: str, codes: np.ndarray, support: np.ndarray, multipliers: np.ndarray, gamma: float
) -> np.ndarray:
    """sum_j K_ij b_j of codes [M, D], some of which are the support; a part of K at a time."""
    if kernel == "linear":
        return codes @ (multipliers @ codes[support])
    own = codes[support]
    lengths, own_lengths = np.square(codes).sum(axis=1), np.square(own).sum(axis=1)
    parts = []
    for start in range(0, len(codes), ROWS):
        rows = slice(start, start + ROWS)
        squares = lengths[rows, None] + own_lengths - 2 * codes[rows] @ own.T
        parts.append(np.exp(-gamma * np.maximum(squares, 0)) @ multipliers)
    return np.concatenate(parts)


def _solve_by_interior_points(
    samples: np.ndarray, labels: np.ndarray, upper: np.ndarray
) -> _Solution:
    """As `_solve`, of linear machines, one after another, as exactly as double precision can."""
    solution = _unsolved(labels)
    for b in np.flatnonzero(upper.any(axis=1)):
        real = np.flatnonzero(labels[b])
        codes, signs = samples[b, real].astype(np.float64), labels[b, real].astype(np.float64)
        codes -= codes.mean(axis=0)  # the constraint takes it off anyway
        with one_blas_thread():
            multipliers, gap, intercept, steps = interior_point.solve(codes, signs, upper[b, real])
        # The hyperplane's normal has the same product with all of the mean that was taken off.
        normal, mean = multipliers @ codes, samples[b, real].mean(axis=0, dtype=np.float64)
        solution.multipliers[b, real] = multipliers
        solution.intercept[b] = intercept - normal @ mean
        solution.gap[b], solution.iterations[b] = gap, steps
    return solution


def padded(values: np.ndarray, axis: int) -> np.ndarray:
    """With zeros at the end of an axis, to one of few lengths: there is a compilation for each."""
    length = values.shape[axis]
    step = max(32, 2 ** (length.bit_length() - 3))
    widths = [(0, 0)] * values.ndim
    widths[axis] = (0, -length % step)
    return np.pad(values, widths)
