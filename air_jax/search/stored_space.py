"""A database that a `vector_store` holds, as learners and the engine see it.

The store answers two questions exactly: which codes are nearest to a point, or farthest from it,
and which have the largest inner product with a vector. So it ranks by `Near` and `Linear` as if the
codes were here. By `Kernel` and `Mixture`, and where the least certain are wanted, it cannot: then
the scores of a sample of codes are fitted by a multiple of the squared distance from some point,
the store is asked for the first by that, and they are put in order by their exact codes. A second
fit, on the best of the sample, adds more of them.
"""

import math

import jax
import numpy as np

from air_jax.search import scorers, vector_store
from air_jax.search.scorers import Linear, Near, Scorer
from air_jax.search.streaming import Best, centred_with_examples, check_k, without_idle_samples
from air_jax.search.vector_store import Hits, VectorStore

ROWS = 512  # numbers of codes that are scored are rounded up to
SAMPLE = 4096  # codes that a ranking is fitted on, where the store cannot make it
BEST = 4  # the second fit is on the best fourth of them
CANDIDATES = 4096  # of each fit
FARTHEST = 300.0  # middle of a sphere, in lengths of codes; beyond, it is taken for a plane


class StoredCodes:
    """A store's codes in order of position: what `engine.Engine` asks of a `CodeStore`.

    Args:
        vectors: the store.
        ids: [N] int64, different: of each position.
        mean: [D] float32 of the codes.
        covariance: [D, D] float32 of the codes.

    Attributes:
        dimension: D.
        deviation: [D] float32; 1 where codes are constant.
    """

    def __init__(
        self, vectors: VectorStore, ids: np.ndarray, mean: np.ndarray, covariance: np.ndarray
    ):
        self.vectors, self.ids, self.mean, self.covariance = vectors, ids, mean, covariance
        self.dimension = vectors.dimension
        self.deviation = scorers.deviation_of(covariance)
        self._order = np.argsort(ids)
        self._sorted = ids[self._order]
        self._sample: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def get(self, positions: np.ndarray) -> np.ndarray:
        """Codes of positions of any shape [...]: [..., D] float32."""
        return self.vectors.get(self.ids[positions])

    def centred(self, positions: np.ndarray) -> np.ndarray:
        """The same, the mean taken off."""
        return self.get(positions) - self.mean

    def sample(self) -> np.ndarray:
        """[S, D] centred codes, evenly spaced; kept."""
        if self._sample is None:
            some = np.linspace(0, len(self) - 1, min(len(self), SAMPLE)).astype(int)
            self._sample = self.centred(some)
        return self._sample

    def positions(self, ids: np.ndarray) -> np.ndarray:
        """Where ids of any shape [...] are: [...] int64.

        Raises:
            ValueError: an id is of no position.
        """
        places = np.minimum(np.searchsorted(self._sorted, ids), len(self) - 1)
        if not np.array_equal(self._sorted[places], ids):
            raise ValueError("the store holds codes that are not of this index")
        return self._order[places]


