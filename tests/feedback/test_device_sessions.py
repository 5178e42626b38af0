"""Sessions as one program against those that the host plays, and what the host has to do."""

from functools import partial

import jax
import numpy as np
import pytest
from accelerator import counting
from test_extending import mean_direction
from test_simulated_user import (
    MARKS,
    ROUNDS,
    assert_equal_to_scikit_learn,
    collection,
    simulate,
)

from air_jax.feedback import device_sessions, learners, simulated_user, svm
from air_jax.feedback.learners import LEARNERS
from air_jax.search import full_ranking
from air_jax.search.device_codes import DeviceCodes

pytestmark = pytest.mark.gpu
DEFAULT = ("none", "svc", "svc_linear", "svc_pseudo", "rocchio")


# On several devices of a CPU, JAX 0.10 waits for ever for the threads of LAPACK.
WAITS = jax.__version_info__ < (0, 11) and jax.default_backend() == "cpu"


@pytest.fixture(autouse=True)
def devices_that_end(monkeypatch):
    if WAITS:
        monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])


@pytest.fixture
def played_by_the_host(monkeypatch):
    """Sessions of a learner by the loop of rounds, whatever the backend."""

    def play(*args, **kwargs):
        with monkeypatch.context() as patch:
            patch.setattr(device_sessions, "plan", lambda *args, **kwargs: None)
            return simulate(*args, **kwargs)

    return play


def assert_equal_sessions(ours, theirs, within=0.0, atol=2e-3):
    """All but a share of the queries have the same marks, and nearly the same figures."""
    others = (ours.marked != theirs.marked).any(axis=1)
    assert others.mean() <= within
    for name in ("marks", "relevant_marks", "pseudo_negatives", "pseudo_relevant"):
        mine, other = getattr(ours, name)[~others], getattr(theirs, name)[~others]
        np.testing.assert_array_equal(mine, other, err_msg=name)
    for name in ("ap", "residual_ap", "baseline_residual_ap", "residual_precision"):
        mine, other = getattr(ours, name), getattr(theirs, name)
        assert (mine.shape, mine.dtype) == (other.shape, other.dtype)
        np.testing.assert_allclose(mine[~others], other[~others], atol=atol, err_msg=name)
        difference = np.nanmean(mine) - np.nanmean(other)
        np.testing.assert_allclose(difference, 0, atol=atol / 20, err_msg=name)
    assert ours.top.shape == theirs.top.shape
    assert ours.unconverged.tolist() == theirs.unconverged.tolist()


@pytest.mark.parametrize("learner", list(LEARNERS))
def test_a_program_plays_what_the_host_plays(learner, plays_accelerator, played_by_the_host):
    data = collection(size=1000, queries=30)
    theirs = played_by_the_host(learner, data)
    # Samples on a machine's margin have scores that are equal but for rounding: any may be first.
    within, atol = (0.2, 2e-3) if learner.startswith("svc") else (0, 1e-4)
    drawn = learner in ("svc_pseudo", "svc_farthest")
    assert_equal_sessions(simulate(learner, data), theirs, within, 2e-2 if drawn else atol)


@pytest.mark.parametrize(
    ("learner", "kernel", "C"), [("svc", "rbf", 10), ("svc_linear", "linear", 1)]
)
def test_a_program_plays_what_numpy_and_scikit_learn_play(learner, kernel, C, plays_accelerator):
    data = collection(size=400, queries=200)
    assert_equal_to_scikit_learn(simulate(learner, data, block=64), data, kernel, C)


def test_the_host_starts_programs_and_reads_their_results(plays_accelerator):
    """However many queries and rounds there are: one program for each learner, one read a block."""
    database, labels, queries, query_labels = collection(size=300, queries=64)
    items = full_ranking.relevant_items(query_labels, labels)
    jax.clear_caches()
    with counting() as counts:
        searched = DeviceCodes(database)
        full_ranking.ranking_by_distance(searched, queries, items, 10)
        assert searched.deviation.shape == (database.shape[1],)
    compilations = len(counts.compilations)
    for learner in DEFAULT:
        for queries_at_a_time in (16, 64):
            with counting() as counts, jax.transfer_guard("disallow"):
                simulated_user.simulate(
                    learner,
                    searched,
                    queries,
                    query_labels,
                    labels,
                    rounds_count=ROUNDS,
                    marks_per_round=MARKS,
                    block=queries_at_a_time,
                )
            blocks = len(queries) // queries_at_a_time
            assert len(counts.round_trips) == blocks, counts.round_trips
            assert len(counts.compilations) <= 1, counts.compilations
        compilations += 1  # a run has blocks of one size
    assert compilations <= 12


