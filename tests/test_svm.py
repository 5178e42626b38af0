"""Decision values against scikit-learn's."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.svm import SVC

from air_jax import svm


def problem(seed, samples=60, dimension=32):
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random(samples) < 0.3, 1, -1)
    labels[:2] = 1, -1
    codes = rng.normal(size=(samples, dimension)) + 0.3 * labels[:, None]
    return codes.astype(np.float32), labels


@pytest.mark.parametrize("kernel", svm.KERNELS)
@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize("C", [0.1, 1.0, 10.0])
def test_decision_values_equal_scikit_learns(kernel, class_weight, C):
    database = np.random.default_rng(9).normal(size=(500, 32)).astype(np.float32)
    machines, expected = [], []
    for seed in range(5):
        codes, labels = problem(seed)
        machines.append(svm.fit(codes, labels, kernel=kernel, C=C, class_weight=class_weight))
        reference = SVC(kernel=kernel, C=C, gamma="scale", class_weight=class_weight)
        expected.append(reference.fit(codes, labels).decision_function(database))
    values = svm.decisions(kernel, svm.stack(machines), jnp.asarray(database))
    np.testing.assert_allclose(values, expected, atol=1e-4)


def test_constant_samples_have_scikit_learns_gamma():
    codes, labels = np.ones((6, 4), np.float32), np.array([1, -1] * 3)
    machine = svm.fit(codes, labels, kernel="rbf")
    reference = SVC(C=10.0, gamma="scale").fit(codes, labels)
    values = svm.rbf_decisions(svm.stack([machine]), jnp.eye(4))
    np.testing.assert_allclose(values[0], reference.decision_function(np.eye(4)), atol=1e-5)


def test_an_untrained_machine_decides_nothing():
    machine = svm.stack([svm.untrained(7, 4)])
    for kernel in svm.KERNELS:
        assert not np.asarray(svm.decisions(kernel, machine, jnp.eye(4))).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": "poly"}, "kernel='poly'"),
        ({"C": 0.0}, "C"),
        ({"C": -1.0}, "C"),
        ({"labels": np.ones(60)}, "class"),
        ({"samples": np.full((60, 32), np.nan)}, "NaN"),
    ],
)
def test_bad_input_is_an_error(change, message):
    samples, labels = problem(0)
    arguments = {"samples": samples, "labels": labels, **change}
    with pytest.raises(ValueError, match=message):
        svm.fit(**arguments)
