"""Search by any scorer in codes on disk, tile by tile: more of them than the device, or RAM, holds.

Each tile is scored and its best are merged with the best so far; the next one is on its way by
then. Codes kept as float16 or int8 are searched as they are kept, for some more images than were
asked for, and those are put in order by their exact float32 codes.
"""

import math
from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from air_jax.search import exact_search, scorers
from air_jax.search.code_store import CodeStore
from air_jax.search.scorers import OUTSIDE, Kernel, Linear, Mixture, Near, Scorer

ROWS = 2**17  # of a tile: 64 MB of 128-d float32
SCORES = 2**24  # of all rankings in a tile, at most
CHUNK = 4096  # rows scored at once; on a CPU these stay in its cache
UNDER_WAY = 2  # tiles
MARGIN = 256  # candidates beyond those asked for, where codes are not exact
# A session's marks grow by a few a round, and every size is compiled for: sizes are rounded up.
CANDIDATES = 128
SAMPLES = (16, 32, 48, 64, 96, 128, 192)


class Best(NamedTuple):
    """The best images of B rankings.

    Attributes:
        positions: [B, k] int64 in the store.
        scores: [B, k] float32, by exact codes; descending, equal ones in order of the store.
        certain: [B] bool: no image left out can have a higher score than the last one, as the
            store's `error` bounds what its codes lose. True for float32.
    """

    positions: np.ndarray
    scores: np.ndarray
    certain: np.ndarray


