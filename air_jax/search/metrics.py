"""What rankings are judged by: average precision (eq 7, 8) and its companions, and intervals.

All of them follow from the ranks of the relevant images. Where rows of ranks differ in length the
shorter are filled up with ranks that are no image's, `size` or more, `size` being the number of
images in the database.

Ranks are arrays of NumPy or, within a program, of JAX: `xp` is the namespace of either.
"""

import functools
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

PRECISION_AT = 10  # images, of `residual_precision`


def average_precision(ranks: np.ndarray, size: int) -> np.ndarray:
    """Average precision over the whole ranking (eq 7).

    Args:
        ranks: [Q, R] of the relevant images, from 0; `size` or more for padding.
        size: images in the database.

    Returns:
        [Q] float64; NaN where nothing is relevant.
    """
    xp = ranks.__array_namespace__()
    ordered = xp.sort(ranks, axis=1)
    real = ordered < size
    precision = xp.arange(1, ranks.shape[1] + 1) / (ordered + 1)
    count = real.sum(axis=1)
    total = xp.where(real, precision, 0).sum(axis=1)
    return xp.where(count > 0, total / xp.maximum(count, 1), np.nan)


def random_average_precision(relevant: np.ndarray, size: int) -> np.ndarray:
    """Expected AP of a random ranking, [Q], with `relevant` [Q] of `size` images relevant.

    The mean over k of (1 + (k - 1)(R - 1) / (N - 1)) / k, summed in closed form.
    """
    harmonic = np.sum(1 / np.arange(1, size + 1))
    return (harmonic + (relevant - 1) / max(size - 1, 1) * (size - harmonic)) / size


def precision_at(ranks: np.ndarray, k: int) -> np.ndarray:
    """The share of relevant images among the first k, [Q]."""
    return (ranks < k).sum(axis=1) / k


def recall_at(ranks: np.ndarray, k: int, size: int) -> np.ndarray:
    """The share of the relevant images among the first k, [Q]; NaN where there are none."""
    count = np.count_nonzero(ranks < size, axis=1)
    found = np.count_nonzero(ranks < min(k, size), axis=1)
    return np.divide(found, count, where=count > 0, out=np.full(len(ranks), np.nan))


def residual_ranks(relevant_ranks: np.ndarray, marked_ranks: np.ndarray, size: int) -> np.ndarray:
    """Ranks in the residual collection: the database without the marked images.

    No second ranking is needed: from each rank the marked images before it are taken off.

    Args:
        relevant_ranks: [Q, R] of the relevant images; `size` for padding.
        marked_ranks: [Q, M] of all marked images, relevant or not, in the same ranking.
        size: images in the database.

    Returns:
        [Q, R]; `size` for padding and for the relevant images that are marked.
    """
    xp = relevant_ranks.__array_namespace__()
    marked = xp.sort(marked_ranks, axis=1)
    before = _places(marked, relevant_ranks, "left")
    after = _places(marked, relevant_ranks, "right")
    gone = (after > before) | (relevant_ranks >= size)
    return xp.where(gone, size, relevant_ranks - before)


def residual_precision(residual: np.ndarray, size: int) -> np.ndarray:
    """`precision_at` the first `PRECISION_AT` of `residual_ranks`, [Q]; NaN where none is left."""
    xp = residual.__array_namespace__()
    left = (residual < size).any(axis=1)
    return xp.where(left, precision_at(residual, PRECISION_AT), np.nan)


def _places(ordered: np.ndarray, values: np.ndarray, side: Literal["left", "right"]) -> np.ndarray:
    """`searchsorted` row by row."""
    if isinstance(ordered, np.ndarray):
        rows = zip(ordered, values, strict=True)
        return np.stack([np.searchsorted(row, of, side) for row, of in rows])
    return jax.vmap(partial(jnp.searchsorted, side=side))(ordered, values)


def mean(values: np.ndarray) -> float | None:
    """The mean over the queries that have a value; None if none has."""
    return None if np.isnan(values).all() else float(np.nanmean(values))


def bootstrap_interval(
    values: np.ndarray, labels: np.ndarray, resamples: int = 1000, level: float = 0.95
) -> list[float] | None:
    """An interval for the mean that resamples classes, then queries within them.

    Queries of one class move together: resampling queries alone gives intervals several times too
    narrow.

    Args:
        values: [Q] one for each query, or the differences of two runs for a paired interval; NaN
            where a query has none.
        labels: [Q] the queries' classes.
        resamples: how often.
        level: of the interval.

    Returns:
        [low, high]; None if no query has a value.
    """
    valid = ~np.isnan(values)
    if not valid.any():
        return None
    order = np.argsort(labels[valid], kind="stable")
    _, counts = np.unique(labels[valid], return_counts=True)
    means = _resamples(tuple(counts.tolist()), resamples) @ values[valid][order]
    tail = (1 - level) / 2
    return [float(q) for q in np.quantile(means, [tail, 1 - tail])]


@functools.lru_cache(maxsize=2)  # the rounds and the learners of a run share one
def _resamples(counts: tuple[int, ...], resamples: int) -> np.ndarray:
    """The weight of each query in each resample's mean, [resamples, Q] float64.

    Args:
        counts: queries of each class; the queries are in order of the classes.
        resamples: how often.
    """
    rng = np.random.default_rng(0)
    chosen = rng.integers(len(counts), size=(resamples, len(counts)))
    weights = np.zeros((resamples, sum(counts)))
    start = 0
    for label, count in enumerate(counts):
        rows = np.nonzero(chosen == label)[0]
        drawn = rng.integers(count, size=(len(rows), count))
        places = (rows[:, None] * count + drawn).ravel()
        times = np.bincount(places, minlength=resamples * count)
        weights[:, start : start + count] = times.reshape(resamples, count)
        start += count
    return weights / np.array(counts)[chosen].sum(axis=1, keepdims=True)
