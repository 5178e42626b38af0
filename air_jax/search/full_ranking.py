"""Where images stand in the full ranking of a database: the ranks that metrics are computed from.

Ranks count from 0, by decreasing score. Equal scores are in the order of `tie_order`, a permutation
drawn once for each size of a database: the order of the database often follows the classes, and
would reward codes that do not tell images apart.
"""

import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from air_jax.runtime import distributed, sharding
from air_jax.runtime.progress import Progress
from air_jax.search.device_codes import AXIS, DeviceCodes, ahead, on_rows, own_device
from air_jax.search.distances import (
    best_unmarked,
    blocks,
    nearest,
    negative_distances,
    queries_at_once,
)

CORES = os.cpu_count() or 1
TIE_SEED = 0x7135  # of `tie_order`
PADDING = -1  # in rows of positions that are shorter than others


def relevant_items(query_labels: np.ndarray, database_labels: np.ndarray) -> np.ndarray:
    """The database positions of each query's class, int32 [Q, R], rows filled up by `PADDING`."""
    classes, which = np.unique(query_labels, return_inverse=True)
    members = [np.flatnonzero(database_labels == label) for label in classes]
    table = np.full((len(classes), max(map(len, members))), PADDING, np.int32)
    for row, positions in zip(table, members, strict=True):
        row[: len(positions)] = positions
    return table[which]


@functools.lru_cache(maxsize=8)
def tie_order(size: int) -> np.ndarray:
    """[size] int32, a permutation: of two images of equal score the smaller value is first."""
    # A seed of its own: another permutation by seed 0 may have made the order of the database.
    order = np.random.default_rng(TIE_SEED).permutation(size).astype(np.int32)
    order.flags.writeable = False
    return order


def first_unmarked(scores: jax.Array, marked: np.ndarray, count: int) -> np.ndarray:
    """The first images of each ranking that are not marked, in the order of `ranks`.

    Args:
        scores: [B, N] float32.
        marked: [B, M] positions.
        count: at most N - M.

    Returns:
        [B, count] int32 positions: processes that gather them agree on the dtype.
    """
    if sharding.on_cpu():
        return first_by_partition(np.asarray(scores), marked, count)
    values, positions = best_unmarked(scores, marked, count)
    if count and bool(_others_tie(scores, marked, values)):
        order = tie_order(scores.shape[1])
        by_order = np.argsort(order).astype(np.int32)
        _, places = best_unmarked(scores[:, by_order], order[marked], count)
        return by_order[np.asarray(places)]
    return np.asarray(positions)


def first_by_partition(scores: np.ndarray, marked: np.ndarray, count: int) -> np.ndarray:
    """`first_unmarked` on the CPU: NumPy partitions values with vector instructions."""
    found = np.empty((len(scores), count), np.int32)
    size = scores.shape[1]
    order = tie_order(size)

    def some(rows: np.ndarray) -> None:
        values = np.empty(size, np.float32)
        for row in rows:
            np.negative(scores[row], out=values)
            values[marked[row]] = np.inf
            last = np.partition(values, count - 1)[count - 1]
            best = np.flatnonzero(values <= last)
            if np.isinf(last):  # scores may be minus infinity
                best = best[~np.isin(best, marked[row])]
            found[row] = best[np.lexsort((order[best], values[best]))[:count]]

    if count:
        _on_all_cores(some, len(scores))
    return found


def _on_all_cores(some: Callable[[np.ndarray], None], count: int) -> None:
    """Call a function with all of so many rows, a part of them on each core."""
    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(some, np.array_split(np.arange(count), CORES)))


@jax.jit
def _others_tie(scores: jax.Array, marked: jax.Array, values: jax.Array) -> jax.Array:
    """Whether more images than the first [B, n] have at least the last one's score, in any row."""
    last = values[:, -1:]
    own = jnp.take_along_axis(scores, marked, axis=1)
    as_good = (scores >= last).sum(axis=1) - (own >= last).sum(axis=1)
    equal = (jnp.diff(values, axis=1) == 0).any()  # among the first
    return equal | (as_good > values.shape[1]).any()


def ranks(scores: jax.Array, items: np.ndarray) -> np.ndarray:
    """Where each of some images stands in the full ranking of the database.

    Counts, for each item, the images before it: those of a higher score, and those of the same
    score that `tie_order` puts first.

    Args:
        scores: [Q, N] float32, finite, or minus infinity for last.
        items: [Q, M] int32 database positions; `PADDING` where a row has fewer.

    Returns:
        [Q, M] int32 from 0; N for padding.
    """
    if sharding.on_cpu():
        return ranks_by_sorting(np.asarray(scores), np.asarray(items))
    return np.asarray(ranks_by_bisection(scores, items, tie_order(scores.shape[1])))


