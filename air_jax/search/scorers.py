"""Scorers: what a learner makes of marks. A scorer gives any code a score, higher being better.

Scorers of B rankings are pytrees of arrays whose first axis is B. They take centred codes, and the
deviation of the database where they need it, so that they score a database on the device, one on
disk, or a single new image alike. Section III.2: the database is ranked by the signed distance to
the hyperplane of a machine, which orders images as the decision value does.
"""

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from threadpoolctl import threadpool_limits

from air_jax.runtime import sharding
from air_jax.search.distances import negative_distances

TILE = 1024  # codes, at least, whose distances to all samples are held at once
DISTANCES = 2**18  # so many distances are held if the samples are few
BATCHED = 2**28  # distances of samples and codes that an accelerator holds at once
CORES = os.cpu_count() or 1
# A session's marks grow by a few a round, and every number of samples is compiled for: it is
# rounded up.
SAMPLES = (16, 32, 48, 64, 96, 128, 192)
ROUNDING = 2.0**-23  # of float32: twice what one operation loses
OUTSIDE = -1  # the position of a sample that is not in the database


class Near(NamedTuple):
    """Minus the squared distance to a point.

    Attributes:
        points: [B, D] float32, centred; float64 where exact scores need it.
    """

    points: np.ndarray


class Linear(NamedTuple):
    """weights . x + intercept, of standardised codes.

    Attributes:
        weights: [B, D] float32.
        intercept: [B] float32.
    """

    weights: np.ndarray
    intercept: np.ndarray


class Machine(NamedTuple):
    """Fitted machines, any number along the first axis.

    f(x) = sum_s coefficient_s K(support_s, x) + intercept, positive for relevant.

    Attributes:
        support: [B, M, D] float32, the samples they were fitted on.
        coefficients: [B, M] float32, label times multiplier; 0 for samples that do not count.
        intercept: [B] float32.
        gamma: [B] float32 of the RBF kernel; unused by the linear one.
    """

    support: np.ndarray
    coefficients: np.ndarray
    intercept: np.ndarray
    gamma: np.ndarray


class Kernel(NamedTuple):
    """The decision value of an RBF machine, of standardised codes.

    Attributes:
        machines: B of them.
        positions: [B, M] of their samples in the database; `OUTSIDE` for others. On a CPU, samples
            that machines have in common are compared with the database once.
    """

    machines: Machine
    positions: np.ndarray


class Mixture(NamedTuple):
    """A weighted sum of a kernel machine's decision value and minus the squared distance.

    Attributes:
        kernel: the machines.
        near: the points.
        weights: [B, 2] float32 of the two.
    """

    kernel: Kernel
    near: Near
    weights: np.ndarray


Scorer = Near | Linear | Kernel | Mixture
# What is shown first: the scores it is the highest of.
SHOW: dict[str, Callable[[Any], Any]] = {
    "best": lambda scores: scores,
    "worst": lambda scores: -scores,
    "uncertain": lambda scores: -abs(scores),
}


@jax.jit
def of_codes(scorer: Scorer, centred: jax.Array, deviation: jax.Array) -> jax.Array:
    """Scores [B, n] of centred codes [n, D]; `deviation` [D] is the database's."""
    match scorer:
        case Near(points) if len(points) == 1:
            return -squared_lengths(centred - points)[None]
        case Near(points):
            return negative_distances(points, centred, squared_lengths(centred))
        case Mixture(kernel, near, weights):
            parts = of_codes(kernel, centred, deviation), of_codes(near, centred, deviation)
            return weights[:, :1] * parts[0] + weights[:, 1:] * parts[1]
        case _:
            return of_standardised(scorer, centred / deviation)


def exact_scores(
    scorer: Scorer, ranking: int, centred: np.ndarray, deviation: np.ndarray
) -> np.ndarray:
    """Scores [n] float64, of one of the rankings, of centred codes [n, D], in double precision."""
    centred = centred.astype(np.float64)
    match scorer:
        case Near(points):
            return -np.square(centred - points[ranking]).sum(axis=1)
        case Linear(weights, intercept):
            return centred @ (weights[ranking] / deviation.astype(np.float64)) + intercept[ranking]
        case Mixture(kernel, near, weights):
            parts = (exact_scores(one, ranking, centred, deviation) for one in (kernel, near))
            return sum(w * part for w, part in zip(weights[ranking], parts, strict=True))
    machine = Machine(*(np.asarray(array[ranking], np.float64) for array in scorer.machines))
    counts = machine.coefficients != 0
    support, coefficients = machine.support[counts], machine.coefficients[counts]
    codes = centred / deviation
    lengths = np.square(support).sum(axis=1)
    squares = np.square(codes).sum(axis=1)[:, None] - 2 * codes @ support.T + lengths
    return np.exp(-machine.gamma * np.maximum(squares, 0)) @ coefficients + machine.intercept


