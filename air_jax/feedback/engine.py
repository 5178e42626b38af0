"""One user's search in codes: the first retrieval, and a round of feedback at a time.

The engine does for a person what `simulated_user` simulates: it takes any number of examples, in
the database or not, marks of either kind, and any learner. Every call is given all marks made so
far; the engine keeps nothing between calls, so that a round can be repeated or stepped back.
"""

from typing import NamedTuple

import numpy as np

from air_jax.feedback.learners import LEARNERS, Marks, makes_kernels
from air_jax.search.codes import FARTHEST, Codes, WithExamples
from air_jax.search.scorers import Near, Scorer

LEARNER_NAMES = tuple(name for name in LEARNERS if name != "none")
DEFAULT_LEARNER = "discriminant"
SHOW = ("best", "uncertain")
NOTHING = np.zeros(0, np.int64)


class Found(NamedTuple):
    """A ranking's first images.

    Attributes:
        positions: [n] int64 in the database; n is k, or what is left of it if that is fewer.
        scores: [n] float32, descending; of "uncertain" minus their absolute value.
        learnt: false where the marks were of one kind only and the learner needs both: the
            ranking is then that of the query.
        certain: see `codes.Top`.
        solved: false where the learner's machine was not solved to its tolerance: the ranking is
            only near the one that the marks ask for.
        scorer: the ranking itself; `scorers.to_arrays` makes a file of it.
    """

    positions: np.ndarray
    scores: np.ndarray
    learnt: bool
    certain: bool
    solved: bool
    scorer: Scorer