def ranks_by_sorting(scores: np.ndarray, items: np.ndarray) -> np.ndarray:
    """`ranks` on the CPU: NumPy sorts values with vector instructions, some rows on each core."""
    found = np.empty(items.shape, np.int32)
    size = scores.shape[1]
    order = tie_order(size)

    def some(rows: np.ndarray) -> None:
        ordered = np.empty(size, np.float32)  # a fresh one for each row costs as much as the sort
        for row in rows:
            np.negative(scores[row], out=ordered)
            ordered.sort()
            values = -scores[row, items[row]]
            place = np.searchsorted(ordered, values)
            # Where the next value is the same, the order of ties decides.
            tied = (ordered[np.minimum(place + 1, size - 1)] == values) & (place + 1 < size)
            for value in set(values[tied].tolist()):
                own = values == value
                equals = np.sort(order[scores[row] == -value])
                place[own] += np.searchsorted(equals, order[items[row, own]])
            found[row] = np.where(items[row] == PADDING, size, place)

    _on_all_cores(some, len(items))
    return found


@jax.jit
def ranks_by_bisection(scores: jax.Array, items: jax.Array, order: jax.Array) -> jax.Array:
    """`ranks` on an accelerator, without a sort of the database; `order` is `tie_order`.

    Only the items are sorted; each image of the database finds its place among them by bisection.
    """
    size = scores.shape[1]

    def ranks_of_row(distances: jax.Array, items: jax.Array) -> jax.Array:
        values = jnp.where(items == PADDING, jnp.inf, distances[items])
        ties = jnp.where(items == PADDING, size, order[items])
        before = images_before(distances, order, values, ties, items != PADDING)
        return jnp.where(items == PADDING, size, before)

    return jax.vmap(ranks_of_row)(-scores, items)


def images_before(
    distances: jax.Array, order: jax.Array, values: jax.Array, ties: jax.Array, own: jax.Array
) -> jax.Array:
    """How many of some images of the database stand before each of M items.

    Args:
        distances: [N] float32, of the images.
        order: [N] int32, their places in `tie_order`.
        values: [M] float32, the items' distances.
        ties: [M] int32, the items' places in `tie_order`.
        own: [M] bool, whether the item is one of the images.

    Returns:
        [M] int32.
    """
    size, count = len(distances), len(values)
    value, tie, place = jax.lax.sort((values, ties, jnp.arange(count)), num_keys=2)

    # For every image, the number of items that stand before it: the first item it is before.
    low = jnp.zeros(size, jnp.int32)
    high = jnp.full(size, count, jnp.int32)
    for _ in range(count.bit_length()):
        middle = (low + high) // 2
        at = jnp.minimum(middle, count - 1)
        item_is_before = (value[at] < distances) | ((value[at] == distances) & (tie[at] < order))
        searching = low < high
        low = jnp.where(searching & item_is_before, middle + 1, low)
        high = jnp.where(searching & ~item_is_before, middle, high)
    # Before item p stand the images with at most p items before them, less the item itself.
    images_at = jnp.zeros(count + 1, jnp.int32).at[low].add(1)
    before = jnp.cumsum(images_at)[:count] - own[place]
    return jnp.zeros(count, jnp.int32).at[place].set(before)


class Ranking(NamedTuple):
    """What is kept of the full rankings of Q queries.

    Attributes:
        ranks: [Q, M] int32 of some images; see `ranks`.
        first: [Q, K] int32 positions of the first images.
    """

    ranks: np.ndarray
    first: np.ndarray


def ranks_by_distance(
    codes: DeviceCodes,
    queries: np.ndarray,
    items: np.ndarray,
    block: int | None = None,
    label: str | None = None,
    precision: str = "float32",
) -> np.ndarray:
    """`ranking_by_distance` of some images alone: [Q, M] int32."""
    return ranking_by_distance(codes, queries, items, 0, block, label, precision).ranks


