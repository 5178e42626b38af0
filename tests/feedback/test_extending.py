"""A new learner, by the steps of docs/architecture.md, against brute force in NumPy."""

import numpy as np
import pytest

from air_jax.feedback import learners, simulated_user
from air_jax.feedback.engine import Engine
from air_jax.feedback.learners import LEARNERS, Lesson, Marks
from air_jax.search import file_codes
from air_jax.search.codes import Codes
from air_jax.search.device_codes import DeviceCodes
from air_jax.search.scorers import Linear

SIZE, QUERIES, DIMENSION, CLASSES = 240, 6, 8, 3
ROUNDS, MARKS = 3, 5


# Step 1: a function of a database, queries and marks that returns a scorer.
def mean_direction(
    codes: Codes, queries: np.ndarray, marks: Marks, seeds: list[list[int]]
) -> Lesson:
    """Score along the line from the mean irrelevant to the mean relevant code, standardised."""
    marked = codes.take(marks.positions) / codes.deviation
    relevant = marks.relevant[:, :, None]
    positive = (queries / codes.deviation + np.where(relevant, marked, 0).sum(axis=1)) / (
        1 + relevant.sum(axis=1)
    )
    irrelevant = (~relevant).sum(axis=1)
    negative = np.where(relevant, 0, marked).sum(axis=1) / np.maximum(irrelevant, 1)
    scorer = Linear((positive - negative).astype(np.float32), np.zeros(len(queries), np.float32))
    nothing = np.zeros((len(queries), 0), np.int64)
    return Lesson(scorer, learnt=irrelevant[:, 0] > 0, pseudo_negatives=nothing)


@pytest.fixture
def name(monkeypatch: pytest.MonkeyPatch) -> str:
    """Step 2: a name for it in `LEARNERS`."""
    monkeypatch.setitem(LEARNERS, "mean_direction", mean_direction)
    return "mean_direction"


@pytest.fixture
def collection() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Codes and labels of a database, then of queries."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, SIZE + QUERIES)
    centres = rng.normal(size=(CLASSES, DIMENSION))
    codes = (centres[labels] + rng.normal(size=(SIZE + QUERIES, DIMENSION)) + 3).astype(np.float32)
    return codes[:SIZE], labels[:SIZE], codes[SIZE:], labels[SIZE:]


def scores_by_brute_force(
    codes: np.ndarray, query: np.ndarray, marked: list[int], relevant: list[bool]
) -> np.ndarray:
    """What `mean_direction` has to score the database [N, D] by after these marks: [N]."""
    if all(relevant):
        return -np.linalg.norm(codes - query, axis=1)
    scale = codes.std(axis=0)
    liked = [query, *(codes[p] for p, good in zip(marked, relevant, strict=True) if good)]
    others = [codes[p] for p, good in zip(marked, relevant, strict=True) if not good]
    direction = (np.mean(liked, axis=0) - np.mean(others, axis=0)) / scale
    return (codes - codes.mean(axis=0)) / scale @ direction


def play_by_brute_force(
    codes: np.ndarray, labels: np.ndarray, query: np.ndarray, wanted: int
) -> tuple[list[int], list[float]]:
    """A session: the images marked, and average precision before it and after each round."""
    codes, query = codes.astype(np.float64), query.astype(np.float64)
    marked: list[int] = []
    precisions = []
    for number in range(ROUNDS + 1):
        scores = scores_by_brute_force(codes, query, marked, [labels[p] == wanted for p in marked])
        ranking = np.argsort(-scores)
        hits = labels[ranking] == wanted
        precisions.append(np.mean(np.cumsum(hits)[hits] / (np.flatnonzero(hits) + 1)))
        if number < ROUNDS:
            marked += [p for p in ranking.tolist() if p not in marked][:MARKS]
    return marked, precisions


def test_the_simulated_user_plays_it_by_its_name(name, collection):
    codes, labels, queries, query_labels = collection
    found = simulated_user.simulate(
        name,
        DeviceCodes(codes),
        queries,
        query_labels,
        labels,
        rounds_count=ROUNDS,
        marks_per_round=MARKS,
    )
    for query in range(QUERIES):
        marked, precisions = play_by_brute_force(codes, labels, queries[query], query_labels[query])
        assert found.marked[query].tolist() == marked
        np.testing.assert_allclose(found.ap[query], precisions, rtol=1e-5)
    assert found.ap[:, -1].mean() > found.ap[:, 0].mean()


def test_the_engine_ranks_by_its_name(name, collection, tmp_path):
    codes, labels, queries, query_labels = collection
    engine = Engine(file_codes.write(tmp_path / "store", codes))
    positions = np.arange(0, 40, 4)
    relevant = labels[positions] == query_labels[0]
    assert 0 < relevant.sum() < len(relevant)
    no_examples = np.zeros((0, DIMENSION), np.float32)
    found = engine.next_round(name, queries[0], no_examples, positions, relevant, SIZE)
    scores = scores_by_brute_force(
        codes.astype(np.float64), queries[0].astype(np.float64), positions, relevant
    )
    scores[positions] = -np.inf  # judged images are hidden
    assert found.learnt
    assert found.positions.tolist() == np.argsort(-scores)[: SIZE - len(positions)].tolist()
    np.testing.assert_allclose(found.scores, scores[found.positions], rtol=1e-4, atol=1e-4)


def test_marks_of_one_kind_keep_the_first_ranking(name, collection, tmp_path):
    codes, _, queries, _ = collection
    engine = Engine(file_codes.write(tmp_path / "store", codes))
    no_examples = np.zeros((0, DIMENSION), np.float32)
    found = engine.next_round(
        name, queries[0], no_examples, np.array([1, 2]), np.array([True, True]), SIZE
    )
    assert not found.learnt
    assert found.positions.tolist() == [
        position for position in engine.first(queries[0], SIZE).positions if position not in (1, 2)
    ]


def test_the_report_knows_its_constants(name):
    assert learners.parameters(name) == {}
