"""Codes in Milvus, ranked exactly by distances and by hyperplanes.

Milvus finds the codes that have the largest inner products with a query, which ranks them by a
`Near` or a `Linear` scorer. A search asks for some more codes than are wanted, and puts them in
order by their exact codes, so that neither rounding nor equal scores decide which are found. Other
rankings Milvus cannot make: `MilvusCodes.top` refuses them.
"""

import jax
import numpy as np

from air_jax.search import scorers
from air_jax.search.codes import Top, Unrankable, checked_without, deviation_of
from air_jax.search.milvus_collection import MOST, Collection
from air_jax.search.scorers import Linear, Near, Scorer

MARGIN = 128  # codes looked for beyond those asked for
WIDER = 4  # times as many, where that was not enough
ROUNDING = 2.0**-24  # of float32


class MilvusCodes:
    """Codes of a collection: `codes.Codes`.

    Args:
        collection: of the codes.
        ids: [N] int64, different: of each position.
        mean: [D] float32 of the codes.
        covariance: [D, D] float32 of the codes.
    """

    ranks_by_all = False

    def __init__(
        self, collection: Collection, ids: np.ndarray, mean: np.ndarray, covariance: np.ndarray
    ):
        self.collection, self.ids, self.mean, self.covariance = collection, ids, mean, covariance
        self.unit = 1.0
        self.dimension = collection.dimension
        self.deviation = deviation_of(covariance)
        self._order = np.argsort(ids)
        self._sorted = ids[self._order]

    def __len__(self) -> int:
        return len(self.ids)

    def get(self, positions: np.ndarray) -> np.ndarray:
        return self.collection.get(self.ids[positions])

    def take(self, positions: np.ndarray) -> np.ndarray:
        return self.get(positions) - self.mean

    def top(
        self, scorer: Scorer, k: int, without: np.ndarray | None = None, show: str = "best"
    ) -> Top:
        """See `codes.Codes`; `certain` is false if the collection's index is not exact.

        Raises:
            ValueError: k is out of range, or the collection no longer holds the codes.
            Unrankable: k is more than Milvus finds at once; the scorer or `show` is none that
                Milvus ranks by.
        """
        without = checked_without(k, len(self), without)
        if k > MOST:
            raise Unrankable(f"k={k}: expected from 1 to {MOST}, which is the most Milvus finds")
        asked = self._asked(scorer, show)
        without = np.broadcast_to(without, (len(asked), without.shape[1]))
        rankings = [
            self._top_of_one(
                jax.tree.map(lambda array, b=b: array[b : b + 1], scorer), *one, k, show
            )
            for b, one in enumerate(zip(asked, without, strict=True))
        ]
        positions, scores, certain = zip(*rankings, strict=True)
        return Top(np.stack(positions), np.stack(scores), np.array(certain))

    def _asked(self, scorer: Scorer, show: str) -> np.ndarray:
        """What the collection is asked for: [B, D + 1] float32, see `milvus_collection`."""
        match scorer:
            case Near(points):
                # These scores are never positive: the least certain are the best.
                own, length = 2 * (points + self.mean), -1.0
            case Linear(weights, _) if show != "uncertain":
                own, length = weights / self.deviation, 0.0
            case _:
                raise Unrankable(
                    "Milvus ranks codes exactly by distances and by hyperplanes, best first, not "
                    "by kernel machines and not by what is least certain: use one of the learners "
                    "discriminant, svc_linear, means, rocchio with show=best, or make the index "
                    "without --store"
                )
        asked = np.pad(own, ((0, 0), (0, 1)), constant_values=length).astype(np.float32)
        return -asked if show == "worst" else asked

    def _top_of_one(
        self, scorer: Scorer, asked: np.ndarray, without: np.ndarray, k: int, show: str
    ) -> tuple[np.ndarray, np.ndarray, bool]:
        """Positions [k], scores [k] and whether they are certain, of one ranking."""
        hidden = self.ids[without[without < len(self)]]  # examples have no id
        # By so much a product can be misjudged in float32, of a code found and of one that is not.
        longest = self.collection.longest()
        size = (np.linalg.norm(asked[:-1]) + abs(asked[-1]) * longest) * longest
        loss = 2 * (self.dimension + 2) * ROUNDING * size
        count = min(k + MARGIN, MOST)
        while True:
            ids, codes = self.collection.search(asked, count, hidden)
            if len(ids) < k:
                raise ValueError("codes have left the store since it was opened: open it again")
            exact = codes.astype(np.float64)
            scored = scorers.exact_scores(scorer, 0, exact - self.mean, self.deviation)
            positions, scores = self._positions(ids), scorers.SHOW[show](scored)
            order = np.lexsort((positions, -scores))
            products = np.sort(exact @ asked[:-1] + np.square(exact).sum(axis=1) * asked[-1])
            # No other code can belong among the first k.
            certain = len(ids) < count or bool(
                products[-k] - products[0] > loss and scores[order[k - 1]] > scores[order[-1]]
            )
            if certain or count == MOST:
                first = order[:k]
                found = scores[first].astype(np.float32)
                return positions[first], found, certain and self.collection.is_exact
            count = min(WIDER * count, MOST)

    def _positions(self, ids: np.ndarray) -> np.ndarray:
        places = np.minimum(np.searchsorted(self._sorted, ids), len(self) - 1)
        if not np.array_equal(self._sorted[places], ids):
            raise ValueError("the store holds codes that are not of this index")
        return self._order[places]
