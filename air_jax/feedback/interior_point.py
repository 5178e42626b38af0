"""One linear support vector machine of many samples, solved by an interior-point method.

The method (Ferris and Munson, 2002) follows the central path of the dual that `svm` states, by
Mehrotra's predictor and corrector. Where SMO needs millions of steps it takes about twenty Newton
steps, each of [D, D] equations.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import scipy.linalg

MOST_STEPS = 60  # of the central path
FINISHING = 10  # rounds in which multipliers are put on their bounds


def solve(
    codes: np.ndarray, signs: np.ndarray, upper: np.ndarray
) -> tuple[np.ndarray, float, float, int]:
    """Solve the dual of one machine as exactly as double precision can.

    Args:
        codes: [M, D] float64, centred.
        signs: [M] float64, +1 or -1.
        upper: [M] float64, the penalties C_i.

    Returns:
        Signed multipliers [M], by how much the optimality conditions are violated, the intercept,
        and the Newton steps taken.
    """
    inner, at_low, at_high, steps = _central_path(codes, signs, upper)
    return *_finished(codes, signs, upper, inner, at_low, at_high), steps


def optimality_gap(
    multipliers: np.ndarray, gradient: np.ndarray, bound: np.ndarray
) -> tuple[float, float]:
    """The gap of one problem and its intercept; `bound` [M] is y_i C_i."""
    low, high = np.minimum(bound, 0), np.maximum(bound, 0)
    most = gradient[multipliers < high].max()
    least = gradient[multipliers > low].min()
    # On the margin the gradient is the intercept; with no sample there, it lies between the sides.
    free = (multipliers > low) & (multipliers < high)
    return most - least, gradient[free].mean() if free.any() else (most + least) / 2


def _central_path(
    codes: np.ndarray, signs: np.ndarray, upper: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Follow the central path of the dual to its end by Mehrotra's predictor and corrector.

    With a_i = y_i b_i, a room C_i - a_i, and a price of either bound, the conditions are
    y_i f(x_i) - 1 = price_low_i - price_high_i, and that each price times its distance is zero.

    Returns:
        a [M]; whether it goes to 0 and to C_i [M] bool; and the steps taken.
    """
    signed = codes * signs[:, None]
    size = len(codes)
    a, room = upper / 2, upper / 2
    low, high, intercept = np.ones(size), np.ones(size), 0.0  # prices of the bounds, and f's
    steps = 0
    while steps < MOST_STEPS:
        residual = 1 - signed @ (a @ signed) - intercept * signs + low - high
        mean = (a @ low + room @ high) / (2 * size)
        if mean < 1e-13 * upper.max():
            break
        try:
            newton = _newton_step(signed, signs, a, room, low, high, residual)
        except np.linalg.LinAlgError:  # so near the end that double precision is used up
            break
        move, low_move, high_move, _ = newton(-low * a, -high * room)
        pairs = ((a, move), (room, -move), (low, low_move), (high, high_move))
        step = min(1, _longest_step(pairs))
        ahead = (a + step * move) @ (low + step * low_move)
        ahead += (room - step * move) @ (high + step * high_move)
        target = mean * (ahead / (2 * size * mean)) ** 3
        move, low_move, high_move, turn = newton(
            target - low * a - move * low_move, target - high * room + move * high_move
        )
        pairs = ((a, move), (room, -move), (low, low_move), (high, high_move))
        step = min(1, 0.995 * _longest_step(pairs))
        a, room, intercept = a + step * move, room - step * move, intercept + step * turn
        low, high = low + step * low_move, high + step * high_move
        steps += 1
    return a, a < low, room < high, steps


def _newton_step(
    signed: np.ndarray,
    signs: np.ndarray,
    a: np.ndarray,
    room: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    residual: np.ndarray,
) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray, float]]:
    """A function of how much low * a and high * room [M] shall grow: steps of a, low, high, f's.

    Raises:
        LinAlgError: double precision cannot tell the step.
    """
    # (Q + T) d = r with Q = signed signed': equations of [M, M], or by Woodbury's identity [D, D].
    diagonal = low / a + high / room
    size, dimension = signed.shape
    scaled = signed / diagonal[:, None]
    few = size <= dimension
    matrix = signed @ signed.T + np.diag(diagonal) if few else np.eye(dimension) + signed.T @ scaled
    factor = scipy.linalg.cho_factor(matrix)

    def solved(values: np.ndarray) -> np.ndarray:
        if few:
            return scipy.linalg.cho_solve(factor, values)
        return values / diagonal - scaled @ scipy.linalg.cho_solve(factor, scaled.T @ values)

    of_signs = solved(signs)

    def step(of_low: np.ndarray, of_high: np.ndarray) -> tuple[Any, ...]:
        free = solved(residual + of_low / a - of_high / room)
        turn = (signs @ free + signs @ a) / (signs @ of_signs)
        move = free - turn * of_signs
        return move, (of_low - low * move) / a, (of_high + high * move) / room, turn

    return step


def _longest_step(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """How far values can go along their moves before one is zero."""
    return min(float((-v[m < 0] / m[m < 0]).min(initial=np.inf)) for v, m in pairs)


def _finished(
    codes: np.ndarray,
    signs: np.ndarray,
    upper: np.ndarray,
    inner: np.ndarray,
    at_low: np.ndarray,
    at_high: np.ndarray,
) -> tuple[np.ndarray, float, float]:
    """Multipliers [M] exactly on the margin or at their bounds, their gap, and the intercept."""
    bound = signs * upper
    best: tuple[np.ndarray, float, float] = (np.zeros(len(signs)), np.inf, 0.0)
    for _ in range(FINISHING):
        multipliers = np.where(at_low, 0, np.where(at_high, bound, signs * inner))
        free = ~(at_low | at_high)
        if free.any():
            own, count = codes[free], int(free.sum())
            held = multipliers[~free] @ codes[~free]
            equations = np.ones((count + 1, count + 1))
            equations[:count, :count], equations[count, count] = own @ own.T, 0
            wanted = np.append(signs[free] - own @ held, -multipliers[~free].sum())
            # The smallest change: where samples coincide, many multipliers are as good.
            start = np.append(multipliers[free], 0)
            change = np.linalg.lstsq(equations, wanted - equations @ start, rcond=1e-13)[0]
            multipliers[free] += change[:count]
        inside = np.clip(multipliers, np.minimum(bound, 0), np.maximum(bound, 0))
        gradient = signs - codes @ (inside @ codes)
        gap, intercept = optimality_gap(inside, gradient, bound)
        if gap < best[1] and abs(inside.sum()) <= 1e-9 * upper.sum():
            best = inside, gap, intercept
        # Multipliers that left their bounds go back; those that would rather leave them are freed.
        outside, urge = multipliers != inside, signs * (gradient - intercept)
        at_low = (at_low & (urge <= 1e-9)) | (outside & (inside == 0))
        at_high = (at_high & (urge >= -1e-9)) | (outside & (inside == bound))
        if gap <= 1e-9:
            break
    return best
