"""Machines against scikit-learn's SVC."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import SVC

from air_jax.feedback import svm
from air_jax.search import scorers


def problems(seed, count=5, samples=60, dimension=32):
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random((count, samples)) < 0.3, 1, -1)
    labels[:, :2] = 1, -1
    codes = rng.normal(size=(count, samples, dimension)) + 0.3 * labels[..., None]
    return codes.astype(np.float32), labels


def reference(
    codes, labels, kernel, C, gamma="scale", class_weight=None, tol=1e-8, max_iter=200_000
):
    """scikit-learn's machine, and whether it converged: its float32 kernel can stall it."""
    machine = SVC(
        kernel=kernel, C=C, gamma=gamma, class_weight=class_weight, tol=tol, max_iter=max_iter
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        machine.fit(codes.astype(np.float64), labels)
    return machine, machine.fit_status_ == 0


def decisions(kernel, machines, codes):
    """Decision values [B, N] of machines fitted with `kernel`."""
    if kernel == "rbf":
        return np.asarray(scorers.rbf_decisions(machines, codes))
    return scorers.linear_weights(machines) @ np.asarray(codes).T + machines.intercept[:, None]


def dual_objective(multipliers, labels, codes, kernel, gamma):
    """sum_i y_i b_i - 1/2 b K b, in double precision."""
    codes = codes.astype(np.float64)
    matrix = codes @ codes.T
    if kernel == "rbf":
        lengths = np.diag(matrix)
        matrix = np.exp(-gamma * np.maximum(lengths[:, None] + lengths - 2 * matrix, 0))
    return labels @ multipliers - multipliers @ matrix @ multipliers / 2


@pytest.mark.parametrize("solver", svm.SOLVERS)
@pytest.mark.parametrize("kernel", svm.KERNELS)
@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize("C", [0.1, 1.0, 10.0])
def test_decision_values_equal_scikit_learns(kernel, class_weight, C, solver):
    database = np.random.default_rng(9).normal(size=(500, 32)).astype(np.float32)
    codes, labels = problems(0)
    machines, convergence = svm.fit(
        codes,
        labels,
        kernel=kernel,
        C=C,
        class_weight=class_weight,
        solver=solver,
        tolerance=1e-6,
    )
    assert convergence.converged.all()
    values = decisions(kernel, machines, jnp.asarray(database))
    for ours, x, y in zip(values, codes, labels, strict=True):
        machine, _ = reference(x, y, kernel, C, class_weight=class_weight)
        np.testing.assert_allclose(ours, machine.decision_function(database), atol=1e-4)


KINDS = ("plain", "duplicates", "constant feature", "unscaled", "one of a class", "separable")


def made(kind, rng, samples, dimension):
    codes = rng.normal(size=(samples, dimension))
    labels = np.where(rng.random(samples) < 0.4, 1, -1)
    if kind == "one of a class":
        labels[:] = -1
    labels[:2] = 1, -1
    if kind == "duplicates":
        codes = codes[rng.integers(0, samples, samples)]
    if kind == "constant feature":
        codes[:, 0] = 3.0
    if kind == "unscaled":
        codes = codes * np.geomspace(0.1, 10, dimension) + 5
    if kind == "separable":
        codes += 2 * labels[:, None]
    return codes.astype(np.float32), labels


@settings(deadline=None, max_examples=150)
@given(
    st.integers(0, 2**31),
    st.sampled_from(KINDS),
    st.sampled_from(svm.KERNELS),
    # Few sizes, so that there are few compilations; padding makes the numbers of samples vary.
    st.sampled_from([2, 3, 17, 40]),
    st.sampled_from([2, 33]),
    st.sampled_from([1e-2, 0.3, 1.0, 10.0, 1e3]),
)
def test_the_same_problem_is_solved_as_scikit_learn_solves_it(
    seed, kind, kernel, samples, dimension, C
):
    rng = np.random.default_rng(seed)
    codes, labels = made(kind, rng, samples, dimension)
    padded, marks = np.zeros((1, 40, dimension), np.float32), np.zeros((1, 40), int)
    places = np.sort(rng.choice(40, samples, replace=False))
    padded[0, places], marks[0, places] = codes, labels
    machines, convergence = svm.fit(
        padded, marks, kernel=kernel, C=C, tolerance=1e-6, max_iterations=100_000
    )
    machine, settled = reference(codes, labels, kernel, C, float(machines.gamma[0]))
    # Where LIBSVM does not end, or takes as long, ours may not end either, and then says so.
    assert convergence.converged[0] == (convergence.gap[0] <= 1e-6)
    assert convergence.converged[0] or not settled or machine.n_iter_[0] > 50_000
    multipliers = np.zeros(samples)
    multipliers[machine.support_] = machine.dual_coef_[0]
    ours, theirs = (
        dual_objective(found, labels, codes, kernel, machines.gamma[0])
        for found in (machines.coefficients[0, places].astype(np.float64), multipliers)
    )
    if not convergence.converged[0]:
        return
    assert ours >= theirs - 1e-4 * abs(theirs) - 1e-9
    if not settled:
        return
    assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-9)
    points = rng.normal(size=(50, dimension)).astype(np.float32) + codes.mean(axis=0)
    expected = machine.decision_function(points.astype(np.float64))
    values = np.asarray(decisions(kernel, machines, jnp.asarray(points)))[0]
    if free(machine, C):  # else any intercept between two is a solution
        np.testing.assert_allclose(
            values, expected, atol=1e-3 * max(1, np.abs(expected).max()), rtol=1e-3
        )


