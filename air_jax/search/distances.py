"""Squared Euclidean distances of codes, and the best of many scores.

Rankings are by increasing distance; equal distances are in order of the positions. The expansion
|q|^2 - 2 q.x + |x|^2 makes distances one matrix product. It cancels when codes lie far from the
origin, so the codes here are centred. The whole [Q, N] matrix never exists: queries are taken in
blocks.
"""

import math
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from air_jax.runtime import sharding

BLOCK = 64  # queries at a time on a CPU: 64 x 50,000 float32 are 13 MB
SCORES_BYTES = 2**30  # of the scores of a block of queries on an accelerator
METRICS = ("l2", "standardised", "cosine", "inner_product")
# Of the products of queries and codes. Accelerators round float32 to TF32 or bfloat16 unless told
# not to; three products of bfloat16 parts are nearly as exact as float32. A CPU takes float32.
PRECISIONS: dict[str, jax.lax.Precision | jax.lax.DotAlgorithmPreset] = {
    "float32": jax.lax.Precision.HIGHEST,
    "bfloat16_3x": jax.lax.DotAlgorithmPreset.BF16_BF16_F32_X3,
}
GROUP = 64  # neighbours in the first stage of the search for the best


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
    deviations = database.std(axis=0, dtype=np.float64)
    varies = deviations > 1e-12 * np.abs(database).max(axis=0)
    scale = np.where(varies, deviations, 1).astype(np.result_type(database, np.float32))
    return database / scale, queries / scale


def _unit_length(codes: np.ndarray) -> np.ndarray:
    # The squares of the largest number have to fit; a power of two changes no digit.
    _, exponents = np.frexp(np.abs(codes).max(axis=1, keepdims=True))
    codes = np.ldexp(codes, -exponents)
    lengths = np.linalg.norm(codes, axis=1, keepdims=True)
    return codes / np.where(lengths > 0, lengths, 1)


def squared_distances(
    queries: jax.Array, codes: jax.Array, lengths: jax.Array, precision: str = "float32"
) -> jax.Array:
    """Squared Euclidean distances [Q, N] float32 of queries and codes.

    Args:
        queries: [Q, D] float32, centred.
        codes: [N, D] float32, centred.
        lengths: [N] float32, the squared lengths of the codes.
        precision: one of `PRECISIONS`.
    """
    products = jnp.matmul(queries, codes.T, precision=PRECISIONS[precision])
    own = jnp.sum(queries**2, axis=1, keepdims=True)
    return jnp.maximum(own - 2 * products + lengths, 0)


@partial(jax.jit, static_argnames="precision")
def negative_distances(
    queries: jax.Array, codes: jax.Array, lengths: jax.Array, precision: str = "float32"
) -> jax.Array:
    """Scores of the first retrieval: minus the squared distances; arguments as for those."""
    return -squared_distances(queries, codes, lengths, precision)


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
def best_unmarked(scores: jax.Array, marked: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The first `count` images of each ranking that are not marked.

    Args:
        scores: [B, N] float32.
        marked: [B, M] or [1, M] positions.
        count: at most N - M.

    Returns:
        Scores [B, count] and positions [B, count].
    """
    # Among so many there are enough: cheaper than a copy of all scores without the marked ones.
    values, positions = nearest(scores, count + marked.shape[1])
    is_marked = (positions[:, :, None] == marked[:, None, :]).any(axis=2)
    order = jnp.argsort(is_marked, axis=1, stable=True)[:, :count]
    return jnp.take_along_axis(values, order, axis=1), jnp.take_along_axis(positions, order, axis=1)


def queries_at_once(count: int, size: int) -> int:
    """Of so many queries over so many codes: as many as a cache, or an accelerator, is good for."""
    if sharding.on_cpu():
        return BLOCK
    most = max(BLOCK, SCORES_BYTES // (4 * size))
    return math.ceil(count / max(1, math.ceil(count / most)))


def blocks(rows: np.ndarray, block: int) -> Iterator[np.ndarray]:
    """Blocks of equal length, the last filled up with zeros: one compilation."""
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        yield np.pad(part, [(0, block - len(part))] + [(0, 0)] * (rows.ndim - 1))