def ranking_by_distance(
    codes: DeviceCodes,
    queries: np.ndarray,
    items: np.ndarray,
    count: int,
    block: int | None = None,
    label: str | None = None,
    precision: str = "float32",
) -> Ranking:
    """Where some images stand for each query by distance, and the first images.

    Each of several processes ranks its share of the queries, and gets the ranks of all; on a mesh
    of several processes, all of them rank all queries together.

    Args:
        codes: of N images.
        queries: [Q, D], not centred.
        items: [Q, M] positions; see `ranks`.
        count: of first images, from 0 to N.
        block: queries at a time; None: see `distances.queries_at_once`.
        label: of the progress that is shown; None shows none.
        precision: one of `distances.PRECISIONS`.

    Raises:
        ValueError: `queries` do not fit the codes.
    """
    total = len(queries)
    mesh = codes.mesh or own_device()
    divided = len(mesh.local_devices) == mesh.size
    if divided:
        queries, items = distributed.shares(queries, items)
    block = block or queries_at_once(len(queries), len(codes))
    progress = Progress(label, len(queries), unit="queries") if label else None
    parts = zip(blocks(codes.centre(queries), block), blocks(items, block), strict=True)
    arrays = codes.centred, codes.lengths
    found: Iterator[tuple[Any, Any]]
    if codes.mesh is None and sharding.on_cpu():
        none = np.zeros((block, 0), np.int32)
        started = ((negative_distances(part, *arrays, precision), wanted) for part, wanted in parts)
        found = (
            (ranks(scores, wanted), first_unmarked(scores, none, count))
            for scores, wanted in ahead(started)
        )
    else:
        # Rows that fill up the last device are infinitely far, behind all images.
        whole = sharding.replicated(mesh)
        order = np.pad(tie_order(len(codes)), (0, len(codes.centred) - len(codes)))
        order = sharding.put(order, whole)
        found = map(
            jax.device_get,
            ahead(
                _ranks_block(
                    *sharding.put(part, whole),
                    order,
                    *arrays,
                    mesh=mesh,
                    precision=precision,
                    count=count,
                )
                for part in parts
            ),
        )
    kept = []
    for part in found:
        kept.append(part)
        if progress:
            progress.advance(min(block, progress.total - progress.done))
    if progress:
        progress.close()
    ranking = [np.concatenate(column)[: len(queries)] for column in zip(*kept, strict=True)]
    ranking[0] = np.where(items == PADDING, np.int32(len(codes)), ranking[0])
    if divided:
        ranking = [distributed.gather(column, total) for column in ranking]
    return Ranking(*ranking)


@partial(jax.jit, static_argnames=("mesh", "precision", "count"))
def _ranks_block(
    queries: jax.Array,
    items: jax.Array,
    order: jax.Array,
    codes: jax.Array,
    lengths: jax.Array,
    *,
    mesh: Mesh,
    precision: str = "float32",
    count: int = 0,
) -> tuple[jax.Array, jax.Array]:
    def local(
        queries: jax.Array,
        items: jax.Array,
        order: jax.Array,
        codes: jax.Array,
        lengths: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        rows = len(codes)
        first = rows * jax.lax.axis_index(AXIS)
        distances = -negative_distances(queries, codes, lengths, precision)
        own = (items >= first) & (items < first + rows)
        held = jnp.take_along_axis(distances, jnp.clip(items - first, 0, rows - 1), axis=1)
        values = jax.lax.psum(jnp.where(own, held, 0), AXIS)  # one device has each
        here = jax.lax.dynamic_slice_in_dim(order, first, rows)
        before = jax.vmap(images_before, in_axes=(0, None, 0, 0, 0))
        ranks = jax.lax.psum(before(distances, here, values, order[items], own), AXIS)
        if not count:
            return ranks, jnp.zeros((len(queries), 0), jnp.int32)
        best = _first(distances, here, min(count, rows))
        found = [
            jax.lax.all_gather(of, AXIS, axis=1, tiled=True)
            for of in (
                jnp.take_along_axis(distances, best, axis=1),
                here[best],
                (first + best).astype(jnp.int32),
            )
        ]
        return ranks, jax.lax.sort(found, num_keys=2)[2][:, :count]

    return on_rows(local, mesh, others=3)(queries, items, order, codes, lengths)


def _first(distances: jax.Array, order: jax.Array, count: int) -> jax.Array:
    """Places [B, count] of the smallest distances [B, n], equals by `order` [n]; not sorted."""
    last = -nearest(-distances, count)[0][:, -1:]
    least = jnp.iinfo(jnp.int32).min
    key = jnp.where(distances < last, 1, jnp.where(distances == last, -order, least))
    return nearest(key, count)[1]