class Engine:
    """Searches a database.

    Args:
        codes: of the database, wherever they lie.
    """

    def __init__(self, codes: Codes):
        self.codes = codes

    @property
    def learners(self) -> tuple[str, ...]:
        """Those of `LEARNER_NAMES` by which these codes can be ranked."""
        every = self.codes.ranks_by_all
        return tuple(name for name in LEARNER_NAMES if every or not makes_kernels(name))

    @property
    def shows(self) -> tuple[str, ...]:
        """Those of `SHOW` that can be found of these codes by each of the learners."""
        return SHOW if self.codes.ranks_by_all else SHOW[:1]

    def first(self, query: np.ndarray, k: int, hidden: np.ndarray = NOTHING) -> Found:
        """The k nearest images of a query.

        Args:
            query: [D] code, not centred.
            k: from 1 to N.
            hidden: [H] positions that are left out.

        Raises:
            ValueError: k out of range, positions that are none, or a query of another dimension,
                with NaN or infinity, or too far from the database for float32.
        """
        scorer = Near(self._centred("query", query[None]))
        self._check_positions("hidden", hidden)
        return self._search(scorer, k, hidden, "best", learnt=True)

    def next_round(
        self,
        learner: str,
        query: np.ndarray | None,
        examples: np.ndarray,
        positions: np.ndarray,
        relevant: np.ndarray,
        k: int,
        *,
        show: str = "best",
        hide_judged: bool = True,
        seed: int = 0,
        hidden: np.ndarray = NOTHING,
    ) -> Found:
        """The k first images after the marks made so far.

        Args:
            learner: one of `LEARNER_NAMES`.
            query: [D] code, not centred. None: the mean of all positive examples stands for it, or
                of the whole database if there is none.
            examples: [E, D] codes of further relevant images, which are not in the database.
            positions: [M] of marked images.
            relevant: [M] bool.
            k: from 1 to N.
            show: "best", or "uncertain": what the learner is least sure of, if its scores have a
                sign; else the best.
            hide_judged: leave marked images out.
            seed: of learners that draw.
            hidden: [H] further positions that are left out.

        Raises:
            ValueError: unknown names, k out of range, positions that are none, an image marked
                twice, nothing marked at all, codes that do not fit the database, or a learner whose
                scores the codes cannot be ranked by (see `milvus_codes`).
        """
        if learner not in LEARNERS:
            raise ValueError(f"learner={learner!r}: expected one of {', '.join(LEARNER_NAMES)}")
        if show not in SHOW:
            raise ValueError(f"show={show!r}: expected one of {', '.join(SHOW)}")
        self._check_positions("marks", positions)
        self._check_positions("hidden", hidden)
        self._check_marks(positions, relevant)
        examples = self._centred("example", examples).astype(np.float32)
        if query is None and not len(positions) and not len(examples):
            raise ValueError("no query, no examples and no marks: expected at least one of them")
        codes, size = WithExamples(self.codes, examples), len(self.codes)
        marks = Marks(
            np.concatenate([positions, size + np.arange(len(examples))])[None].astype(np.int64),
            np.concatenate([relevant, np.ones(len(examples), bool)])[None].astype(bool),
        )
        if query is None:
            positive = codes.take(marks.positions[marks.relevant])
            own = positive.mean(axis=0) if len(positive) else np.zeros(codes.dimension)
            own = own[None]
        else:
            own = self._centred("query", query[None])
        hidden = np.concatenate([positions, hidden]) if hide_judged else hidden
        lesson = LEARNERS[learner](codes, own.astype(np.float32), marks, [[seed, len(positions)]])
        learnt = bool(lesson.learnt[0])
        if not learnt:
            return self._search(Near(own), k, hidden, "best", learnt=False)
        found = self._search(
            lesson.scorer, k, hidden, show if lesson.signed else "best", learnt=True
        )
        return found._replace(solved=not np.any(lesson.unconverged))

    def _search(self, scorer: Scorer, k: int, hidden: np.ndarray, show: str, learnt: bool) -> Found:
        size = len(self.codes)
        if not 1 <= k <= size:
            raise ValueError(f"k={k}: expected from 1 to the {size} images in the database")
        hidden = np.unique(hidden)
        k = min(k, size - len(hidden))
        if not k:
            nothing = np.zeros(0, np.float32)
            return Found(NOTHING, nothing, learnt, certain=True, solved=True, scorer=scorer)
        best = self.codes.top(scorer, k, hidden[None], show)
        certain = bool(best.certain[0])
        return Found(best.positions[0], best.scores[0], learnt, certain, solved=True, scorer=scorer)

    def _centred(self, name: str, codes: np.ndarray) -> np.ndarray:
        """Codes [n, D] of any float type, centred: float64."""
        if codes.shape[1:] != (self.codes.dimension,):
            raise ValueError(
                f"{name} codes have shape {list(codes.shape[1:])}; the database's have "
                f"[{self.codes.dimension}]"
            )
        if not np.isfinite(codes).all():
            raise ValueError(f"{name} codes hold NaN or infinity")
        centred = (codes.astype(np.float64) - self.codes.mean) / self.codes.unit
        bad = np.abs(centred).max(axis=1, initial=0) > FARTHEST
        if bad.any():
            value = codes[bad][0, np.abs(centred[bad][0]).argmax()]
            raise ValueError(
                f"{name} codes hold {value:.3g}, too far from the database's codes: expected at "
                f"most {FARTHEST * self.codes.unit:.0e}"
            )
        return centred

    def _check_positions(self, name: str, positions: np.ndarray) -> None:
        bad = (positions < 0) | (positions >= len(self.codes))
        if bad.any():
            raise ValueError(
                f"{name}: {int(positions[np.argmax(bad)])} is no position; expected from 0 to "
                f"{len(self.codes) - 1}"
            )

    def _check_marks(self, positions: np.ndarray, relevant: np.ndarray) -> None:
        if positions.ndim != 1 or positions.shape != relevant.shape:
            raise ValueError(
                f"marks: positions of shape {list(positions.shape)}, relevant of "
                f"{list(relevant.shape)}; expected [M] both"
            )
        images, counts = np.unique(positions, return_counts=True)
        for image in images[counts > 1]:
            both = len(set(relevant[positions == image].tolist())) > 1
            how = "relevant and irrelevant" if both else "twice"
            raise ValueError(f"marks: image {int(image)} is marked {how}")
