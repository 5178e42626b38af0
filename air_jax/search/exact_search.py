"""Exact search by squared Euclidean distance, and the rank of any image in the full ranking.

Rankings are by increasing distance; equal distances are ordered by database index. The expansion
|q|^2 - 2 q.x + |x|^2 makes distances one matrix product, and cancels when codes lie far from the
origin: `Database` centres them first. The whole [Q, N] matrix never exists: queries are taken in
blocks.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from air_jax.runtime import distributed
from air_jax.runtime.progress import Progress

BLOCK = 64  # queries at a time: 64 x 50,000 float32 are 13 MB
CORES = os.cpu_count() or 1
METRICS = ("l2", "standardised", "cosine", "inner_product")
# Of the products of queries and codes. Accelerators round float32 to TF32 or bfloat16 unless told
# not to; three products of bfloat16 parts are nearly as exact as float32. A CPU takes float32.
PRECISIONS = {
    "float32": jax.lax.Precision.HIGHEST,
    "bfloat16_3x": jax.lax.DotAlgorithmPreset.BF16_BF16_F32_X3,
}
GROUP = 64  # neighbours in the first stage of the search for the best
PADDING = -1  # in rows of database positions that are shorter than others


class Database(NamedTuple):
    """Codes to search in, centred on their mean, on the device.

    Attributes:
        codes: [N, D] float32, their mean taken off.
        norms: [N] float32, their squared lengths.
        mean: [D] float32, what was taken off, and is taken off queries.
    """

    codes: jax.Array
    norms: jax.Array
    mean: jax.Array


def for_metric(
    metric: str, database: np.ndarray, queries: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Codes whose Euclidean distances are those of a metric.

    Args:
        metric: "l2", the paper's; "standardised": each dimension divided by its deviation over the
            database; "cosine": codes of unit length, whose squared distance is 2 - 2 cosine. A code
            of zeros has none and stays. "inner_product": one dimension more, which brings all codes
            of the database to the length M of the longest, and is 0 of queries: the squared
            distance is M^2 + |q|^2 - 2 q.x.
        database: codes [N, D].
        queries: codes [Q, D].
    """
    if metric == "l2":
        return database, queries
    if metric == "cosine":
        return _unit_length(database), _unit_length(queries)
    if metric == "inner_product":
        squares = np.square(database, dtype=np.float64).sum(axis=1, keepdims=True)
        missing = np.sqrt(squares.max() - squares).astype(np.float32)
        return np.hstack([database, missing]), np.pad(queries, ((0, 0), (0, 1)))
    deviations = database.std(axis=0)
    scale = np.where(deviations > 1e-12, deviations, 1)
    return database / scale, queries / scale


def _unit_length(codes: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(codes, axis=1, keepdims=True)
    return codes / np.where(lengths > 0, lengths, 1)


def make_database(codes: np.ndarray) -> Database:
    """Put codes [N, D] on the device, centred; any float dtype and memory order.

    Raises:
        ValueError: not a matrix, empty, or NaN or infinite codes in it.
    """
    check_codes("database", codes)
    mean = codes.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = jnp.asarray((codes - mean).astype(np.float32))
    return Database(centred, jnp.sum(centred**2, axis=1), jnp.asarray(mean))


def centre(database: Database, queries: np.ndarray) -> np.ndarray:
    """Query codes [Q, D] -> float32, the database's mean taken off.

    Raises:
        ValueError: another dimension than the database's, or NaN or infinite codes.
    """
    check_codes("query", queries)
    if queries.shape[1] != database.codes.shape[1]:
        raise ValueError(
            f"query codes have {queries.shape[1]} dimensions, "
            f"the database's have {database.codes.shape[1]}"
        )
    return (queries - np.asarray(database.mean)).astype(np.float32)


def check_codes(name: str, codes: np.ndarray) -> None:
    if codes.ndim != 2 or not len(codes):
        raise ValueError(f"{name} codes have shape {list(codes.shape)}; expected [N > 0, D]")
    finite = np.isfinite(codes).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{np.count_nonzero(~finite)} of {len(codes)} {name} codes hold NaN or infinity, "
            f"the first at {int(np.argmin(finite))}"
        )


def squared_distances(
    queries: jax.Array, database: Database, precision: str = "float32"
) -> jax.Array:
    """Centred queries [Q, D] -> squared Euclidean distances [Q, N] float32 to every image.

    `precision` is one of `PRECISIONS`.
    """
    products = jnp.matmul(queries, database.codes.T, precision=PRECISIONS[precision])
    lengths = jnp.sum(queries**2, axis=1, keepdims=True)
    return jnp.maximum(lengths - 2 * products + database.norms, 0)