def largest_change(
    scorer: Scorer,
    scores: np.ndarray,
    moved: float,
    *,
    deviation: np.ndarray,
    longest: float,
    in_float32: bool = False,
) -> np.ndarray:
    """By how much scores [B] can change, at most, when codes move: [B] float64.

    Args:
        scorer: of B rankings.
        scores: of one code by each ranking, or minus or absolute ones.
        moved: how far centred codes move.
        deviation: [D] of the database.
        longest: the largest length of a standardised code.
        in_float32: the scores were computed in float32, from centred codes and points that were
            rounded to it; this can have changed them, too.
    """
    rounding = (len(deviation) + 8) * ROUNDING if in_float32 else 0.0
    match scorer:
        case Near(points):
            # (d +- moved)^2 instead of d^2, with d the distance.
            distance = np.sqrt(np.where(np.isfinite(scores), np.abs(scores, dtype=np.float64), 0))
            length = 2 * np.linalg.norm(points, axis=1) + distance + moved
            return 2 * distance * moved + moved**2 + rounding * length**2
        case Linear(weights, intercept):
            steepness = np.linalg.norm(weights / deviation, axis=1)
            size = np.linalg.norm(weights, axis=1) * longest + np.abs(intercept)
            return steepness * moved + rounding * size
        case Mixture(kernel, near, weights):
            change = partial(
                largest_change,
                moved=moved,
                deviation=deviation,
                longest=longest,
                in_float32=in_float32,
            )
            farthest = np.linalg.norm(near.points, axis=1) + longest * deviation.max()
            parts = change(kernel, scores), change(near, farthest**2)
            return np.abs(weights[:, 0]) * parts[0] + np.abs(weights[:, 1]) * parts[1]
    machines = scorer.machines
    # exp(-gamma d^2) falls fastest at d^2 = 1 / (2 gamma), by sqrt(2 gamma / e).
    total = np.abs(machines.coefficients).sum(axis=1, dtype=np.float64)
    steepness = total * np.sqrt(2 * machines.gamma / math.e) / deviation.min()
    # Rounding changes d^2 by a share of (|support| + |code|)^2 <= 8 |support|^2 + 2 d^2.
    lengths = np.square(machines.support, dtype=np.float64).sum(axis=2).max(axis=1, initial=0)
    size = total * (8 * machines.gamma * lengths + 2) + np.abs(machines.intercept)
    samples = machines.coefficients.shape[1]
    return steepness * moved + (rounding + samples * ROUNDING * in_float32) * size


@jax.jit
def of_standardised(scorer: Linear | Kernel, codes: jax.Array) -> jax.Array:
    """Scores [B, n] of standardised codes [n, D]."""
    if isinstance(scorer, Kernel):
        return rbf_decisions(scorer.machines, codes)
    products = jnp.matmul(scorer.weights, codes.T, precision="highest")
    return products + scorer.intercept[:, None]


def linear_weights(machines: Machine) -> np.ndarray:
    """Normals [B, D] of the hyperplanes of B linear machines: f(x) = normal . x + intercept."""
    return (machines.coefficients[:, None] @ machines.support)[:, 0]


