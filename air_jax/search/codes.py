"""The protocol `Codes`: what a database of codes can be asked for, wherever the codes lie.

Three classes hold codes: `device_codes.DeviceCodes` on the device, `file_codes.FileCodes` in a
folder, `milvus_codes.MilvusCodes` in Milvus. An image of the database is named by its *position*,
from 0 to N - 1. A *centred* code is a code less the mean of all codes.
"""

from typing import NamedTuple, Protocol

import numpy as np

from air_jax.search.scorers import Scorer

SMALLEST_DEVIATION = 1e-12
ROWS = 65_536  # codes read at a time: 32 MB of 128-d float32


class Top(NamedTuple):
    """The best images of B rankings.

    Attributes:
        positions: [B, k] in the database.
        scores: [B, k] float32, descending; equal scores in order of the positions.
        certain: [B] bool: no image that was left out can have a higher score than the last one.
    """

    positions: np.ndarray
    scores: np.ndarray
    certain: np.ndarray


class Codes(Protocol):
    """The codes of a database of N images, without labels.

    Attributes:
        dimension: D.
        mean: [D] float32 of the codes.
        covariance: [D, D] float32 of the codes.
        deviation: [D] float32 of the codes; 1 where they are constant.
    """

    dimension: int
    mean: np.ndarray

    @property
    def covariance(self) -> np.ndarray: ...

    @property
    def deviation(self) -> np.ndarray: ...

    def __len__(self) -> int:
        """N, the images of the database."""

    def get(self, positions: np.ndarray) -> np.ndarray:
        """Codes of positions of any shape [...]: [..., D] float32."""

    def take(self, positions: np.ndarray) -> np.ndarray:
        """Centred codes of positions of any shape [...]: [..., D] float32."""

    def top(
        self, scorer: Scorer, k: int, without: np.ndarray | None = None, show: str = "best"
    ) -> Top:
        """The k best images of each ranking.

        Args:
            scorer: of B rankings.
            k: at least 1, and at most as many as are left without `without`.
            without: [B, H] positions that are left out, different in each row; from N on they are
                of no image. None leaves out none.
            show: of `scorers.SHOW`; the scores of `Top` are the ones that it makes.

        Raises:
            ValueError: k is out of range.
            Unrankable: these codes cannot be ranked by such a scorer.
        """


class Unrankable(ValueError):
    """Codes that cannot be ranked as asked where they lie; the message names what they can."""


class WithExamples:
    """`Codes` of a database, and of E examples that are not in it, at the positions from N on.

    Learners take the codes of examples as the codes of any image. Rankings hold no example.

    Args:
        codes: of the database.
        examples: [E, D] float32, centred.
    """

    def __init__(self, codes: Codes, examples: np.ndarray):
        self.codes, self.examples = codes, examples
        self.dimension, self.mean = codes.dimension, codes.mean
        self.covariance, self.deviation = codes.covariance, codes.deviation
        self.top = codes.top

    def __len__(self) -> int:
        return len(self.codes)

    def get(self, positions: np.ndarray) -> np.ndarray:
        return self.take(positions) + self.mean

    def take(self, positions: np.ndarray) -> np.ndarray:
        inside = positions < len(self)
        taken = self.codes.take(np.where(inside, positions, 0))
        taken[~inside] = self.examples[positions[~inside] - len(self)]
        return taken


def checked_without(k: int, size: int, without: np.ndarray | None) -> np.ndarray:
    """`without` of `Codes.top` as an array.

    Raises:
        ValueError: k images are not left of `size` without these.
    """
    without = np.zeros((1, 0), np.int64) if without is None else without
    left = size - without.shape[1]
    if not 1 <= k <= left:
        raise ValueError(
            f"k={k}: expected from 1 to the {left} images that are left of {size} in the database"
        )
    return without


def deviation_of(covariance: np.ndarray) -> np.ndarray:
    """The deviation of each dimension, [D] float32 of [D, D]; 1 where it is constant."""
    deviation = np.sqrt(np.diag(covariance))
    return np.where(deviation > SMALLEST_DEVIATION, deviation, 1).astype(np.float32)


def statistics(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Statistics of codes [N, D] of any float type, which may be a memory map; read in parts.

    Returns:
        Mean [D], covariance [D, D], and the largest distance from the mean [D]; all float32.

    Raises:
        ValueError: codes hold NaN or infinity.
    """
    total = np.zeros(codes.shape[1])
    low, high = np.full(codes.shape[1], np.inf), np.full(codes.shape[1], -np.inf)
    for start in range(0, len(codes), ROWS):
        part = np.asarray(codes[start : start + ROWS], np.float32)
        bad = ~np.isfinite(part).all(axis=1)
        if bad.any():
            first = start + int(np.argmax(bad))
            raise ValueError(f"codes hold NaN or infinity, the first at row {first}")
        total += part.sum(axis=0, dtype=np.float64)
        low, high = np.minimum(low, part.min(axis=0)), np.maximum(high, part.max(axis=0))
    mean = (total / len(codes)).astype(np.float32)
    products = np.zeros((codes.shape[1], codes.shape[1]))
    for start in range(0, len(codes), ROWS):
        centred = np.asarray(codes[start : start + ROWS], np.float32) - mean
        products += centred.T @ centred
    covariance = (products / len(codes)).astype(np.float32)
    return mean, covariance, np.maximum(high - mean, mean - low)
