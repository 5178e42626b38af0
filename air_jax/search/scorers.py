"""What a learner makes of marks: a scorer, which gives any code a score, higher being better.

Scorers of B queries are pytrees of arrays whose first axis is B. They take codes with the
database's mean off, and know its deviation where they need it, so that they score a database on the
device, one that is streamed from disk, or a single new image alike.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from air_jax.search import exact_search, kernel_machines
from air_jax.search.exact_search import Database


class Near(NamedTuple):
    """Minus the squared distance to a point.

    Attributes:
        points: [B, D] float32, centred.
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


class Kernel(NamedTuple):
    """The decision value of an RBF machine, of standardised codes.

    Attributes:
        machines: B of them.
        positions: [B, M] of their samples in the database; `OUTSIDE` for others. On a CPU, samples
            that machines have in common are compared with the database once.
    """

    machines: kernel_machines.Machine
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
OUTSIDE = -1
SMALLEST_DEVIATION = 1e-12
# What is shown first: the scores it is the highest of.
SHOW: dict[str, Callable[[jax.Array], jax.Array]] = {
    "best": lambda scores: scores,
    "worst": lambda scores: -scores,
    "uncertain": lambda scores: -jnp.abs(scores),
}


class Space(NamedTuple):
    """A database on the device: without labels.

    Attributes:
        database: codes as the Baseline measures distances on them.
        standardised: [N, D] float32, the same with unit variance in each dimension, for SVMs.
        norms: [N] float32, the squared lengths of those.
        scale: [D] float32, the deviations that they were divided by.
        covariance: [D, D] float32 of the codes.
    """

    database: Database
    standardised: jax.Array
    norms: jax.Array
    scale: np.ndarray
    covariance: np.ndarray

    def size(self) -> int:
        return len(self.standardised)

    def centred(self, positions: np.ndarray) -> np.ndarray:
        """Codes of database positions [...], the mean taken off: [..., D] float32."""
        return np.asarray(self.database.codes)[positions]

    def best_unmarked(
        self, scorer: Scorer, marked: np.ndarray, count: int, show: str = "best"
    ) -> np.ndarray:
        """The first `count` images, but for `marked` [B, M], of `SHOW`: positions [B, count]."""
        return np.asarray(
            exact_search.best_unmarked(SHOW[show](scores(self, scorer)), marked, count)
        )


def make_space(codes: np.ndarray) -> Space:
    """Put database codes [N, D] on the device; raises as `exact_search.make_database`."""
    database = exact_search.make_database(codes)
    products = jnp.matmul(database.codes.T, database.codes, precision="highest")
    covariance = np.asarray(products) / len(codes)
    scale = deviation_of(covariance)
    standardised = database.codes / scale
    norms = jnp.sum(standardised**2, axis=1)
    return Space(database, standardised, norms, scale, covariance)


def deviation_of(covariance: np.ndarray) -> np.ndarray:
    """The deviation of each dimension, [D] of [D, D]; 1 where it is constant."""
    deviation = np.sqrt(np.diag(covariance))
    return np.where(deviation > SMALLEST_DEVIATION, deviation, 1).astype(np.float32)


def scores(space: Space, scorer: Scorer) -> jax.Array:
    """Scores [B, N] of the whole database."""
    match scorer:
        case Near(points):
            return exact_search.negative_distances(jnp.asarray(points), space.database)
        case Kernel() if jax.default_backend() == "cpu":
            return _shared_decisions(space, scorer)
        case Mixture(kernel, near, weights):
            parts = scores(space, kernel), scores(space, near)
            return weights[:, :1] * parts[0] + weights[:, 1:] * parts[1]
        case _:
            return _scores_of_standardised(scorer, space.standardised)


@jax.jit
def of_codes(scorer: Scorer, centred: jax.Array, scale: jax.Array) -> jax.Array:
    """Scores [B, n] of any codes [n, D], the database's mean off; `scale` [D] is its deviation."""
    match scorer:
        case Near(points) if len(points) == 1:
            return -kernel_machines.squared_lengths(centred - points)[None]
        case Near(points):
            lengths = kernel_machines.squared_lengths(centred)
            return exact_search.negative_distances(points, Database(centred, lengths, points[0]))
        case Mixture(kernel, near, weights):
            parts = of_codes(kernel, centred, scale), of_codes(near, centred, scale)
            return weights[:, :1] * parts[0] + weights[:, 1:] * parts[1]
        case _:
            return _scores_of_standardised(scorer, centred / scale)


@jax.jit
def _scores_of_standardised(scorer: Linear | Kernel, codes: jax.Array) -> jax.Array:
    if isinstance(scorer, Kernel):
        return kernel_machines.rbf_decisions(scorer.machines, codes)
    products = jnp.matmul(scorer.weights, codes.T, precision="highest")
    return products + scorer.intercept[:, None]


def _shared_decisions(space: Space, kernel: Kernel) -> jax.Array:
    """Decision values [B, N], on a CPU: sessions mark many of the same images."""
    positions, support = kernel.positions, kernel.machines.support
    outside = positions == OUTSIDE
    used, places = np.unique(np.where(outside, 0, positions), return_inverse=True)
    places = places.reshape(positions.shape)
    places[outside] = len(used) + np.arange(np.count_nonzero(outside))
    rows = np.concatenate([np.asarray(space.standardised)[used], support[outside]])
    return jnp.asarray(
        kernel_machines.rbf_decisions_of_shared(
            rows, places, kernel.machines, space.standardised, space.norms
        )
    )


def to_arrays(scorer: Scorer) -> dict[str, np.ndarray]:
    """A scorer's arrays by name, and its `kind`, for an `.npz` file."""
    match scorer:
        case Kernel(machines, positions):
            arrays = {**machines._asdict(), "positions": positions}
        case Mixture(kernel, near, weights):
            arrays = {**to_arrays(kernel), **to_arrays(near), "weights": weights}
        case _:
            arrays = scorer._asdict()
    return {name: np.asarray(array) for name, array in arrays.items()} | {
        "kind": np.array(type(scorer).__name__.lower())
    }