class StreamedSpace:
    """A store as learners see it: `learners.Space`.

    Args:
        store: of the codes.
        examples: [E, D] float32, centred, of images that are not in it; learners find them at the
            positions from N on.

    Attributes:
        scale: [D] float32, the deviation of each dimension.
        covariance: [D, D] float32.
    """

    def __init__(self, store: CodeStore, examples: np.ndarray | None = None):
        self.store, self.scale, self.covariance = store, store.deviation, store.covariance
        self.examples = np.zeros((0, store.dimension), np.float32) if examples is None else examples

    def size(self) -> int:
        return len(self.store)

    def centred(self, positions: np.ndarray) -> np.ndarray:
        """Exact codes of positions [...], the mean taken off: [..., D] float32."""
        return centred_with_examples(self.store, self.examples, positions)

    def best_unmarked(
        self, scorer: Scorer, marked: np.ndarray, count: int, show: str = "best"
    ) -> np.ndarray:
        """The first `count` images, but for `marked` [B, M], of `scorers.SHOW`: [B, count]."""
        return self.search(scorer, count, marked, show).positions

    def search(
        self, scorer: Scorer, k: int, hidden: np.ndarray | None = None, show: str = "best"
    ) -> Best:
        """The k best images of each ranking.

        Args:
            scorer: of B rankings.
            k: at least 1, and no more than there are without the hidden ones.
            hidden: [B, H] positions that are left out.
            show: of `scorers.SHOW`; "scores" below are those it makes.

        Raises:
            ValueError: k is out of range.
        """
        size = self.size()
        hidden = np.zeros((1, 0), np.int64) if hidden is None else hidden
        check_k(k, size, hidden)
        store, scorer = self.store, without_idle_samples(scorer)
        exact = store.storage == "float32"
        wanted = k + hidden.shape[1]
        candidates = CANDIDATES * math.ceil((wanted if exact else wanted + MARGIN) / CANDIDATES)
        candidates = min(size, candidates)
        values, positions = self._best(scorer, candidates, show)
        last = values[:, -1]
        if not exact:
            values = self._exact_scores(scorer, positions, show)
        values = np.where((positions[:, :, None] == hidden[:, None]).any(axis=2), -np.inf, values)
        order = np.lexsort((positions, -values), axis=1)[:, :k]
        values = np.take_along_axis(values, order, axis=1)
        positions = np.take_along_axis(positions, order, axis=1)
        certain = np.full(len(values), exact or candidates == size)
        if not certain.all():
            certain = values[:, -1] >= last + _largest_loss(scorer, last, store)
        return Best(positions, values, certain)

    def _best(self, scorer: Scorer, count: int, show: str) -> tuple[np.ndarray, np.ndarray]:
        """Scores and positions [B, count] of the highest scores by the codes as stored."""
        store = self.store
        rankings = len(jax.tree.leaves(scorer)[0])
        rows = max(CHUNK, min(ROWS, SCORES // rankings) // CHUNK * CHUNK)
        best = (
            jnp.full((rankings, count), -jnp.inf, jnp.float32),
            jnp.full((rankings, count), store.size, jnp.int32),
        )
        unpacking = (store.scale, store.offset(), self.scale)
        under_way: deque[jax.Array] = deque()
        for first, tile in _tiles(store.codes, rows):
            best = _merge(best, scorer, tile, first, unpacking, show)
            under_way.append(best[0])
            if len(under_way) > UNDER_WAY:  # tiles that are read wait in memory
                under_way.popleft().block_until_ready()
        values, positions = jax.device_get(best)
        return values, positions.astype(np.int64)

    def _exact_scores(self, scorer: Scorer, positions: np.ndarray, show: str) -> np.ndarray:
        rows = []
        for b, own in enumerate(positions):
            one = jax.tree.map(lambda array, b=b: array[b : b + 1], scorer)
            scores = scorers.of_codes(one, self.store.centred(own), self.scale)
            rows.append(np.asarray(scorers.SHOW[show](scores))[0])
        return np.stack(rows)


def check_k(k: int, size: int, hidden: np.ndarray) -> None:
    """Raises ValueError if k images are not left of `size` without the hidden [B, H]."""
    left = size - hidden.shape[1]
    if not 1 <= k <= left:
        raise ValueError(
            f"k={k}: expected from 1 to the {left} images that are left of {size} in the database"
        )


def centred_with_examples(store: Any, examples: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Centred codes [..., D] of positions [...] in a store of N; from N on, of examples [E, D]."""
    inside = positions < len(store)
    codes = store.centred(np.where(inside, positions, 0))
    codes[~inside] = examples[positions[~inside] - len(store)]
    return codes


def _tiles(codes: np.ndarray, rows: int) -> Iterator[tuple[int, jax.Array]]:
    """The first row of each tile, and the tile on its way to the device."""
    for first in range(0, len(codes), rows):
        # On a CPU this makes no copy (`jnp.asarray` does): reading it is reading the file.
        yield first, jax.device_put(codes[first : first + rows])


@partial(jax.jit, static_argnames="show")
def _merge(
    best: tuple[jax.Array, jax.Array],
    scorer: Scorer,
    tile: jax.Array,
    first: jax.Array,
    unpacking: tuple[jax.Array, jax.Array, jax.Array],
    show: str,
) -> tuple[jax.Array, jax.Array]:
    """The best so far [B, R] and those of a tile [n, D], whose first row is at `first`."""
    scale, offset, deviation = unpacking

    def score(chunk: jax.Array) -> jax.Array:
        codes = chunk.astype(jnp.float32) * scale + offset
        return scorers.SHOW[show](scorers.of_codes(scorer, codes, deviation))

    count = len(tile) // CHUNK
    whole = count * CHUNK
    parts = []
    if count:
        scores = jax.lax.map(score, tile[:whole].reshape(count, CHUNK, tile.shape[1]))
        parts.append(jnp.moveaxis(scores, 0, 1).reshape(-1, whole))
    if whole < len(tile):
        parts.append(score(tile[whole:]))
    scores = jnp.concatenate(parts, axis=1)
    values, places = exact_search.nearest(scores, min(best[0].shape[1], len(tile)))
    # Those so far come first: equal scores keep the order of the store.
    values = jnp.concatenate([best[0], values], axis=1)
    positions = jnp.concatenate([best[1], first + places], axis=1)
    values, places = jax.lax.top_k(values, best[0].shape[1])
    return values, jnp.take_along_axis(positions, places, axis=1)


def without_idle_samples(scorer: Scorer) -> Scorer:
    """The same scores from fewer samples: those of machines whose coefficient is not zero.

    As many are kept of each machine, and their number is one of `SAMPLES` or a multiple of the
    last: it is part of the shape that is compiled for.
    """
    if isinstance(scorer, Mixture):
        return scorer._replace(kernel=without_idle_samples(scorer.kernel))
    if not isinstance(scorer, Kernel):
        return scorer
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


def _largest_loss(scorer: Scorer, last: np.ndarray, store: CodeStore) -> np.ndarray:
    """[B] by how much a score below `last` [B] can rise when a code is replaced by its exact one.

    No code moves farther than `store.error`; this is that, times how steep the scorer is.
    """
    error = store.error
    match scorer:
        case Near():
            # (d +- error)^2 instead of d^2, with d the distance.
            return 2 * np.sqrt(np.abs(last)) * error + error**2
        case Linear(weights, _):
            return np.linalg.norm(weights / store.deviation, axis=1) * error
        case Kernel(machines, _):
            # exp(-gamma d^2) falls fastest at d^2 = 1 / (2 gamma), by sqrt(2 gamma / e).
            total = np.abs(machines.coefficients).sum(axis=1)
            farthest = error / store.deviation.min()  # of standardised codes
            return total * np.sqrt(2 * machines.gamma / math.e) * farthest
        case Mixture():
            return np.full(len(last), np.inf)  # not worked out
