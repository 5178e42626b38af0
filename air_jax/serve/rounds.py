"""The rounds of a session in an index: what `serve` shows and `replay` repeats."""

import dataclasses
import time
from collections.abc import Callable

import numpy as np

from air_jax.feedback.engine import LEARNER_NAMES, SHOW, Engine, Found
from air_jax.index.image_index import ImageIndex
from air_jax.serve.sessions import Refused, Round, Session

MOST_SHOWN = 1000
CodeOf = Callable[[str], np.ndarray]


class Searcher:
    """Finds the images of rounds; safe to use from several threads.

    Args:
        index: opened.
    """

    def __init__(self, index: ImageIndex):
        self.index = index
        self.codes = index.codes
        self.engine = Engine(self.codes)

    def first_round(self, session: Session, code_of: CodeOf, count: int) -> Round:
        """Round 0: random images, or those nearest to the query, without its own images.

        Args:
            session: with images or uploads, or random.
            code_of: the code [D] of an upload's token.
            count: images wanted; fewer if the index has no more.

        Raises:
            Refused: an image of the query is not in the index.
        """
        blank = Round(number=0, learner=None, show="best", count=count, seed=session.seed)
        return self.repeat(session, blank, code_of)

    def next_round(
        self,
        session: Session,
        code_of: CodeOf,
        *,
        learner: str,
        show: str,
        count: int,
        hide_judged: bool,
    ) -> Round:
        """The round after the one shown, by all marks and examples that count on it.

        Raises:
            Refused: unknown names, nothing to learn from, or an image of the query that is not in
                the index.
            Unrankable: the codes cannot be ranked by this learner where they lie.
        """
        if learner not in LEARNER_NAMES:
            raise Refused(f"learner={learner!r}: expected one of {', '.join(LEARNER_NAMES)}")
        if show not in SHOW:
            raise Refused(f"show={show!r}: expected one of {', '.join(SHOW)}")
        blank = Round(
            number=session.current + 1,
            learner=learner,
            show=show,
            count=count,
            hide_judged=hide_judged,
            seed=session.seed,
            marks=[[image, mark.relevant] for image, mark in session.marks_now().items()],
            uploads=session.uploads_now(),
        )
        return self.repeat(session, blank, code_of)

    def repeat(self, session: Session, made: Round, code_of: CodeOf) -> Round:
        """A round again, from what it was made from; raises as the methods above."""
        if not 1 <= made.count <= MOST_SHOWN:
            raise ValueError(f"count={made.count}: expected from 1 to {MOST_SHOWN}")
        started = time.perf_counter()
        scores: list[float | None]
        learnt = certain = solved = True
        if made.number == 0 and session.random:
            positions = self._random(session.seed, made.count)
            scores = [None] * len(positions)
        else:
            found = self.found(session, made, code_of)
            positions, scores = found.positions, [float(score) for score in found.scores]
            learnt, certain, solved = found.learnt, found.certain, found.solved
        return dataclasses.replace(
            made,
            images=self.index.ids[positions].tolist(),
            scores=scores,
            learnt=learnt,
            certain=certain,
            solved=solved,
            seconds=time.perf_counter() - started,
        )

    def found(self, session: Session, made: Round, code_of: CodeOf) -> Found:
        """What the engine makes of a round's inputs, with the ranking itself.

        A query of one image is where the ranking starts from. Of several, all are relevant
        examples. The query's own images are not shown.

        Raises:
            Refused: as above; also for a random start, which has no ranking.
        """
        own = np.array([self._position(image) for image in session.images], np.int64)
        tokens = [token for token, added in session.uploads if added == 0]
        if made.number == 0:
            if session.random:
                raise Refused("a random start has no ranking: mark images, go to a next round")
            codes = np.concatenate(
                [self.codes.get(own), self._codes(tokens, code_of)], dtype=np.float64
            )
            return self.engine.first(codes.mean(axis=0), self._count(made.count), own)
        single = len(own) + len(tokens) == 1
        query, examples = None, list(made.uploads)
        if single and tokens:
            query = code_of(tokens[0])
            examples.remove(tokens[0])
        elif single:
            query = self.codes.get(own[0])
        said = {} if single else {int(position): True for position in own}
        # An image that has left the index since can teach nothing.
        for image, relevant in made.marks:
            position = self.index.position(image)
            if position is not None:
                said[position] = relevant
        hidden = own if made.hide_judged else np.zeros(0, np.int64)
        if query is None and not examples and not said:
            raise Refused("there is nothing to learn from: mark images of this round first")
        return self.engine.next_round(
            str(made.learner),
            query,
            self._codes(examples, code_of),
            np.array(list(said), np.int64),
            np.array(list(said.values()), bool),
            self._count(made.count),
            show=made.show,
            hide_judged=made.hide_judged,
            seed=made.seed,
            hidden=hidden,
        )

    def _count(self, count: int) -> int:
        return min(count, len(self.codes))

    def _random(self, seed: int, count: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return rng.choice(len(self.codes), self._count(count), replace=False)

    def _codes(self, tokens: list[str], code_of: CodeOf) -> np.ndarray:
        codes = [code_of(token) for token in tokens]
        return np.array(codes, np.float32).reshape(len(codes), self.codes.dimension)

    def _position(self, image: int) -> int:
        position = self.index.position(image)
        if position is None:
            raise Refused(f"image {image} of the query is not in the index (any more)")
        return position
