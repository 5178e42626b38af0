"""The simulated sessions against NumPy and scikit-learn, and that no learner peeks."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics import average_precision_score
from sklearn.svm import SVC

from air_jax.feedback import learners, simulated_user
from air_jax.feedback.learners import LEARNERS
from air_jax.search.device_codes import DeviceCodes

ROUNDS, MARKS = 3, 8


def collection(seed=0, size=240, queries=20, classes=4, dimension=12, spread=1.0):
    rng = np.random.default_rng(seed)
    centres = spread * rng.normal(size=(classes, dimension))
    labels = rng.integers(0, classes, size + queries)
    codes = (centres[labels] + rng.normal(size=(size + queries, dimension))).astype(np.float32)
    return codes[:size], labels[:size], codes[size:], labels[size:]


def simulate(learner, data, **kwargs):
    database, labels, queries, query_labels = data
    return simulated_user.simulate(
        learner,
        DeviceCodes(database),
        queries,
        query_labels,
        labels,
        **{"rounds_count": ROUNDS, "marks_per_round": MARKS, "block": 8, **kwargs},
    )


def reference_session(kernel, C, database, labels, query, label):
    """One query's full and residual AP by round, and its Baseline's, by NumPy and scikit-learn."""
    database, query = database.astype(float), query.astype(float)
    mean, std = database.mean(axis=0), database.std(axis=0)
    standard, own = (database - mean) / std, (query - mean) / std
    distances = -np.sum((database - query) ** 2, axis=1)
    scores, marked, rounds = distances, np.zeros(0, int), []
    for number in range(ROUNDS + 1):
        left = np.setdiff1d(np.arange(len(labels)), marked)
        relevant = labels == label
        rounds.append(
            [
                average_precision_score(relevant, scores),
                average_precision_score(relevant[left], scores[left]),
                average_precision_score(relevant[left], distances[left]),
            ]
        )
        if number == ROUNDS:
            return np.array(rounds)
        order = np.argsort(-scores, kind="stable")
        marked = np.concatenate([marked, order[~np.isin(order, marked)][:MARKS]])
        y = np.where(np.concatenate([[True], relevant[marked]]), 1, -1)
        if (y == -1).any():
            machine = SVC(kernel=kernel, C=C, gamma="scale", tol=1e-8)
            machine.fit(np.vstack([own, standard[marked]]).astype(np.float32), y)
            scores = machine.decision_function(standard)


@pytest.mark.parametrize(
    ("learner", "kernel", "C"), [("svc", "rbf", 10), ("svc_linear", "linear", 1)]
)
def test_sessions_equal_those_of_numpy_and_scikit_learn(learner, kernel, C):
    data = collection(size=400, queries=200)
    assert_equal_to_scikit_learn(simulate(learner, data, block=64), data, kernel, C)


def assert_equal_to_scikit_learn(simulation, data, kernel, C):
    database, labels, queries, query_labels = data
    expected = np.stack(
        [
            reference_session(kernel, C, database, labels, query, label)
            for query, label in zip(queries, query_labels, strict=True)
        ]
    )
    ours = np.stack(
        [simulation.ap, simulation.residual_ap, simulation.baseline_residual_ap], axis=-1
    )
    # One swap of neighbours whose scores differ in the last bits of float32 moves a query's AP by
    # some 1e-4 in so small a database.
    np.testing.assert_allclose(ours, expected, atol=1e-3)
    np.testing.assert_allclose(ours.mean(axis=0), expected.mean(axis=0), atol=1e-4)


@pytest.mark.parametrize("learner", list(LEARNERS))
def test_permuting_labels_of_unmarked_images_leaves_every_score_bit_equal(learner):
    database, labels, queries, query_labels = collection()
    searched = DeviceCodes(database)
    centred = searched.centre(queries)
    arguments = {
        "count": ROUNDS,
        "marks_per_round": MARKS,
        "seeds": [[0, i] for i in range(len(queries))],
    }

    def play(labels_by_query):
        rows = np.arange(len(queries))[:, None]
        return list(
            simulated_user.rounds(
                LEARNERS[learner],
                searched,
                centred,
                lambda shown: labels_by_query[rows, shown] == query_labels[:, None],
                **arguments,
            )
        )

    true = np.tile(labels, (len(queries), 1))
    first = play(true)
    permuted = true.copy()
    for row, positions in enumerate(first[-1].marks.positions):
        unmarked = np.setdiff1d(np.arange(len(labels)), positions)
        permuted[row, unmarked] = np.random.default_rng(row).permutation(labels[unmarked])
    assert (permuted != true).any()
    for ours, theirs in zip(first, play(permuted), strict=True):
        np.testing.assert_array_equal(ours.scores, theirs.scores)
        np.testing.assert_array_equal(ours.marks.positions, theirs.marks.positions)


@pytest.mark.parametrize("learner", list(LEARNERS))
def test_nothing_is_shown_twice_and_marks_accumulate(learner):
    simulation = simulate(learner, collection())
    assert simulation.marked.shape == (20, ROUNDS * MARKS)
    assert all(len(set(row)) == ROUNDS * MARKS for row in simulation.marked.tolist())
    assert simulation.marks[0].tolist() == [0, 8, 16, 24]
    assert (np.diff(simulation.relevant_marks, axis=1) >= 0).all()


@pytest.mark.parametrize("learner", ["svc", "svc_linear"])
def test_with_relevant_marks_only_the_ranking_stays_and_is_counted(learner):
    # Classes far apart: the first images shown are all relevant.
    data = collection(spread=30.0)
    simulation = simulate(learner, data)
    summary = simulated_user.summarise(simulation, data[3])
    assert summary[1]["no_irrelevant"] == len(data[3])
    np.testing.assert_array_equal(simulation.top[:, 1], simulation.top[:, 0])
    np.testing.assert_array_equal(simulation.ap[:, 1], simulation.ap[:, 0])


def test_pseudo_negatives_are_unmarked_and_those_in_truth_relevant_are_counted():
    data = collection()
    database, labels, queries, query_labels = data
    searched = DeviceCodes(database)
    sessions = simulated_user.rounds(
        LEARNERS["svc_pseudo"],
        searched,
        searched.centre(queries),
        lambda shown: labels[shown] == query_labels[:, None],
        count=ROUNDS,
        marks_per_round=MARKS,
        seeds=[[0, i] for i in range(len(queries))],
    )
    relevant = []
    for result in sessions:
        for drawn, marked in zip(result.pseudo_negatives, result.marks.positions, strict=True):
            assert len(set(drawn)) == len(drawn) == (200 if result.number else 0)
            assert not np.isin(drawn, marked).any()
        relevant.append(int((labels[result.pseudo_negatives] == query_labels[:, None]).sum()))
    summary = simulated_user.summarise(simulate("svc_pseudo", data, block=None), query_labels)
    assert [r["pseudo_negatives_relevant"] for r in summary] == relevant
    assert relevant[1] > 0


def test_a_round_without_relevant_marks_learns_from_the_query_and_is_counted():
    # The query's class lies far off: everything shown at first is irrelevant.
    database, labels, queries, query_labels = collection()
    query_labels = np.full(len(query_labels), 9)
    labels = np.where(np.arange(len(labels)) < 4, 9, labels)
    database[:4] += 50
    data = database, labels, queries, query_labels
    simulation = simulate("svc", data)
    summary = simulated_user.summarise(simulation, query_labels)
    assert summary[1]["no_relevant"] == len(queries)
    assert (simulation.top[:, 1] != simulation.top[:, 0]).any()


def test_pseudo_negatives_stand_in_where_all_marks_are_relevant():
    data = collection(spread=30.0)
    simulation = simulate("svc_pseudo", data)
    assert (simulation.relevant_marks[:, 1] == MARKS).all()
    assert (simulation.top[:, 1] != simulation.top[:, 0]).any()


def test_rocchio_moves_the_query_by_its_formula():
    database, _, queries, _ = collection()
    searched = DeviceCodes(database)
    centred = searched.centre(queries[:1])
    marks = learners.Marks(np.array([[3, 5, 8]]), np.array([[True, False, True]]))
    lesson = LEARNERS["rocchio"](searched, centred, marks, [[0]])
    moved = queries[0] + 0.75 * (database[[3, 8]].mean(axis=0) - database.mean(axis=0))
    moved = moved - 0.15 * (database[5] - database.mean(axis=0))
    expected = -((database - moved) ** 2).sum(axis=1)
    np.testing.assert_allclose(searched.scores(lesson.scorer)[0], expected, rtol=1e-4, atol=1e-3)


def test_means_move_away_from_the_irrelevant_mean():
    database, _, queries, _ = collection()
    searched = DeviceCodes(database)
    centred = searched.centre(queries[:1])
    marks = learners.Marks(np.array([[3, 5, 8]]), np.array([[True, False, True]]))
    lesson = learners.mean_difference(searched, centred, marks, [[0]], away=1.0)
    positive = (queries[0] + database[3] + database[8]) / 3
    expected = -((database - (2 * positive - database[5])) ** 2).sum(axis=1)
    np.testing.assert_allclose(searched.scores(lesson.scorer)[0], expected, rtol=1e-4, atol=1e-3)
    only = learners.Marks(marks.positions, np.ones((1, 3), bool))
    lesson = learners.mean_difference(searched, centred, only, [[0]], away=1.0)
    positive = (queries[0] + database[[3, 5, 8]].sum(axis=0)) / 4
    expected = -((database - positive) ** 2).sum(axis=1)
    np.testing.assert_allclose(searched.scores(lesson.scorer)[0], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("only_relevant", [False, True])
def test_the_discriminant_is_scikit_learns(only_relevant):
    """As `LinearDiscriminantAnalysis` finds it for two classes of given means and covariance."""
    database, _, queries, _ = collection()
    searched = DeviceCodes(database)
    centred = searched.centre(queries[:1])
    relevant = np.array([[True, only_relevant, True]])
    marks = learners.Marks(np.array([[3, 5, 8]]), relevant)
    lesson = learners.discriminant(searched, centred, marks, [[0]], shrinkage=1.0, away=0.5)
    positive = np.vstack([queries[0], database[[3, 8] + [5] * only_relevant]]).mean(axis=0)
    target = positive if only_relevant else positive + 0.5 * (positive - database[5])
    covariance = np.cov(database.T, bias=True)
    shrunk = covariance + np.trace(covariance) / 12 * np.eye(12)
    theirs = LinearDiscriminantAnalysis(
        solver="lsqr", covariance_estimator=_Known(shrunk), priors=[0.5, 0.5]
    )
    means = np.stack([database.mean(axis=0), target])
    theirs.fit(np.repeat(means, 2, axis=0), [0, 0, 1, 1])
    np.testing.assert_allclose(
        searched.scores(lesson.scorer)[0],
        theirs.decision_function(database),
        rtol=1e-3,
        atol=1e-3,
    )


class _Known:
    """A covariance estimator that was told."""

    def __init__(self, covariance):
        self.covariance_ = covariance

    def fit(self, _):
        return self


@pytest.mark.parametrize("ridge", [0.1, 1.0])
def test_kernel_ridge_is_scikit_learns(ridge):
    database, _, queries, _ = collection()
    searched = DeviceCodes(database)
    centred = searched.centre(queries[:2])
    rng = np.random.default_rng(1)
    positions = np.stack([rng.choice(240, 9, replace=False) for _ in range(2)])
    relevant = rng.random((2, 9)) < 0.4
    lesson = learners.kernel_ridge(
        searched, centred, learners.Marks(positions, relevant), [[0], [1]], ridge=ridge
    )
    standard = (database - database.mean(axis=0)) / database.std(axis=0)
    for scores, query, place, label in zip(
        searched.scores(lesson.scorer), queries, positions, relevant, strict=False
    ):
        own = (query - database.mean(axis=0)) / database.std(axis=0)
        samples = np.vstack([own, standard[place]])
        model = KernelRidge(alpha=ridge, kernel="rbf", gamma=1 / (12 * samples.var()))
        model.fit(samples, np.where(np.concatenate([[True], label]), 1, -1))
        np.testing.assert_allclose(scores, model.predict(standard), atol=1e-4)


def test_the_farthest_unmarked_images_are_taken_for_irrelevant():
    database, _, queries, _ = collection()
    searched = DeviceCodes(database)
    centred = searched.centre(queries[:1])
    order = np.argsort(((database - queries[0]) ** 2).sum(axis=1))
    marks = learners.Marks(order[None, [0, 1, -1]], np.array([[True, False, False]]))
    lesson = LEARNERS["svc_farthest"](searched, centred, marks, [[0]])
    assert set(lesson.pseudo_negatives[0]) == set(order[-201:-1])


def test_a_learner_with_distances_ranks_by_them_where_nothing_is_learnt():
    database, _, queries, _ = collection()
    searched = DeviceCodes(database)
    centred = searched.centre(queries[:1])
    marks = learners.Marks(np.array([[3, 5]]), np.ones((1, 2), bool))
    lesson = LEARNERS["svc_distance"](searched, centred, marks, [[0]])
    order = np.argsort(((database - queries[0]) ** 2).sum(axis=1))
    np.testing.assert_array_equal(np.argsort(-np.asarray(searched.scores(lesson.scorer)[0])), order)


def test_uncertain_images_are_those_with_scores_closest_to_zero():
    data = collection()
    database, labels, queries, query_labels = data
    searched = DeviceCodes(database)
    sessions = list(
        simulated_user.rounds(
            LEARNERS["svc"],
            searched,
            searched.centre(queries),
            lambda shown: labels[shown] == query_labels[:, None],
            count=2,
            marks_per_round=MARKS,
            seeds=[[0, i] for i in range(len(queries))],
            show="uncertain",
        )
    )
    first, second = sessions[1:]
    for row in range(len(queries)):
        marked = first.marks.positions[row]
        if first.marks.relevant[row].all():
            continue
        scores = np.abs(np.asarray(first.scores[row]))
        scores[marked] = np.inf
        shown = second.marks.positions[row, MARKS:]
        np.testing.assert_array_equal(np.sort(scores[shown]), np.sort(scores)[:MARKS])


def test_recorded_images_are_shown_in_their_order_whatever_the_learner():
    data = collection()
    recorded = simulate("none", data).marked
    simulation = simulate("svc", data, recorded=recorded)
    np.testing.assert_array_equal(simulation.marked, recorded)
    assert (simulation.ap[:, 1:] != simulation.ap[:, :1]).any()


def test_no_feedback_never_changes_its_ranking():
    simulation = simulate("none", collection())
    assert (simulation.ap == simulation.ap[:, :1]).all()
    np.testing.assert_array_equal(simulation.residual_ap, simulation.baseline_residual_ap)


def test_blocks_of_any_size_give_the_same_sessions():
    # Of `svc`: unmarked images that a machine was fitted on lie on its margin, equal but for
    # rounding, and that depends on the block.
    data = collection()
    whole, parts = (simulate("svc", data, block=block) for block in (64, 7))
    np.testing.assert_array_equal(whole.marked, parts.marked)
    np.testing.assert_allclose(whole.ap, parts.ap, atol=1e-9)


def test_a_query_without_unmarked_relevant_images_is_left_out_and_counted():
    database, labels, queries, query_labels = collection(classes=2)
    labels = np.where(np.arange(len(labels)) < 3, 7, labels)  # a class of three images
    query_labels = np.where(np.arange(len(query_labels)) == 0, 7, query_labels)
    queries[0] = database[:3].mean(axis=0)
    database[:3] = queries[0] + 0.01 * database[:3]
    simulation = simulate("none", (database, labels, queries, query_labels))
    summary = simulated_user.summarise(simulation, query_labels)
    assert summary[0]["residual_empty"] == 0
    assert summary[1]["residual_empty"] == 1
    assert np.isnan(simulation.residual_ap[0, 1])
    assert summary[1]["residual_map"] == pytest.approx(simulation.residual_ap[1:, 1].mean())


def test_chosen_queries_are_as_many_of_each_class():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 30))
    chosen = simulated_user.choose_queries(labels, 50, seed=1)
    assert (np.bincount(labels[chosen]) == 5).all()
    assert len(set(chosen.tolist())) == 50
    assert simulated_user.choose_queries(labels, 0, seed=1).tolist() == list(range(300))


def test_a_constant_code_dimension_does_no_harm():
    database, labels, queries, query_labels = collection()
    database[:, 0] = queries[:, 0] = 3.0
    searched = DeviceCodes(database)
    assert jnp.isfinite(searched._standardised[0]).all()
    assert np.isfinite(simulate("svc", (database, labels, queries, query_labels)).ap).all()


@pytest.mark.parametrize("learner", list(LEARNERS))
def test_sessions_may_judge_all_images(learner):
    data = collection(size=40, queries=3)
    simulation = simulate(learner, data, rounds_count=2, marks_per_round=20)
    assert np.isfinite(simulation.ap).all()
    assert (simulation.marks[:, -1] == 40).all()


@pytest.mark.parametrize("learner", ["svc", "svc_linear"])
def test_scikit_learns_machines_rank_by_the_same_marks_as_ours(learner):
    data = collection(size=300, queries=24)
    ours = simulate(learner, data)
    theirs = simulate(learner, data, solver="sklearn", recorded=ours.marked)
    np.testing.assert_allclose(ours.ap, theirs.ap, atol=2e-3)
    assert not theirs.unconverged.any()


def test_the_user_is_not_shown_equal_images_in_order_of_the_database():
    """One code for all: what is shown is as often relevant as any image."""
    labels = np.repeat(np.arange(10), 100)
    codes = np.full((1000, 4), 3, np.float32)
    simulation = simulate("none", (codes, labels, codes[:10], np.arange(10)), marks_per_round=50)
    assert simulation.relevant_marks[:, -1].mean() == pytest.approx(15, abs=4)
    assert simulation.ap.mean() == pytest.approx(0.1, abs=0.02)