def free(machine, C):
    """Whether a sample lies well on the margin, so that the intercept is unique."""
    multipliers = np.abs(machine.dual_coef_[0])
    return ((multipliers > 1e-3 * C) & (multipliers < C * (1 - 1e-3))).any()


@pytest.mark.parametrize("kernel", svm.KERNELS)
def test_many_samples_in_many_dimensions_are_solved_as_well(kernel):
    codes, labels = problems(1, count=2, samples=400, dimension=512)
    machines, convergence = svm.fit(codes, labels, kernel=kernel, C=10.0, tolerance=1e-6)
    assert convergence.converged.all()
    points = np.random.default_rng(2).normal(size=(100, 512)).astype(np.float32)
    values = decisions(kernel, machines, jnp.asarray(points))
    for ours, x, y in zip(values, codes, labels, strict=True):
        machine, _ = reference(x, y, kernel, 10.0)
        expected = machine.decision_function(points)
        np.testing.assert_allclose(ours, expected, atol=1e-3)


def test_a_problem_that_is_not_solved_in_time_is_reported_and_the_others_are_not():
    codes, labels = problems(0, count=2)
    labels[0, 2:] = 0  # two samples: solved in one step
    _, convergence = svm.fit(codes, labels, kernel="rbf", max_iterations=5)
    assert convergence.converged.tolist() == [True, False]
    assert convergence.gap[1] > svm.TOLERANCE
    assert convergence.iterations.tolist()[1] == 5


def test_a_problem_is_solved_alike_alone_and_among_others():
    codes, labels = problems(3, count=7)
    together, _ = svm.fit(codes, labels)
    alone, _ = svm.fit(codes[4:5], labels[4:5])
    np.testing.assert_allclose(together.coefficients[4], alone.coefficients[0], atol=1e-6)
    np.testing.assert_allclose(together.intercept[4], alone.intercept[0], atol=1e-6)


def test_shared_samples_decide_as_separate_ones():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(90, 16)).astype(np.float32)
    places = np.stack([rng.choice(90, 30, replace=False) for _ in range(6)])
    _, labels = problems(0, count=6, samples=30)
    machines, _ = svm.fit(rows[places], labels)
    codes = rng.normal(size=(scorers.TILE + 300, 16)).astype(np.float32)
    shared = scorers.rbf_decisions_of_shared(rows, places, machines, codes, (codes**2).sum(axis=1))
    separate = scorers.rbf_decisions(machines, codes)
    np.testing.assert_allclose(shared, separate, atol=1e-5)


def test_constant_samples_have_scikit_learns_gamma():
    codes, labels = np.ones((1, 6, 4), np.float32), np.array([[1, -1] * 3])
    machine, _ = svm.fit(codes, labels, kernel="rbf")
    expected = SVC(C=10.0, gamma="scale").fit(codes[0], labels[0]).decision_function(np.eye(4))
    values = scorers.rbf_decisions(machine, jnp.eye(4))
    np.testing.assert_allclose(values[0], expected, atol=1e-5)


def noisy(samples, dimension=64, seed=0):
    """Marks of a person who often errs: one problem that no hyperplane solves."""
    rng = np.random.default_rng(seed)
    codes = rng.normal(size=(samples, dimension)).astype(np.float32)
    wanted = codes @ rng.normal(size=dimension) / np.sqrt(dimension) + rng.normal(size=samples)
    return codes[None], np.where(wanted > 0.5, 1, -1)[None]