def test_learners_that_differ_in_numbers_alone_share_a_program(plays_accelerator):
    data = collection()
    first = simulate("svc_balanced", data)
    with counting() as counts:
        second = simulate(partial(LEARNERS["svc_balanced"], C=0.1), data)
    assert not counts.compilations
    assert (first.ap[:, 1:] != second.ap[:, 1:]).any()


@pytest.mark.skipif(WAITS, reason="JAX 0.10 does not end on several devices of a CPU")
@pytest.mark.parametrize("learner", ["svc", "discriminant"])
def test_devices_divide_the_queries_among_them(learner, plays_accelerator, monkeypatch):
    data = collection(queries=22)
    several = simulate(learner, data, block=None)
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    assert_equal_sessions(simulate(learner, data, block=None), several, within=0.1)


@pytest.mark.parametrize(("how", "learner"), [("recorded", "svc"), ("uncertain", "ridge")])
def test_what_is_shown_is_what_was_asked_for(how, learner, plays_accelerator, played_by_the_host):
    data = collection()
    more = {"show": "uncertain"}
    if how == "recorded":
        more = {"recorded": simulate("none", data).marked}
    found = simulate(learner, data, **more)
    assert_equal_sessions(found, played_by_the_host(learner, data, **more), within=0.2)
    if how == "recorded":
        np.testing.assert_array_equal(found.marked, more["recorded"])


@pytest.mark.parametrize("learner", ["svc_pseudo", "svc_distance", "ridge_pseudo"])
def test_sessions_may_judge_all_images(learner, plays_accelerator):
    found = simulate(learner, collection(size=40, queries=3), rounds_count=2, marks_per_round=20)
    assert np.isfinite(found.ap).all()
    assert (found.marks[:, -1] == 40).all()
    assert all(len(set(row)) == 40 for row in found.marked.tolist())


def test_equal_images_are_shown_in_the_order_of_ties(plays_accelerator, played_by_the_host):
    labels = np.repeat(np.arange(10), 100)
    codes = np.full((1000, 4), 3, np.float32)
    data = codes, labels, codes[:10], np.arange(10)
    found = simulate("none", data, marks_per_round=50)
    theirs = played_by_the_host("none", data, marks_per_round=50)
    assert_equal_sessions(found, theirs)
    np.testing.assert_array_equal(found.top, theirs.top)


@pytest.mark.parametrize("learner", ["svc_pseudo", "discriminant"])
def test_no_learner_sees_the_labels_of_unmarked_images(learner, plays_accelerator):
    database, labels, queries, query_labels = collection()
    first = simulate(learner, (database, labels, queries[:1], query_labels[:1]))
    unmarked = np.setdiff1d(np.arange(len(labels)), first.marked)
    permuted = labels.copy()
    permuted[unmarked] = np.random.default_rng(0).permutation(labels[unmarked])
    assert (permuted != labels).any()
    second = simulate(learner, (database, permuted, queries[:1], query_labels[:1]))
    np.testing.assert_array_equal(first.marked, second.marked)
    np.testing.assert_array_equal(first.top, second.top)


def test_the_host_plays_what_a_program_cannot():
    how = {"rounds": ROUNDS, "marks_per_round": MARKS, "show": "best", "top": 10}
    assert device_sessions.plan(mean_direction, **how) is None
    assert device_sessions.plan(learners.with_solver("svc", "sklearn"), **how) is None
    assert device_sessions.plan(LEARNERS["svc_linear"], **how) is not None
    wide = how | {"marks_per_round": svm.MOST_LINEAR}
    assert device_sessions.plan(LEARNERS["svc_linear"], **wide) is None
    assert device_sessions.plan(LEARNERS["svc"], **wide) is not None


def test_a_learner_of_ones_own_is_played_on_an_accelerator_too(plays_accelerator):
    found = simulate(mean_direction, collection())
    assert np.isfinite(found.ap).all()
    assert found.marks[0].tolist() == [0, 8, 16, 24]
