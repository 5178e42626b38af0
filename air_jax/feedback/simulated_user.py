"""Sessions of relevance feedback (section III.2) with a simulated user, and what they are worth.

In every round the user is shown the best images that were not shown before, and marks those of the
query's class as relevant. Marks accumulate, and the query itself is a positive.
"""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from air_jax.feedback import device_sessions, learners
from air_jax.feedback.learners import Learner, Lesson, Marks, with_solver
from air_jax.runtime import distributed, sharding
from air_jax.runtime.progress import Progress
from air_jax.search import full_ranking, metrics, scorers
from air_jax.search.device_codes import DeviceCodes
from air_jax.search.scorers import OUTSIDE, Near

SCORES_BYTES = 2**30  # of the queries that are played at once; a few copies of it are made
TOP = 10  # images of each ranking that are kept for the report


class Round(NamedTuple):
    """One block of queries after a round of feedback; round 0 is the first retrieval.

    Attributes:
        number: of the round.
        scores: [B, N] float32.
        marks: all that were made so far.
        pseudo_negatives: [B, P] that the learner drew in this round.
        unconverged: queries whose machine was not solved to its tolerance.
        seconds: that showing, marking and learning took.
    """

    number: int
    scores: jax.Array
    marks: Marks
    pseudo_negatives: np.ndarray
    unconverged: int
    seconds: float


def rounds(
    learner: Learner,
    codes: DeviceCodes,
    queries: np.ndarray,
    judge: Callable[[np.ndarray], np.ndarray],
    *,
    count: int,
    marks_per_round: int,
    seeds: list[list[int]],
    show: str = "best",
    recorded: np.ndarray | None = None,
) -> Iterator[Round]:
    """Simulate a session for each query of a block.

    Args:
        learner: makes the ranking of each round.
        codes: of the database.
        queries: [B, D] centred.
        judge: the user: database positions [B, n] -> relevant or not, bool [B, n]. Labels are
            known to it alone.
        count: rounds of feedback.
        marks_per_round: images shown and marked in each.
        seeds: for learners that draw, one for each query.
        show: "best", or "uncertain": from round 2 on the images whose score is closest to zero, of
            a learner whose scores are signed.
        recorded: [B, count * marks_per_round] database positions that are shown instead, in this
            order.

    Yields:
        Round 0, before any mark, to round `count`.
    """
    started = time.monotonic()
    scores = jax.block_until_ready(codes.scores(Near(queries)))
    empty = np.zeros((len(queries), 0), np.int32)
    marks = Marks(empty, empty.astype(bool))
    drawn = np.zeros((len(queries), 0), np.int64)
    yield Round(0, scores, marks, drawn, 0, time.monotonic() - started)
    lesson: Lesson | None = None
    width = count * marks_per_round if learners.takes_unmade_marks(learner) else 0

    def told(marks: Marks) -> Marks:
        """At a session's full width where the learner takes that: one compilation for all."""
        unmade = ((0, 0), (0, max(0, width - marks.positions.shape[1])))
        positions = np.pad(marks.positions, unmade, constant_values=OUTSIDE)
        return Marks(positions, np.pad(marks.relevant, unmade))

    for number in range(1, count + 1):
        started = time.monotonic()
        if recorded is not None:
            before = marks.positions.shape[1]
            shown = recorded[:, before : before + marks_per_round]
        else:
            shown_by = scores
            if lesson is not None and lesson.signed:
                shown_by = jnp.where(lesson.learnt[:, None], scorers.SHOW[show](scores), scores)
            shown = full_ranking.first_unmarked(shown_by, marks.positions, marks_per_round)
        marks = Marks(
            np.concatenate([marks.positions, shown], axis=1),
            np.concatenate([marks.relevant, judge(shown)], axis=1),
        )
        lesson = learner(codes, queries, told(marks), [[*seed, number] for seed in seeds])
        learnt = codes.scores(lesson.scorer)
        # Where all have learnt, this spares a copy of all scores.
        scores = (
            learnt if lesson.learnt.all() else jnp.where(lesson.learnt[:, None], learnt, scores)
        )
        scores.block_until_ready()
        seconds = time.monotonic() - started
        unconverged = int(np.count_nonzero(lesson.unconverged))
        yield Round(number, scores, marks, lesson.pseudo_negatives, unconverged, seconds)


