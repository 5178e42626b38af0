"""Sessions of many queries as one compiled program: what an accelerator plays.

The program shows, lets the user mark, learns, scores the database, ranks it and measures, in a scan
over the rounds. The host starts it and reads what it measured; nothing else crosses. Marks have
their full width from the first round on, so one compilation serves all rounds and all blocks of
queries. Each device of a mesh plays some of the queries, with the whole database.

The user's labels are on the device, too. The judge and the metrics alone look at them: a learner
gets `_TracedCodes`, which have none.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from air_jax.feedback import learners, svm
from air_jax.feedback.learners import Learner, Lesson, Marks
from air_jax.runtime import sharding
from air_jax.search import distances, full_ranking, metrics, scorers
from air_jax.search.codes import Top
from air_jax.search.device_codes import DeviceCodes
from air_jax.search.scorers import OUTSIDE, Near, Scorer

# An array of JAX. Learners and metrics, which take arrays of either kind, say NumPy's.
Traced = Any

SHARE = 0.8  # of a device's free memory that a block of queries may take
COPIES = 12  # of all scores, that a round holds at once


class Plan(NamedTuple):
    """What sessions are compiled for.

    Attributes:
        function: of the learner.
        options: its keyword arguments, but for numbers with a point.
        rounds: of feedback.
        marks_per_round: images shown and marked in each.
        show: see `simulated_user.rounds`.
        top: images of each ranking that are kept.
    """

    function: Learner
    options: tuple[tuple[str, Any], ...]
    rounds: int
    marks_per_round: int
    show: str
    top: int

    @property
    def width(self) -> int:
        """Samples of a learner, at most: the query, all marks, and images that it takes."""
        return (
            1 + self.rounds * self.marks_per_round + dict(self.options).get("pseudo_negatives", 0)
        )


class Database(NamedTuple):
    """What every device holds whole.

    Attributes:
        centred: codes [N, D] float32.
        covariance, deviation: see `codes.Codes`.
        labels: [N] int32.
        order: `full_ranking.tie_order`, [N] int32.
        by_order: the positions in that order, [N] int32.
    """

    centred: Traced
    covariance: Traced
    deviation: Traced
    labels: Traced
    order: Traced
    by_order: Traced


class Queries(NamedTuple):
    """What the devices divide among them.

    Attributes:
        codes: [B, D] float32, centred.
        labels: [B] int32.
        relevant: [B, R] int32 positions of the images of the query's class; see `relevant_items`.
        candidates: [B, rounds, C] int32 positions, which learners that draw choose from, filled up
            with `OUTSIDE`; C is 0 for the others.
        recorded: [B, M] int32 positions that are shown instead of the best; M may be 0.
    """

    codes: Traced
    labels: Traced
    relevant: Traced
    candidates: Traced
    recorded: Traced


class Outcome(NamedTuple):
    """What the sessions of a block are worth: see `simulated_user.Simulation`.

    All of them [B, rounds + 1] but `top` [B, rounds + 1, T] and `marked` [B, M]; `unconverged` is
    bool.
    """

    ap: Any
    residual_ap: Any
    baseline_residual_ap: Any
    residual_precision: Any
    relevant_marks: Any
    marks: Any
    pseudo_negatives: Any
    pseudo_relevant: Any
    top: Any
    marked: Any
    unconverged: Any


def plan(
    learner: Learner, *, rounds: int, marks_per_round: int, show: str, top: int
) -> tuple[Plan, dict[str, np.ndarray]] | None:
    """What to compile for a learner, and its other constants; None if it needs the host.

    The host plays learners that are not in `learners`, machines by scikit-learn, and machines of
    more samples than SMO is for.
    """
    if not learners.takes_unmade_marks(learner):
        return None
    function, fixed = (
        (learner.func, learner.keywords) if isinstance(learner, partial) else (learner, {})
    )
    # Learners that differ in a penalty or a weight share a program.
    numbers = {key: np.array(value) for key, value in fixed.items() if isinstance(value, float)}
    others = {key: fixed[key] for key in fixed.keys() - numbers.keys()}
    by_smo = others.pop("solver", "smo") == "smo"
    made = Plan(function, tuple(sorted(others.items())), rounds, marks_per_round, show, top)
    most = svm.MOST_LINEAR if others.get("kernel") == "linear" else svm.MOST_RBF
    return (made, numbers) if by_smo and made.width <= most else None


def block_size(made: Plan, codes: DeviceCodes, mesh: Mesh) -> int:
    """How many queries the devices of a mesh play at a time, by their free memory."""
    free = SHARE * min(sharding.free_memory(device) for device in mesh.local_devices)
    samples = made.width * (16 * codes.dimension + 32 * made.width)
    each = max(1, int(free / (4 * COPIES * len(codes) + samples)))
    return each * mesh.size


def candidates(made: Plan, size: int, seed: int, rows: np.ndarray) -> np.ndarray:
    """`Queries.candidates` of queries with these numbers, [B]; the seeds are the host's."""
    options = dict(made.options)
    count = 0 if options.get("farthest") else options.get("pseudo_negatives", 0)
    if not count:
        return np.zeros((len(rows), made.rounds, 0), np.int32)
    width = min(size, count + made.rounds * made.marks_per_round)
    drawn = np.full((len(rows), made.rounds, width), OUTSIDE, np.int32)
    for place, row in enumerate(rows):
        for number in range(1, made.rounds + 1):
            some = learners.candidates(
                size, count + number * made.marks_per_round, [seed, int(row), number]
            )
            drawn[place, number - 1, : len(some)] = some
    return drawn


