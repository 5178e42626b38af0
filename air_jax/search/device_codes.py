"""Codes on the device: their scores by any scorer, and exact search by distance.

On a mesh each device holds and searches its own rows of the codes; what the devices find is
gathered and merged. The search then finds the same as on one device, equal distances in order of
the positions.
"""

from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from air_jax.runtime import distributed, sharding
from air_jax.search import distances, scorers
from air_jax.search.codes import (
    Top,
    candidates_for,
    checked_without,
    deviation_of,
    exact_top,
    frame_of,
)
from air_jax.search.scorers import OUTSIDE, ROUNDING, Kernel, Mixture, Near, Scorer

AXIS = "data"  # of the mesh
SUMMED = 65_536  # codes whose products are summed in float32


class DeviceCodes:
    """Codes on the device: `codes.Codes`.

    Args:
        codes: [N, D], of any float type and memory order.
        mesh: the rows are split over its devices, for `search` and
            `full_ranking.ranks_by_distance` alone. None: all rows are on the default device.

    Attributes:
        centred: [N, D] float32. On a mesh zeros fill it up to as many rows for each device.
        lengths: [N] float32, the squared lengths of the centred codes; infinite for filled up rows.
        mean, unit, covariance, deviation: see `codes.Codes`; the latter two are computed when first
            asked for.

    Raises:
        ValueError: the codes are not a matrix, empty, hold NaN or infinity, or one lies too far
            from the others for float32.
    """

    ranks_by_all = True

    def __init__(self, codes: np.ndarray, mesh: Mesh | None = None):
        _check("database", codes)
        self.size, self.dimension = codes.shape
        self._frame = frame_of(codes)
        self.mean, self.unit = self._frame.mean, self._frame.unit
        self.mesh = mesh
        centred = self._frame.centred(codes).astype(np.float32, copy=False)
        if mesh is None:
            # A code that was given lies no farther than this from the one kept.
            self.lost = ROUNDING * float(np.max(np.linalg.norm(centred, axis=1)))
            self.centred = jnp.asarray(centred)
            self.lengths = _lengths(self.centred)
            return
        filling = -self.size % mesh.size
        lengths = np.square(centred).sum(axis=1)
        lengths = np.pad(lengths, (0, filling), constant_values=np.inf)
        rows = np.pad(centred, ((0, filling), (0, 0)))
        self.centred, self.lengths = sharding.put((rows, lengths), sharding.by_rows(mesh))

    @cached_property
    def covariance(self) -> np.ndarray:
        parts, count = jax.device_get(_products(self.centred, self._frame.limit))
        return parts.sum(axis=0, dtype=np.float64).astype(np.float32) / np.float32(count)

    @cached_property
    def deviation(self) -> np.ndarray:
        return deviation_of(self.covariance)

    @cached_property
    def _standardised(self) -> tuple[jax.Array, jax.Array]:
        """Codes [N, D] of unit deviation in each dimension, and their squared lengths [N]."""
        return _standardised(self.centred, self.deviation)

    @cached_property
    def _on_host(self) -> np.ndarray:
        return np.asarray(self.centred)  # no copy on a CPU

    @cached_property
    def _longest(self) -> float:
        """The largest length of a standardised code."""
        return float(np.sqrt(np.asarray(self._standardised[1]).max()))

    def __len__(self) -> int:
        return self.size

    def get(self, positions: np.ndarray) -> np.ndarray:
        return self.take(positions) * self.unit + self.mean

    def take(self, positions: np.ndarray) -> np.ndarray:
        return self._on_host[positions]

    def centre(self, queries: np.ndarray) -> np.ndarray:
        """Query codes [Q, D] -> float32, centred as these codes.

        Raises:
            ValueError: the queries have another dimension, or hold NaN or infinity.
        """
        _check("query", queries)
        if queries.shape[1] != self.dimension:
            raise ValueError(
                f"query codes have {queries.shape[1]} dimensions, "
                f"the database's have {self.dimension}"
            )
        return self._frame.centred(queries).astype(np.float32, copy=False)

    def top(
        self, scorer: Scorer, k: int, without: np.ndarray | None = None, show: str = "best"
    ) -> Top:
        without = checked_without(k, self.size, without)
        scorer = scorers.without_idle_samples(scorer)
        scores = scorers.SHOW[show](self.scores(scorer))
        candidates = candidates_for(k + without.shape[1], self.size)
        return exact_top(
            scorer,
            jax.device_get(_best(scores, candidates)),
            lambda positions: self.take(positions).astype(np.float64),
            self.deviation,
            self.size,
            k,
            without,
            show,
            moved=self.lost,
            lost=self.lost,
            longest=self._longest,
        )

    def scores(self, scorer: Scorer) -> jax.Array:
        """Scores [B, N] float32 of all codes."""
        if self.mesh is not None:
            raise ValueError("codes that are split over a mesh are only searched by distance")
        match scorer:
            case Near(points):
                return distances.negative_distances(jnp.asarray(points), self.centred, self.lengths)
            case Kernel() if sharding.on_cpu():
                return self._shared_decisions(scorer)
            case Mixture(kernel, near, weights):
                return weights[:, :1] * self.scores(kernel) + weights[:, 1:] * self.scores(near)
            case _:
                return scorers.of_standardised(scorer, self._standardised[0])

    def _shared_decisions(self, kernel: Kernel) -> jax.Array:
        """Decision values [B, N], on a CPU: sessions mark many of the same images."""
        codes, lengths = map(np.asarray, self._standardised)
        outside = kernel.positions == OUTSIDE
        used, places = np.unique(np.where(outside, 0, kernel.positions), return_inverse=True)
        places = places.reshape(kernel.positions.shape)
        places[outside] = len(used) + np.arange(np.count_nonzero(outside))
        rows = np.concatenate([codes[used], kernel.machines.support[outside]])
        return jnp.asarray(
            scorers.rbf_decisions_of_shared(rows, places, kernel.machines, codes, lengths)
        )