@jax.jit
def rbf_decisions(machines: Machine, codes: jax.Array) -> jax.Array:
    """Decision values [B, N] of B RBF machines for codes [N, D].

    On a CPU one machine at a time, whose distances stay in the cache; else as many as have
    `BATCHED` distances.
    """
    norms = squared_lengths(codes)

    def decide(machine: Machine) -> jax.Array:
        products = jnp.matmul(machine.support, codes.T, precision="highest")
        distances = jnp.sum(machine.support**2, axis=1)[:, None] - 2 * products + norms
        kernel = jnp.exp(-machine.gamma * jnp.maximum(distances, 0))
        values = jnp.matmul(machine.coefficients, kernel, precision="highest")
        return values + machine.intercept

    count, samples = machines.coefficients.shape
    at_once = max(1, min(count, BATCHED // (samples * len(codes))))
    on_cpu = sharding.on_cpu()
    return jax.lax.map(decide, machines, batch_size=None if on_cpu else at_once)


def squared_lengths(codes: jax.Array) -> jax.Array:
    """[N] of codes [N, D]. As a product: on a CPU XLA takes three times as long to sum rows."""
    return jnp.matmul(codes**2, jnp.ones(codes.shape[1], codes.dtype), precision="highest")


def rbf_decisions_of_shared(
    rows: np.ndarray,
    places: np.ndarray,
    machines: Machine,
    codes: np.ndarray,
    norms: np.ndarray,
) -> np.ndarray:
    """As `rbf_decisions`, on a CPU, of machines that have samples in common.

    Distances of all samples to a tile of the codes are taken once; each machine picks its rows.
    NumPy does that: XLA picks rows four times slower (`benchmarks/NOTES.md`).

    Args:
        rows: [U, D] float32, the different samples.
        places: [B, M] int32, which of them each machine's samples are.
        machines: their `support` is not used.
        codes: [N, D] float32.
        norms: [N] float32, their squared lengths.
    """
    counts = machines.coefficients != 0  # about half of them
    used, place_of = np.unique(places[counts], return_inverse=True)
    ends = np.cumsum(counts.sum(axis=1))[:-1]
    supports = [
        *zip(np.split(place_of, ends), np.split(machines.coefficients[counts], ends), strict=True)
    ]
    rows, codes, norms = np.asarray(rows)[used], np.asarray(codes), np.asarray(norms)
    # Distances as one product: (-2 r, |r|^2, 1) . (c, 1, |c|^2).
    lengths = np.einsum("ud,ud->u", rows, rows)[:, None]
    left = np.concatenate([-2 * rows, lengths, np.ones_like(lengths)], axis=1)
    values = np.empty((len(places), len(codes)), np.float32)
    size = max(TILE, DISTANCES // max(len(rows), 1))

    def decide(starts: np.ndarray) -> None:
        # Written over for every tile: fresh memory costs as much as the product.
        all_distances = np.empty((len(rows), size), np.float32)
        right = np.ones((size, left.shape[1]), np.float32)
        for start in starts:
            tile = slice(start, start + size)
            count = len(codes[tile])
            right[:count, : codes.shape[1]] = codes[tile]
            right[:count, -1] = norms[tile]
            distances = all_distances[:, :count] if count == size else None
            distances = np.matmul(left, right[:count].T, out=distances)
            kernels = np.empty((places.shape[1], count), np.float32)
            for b, (place, coefficients) in enumerate(supports):
                kernel = kernels[: len(place)]
                np.take(distances, place, axis=0, out=kernel, mode="clip")
                np.multiply(kernel, -machines.gamma[b], out=kernel)
                np.exp(kernel, out=kernel)
                np.add(coefficients @ kernel, machines.intercept[b], out=values[b, tile])

    starts = np.arange(0, len(codes), size)
    # The cores are taken by our threads: BLAS's own would wait for each other.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(CORES) as pool:
        list(pool.map(decide, [starts[core::CORES] for core in range(CORES)]))
    return values


def without_idle_samples(scorer: Scorer) -> Scorer:
    """The same scores from fewer samples: those of machines whose coefficient is not zero.

    As many are kept of each machine, and their number is one of `SAMPLES` or a multiple of the
    last: it is part of the shape that is compiled for.
    """
    match scorer:
        case Mixture(kernel):
            return scorer._replace(kernel=_without_idle_samples(kernel))
        case Kernel():
            return _without_idle_samples(scorer)
        case _:
            return scorer


def _without_idle_samples(scorer: Kernel) -> Kernel:
    coefficients = scorer.machines.coefficients
    most = int((coefficients != 0).sum(axis=1).max(initial=1))
    count = next((n for n in SAMPLES if n >= most), SAMPLES[-1] * math.ceil(most / SAMPLES[-1]))
    kept = np.argsort(coefficients == 0, axis=1, kind="stable")[:, :count]
    missing = max(0, count - coefficients.shape[1])
    coefficients = np.take_along_axis(coefficients, kept, axis=1)
    support = np.take_along_axis(scorer.machines.support, kept[:, :, None], axis=1)
    positions = np.take_along_axis(scorer.positions, kept, axis=1)
    machines = scorer.machines._replace(
        coefficients=np.pad(coefficients, ((0, 0), (0, missing))),
        support=np.pad(support, ((0, 0), (0, missing), (0, 0))),
    )
    return Kernel(machines, np.pad(positions, ((0, 0), (0, missing)), constant_values=OUTSIDE))


def to_arrays(scorer: Scorer) -> dict[str, np.ndarray]:
    """A scorer's arrays by name, and its `kind`, for an `.npz` file."""
    match scorer:
        case Near(points):
            arrays = {"points": np.asarray(points, np.float32)}
        case Kernel(machines, positions):
            arrays = {**machines._asdict(), "positions": positions}
        case Mixture(kernel, near, weights):
            arrays = {**to_arrays(kernel), **to_arrays(near), "weights": weights}
        case _:
            arrays = scorer._asdict()
    return {name: np.asarray(array) for name, array in arrays.items()} | {
        "kind": np.array(type(scorer).__name__.lower())
    }