class StoredSpace:
    """Stored codes as learners see them: `learners.Space`.

    Args:
        store: the codes.
        examples: [E, D] float32, centred, of images that are not in it; learners find them at the
            positions from N on.

    Attributes:
        scale: [D] float32, the deviation of each dimension.
        covariance: [D, D] float32.
    """

    def __init__(self, store: StoredCodes, examples: np.ndarray | None = None):
        self.store, self.scale, self.covariance = store, store.deviation, store.covariance
        self.examples = np.zeros((0, store.dimension), np.float32) if examples is None else examples

    def size(self) -> int:
        return len(self.store)

    def centred(self, positions: np.ndarray) -> np.ndarray:
        """Codes of positions [...], the mean taken off: [..., D] float32."""
        return centred_with_examples(self.store, self.examples, positions)

    def best_unmarked(
        self, scorer: Scorer, marked: np.ndarray, count: int, show: str = "best"
    ) -> np.ndarray:
        """The first `count` images, but for `marked` [B, M], of `scorers.SHOW`: [B, count]."""
        return self.search(scorer, count, marked, show).positions

    def search(
        self, scorer: Scorer, k: int, hidden: np.ndarray | None = None, show: str = "best"
    ) -> Best:
        """The k best images of each ranking; see `streaming.StreamedSpace.search`.

        `certain` is false of rankings by candidates.

        Raises:
            ValueError: k is out of range, or more than the store finds.
        """
        hidden = np.zeros((1, 0), np.int64) if hidden is None else hidden
        check_k(k, self.size(), hidden)
        scorer = without_idle_samples(scorer)
        rankings = len(jax.tree.leaves(scorer)[0])
        hidden = np.broadcast_to(hidden, (rankings, hidden.shape[1]))
        found = [
            self._search(jax.tree.map(lambda array, b=b: array[b : b + 1], scorer), k, own, show)
            for b, own in enumerate(hidden)
        ]
        return Best(
            np.concatenate([one.ids for one in found]),
            np.concatenate([one.scores for one in found]).astype(np.float32),
            np.concatenate([one.certain for one in found]),
        )

    def _search(self, scorer: Scorer, k: int, hidden: np.ndarray, show: str) -> Hits:
        """Of one ranking, with positions for ids."""
        store = self.store
        without = store.ids[hidden[hidden < len(store)]]  # examples are not in it
        question = exact_question(scorer, show, store.mean, store.deviation)
        if question is not None:
            point, metric, reverse = question

            def find(count: int) -> Hits:
                hits = store.vectors.search(
                    point[None], count, metric, without=without, reverse=reverse
                )
                if hits.ids.shape[1] < k:
                    raise ValueError("codes have left the store since it was opened: open it again")
                return self._ranked(scorer, hits.ids[0], hits.codes[0], show, hits.certain)

            most = min(store.vectors.most, len(store) - len(without) + 1)
            return vector_store.search_beyond(find, k, max(k, most))
        ids, codes = np.zeros(0, np.int64), np.zeros((0, store.dimension), np.float32)
        count = min(max(CANDIDATES, k), store.vectors.most)
        for point, metric, reverse in fitted_questions(scorer, show, store):
            hits = store.vectors.search(
                point[None], count, metric, without=without, reverse=reverse
            )
            ids, first = np.unique(np.append(ids, hits.ids), return_index=True)
            codes = np.concatenate([codes, hits.codes[0]])[first]
        certain = np.array([len(ids) == len(store) - len(without)])
        hits = self._ranked(scorer, ids, codes, show, certain)
        return Hits(*(array[:, :k] for array in hits[:3]), hits.certain)

    def _ranked(
        self, scorer: Scorer, ids: np.ndarray, codes: np.ndarray, show: str, certain: np.ndarray
    ) -> Hits:
        """Put codes [n, D] of ids [n] in order of their scores, then of their positions."""
        positions = self.store.positions(ids)
        # Every number of codes would be compiled for.
        padded = np.pad(codes - self.store.mean, ((0, -len(codes) % ROWS), (0, 0)))
        given = scorers.of_codes(scorer, padded, self.scale)
        scores = np.asarray(scorers.SHOW[show](given))[0, : len(codes)]
        order = np.lexsort((positions, -scores))
        return Hits(positions[order][None], codes[order][None], scores[order][None], certain)


def exact_question(
    scorer: Scorer, show: str, mean: np.ndarray, deviation: np.ndarray
) -> tuple[np.ndarray, str, bool] | None:
    """What to ask a store for one ranking: query [D], metric and whether reversed; None: it can't.

    Args:
        scorer: of one ranking.
        show: of `scorers.SHOW`.
        mean, deviation: [D] of the codes.
    """
    match scorer:
        case Near(points):
            # These scores are never positive: the least certain are the best.
            return points[0] + mean, "l2", show == "worst"
        case Linear(weights, _) if show != "uncertain":
            return weights[0] / deviation, "ip", show == "worst"
    return None


def fitted_questions(
    scorer: Scorer, show: str, store: StoredCodes
) -> list[tuple[np.ndarray, str, bool]]:
    """What to ask a store for candidates: queries [D], metrics and whether reversed."""
    sample = store.sample().astype(np.float64)
    given = scorers.of_codes(scorer, store.sample(), store.deviation)
    scores = np.asarray(scorers.SHOW[show](given))[0].astype(np.float64)
    squares = np.square(sample).sum(axis=1)
    terms = np.concatenate([sample, squares[:, None], np.ones_like(squares)[:, None]], axis=1)
    best = np.argsort(-scores)[: math.ceil(len(scores) / BEST)]
    questions = []
    for rows in (slice(None), best):
        fit = np.linalg.lstsq(terms[rows], scores[rows], rcond=None)[0]
        weights, square = fit[:-2], fit[-2]
        # square |x|^2 + weights x is square |x - middle|^2 and a constant.
        reach = FARTHEST * np.sqrt(squares.mean())
        if np.linalg.norm(weights) < 2 * abs(square) * reach:
            middle = store.mean - weights / (2 * square)
            questions.append((middle.astype(np.float32), "l2", bool(square > 0)))
        else:
            questions.append((weights.astype(np.float32), "ip", False))
    return questions