class Simulation(NamedTuple):
    """A learner's sessions, query by query; R rounds and round 0.

    Attributes:
        ap: [Q, R + 1] average precision over the whole database (full AP, the paper's).
        residual_ap: [Q, R + 1] over the database without the images marked so far; NaN where no
            relevant image is left.
        baseline_residual_ap: [Q, R + 1] the first retrieval's ranking, on that same residual set.
        residual_precision: [Q, R + 1] precision at 10 of the residual ranking.
        relevant_marks: [Q, R + 1] int32, marks so far that were relevant.
        marks: [Q, R + 1] int32, marks so far.
        pseudo_negatives: [Q, R + 1] int32, images that the learner took for irrelevant unseen.
        pseudo_relevant: [Q, R + 1] int32, how many of those were in truth relevant.
        top: [Q, R + 1, 10] int32, the first images of each ranking.
        marked: [Q, M] int32, the images marked, in the order in which they were shown.
        unconverged: [R + 1] int64, queries whose machine was not solved to its tolerance.
        seconds: [R + 1] float64, for all queries together; compiling counts, evaluation does not.
            An accelerator plays all rounds and their evaluation in one program: what that took is
            divided evenly among the rounds.
    """

    ap: np.ndarray
    residual_ap: np.ndarray
    baseline_residual_ap: np.ndarray
    residual_precision: np.ndarray
    relevant_marks: np.ndarray
    marks: np.ndarray
    pseudo_negatives: np.ndarray
    pseudo_relevant: np.ndarray
    top: np.ndarray
    marked: np.ndarray
    unconverged: np.ndarray
    seconds: np.ndarray


