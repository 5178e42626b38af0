"""Support vector machines: fitted by scikit-learn, evaluated over the whole database by JAX.

Section III.2: the database is ranked by the signed distance to the hyperplane, which orders
images as the decision value does.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.svm import SVC

KERNELS = ("linear", "rbf")


class Machine(NamedTuple):
    """Fitted machines, any number along the first axis.

    f(x) = sum_s coefficient_s K(support_s, x) + intercept, positive for relevant.

    Attributes:
        support: [..., S, D] float32 support vectors, rows of zeros for padding.
        coefficients: [..., S] float32, label times multiplier; 0 for padding.
        intercept: [...] float32.
        gamma: [...] float32 of the RBF kernel; unused by the linear one.
    """

    support: np.ndarray
    coefficients: np.ndarray
    intercept: np.ndarray
    gamma: np.ndarray


def fit(
    samples: np.ndarray,
    labels: np.ndarray,
    *,
    kernel: str = "rbf",
    C: float = 10.0,
    class_weight: str | None = None,
) -> Machine:
    """Fit one machine with scikit-learn's SVC, gamma "scale".

    Args:
        samples: [M, D].
        labels: [M], +1 relevant, -1 not; both must occur.
        kernel: "linear" or "rbf".
        C: penalty of the margin's violations.
        class_weight: None or "balanced".

    Returns:
        A machine whose `support` has M rows: padded, so that machines of equal M stack.

    Raises:
        ValueError: unknown kernel, C not positive, NaN in the samples, or one class only.
    """
    if kernel not in KERNELS:
        raise ValueError(f"kernel={kernel!r}: expected one of {', '.join(KERNELS)}")
    variance = samples.var()
    gamma = 1 / (samples.shape[1] * variance) if variance > 0 else 1.0
    svc = SVC(kernel=kernel, C=C, gamma=gamma, class_weight=class_weight).fit(samples, labels)
    count, dimension = samples.shape
    support = np.zeros((count, dimension), np.float32)
    coefficients = np.zeros(count, np.float32)
    support[: len(svc.support_)] = svc.support_vectors_
    coefficients[: len(svc.support_)] = svc.dual_coef_[0]
    return Machine(support, coefficients, np.float32(svc.intercept_[0]), np.float32(gamma))


def untrained(samples: int, dimension: int) -> Machine:
    """A machine that decides 0 for everything, of the shape that `fit` gives."""
    return Machine(
        np.zeros((samples, dimension), np.float32),
        np.zeros(samples, np.float32),
        np.float32(0),
        np.float32(1),
    )


def stack(machines: list[Machine]) -> Machine:
    """Machines of equal size as one, along a new first axis."""
    return Machine(*(np.stack(parts) for parts in zip(*machines, strict=True)))


@jax.jit
def linear_decisions(machines: Machine, codes: jax.Array) -> jax.Array:
    """Decision values [B, N] of B linear machines for codes [N, D]: one matrix product."""
    weights = jnp.einsum("bs,bsd->bd", machines.coefficients, machines.support, precision="highest")
    products = jnp.matmul(weights, codes.T, precision="highest")
    return products + machines.intercept[:, None]


@jax.jit
def rbf_decisions(machines: Machine, codes: jax.Array) -> jax.Array:
    """Decision values [B, N] of B RBF machines for codes [N, D], one machine at a time."""
    norms = jnp.sum(codes**2, axis=1)

    def decide(machine: Machine) -> jax.Array:
        products = jnp.matmul(machine.support, codes.T, precision="highest")
        distances = jnp.sum(machine.support**2, axis=1)[:, None] - 2 * products + norms
        kernel = jnp.exp(-machine.gamma * jnp.maximum(distances, 0))
        values = jnp.matmul(machine.coefficients, kernel, precision="highest")
        return values + machine.intercept

    return jax.lax.map(decide, machines)


def decisions(kernel: str, machines: Machine, codes: jax.Array) -> jax.Array:
    """Decision values [B, N] of B machines fitted with `kernel` for codes [N, D]."""
    return (linear_decisions if kernel == "linear" else rbf_decisions)(machines, codes)