@jax.jit
def _lengths(centred: jax.Array) -> jax.Array:
    return jnp.sum(centred**2, axis=1)


@jax.jit
def _products(centred: jax.Array, limit: float) -> tuple[jax.Array, jax.Array]:
    """Sums of products [P, D, D] of parts of the codes, and how many codes they are of."""
    counts = jnp.abs(centred).max(axis=1) <= limit
    used = jnp.where(counts[:, None], centred, 0)
    starts = range(0, len(centred), SUMMED)
    parts = (used[start : start + SUMMED] for start in starts)
    products = [jnp.matmul(part.T, part, precision="highest") for part in parts]
    return jnp.stack(products), counts.sum()


@jax.jit
def _standardised(centred: jax.Array, deviation: jax.Array) -> tuple[jax.Array, jax.Array]:
    codes = centred / deviation
    return codes, jnp.sum(codes**2, axis=1)


@partial(jax.jit, static_argnames="count")
def _best(scores: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    return distances.nearest(scores, count)


def _check(name: str, codes: np.ndarray) -> None:
    if codes.ndim != 2 or not len(codes):
        raise ValueError(f"{name} codes have shape {list(codes.shape)}; expected [N > 0, D]")
    finite = np.isfinite(codes).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{np.count_nonzero(~finite)} of {len(codes)} {name} codes hold NaN or infinity, "
            f"the first at {int(np.argmin(finite))}"
        )


def search(
    codes: DeviceCodes,
    queries: np.ndarray,
    k: int,
    block: int | None = None,
    precision: str = "float32",
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest images of each query, exactly.

    Each of several processes searches for its share of the queries, and gets what all have found;
    on a mesh, all processes of the mesh search for all queries together.

    Args:
        codes: of N images.
        queries: [Q, D], not centred.
        k: from 1 to N.
        block: queries at a time; None: see `distances.queries_at_once`.
        precision: of `distances.PRECISIONS`.

    Returns:
        Squared distances [Q, k] float32, ascending, and positions [Q, k] int32.

    Raises:
        ValueError: k is out of range, or `queries` do not fit the codes.
    """
    if not 1 <= k <= len(codes):
        raise ValueError(f"k={k}: expected from 1 to the {len(codes)} images in the database")
    count = len(queries)
    if codes.mesh is None:
        (queries,) = distributed.shares(queries)
    mesh = codes.mesh or own_device()
    block = block or distances.queries_at_once(len(queries), len(codes))
    rows = distances.blocks(codes.centre(queries), block)
    whole = sharding.replicated(mesh)
    started = (
        _search_block(
            sharding.put(part, whole),
            codes.centred,
            codes.lengths,
            k=k,
            precision=precision,
            mesh=mesh,
        )
        for part in rows
    )
    parts = [jax.device_get(part) for part in ahead(started)]
    found = (np.concatenate(part)[: len(queries)] for part in zip(*parts, strict=True))
    if codes.mesh is None:
        found = (distributed.gather(rows, count) for rows in found)
    squares, positions = found
    return squares, positions


@partial(jax.jit, static_argnames=("k", "precision", "mesh"))
def _search_block(
    queries: jax.Array,
    codes: jax.Array,
    lengths: jax.Array,
    *,
    k: int,
    precision: str = "float32",
    mesh: Mesh,
) -> tuple[jax.Array, jax.Array]:
    def local(
        queries: jax.Array, codes: jax.Array, lengths: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        scores = -distances.squared_distances(queries, codes, lengths, precision)
        values, positions = distances.nearest(scores, min(k, len(codes)))
        if mesh.size == 1:
            return values, positions
        positions = positions + len(codes) * jax.lax.axis_index(AXIS)
        # In order of the devices, hence of the database: equal values keep it.
        values, positions = (
            jax.lax.all_gather(found, AXIS, axis=1, tiled=True) for found in (values, positions)
        )
        values, places = jax.lax.top_k(values, k)
        return values, jnp.take_along_axis(positions, places, axis=1)

    values, positions = on_rows(local, mesh, others=1)(queries, codes, lengths)
    return -values, positions


def own_device() -> Mesh:
    """The mesh of the one device that codes lie on which are not split over a mesh."""
    return sharding.make_mesh(jax.local_devices()[:1])


def ahead(made: Iterator[Any]) -> Iterator[Any]:
    """The same, each started before the one before it is used."""
    last = None
    for value in made:
        if last is not None:
            yield last
        last = value
    if last is not None:
        yield last


def on_rows(function: Callable[..., Any], mesh: Mesh, others: int) -> Callable[..., Any]:
    """`function(*others, codes, lengths)` on each device's rows; results are the same on all."""
    whole, rows = PartitionSpec(), PartitionSpec(AXIS)
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(whole,) * others + (rows, rows),
        out_specs=whole,
        check_vma=False,
    )