def simulate(
    learner: str | Learner,
    codes: DeviceCodes,
    query_codes: np.ndarray,
    query_labels: np.ndarray,
    database_labels: np.ndarray,
    *,
    rounds_count: int,
    marks_per_round: int,
    seed: int = 0,
    show: str = "best",
    solver: str = "smo",
    recorded: np.ndarray | None = None,
    block: int | None = None,
) -> Simulation:
    """Let the simulated user give feedback for every query, and judge each round's ranking.

    Each of several processes plays its share of the queries, and gets the results of all. On an
    accelerator `device_sessions` plays what it can, on a CPU `rounds` does: there NumPy sorts, and
    machines share the kernel rows of the samples they have in common.

    Args:
        learner: one of `LEARNERS` by name, or any.
        codes: of the database.
        query_codes: [Q, D] not centred.
        query_labels: [Q].
        database_labels: [N]; only the user and the metrics see them.
        rounds_count: rounds of feedback.
        marks_per_round: images marked in each.
        seed: for learners that draw.
        show: see `rounds`.
        solver: of the machines of learners by name; one of `svm.SOLVERS`.
        recorded: see `rounds`; [Q, rounds_count * marks_per_round].
        block: queries at a time; None: as many as have `SCORES_BYTES` of scores, or as an
            accelerator has memory for.

    Raises:
        ValueError: the codes do not fit the database.
    """
    queries = codes.centre(query_codes)
    relevant = full_ranking.relevant_items(query_labels, database_labels)
    count = len(queries)
    own = np.arange(count)[distributed.share(count)]
    fixed = with_solver(learner, solver) if isinstance(learner, str) else learner
    planned = None
    if not sharding.on_cpu():
        planned = device_sessions.plan(
            fixed,
            rounds=rounds_count,
            marks_per_round=marks_per_round,
            show=show,
            top=min(TOP, len(codes)),
        )
    mesh = sharding.make_mesh(jax.local_devices())
    if block is None and planned:
        block = device_sessions.block_size(planned[0], codes, mesh)
    block = block or max(1, SCORES_BYTES // (4 * len(database_labels)))
    # Blocks of equal size, each for all devices.
    block = math.ceil(max(len(own), 1) / max(1, math.ceil(len(own) / block)))
    if planned:
        block = math.ceil(block / mesh.size) * mesh.size
    starts = range(0, max(len(own), 1), block)
    # Filled up with queries whose results are dropped below; without any, with the first.
    rows_of_blocks = [
        np.resize(own[start : start + block] if len(own) else [0], block) for start in starts
    ]

    def play(rows: np.ndarray) -> Iterator[Round]:
        return rounds(
            fixed,
            codes,
            queries[rows],
            lambda shown: database_labels[shown] == query_labels[rows, None],
            count=rounds_count,
            marks_per_round=marks_per_round,
            seeds=[[seed, int(row)] for row in rows],
            show=show,
            recorded=None if recorded is None else recorded[rows],
        )

    def play_on_device(made: device_sessions.Plan, numbers: Any) -> Iterator[Simulation]:
        _, classes = np.unique(np.concatenate([database_labels, query_labels]), return_inverse=True)
        classes = classes.astype(np.int32)
        nothing = np.zeros((count, 0), np.int32)
        shown = nothing if recorded is None else recorded.astype(np.int32)
        size = len(codes)
        blocks = (
            device_sessions.Queries(
                queries[rows],
                classes[size:][rows],
                relevant[rows],
                device_sessions.candidates(made, size, seed, rows),
                shown[rows],
            )
            for rows in rows_of_blocks
        )
        started = time.monotonic()
        played = device_sessions.play(made, numbers, codes, classes[:size], blocks, mesh)
        for start, outcome in zip(starts, played, strict=True):
            *by_query, unconverged = outcome
            real = len(own[start : start + block])
            seconds = np.full(made.rounds + 1, (time.monotonic() - started) / (made.rounds + 1))
            started = time.monotonic()
            yield Simulation._make([*by_query, unconverged[:real].sum(axis=0), seconds])

    parts: list[Simulation] = []
    label = f"feedback {learner}" if isinstance(learner, str) else "feedback"
    sessions = (
        play_on_device(*planned)
        if planned
        else (
            _judge_rounds(play(rows), relevant[rows], query_labels[rows, None], database_labels)
            for rows in rows_of_blocks
        )
    )
    with Progress(label, len(own), unit="queries") as progress:
        for start, part in zip(starts, sessions, strict=True):
            parts.append(part)
            progress.advance(min(block, len(own) - start))
    *arrays, unconverged, seconds = zip(*parts, strict=True)
    by_query = [distributed.gather(np.concatenate(part)[: len(own)], count) for part in arrays]
    totals = distributed.gather_all(np.sum(unconverged, axis=0)).sum(axis=0)
    longest = distributed.gather_all(np.sum(seconds, axis=0)).max(axis=0)
    return Simulation._make([*by_query, totals, longest])


def _judge_rounds(
    sessions: Iterator[Round], relevant: np.ndarray, labels: np.ndarray, database_labels: np.ndarray
) -> Simulation:
    """Metrics of one block: `relevant` [B, R] positions, `labels` [B, 1] of the queries."""
    size = len(database_labels)
    split = relevant.shape[1]
    nothing = np.zeros((len(labels), 0), np.int32)
    columns: list[tuple[Any, ...]] = []
    baseline: jax.Array | None = None
    for result in sessions:
        baseline = result.scores if baseline is None else baseline
        items = np.concatenate([relevant, result.marks.positions], axis=1)
        ranks = full_ranking.ranks(result.scores, items)
        residual = metrics.residual_ranks(ranks[:, :split], ranks[:, split:], size)
        pseudo = result.pseudo_negatives
        columns.append(
            (
                metrics.average_precision(ranks[:, :split], size),
                metrics.average_precision(residual, size),
                metrics.residual_precision(residual, size),
                result.marks.relevant.sum(axis=1),
                np.full(len(labels), result.marks.positions.shape[1]),
                np.full(len(labels), pseudo.shape[1]),
                (database_labels[pseudo] == labels).sum(axis=1),
                full_ranking.first_unmarked(result.scores, nothing, min(TOP, size)),
                result.unconverged,
                result.seconds,
            )
        )
    # The first retrieval on each round's residual set: one ranking of all that was ever marked.
    assert baseline is not None
    marks = result.marks.positions
    first = full_ranking.ranks(baseline, np.concatenate([relevant, marks], axis=1))
    baseline_ap = [
        metrics.average_precision(
            metrics.residual_ranks(first[:, :split], first[:, split : split + count[0]], size), size
        )
        for count in (column[4] for column in columns)
    ]
    ap, residual_ap, *arrays, unconverged, seconds = zip(*columns, strict=True)
    by_query = [np.stack(values, axis=1) for values in (ap, residual_ap, baseline_ap, *arrays)]
    return Simulation._make([*by_query, marks, np.array(unconverged), np.array(seconds)])


def summarise(simulation: Simulation, query_labels: np.ndarray) -> list[dict[str, Any]]:
    """The rounds as `results.json` holds them; nulls have a reason beside them."""
    summary = []
    for number in range(simulation.ap.shape[1]):
        ap, residual, baseline, precision = (
            values[:, number]
            for values in (
                simulation.ap,
                simulation.residual_ap,
                simulation.baseline_residual_ap,
                simulation.residual_precision,
            )
        )
        relevant, marks = simulation.relevant_marks[:, number], simulation.marks[:, number]
        drawn = int(simulation.pseudo_negatives[:, number].sum())
        entry: dict[str, Any] = {
            "round": number,
            "map": metrics.mean(ap),
            "map_ci95": metrics.bootstrap_interval(ap, query_labels),
            "residual_map": metrics.mean(residual),
            "residual_map_ci95": metrics.bootstrap_interval(residual, query_labels),
            "baseline_residual_map": metrics.mean(baseline),
            "residual_precision_at_10": metrics.mean(precision),
            "no_relevant": int(np.count_nonzero(relevant == 0)),
            "no_irrelevant": int(np.count_nonzero(relevant == marks)),
            "residual_empty": int(np.count_nonzero(np.isnan(residual))),
            "unconverged": int(simulation.unconverged[number]),
            "pseudo_negatives": drawn,
            "pseudo_negatives_relevant": int(simulation.pseudo_relevant[:, number].sum()),
            "seconds": float(simulation.seconds[number]),
        }
        if number == 0:
            entry |= dict.fromkeys(("no_relevant", "no_irrelevant"))
            entry["no_relevant_reason"] = entry["no_irrelevant_reason"] = "no marks in round 0"
        for key in [key for key, value in entry.items() if value is None]:
            entry.setdefault(f"{key}_reason", "no query has an unmarked relevant image left")
        summary.append(entry)
    return summary


def choose_queries(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Positions of `count` random queries, as many of each class as can be; all for 0. Sorted."""
    if not count or count >= len(labels):
        return np.arange(len(labels))
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    # The how-manieth of its class each one is: the first of every class, then the second, ...
    nth = np.zeros(len(labels), int)
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        nth[members] = np.arange(len(members))
    order = shuffled[np.argsort(nth[shuffled], kind="stable")]
    return np.sort(order[:count])
