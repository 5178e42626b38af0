"""A user's rounds against the simulated ones, and input that cannot be meant."""

import itertools

import jax
import numpy as np
import pytest

from air_jax.feedback import engine as interactive
from air_jax.feedback import simulated_user, svm
from air_jax.feedback.engine import LEARNER_NAMES, Engine
from air_jax.feedback.learners import LEARNERS, makes_kernels
from air_jax.search import file_codes, scorers
from air_jax.search.device_codes import DeviceCodes
from air_jax.search.scorers import Kernel, Mixture, Near

SIZE, DIMENSION, MARKS = 300, 8, 7
NONE = np.zeros((0, DIMENSION))


def collection(seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, SIZE + 1)
    codes = (rng.normal(size=(4, DIMENSION))[labels] + rng.normal(size=(SIZE + 1, DIMENSION))) + 3
    return codes[:SIZE].astype(np.float32), labels, codes[SIZE].astype(np.float32)


@pytest.fixture
def engine(tmp_path):
    return Engine(file_codes.write(tmp_path / "store", collection()[0]))


@pytest.mark.parametrize("learner", list(LEARNERS))
@pytest.mark.parametrize("show", interactive.SHOW)
def test_rounds_are_those_of_the_simulation(engine, learner, show):
    codes, labels, query = collection()
    space = DeviceCodes(codes)
    rounds = list(
        simulated_user.rounds(
            LEARNERS[learner],
            space,
            space.centre(query[None]),
            lambda shown: labels[shown] == labels[SIZE],
            count=3,
            marks_per_round=MARKS,
            seeds=[[0]],
            show=show,
        )
    )
    if learner == "svc_pseudo":  # draws by another seed
        return
    for now, following in itertools.pairwise(rounds):
        marks = now.marks.positions[0], now.marks.relevant[0]
        if now.number:
            found = engine.next_round(learner, query, NONE, *marks, MARKS, show=show)
        else:
            found = engine.first(query, MARKS)
        shown = following.marks.positions[0, -MARKS:]
        assert found.positions.tolist() == shown.tolist()


def test_marks_of_one_kind_keep_the_ranking_of_the_query_and_say_so(engine):
    _, _, query = collection()
    marks = np.array([3, 4]), np.array([True, True])
    found = engine.next_round("svc", query, NONE, *marks, 5, hide_judged=False)
    assert not found.learnt
    assert found.positions.tolist() == engine.first(query, 5).positions.tolist()


def test_without_a_query_the_mean_of_the_examples_stands_for_it(engine):
    codes, _, _ = collection()
    examples = codes[[7]] + 0.01
    found = engine.next_round("svc", None, examples, np.array([9]), np.array([True]), 5)
    expected = engine.first((examples[0] + codes[9]) / 2, 5, np.array([9]))
    assert found.positions.tolist() == expected.positions.tolist()


def test_irrelevant_images_alone_move_the_ranking_away_from_them(engine):
    codes, _, _ = collection()
    marks = np.array([3, 8]), np.array([False, False])
    found = engine.next_round("ridge", None, NONE, *marks, SIZE)
    assert not np.isin(found.positions, [3, 8]).any()
    distances = ((codes[found.positions, None] - codes[[3, 8]]) ** 2).sum(axis=2).min(axis=1)
    assert distances[:50].mean() > distances[-50:].mean()


def test_an_example_that_is_not_in_the_store_teaches_as_one_that_is(engine):
    codes, _, query = collection()
    inside = engine.next_round(
        "svc", query, NONE, np.array([5, 9, 11]), np.array([True, False, False]), 20
    )
    outside = engine.next_round(
        "svc", query, codes[[5]], np.array([9, 11]), np.array([False, False]), 21
    )
    kept = [position for position in outside.positions if position != 5]
    assert kept[:19] == inside.positions[:19].tolist()


def test_what_is_left_is_found_when_nearly_all_is_judged(engine):
    _, _, query = collection()
    judged = np.arange(SIZE - 2)
    found = engine.next_round("svc", query, NONE, judged, judged % 2 == 0, 5)
    assert sorted(found.positions) == [SIZE - 2, SIZE - 1]
    everything = np.arange(SIZE)
    found = engine.next_round("svc", query, NONE, everything, everything % 2 == 0, 5)
    assert len(found.positions) == 0


@pytest.mark.parametrize("examples", [0, 3])
@pytest.mark.parametrize("learner", list(LEARNERS))
def test_a_round_after_everything_is_judged_finds_nothing_more(engine, learner, examples):
    _, _, query = collection()
    outside = np.ones((examples, DIMENSION), np.float32)
    for left in (1, 0):
        judged = np.arange(SIZE - left)
        found = engine.next_round(learner, query, outside, judged, judged % 2 == 0, 5)
        assert found.positions.tolist() == list(range(SIZE - left, SIZE))
        found = engine.next_round(
            learner, query, outside, judged, judged % 2 == 0, 5, hide_judged=False
        )
        assert len(found.positions) == 5


