"""Fitted support vector machines: their decision values over a whole database.

Section III.2: the database is ranked by the signed distance to the hyperplane, which orders
images as the decision value does.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from threadpoolctl import threadpool_limits

TILE = 2048  # codes, at least, whose distances to all samples are held at once
DISTANCES = 2**18  # so held if the samples are few
CORES = os.cpu_count() or 1


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


def linear_weights(machines: Machine) -> np.ndarray:
    """Normals [B, D] of the hyperplanes of B linear machines: f(x) = normal . x + intercept."""
    return np.matmul(machines.coefficients[:, None], machines.support)[:, 0]


@jax.jit
def rbf_decisions(machines: Machine, codes: jax.Array) -> jax.Array:
    """Decision values [B, N] of B RBF machines for codes [N, D], one machine at a time."""
    norms = squared_lengths(codes)

    def decide(machine: Machine) -> jax.Array:
        products = jnp.matmul(machine.support, codes.T, precision="highest")
        distances = jnp.sum(machine.support**2, axis=1)[:, None] - 2 * products + norms
        kernel = jnp.exp(-machine.gamma * jnp.maximum(distances, 0))
        values = jnp.matmul(machine.coefficients, kernel, precision="highest")
        return values + machine.intercept

    return jax.lax.map(decide, machines)


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