def play(
    made: Plan,
    numbers: dict[str, np.ndarray],
    codes: DeviceCodes,
    labels: np.ndarray,
    blocks: Iterator[Queries],
    mesh: Mesh,
) -> Iterator[Outcome]:
    """Play sessions, a block at a time; the next block is started before one is read.

    Args:
        made, numbers: of `plan`.
        codes: of the database.
        labels: [N] int32.
        blocks: of equally many queries, a multiple of the devices.
        mesh: of devices of this process.

    Yields:
        For each block, arrays of NumPy.
    """
    order = full_ranking.tie_order(len(codes))
    by_order = np.argsort(order).astype(np.int32)
    with jax.enable_x64(True):  # for the machines; scores are float32 all the same
        database = jax.device_put(
            Database(codes.centred, codes.covariance, codes.deviation, labels, order, by_order),
            sharding.replicated(mesh),
        )
        numbers = jax.device_put(numbers, sharding.replicated(mesh))
    waiting = None
    for block in blocks:
        with jax.enable_x64(True):
            queries = jax.device_put(block, sharding.by_rows(mesh))
            started = _play(database, queries, numbers, made=made, mesh=mesh)
        if waiting is not None:
            yield jax.device_get(waiting)
        waiting = started
    if waiting is not None:
        yield jax.device_get(waiting)


@partial(jax.jit, static_argnames=("made", "mesh"))
def _play(
    database: Database, queries: Queries, numbers: dict[str, Traced], *, made: Plan, mesh: Mesh
) -> Outcome:
    whole, rows = PartitionSpec(), PartitionSpec("data")
    program = jax.shard_map(
        partial(_sessions, made=made),
        mesh=mesh,
        in_specs=(whole, rows, whole),
        out_specs=rows,
        check_vma=False,
    )
    with jax.default_matmul_precision("highest"):
        return program(database, queries, numbers)


class _TracedCodes:
    """What learners see of the database within the program: `codes.Codes`."""

    def __init__(self, database: Database):
        self.size, self.dimension = database.centred.shape
        self.covariance, self.deviation = database.covariance, database.deviation
        self._centred, self._order, self._by_order = (
            database.centred,
            database.order,
            database.by_order,
        )
        # In the order of ties: equal scores are then in order of their places.
        self._ordered = self._centred[self._by_order]

    def __len__(self) -> int:
        return self.size

    def take(self, positions: Traced) -> Traced:
        return self._centred[positions]

    def scores(self, scorer: Scorer) -> Traced:
        """[B, N] float32 of all codes, in the order of ties."""
        return scorers.of_codes(scorer, self._ordered, self.deviation).astype(jnp.float32)

    def top(self, scorer: Scorer, k: int, without: Traced | None = None, show: str = "best") -> Top:
        return self.first(scorers.SHOW[show](self.scores(scorer)), k, without)

    def first(self, scores: Traced, k: int, without: Traced | None) -> Top:
        """The k best of scores in the order of ties; minus infinity where there are no more."""
        if without is not None:
            places = self.places(without, missing=self.size)
            rows = jnp.arange(len(scores))[:, None]
            scores = scores.at[rows, places].set(-jnp.inf, mode="drop")
        found: tuple[Traced, Traced] = distances.nearest(scores, k)
        certain: Traced = jnp.zeros(len(scores), bool)
        return Top(self._by_order[found[1]], found[0], certain)

    def places(self, positions: Traced, missing: int) -> Traced:
        """Places of positions [B, n] in the order of ties."""
        inside = (positions >= 0) & (positions < self.size)
        return jnp.where(inside, self._order[jnp.where(inside, positions, 0)], missing)


