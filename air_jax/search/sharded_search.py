"""Exact search and ranks over a database whose rows are split over the devices of a mesh.

Each device searches its own rows; what it found is gathered and merged. Answers are those of
`exact_search` on one device, equal distances in order of the database.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from air_jax.runtime import sharding
from air_jax.search import exact_search
from air_jax.search.exact_search import BLOCK, PADDING, Database

AXIS = "data"  # of the mesh


class ShardedDatabase(NamedTuple):
    """As `exact_search.Database`, the rows split evenly over the devices, filled up at the end.

    Attributes:
        codes: [P, D] float32, centred; P is a multiple of the devices.
        norms: [P] float32; infinite where a row only fills up, so that it comes last.
        mean: [D] float32.
        size: N, how many rows are codes.
    """

    codes: jax.Array
    norms: jax.Array
    mean: np.ndarray
    size: int


def make_database(codes: np.ndarray, mesh: Mesh) -> ShardedDatabase:
    """Put codes [N, D] on the devices, centred.

    Raises:
        ValueError: not a matrix, empty, or NaN or infinite codes in it.
    """
    exact_search.check_codes("database", codes)
    mean = codes.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = (codes - mean).astype(np.float32)
    filling = -len(codes) % mesh.size
    norms = np.pad(np.square(centred).sum(axis=1), (0, filling), constant_values=np.inf)
    rows = np.pad(centred, ((0, filling), (0, 0)))
    return ShardedDatabase(*sharding.put((rows, norms), sharding.by_rows(mesh)), mean, len(codes))


def search(
    database: ShardedDatabase, queries: np.ndarray, k: int, mesh: Mesh, block: int = BLOCK
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest images of each query, as `exact_search.search` finds them.

    Args:
        database: made on `mesh`.
        queries: [Q, D], not centred.
        k: from 1 to N.
        mesh: of the database.
        block: queries at a time.

    Returns:
        Squared distances [Q, k] float32, ascending, and database positions [Q, k] int32.

    Raises:
        ValueError: k out of range, or `queries` do not fit the database.
    """
    if not 1 <= k <= database.size:
        raise ValueError(f"k={k}: expected from 1 to the {database.size} images in the database")
    found = [
        jax.device_get(_search_block(rows, database.codes, database.norms, k=k, mesh=mesh))
        for rows in exact_search.blocks(_centre(database, queries), block)
    ]
    distances, positions = map(np.concatenate, zip(*found, strict=True))
    return distances[: len(queries)], positions[: len(queries)]


def ranks_by_distance(
    database: ShardedDatabase,
    queries: np.ndarray,
    items: np.ndarray,
    mesh: Mesh,
    block: int = BLOCK,
) -> np.ndarray:
    """Where `items` [Q, M] stand for each of `queries` [Q, D]; see `exact_search.ranks`.

    Raises:
        ValueError: `queries` do not fit the database.
    """
    found = [
        np.asarray(_ranks_block(rows, wanted, database.codes, database.norms, mesh=mesh))
        for rows, wanted in zip(
            exact_search.blocks(_centre(database, queries), block),
            exact_search.blocks(items, block),
            strict=True,
        )
    ]
    ranks = np.concatenate(found)[: len(queries)]
    return np.where(items == PADDING, database.size, ranks)


def _centre(database: ShardedDatabase, queries: np.ndarray) -> np.ndarray:
    whole = Database(database.codes, database.norms, database.mean)
    return exact_search.centre(whole, queries)


@partial(jax.jit, static_argnames=("k", "mesh"))
def _search_block(
    queries: jax.Array, codes: jax.Array, norms: jax.Array, *, k: int, mesh: Mesh
) -> tuple[jax.Array, jax.Array]:
    def local(
        queries: jax.Array, codes: jax.Array, norms: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        rows = len(codes)
        values, positions = exact_search.nearest(_scores(queries, codes, norms), min(k, rows))
        positions = positions + rows * jax.lax.axis_index(AXIS)
        # In order of the devices, hence of the database: equal values keep it.
        values, positions = (
            jax.lax.all_gather(found, AXIS, axis=1, tiled=True) for found in (values, positions)
        )
        best, places = jax.lax.top_k(values, k)
        return -best, jnp.take_along_axis(positions, places, axis=1)

    return _on_rows(local, mesh, others=1)(queries, codes, norms)


@partial(jax.jit, static_argnames="mesh")
def _ranks_block(
    queries: jax.Array, items: jax.Array, codes: jax.Array, norms: jax.Array, *, mesh: Mesh
) -> jax.Array:
    def local(
        queries: jax.Array, items: jax.Array, codes: jax.Array, norms: jax.Array
    ) -> jax.Array:
        rows = len(codes)
        first = rows * jax.lax.axis_index(AXIS)
        distances = -_scores(queries, codes, norms)
        own = (items >= first) & (items < first + rows)
        held = jnp.take_along_axis(distances, jnp.clip(items - first, 0, rows - 1), axis=1)
        values = jax.lax.psum(jnp.where(own, held, 0), AXIS)  # one device has each
        before = jax.vmap(exact_search.images_before, in_axes=(0, None, 0, 0))
        return jax.lax.psum(before(distances, first, values, items), AXIS)

    return _on_rows(local, mesh, others=2)(queries, items, codes, norms)


def _scores(queries: jax.Array, codes: jax.Array, norms: jax.Array) -> jax.Array:
    return exact_search.negative_distances(queries, Database(codes, norms, queries[:0]))


def _on_rows(function: jax.stages.Wrapped, mesh: Mesh, others: int) -> jax.stages.Wrapped:
    """`function(*others, codes, norms)` on each device's rows; results are the same on all."""
    whole, rows = PartitionSpec(), PartitionSpec(AXIS)
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(whole,) * others + (rows, rows),
        out_specs=whole,
        check_vma=False,
    )