@pytest.mark.parametrize("learner", list(LEARNERS))
def test_few_rounds_of_a_growing_session_are_compiled_for(engine, learner, caplog):
    _, _, query = collection()
    with jax.log_compiles():
        for count in range(66, 96, 2):  # 15 rounds
            marked = np.arange(count)
            engine.next_round(learner, query, NONE, marked, marked % 3 == 0, 5)
    compiled = [x.getMessage() for x in caplog.records if "Finished XLA" in x.getMessage()]
    assert len(compiled) <= 8, compiled


@pytest.mark.parametrize("learner", LEARNER_NAMES)
def test_a_learner_that_makes_a_kernel_is_known_before_it_learns(engine, learner):
    _, _, query = collection()
    marked = np.arange(6)
    found = engine.next_round(learner, query, NONE, marked, marked % 2 == 0, 5)
    assert makes_kernels(learner) == isinstance(found.scorer, Kernel | Mixture)


def test_a_round_says_whether_its_machine_was_solved(engine, monkeypatch):
    _, _, query = collection()
    marked = np.arange(60)
    relevant = np.random.default_rng(0).random(60) < 0.5
    assert engine.next_round("svc", query, NONE, marked, relevant, 5).solved
    monkeypatch.setattr(svm, "MAX_ITERATIONS", 3)
    monkeypatch.setattr(svm, "MAX_ITERATIONS_PER_SAMPLE", 0)
    found = engine.next_round("svc", query, NONE, marked, relevant, 5)
    assert found.learnt
    assert not found.solved


@pytest.mark.parametrize("learner", list(LEARNERS))
def test_a_found_model_is_arrays_that_a_file_holds(engine, learner, tmp_path):
    _, _, query = collection()
    marks = np.array([3, 4, 8]), np.array([True, False, True])
    found = engine.next_round(learner, query, NONE, *marks, 5)
    np.savez(tmp_path / "model.npz", **scorers.to_arrays(found.scorer))
    with np.load(tmp_path / "model.npz", allow_pickle=False) as held:
        assert str(held["kind"]) in ("near", "linear", "kernel", "mixture")
        assert len(held.files) > 1


def round_of(**changes):
    _, _, query = collection()
    given = {
        "learner": "svc",
        "query": query,
        "examples": NONE,
        "positions": np.array([1, 2]),
        "relevant": np.array([True, False]),
        "k": 5,
    }
    return given | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learner": "svn"}, "learner='svn': expected one of svc"),
        ({"show": "worst"}, "show='worst': expected one of best, uncertain"),
        ({"k": 0}, "k=0: expected from 1 to the 300"),
        ({"k": SIZE + 1}, "k=301: expected from 1 to the 300"),
        ({"positions": np.array([1, SIZE])}, "300 is no position; expected from 0 to 299"),
        ({"positions": np.array([1, -1])}, "-1 is no position"),
        ({"positions": np.array([2, 2])}, "image 2 is marked relevant and irrelevant"),
        (
            {"positions": np.array([2, 2]), "relevant": np.array([True, True])},
            "image 2 is marked twice",
        ),
        ({"relevant": np.array([True])}, r"positions of shape \[2\], relevant of \[1\]"),
        ({"query": np.zeros(5)}, r"query codes have shape \[5\]; the database's have \[8\]"),
        ({"query": np.full(DIMENSION, np.nan)}, "query codes hold NaN"),
        ({"examples": np.full((1, DIMENSION), np.inf)}, "example codes hold NaN or infinity"),
        ({"examples": np.zeros((1, 5))}, r"example codes have shape \[5\]"),
        (
            {"query": None, "positions": np.zeros(0, int), "relevant": np.zeros(0, bool)},
            "no query, no examples and no marks",
        ),
    ],
)
def test_a_round_that_cannot_be_meant_is_an_error(engine, changes, message):
    with pytest.raises(ValueError, match=message):
        engine.next_round(**round_of(**changes))


def test_a_first_search_that_cannot_be_meant_is_an_error(engine):
    with pytest.raises(ValueError, match="k=301"):
        engine.first(np.zeros(DIMENSION), 301)
    with pytest.raises(ValueError, match="hidden: 400 is no position"):
        engine.first(np.zeros(DIMENSION), 3, np.array([400]))


def test_float64_and_strided_queries_are_as_good(engine):
    _, _, query = collection()
    strided = np.zeros(2 * DIMENSION)
    strided[::2] = query
    plain, other = engine.first(query, 9), engine.first(strided[::2], 9)
    np.testing.assert_array_equal(plain.positions, other.positions)
    assert isinstance(plain.scorer, Near)