def _sessions(
    database: Database, queries: Queries, numbers: dict[str, Traced], *, made: Plan
) -> Outcome:
    """The sessions of one device's queries."""
    codes = _TracedCodes(database)
    learner: Any = partial(made.function, **dict(made.options), **numbers)
    count, step, size = len(queries.codes), made.marks_per_round, len(codes)
    relevant = codes.places(queries.relevant, missing=full_ranking.PADDING)
    places = jnp.arange(size, dtype=jnp.int32)

    def ranks(scores: Traced, marks: Marks) -> tuple[Traced, Traced]:
        """Of the relevant images, and of the marked ones."""
        marked = codes.places(marks.positions, missing=full_ranking.PADDING)
        found = full_ranking.ranks_by_bisection(
            scores, jnp.concatenate([relevant, marked], axis=1), places
        )
        return found[:, : relevant.shape[1]], found[:, relevant.shape[1] :]

    def is_relevant(positions: Traced) -> Traced:
        """The judge."""
        return database.labels[positions] == queries.labels[:, None]

    def measured(scores: Traced, marks: Marks, lesson: Lesson | None) -> dict[str, Traced]:
        of_relevant, of_marked = ranks(scores, marks)
        residual = metrics.residual_ranks(of_relevant, of_marked, size)
        none = jnp.zeros((count, 0), jnp.int32)
        pseudo = jnp.asarray(lesson.pseudo_negatives) if lesson else none
        taken = pseudo != OUTSIDE
        unconverged = jnp.asarray(lesson.unconverged if lesson else False)
        return {
            "ap": metrics.average_precision(of_relevant, size),
            "residual_ap": metrics.average_precision(residual, size),
            "residual_precision": metrics.residual_precision(residual, size),
            "relevant_marks": marks.relevant.sum(axis=1),
            "marks": (marks.positions != OUTSIDE).sum(axis=1),
            "pseudo_negatives": taken.sum(axis=1),
            "pseudo_relevant": (is_relevant(pseudo) & taken).sum(axis=1),
            "top": codes.first(scores, made.top, None).positions,
            "unconverged": jnp.broadcast_to(unconverged, (count,)),
        }

    def play_round(carry: Any, number: Traced) -> tuple[Any, dict[str, Traced]]:
        scores, marks, learnt = carry
        shown: Traced
        start = (number - 1) * step
        if queries.recorded.shape[1]:
            shown = jax.lax.dynamic_slice_in_dim(queries.recorded, start, step, axis=1)
        else:
            uncertain = scorers.SHOW[made.show](scores)
            shown_by = jnp.where(learnt[:, None], uncertain, scores)
            shown = codes.first(shown_by, step, marks.positions).positions
        columns = start + jnp.arange(step)
        marks = Marks(
            marks.positions.at[:, columns].set(shown),
            marks.relevant.at[:, columns].set(is_relevant(shown)),
        )
        drawn = queries.candidates[:, number - 1]
        lesson = learner(codes, queries.codes, marks, drawn)
        scores = jnp.where(lesson.learnt[:, None], codes.scores(lesson.scorer), scores)
        learnt = jnp.asarray(lesson.learnt) & lesson.signed
        return (scores, marks, learnt), measured(scores, marks, lesson)

    baseline = codes.scores(Near(queries.codes))
    unmade: Traced = jnp.full((count, made.rounds * step), OUTSIDE, jnp.int32)
    marks: Any = Marks(unmade, unmade != OUTSIDE)
    start = baseline, marks, jnp.zeros(count, bool)
    first = measured(baseline, marks, None)
    numbers_of_rounds = jnp.arange(1, made.rounds + 1, dtype=jnp.int32)
    (_, marks, _), rest = jax.lax.scan(play_round, start, numbers_of_rounds)
    columns = jax.tree.map(
        lambda one, others: jnp.concatenate([one[:, None], jnp.moveaxis(others, 0, 1)], axis=1),
        first,
        rest,
    )
    # The first retrieval on each round's residual set: one ranking of all that was ever marked.
    of_relevant, of_marked = ranks(baseline, marks)
    made_in = jnp.arange(made.rounds * step) // step + 1
    marked_by: list[Traced] = [
        jnp.where(made_in <= number, of_marked, size) for number in range(made.rounds + 1)
    ]
    baseline_ap = [
        metrics.average_precision(metrics.residual_ranks(of_relevant, marked, size), size)
        for marked in marked_by
    ]
    return Outcome(
        marked=marks.positions, baseline_residual_ap=jnp.stack(baseline_ap, axis=1), **columns
    )