@partial(jax.jit, static_argnames="precision")
def negative_distances(
    queries: jax.Array, database: Database, precision: str = "float32"
) -> jax.Array:
    """Scores of the first retrieval: minus the squared distances; arguments as for those."""
    return -squared_distances(queries, database, precision)


def nearest(scores: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k best of each row of scores [Q, N], best first, equals by index: values and indices.

    In two stages: the k best lie in the k groups of neighbours with the best maxima. So they do
    with ties, too, if of equal maxima the first is taken: then each of those groups holds an image
    that comes before any image of the others.
    """
    count, size = scores.shape
    groups = size // GROUP
    if groups < 2 * k:
        return jax.lax.top_k(scores, k)
    grouped = scores[:, : groups * GROUP].reshape(count, groups, GROUP)
    _, chosen = jax.lax.top_k(grouped.max(axis=2), k)
    chosen = jnp.sort(chosen, axis=1)  # candidates in order of the database
    candidates = (chosen[:, :, None] * GROUP + jnp.arange(GROUP)).reshape(count, k * GROUP)
    rest = jnp.arange(groups * GROUP, size)  # of which there is no whole group
    candidates = jnp.concatenate([candidates, jnp.tile(rest, (count, 1))], axis=1)
    values, places = jax.lax.top_k(jnp.take_along_axis(scores, candidates, axis=1), k)
    return values, jnp.take_along_axis(candidates, places, axis=1)


@partial(jax.jit, static_argnames="count")
def best_unmarked(scores: jax.Array, marked: jax.Array, count: int) -> jax.Array:
    """The first `count` images of each ranking [B, N] that are not in `marked` [B, M]."""
    # Among so many there are enough: cheaper than a copy of all scores without the marked ones.
    _, positions = nearest(scores, count + marked.shape[1])
    is_marked = (positions[:, :, None] == marked[:, None, :]).any(axis=2)
    order = jnp.argsort(is_marked, axis=1, stable=True)[:, :count]
    return jnp.take_along_axis(positions, order, axis=1)


def search(
    database: Database,
    queries: np.ndarray,
    k: int,
    block: int = BLOCK,
    precision: str = "float32",
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest images of each query, exactly.

    Each of several processes searches for its share of the queries, and gets what all have found.

    Args:
        database: of N codes.
        queries: [Q, D], not centred.
        k: from 1 to N.
        block: queries at a time.
        precision: of `PRECISIONS`.

    Returns:
        Squared distances [Q, k] float32, ascending, and database positions [Q, k] int32.

    Raises:
        ValueError: k out of range, or `queries` do not fit the database.
    """
    size = len(database.codes)
    if not 1 <= k <= size:
        raise ValueError(f"k={k}: expected from 1 to the {size} images in the database")
    count, (queries,) = len(queries), distributed.shares(queries)
    found = [
        jax.device_get(_search_block(rows, database, k, precision))
        for rows in blocks(centre(database, queries), block)
    ]
    distances, positions = (
        distributed.gather(np.concatenate(parts)[: len(queries)], count)
        for parts in zip(*found, strict=True)
    )
    return distances, positions


@partial(jax.jit, static_argnames=("k", "precision"))
def _search_block(
    queries: jax.Array, database: Database, k: int, precision: str
) -> tuple[jax.Array, jax.Array]:
    values, positions = nearest(-squared_distances(queries, database, precision), k)
    return -values, positions


def ranks(scores: jax.Array, items: np.ndarray) -> np.ndarray:
    """Where each of some images stands in the full ranking of the database.

    Counts, for each item, the images before it: those of a higher score, and those of the same
    score with a smaller index.

    Args:
        scores: [Q, N] float32, finite, or minus infinity for last.
        items: [Q, M] int32 database positions; `PADDING` where a row has fewer.

    Returns:
        [Q, M] int32 from 0; N for padding.
    """
    if jax.default_backend() == "cpu":
        return ranks_by_sorting(np.asarray(scores), np.asarray(items))
    return np.asarray(ranks_by_bisection(scores, items))


def ranks_by_sorting(scores: np.ndarray, items: np.ndarray) -> np.ndarray:
    """`ranks` on the CPU: NumPy sorts values with vector instructions, some rows on each core."""
    found = np.empty(items.shape, np.int32)
    size = scores.shape[1]

    def some(rows: np.ndarray) -> None:
        ordered = np.empty(size, np.float32)  # a fresh one for each row costs as much as the sort
        for row in rows:
            np.negative(scores[row], out=ordered)
            ordered.sort()
            values = -scores[row, items[row]]
            place = np.searchsorted(ordered, values)
            # Where the next value is the same, the index decides.
            tied = (ordered[np.minimum(place + 1, size - 1)] == values) & (place + 1 < size)
            for value in set(values[tied].tolist()):
                own = values == value
                equals = np.flatnonzero(scores[row] == -value)
                place[own] += np.searchsorted(equals, items[row, own])
            found[row] = np.where(items[row] == PADDING, size, place)

    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(some, np.array_split(np.arange(len(items)), CORES)))
    return found