@pytest.mark.parametrize(("kernel", "C"), [("linear", 1.0), ("rbf", 10.0)])
@pytest.mark.parametrize("samples", [250, 700, 2500])
def test_many_noisy_marks_rank_as_scikit_learn_ranks_them(kernel, C, samples):
    codes, labels = noisy(samples)
    machines, convergence = svm.fit(codes, labels, kernel=kernel, C=C)
    assert convergence.converged.all()
    assert convergence.gap[0] <= svm.TOLERANCE
    database = np.random.default_rng(9).normal(size=(5000, 64)).astype(np.float32)
    found = decisions(kernel, machines, jnp.asarray(database))[0]
    if kernel == "linear" and samples > 1000:  # scikit-learn takes many minutes
        return
    machine, _ = reference(codes[0], labels[0], kernel, C, tol=1e-8, max_iter=-1)
    expected = machine.decision_function(database)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    shared = np.intersect1d(np.argsort(-found)[:50], np.argsort(-expected)[:50])
    assert len(shared) >= 49  # two images may stand within rounding of each other


@settings(deadline=None, max_examples=100)
@given(
    st.integers(0, 2**31),
    st.sampled_from(KINDS),
    st.sampled_from([2, 3, 17, 40, 100]),
    st.sampled_from([2, 33, 120]),
    st.sampled_from([1e-2, 1.0, 10.0, 1e3]),
)
def test_interior_points_solve_linear_machines_of_any_kind(seed, kind, samples, dimension, C):
    codes, labels = made(kind, np.random.default_rng(seed), samples, dimension)
    upper = np.full((1, samples), C)
    found = svm._solve_by_interior_points(codes[None], labels[None], upper)
    multipliers = found.multipliers[0]
    assert found.gap[0] <= 1e-7
    assert abs(multipliers.sum()) <= 1e-7 * C
    assert (labels * multipliers >= 0).all()
    assert (np.abs(multipliers) <= C).all()
    wide = codes.astype(np.float64)
    values = wide @ (multipliers @ wide) + found.intercept[0]
    inside = (multipliers != 0) & (np.abs(multipliers) != C)
    scale = max(1, np.abs(values).max())
    np.testing.assert_allclose(values[inside], labels[inside], atol=1e-6 * scale)


def test_more_samples_than_a_matrix_is_made_for_go_to_libsvm(monkeypatch):
    codes, labels = problems(3, count=2, samples=120)
    expected, _ = svm.fit(codes, labels)
    monkeypatch.setattr(svm, "MOST_RBF", 100)
    machines, convergence = svm.fit(codes, labels)
    assert convergence.converged.all()
    np.testing.assert_allclose(machines.coefficients, expected.coefficients, atol=1e-3)


@pytest.mark.parametrize("solver", svm.SOLVERS)
def test_an_unsolved_machine_is_said_to_be_unsolved(solver, monkeypatch):
    codes, labels = noisy(90)
    monkeypatch.setattr(svm, "MOST_RBF", 50 if solver == "sklearn" else 100)
    _, convergence = svm.fit(codes, labels, max_iterations=5)
    assert not convergence.converged.any()
    assert convergence.gap[0] > svm.TOLERANCE


@pytest.mark.parametrize("solver", svm.SOLVERS)
@pytest.mark.parametrize("label", [1, -1, 0])
def test_a_machine_of_one_class_decides_nothing(label, solver):
    codes, _ = problems(0, count=1)
    machine, _ = svm.fit(codes, np.full((1, 60), label), solver=solver)
    for kernel in svm.KERNELS:
        assert not np.asarray(decisions(kernel, machine, jnp.asarray(codes[0]))).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": "poly"}, "kernel='poly'"),
        ({"solver": "liblinear"}, "solver='liblinear'"),
        ({"class_weight": "even"}, "class_weight='even'"),
        ({"C": 0.0}, "C=0.0: expected a positive"),
        ({"C": -1.0}, "C=-1.0"),
        ({"C": float("nan")}, "C=nan"),
        ({"labels": np.full((5, 60), 2)}, r"labels hold \[.*2.*\]; expected \+1"),
        ({"labels": np.ones((5, 59))}, r"labels of shape \[5, 59\]"),
        ({"samples": np.full((5, 60, 32), np.nan)}, "5 of 5 problems hold NaN"),
    ],
)
def test_bad_input_is_an_error(change, message):
    samples, labels = problems(0)
    arguments = {"samples": samples, "labels": labels, **change}
    with pytest.raises(ValueError, match=message):
        svm.fit(**arguments)


def test_double_precision_does_not_leak_out_of_the_solver():
    codes, labels = problems(0)
    svm.fit(codes, labels)
    assert jnp.zeros(1).dtype == jnp.float32
    assert not jax.config.jax_enable_x64