@jax.jit
def ranks_by_bisection(scores: jax.Array, items: jax.Array) -> jax.Array:
    """`ranks` on an accelerator, without a sort of the database.

    Only the items are sorted; each image of the database finds its place among them by bisection.
    """
    size = scores.shape[1]

    def ranks_of_row(distances: jax.Array, items: jax.Array) -> jax.Array:
        values = jnp.where(items == PADDING, jnp.inf, distances[items])
        before = images_before(distances, 0, values, jnp.where(items == PADDING, size, items))
        return jnp.where(items == PADDING, size, before)

    return jax.vmap(ranks_of_row)(-scores, items)


def images_before(
    distances: jax.Array, first: jax.Array | int, values: jax.Array, items: jax.Array
) -> jax.Array:
    """How many of some images of the database stand before each of M items.

    Args:
        distances: [N] float32, of neighbouring images.
        first: the database position of the first of them.
        values: [M] float32, the items' distances.
        items: [M] int32, their positions in the database, whether among the images or not.

    Returns:
        [M] int32.
    """
    size, count = len(distances), len(items)
    value, index, place = jax.lax.sort((values, items, jnp.arange(count)), num_keys=2)

    # For every image, the number of items that stand before it: the first item it is before.
    positions = first + jnp.arange(size)
    low = jnp.zeros(size, jnp.int32)
    high = jnp.full(size, count, jnp.int32)
    for _ in range(count.bit_length()):
        middle = (low + high) // 2
        at = jnp.minimum(middle, count - 1)
        item_is_before = (value[at] < distances) | (
            (value[at] == distances) & (index[at] < positions)
        )
        searching = low < high
        low = jnp.where(searching & item_is_before, middle + 1, low)
        high = jnp.where(searching & ~item_is_before, middle, high)
    # Before item p stand the images with at most p items before them, less the item itself.
    images_at = jnp.zeros(count + 1, jnp.int32).at[low].add(1)
    is_image = (index >= first) & (index < first + size)
    before = jnp.cumsum(images_at)[:count] - is_image
    return jnp.zeros(count, jnp.int32).at[place].set(before)


def ranks_by_distance(
    database: Database,
    queries: np.ndarray,
    items: np.ndarray,
    block: int = BLOCK,
    label: str | None = None,
    precision: str = "float32",
) -> np.ndarray:
    """Where `items` [Q, M] stand for each of `queries` [Q, D] by distance; see `ranks`.

    `block` queries are taken at a time; `label` is of the progress shown, None shows none;
    `precision` is one of `PRECISIONS`. Each of several processes ranks its share of the queries,
    and gets the ranks of all.

    Raises:
        ValueError: `queries` do not fit the database.
    """
    count, (queries, items) = len(queries), distributed.shares(queries, items)
    progress = Progress(label, len(queries), unit="queries") if label else None
    wanted = blocks(items, block)
    found = []
    # The next block's scores are computed while these are ranked.
    for scores in _ahead(
        negative_distances(rows, database, precision)
        for rows in blocks(centre(database, queries), block)
    ):
        found.append(ranks(scores, next(wanted)))
        if progress:
            progress.advance(min(block, progress.total - progress.done))
    if progress:
        progress.close()
    return distributed.gather(np.concatenate(found)[: len(queries)], count)


def _ahead(made: Iterator[jax.Array]) -> Iterator[jax.Array]:
    """The same, each dispatched before the one before it is used."""
    last = None
    for value in made:
        if last is not None:
            yield last
        last = value
    if last is not None:
        yield last


def relevant_items(query_labels: np.ndarray, database_labels: np.ndarray) -> np.ndarray:
    """The database positions of each query's class, int32 [Q, R], rows filled up by `PADDING`."""
    classes, which = np.unique(query_labels, return_inverse=True)
    members = [np.flatnonzero(database_labels == label) for label in classes]
    table = np.full((len(classes), max(map(len, members))), PADDING, np.int32)
    for row, positions in zip(table, members, strict=True):
        row[: len(positions)] = positions
    return table[which]


def blocks(rows: np.ndarray, block: int) -> Iterator[np.ndarray]:
    """Blocks of equal length, the last filled up with zeros: one compilation."""
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        yield np.pad(part, [(0, block - len(part))] + [(0, 0)] * (rows.ndim - 1))
