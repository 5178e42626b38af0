"""The protocol `Codes`: what a database of codes can be asked for, wherever the codes lie.

Three classes hold codes: `device_codes.DeviceCodes` on the device, `file_codes.FileCodes` in a
folder, `milvus_codes.MilvusCodes` in Milvus. An image of the database is named by its *position*,
from 0 to N - 1. A *centred* code is (code - mean) / unit. The unit is 1 unless codes are so large
or so small that their squares would not fit float32. A code far outside the others counts neither
in the mean nor in the covariance, so that one wrong row does not blur all the other codes.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np

from air_jax.search import scorers
from air_jax.search.scorers import Scorer

SMALLEST_DEVIATION = 1e-12
ROWS = 16_384  # codes read at a time: 16 MB of 128-d float64
SAMPLE = 4096  # codes that say where the codes lie and how far apart
FAR = 64  # times as far as half of the codes: such a code is outside the others
# Codes whose typical size lies between these have unit 1: squares and their sums fit float32.
SMALLEST_SIZE, LARGEST_SIZE = 2.0**-20, 2.0**20
FARTHEST = 2.0**60  # of a centred code: its square and sums of it fit float32
MARGIN = 256  # candidates beyond those asked for, which are scored exactly
# A session's marks grow by a few a round, and every number of candidates is compiled for: it is
# rounded up.
CANDIDATES = 128


class Top(NamedTuple):
    """The best images of B rankings.

    Attributes:
        positions: [B, k] in the database.
        scores: [B, k] float32, descending; equal scores in order of the positions.
        certain: [B] bool: no image that was left out can have a higher score than the last one,
            by a bound on all that rounding and small storage lose of the codes that were given.
    """

    positions: np.ndarray
    scores: np.ndarray
    certain: np.ndarray


class Codes(Protocol):
    """The codes of a database of N images, without labels.

    Attributes:
        dimension: D.
        mean: [D] float32, or float64 where float32 does not hold the codes.
        unit: a power of two; see above.
        covariance: [D, D] float32 of the centred codes.
        deviation: [D] float32 of the centred codes; 1 where they are constant.
        ranks_by_all: `top` takes every scorer and every `show`; else only `Near` and `Linear`, the
            best ones.
    """

    dimension: int
    mean: np.ndarray
    unit: float
    ranks_by_all: bool

    @property
    def covariance(self) -> np.ndarray: ...

    @property
    def deviation(self) -> np.ndarray: ...

    def __len__(self) -> int:
        """N, the images of the database."""

    def get(self, positions: np.ndarray) -> np.ndarray:
        """Codes of positions of any shape [...], as they were given: [..., D] of `mean`'s type."""

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
        self.dimension, self.mean, self.unit = codes.dimension, codes.mean, codes.unit
        self.covariance, self.deviation = codes.covariance, codes.deviation
        self.top, self.ranks_by_all = codes.top, codes.ranks_by_all

    def __len__(self) -> int:
        return len(self.codes)

    def get(self, positions: np.ndarray) -> np.ndarray:
        return self.take(positions) * self.unit + self.mean

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


def candidates_for(wanted: int, size: int) -> int:
    """How many candidates are looked for where so many of a database's images are wanted."""
    return min(size, CANDIDATES * math.ceil((wanted + MARGIN) / CANDIDATES))


def deviation_of(covariance: np.ndarray) -> np.ndarray:
    """The deviation of each dimension, [D] float32 of [D, D]; 1 where it is constant."""
    deviation = np.sqrt(np.diag(covariance))
    return np.where(deviation > SMALLEST_DEVIATION, deviation, 1).astype(np.float32)


class Frame(NamedTuple):
    """Where codes lie, and how large they are.

    Attributes:
        mean: [D] of the codes that are not far outside the others; float32 if `fits_float32`.
        unit: see `Codes`.
        size: the median of the codes' largest differences from the middle, one for each code.
        limit: the largest coordinate of a centred code that counts in statistics.
        fits_float32: the codes are float32 numbers, and the unit is 1.
    """

    mean: np.ndarray
    unit: float
    size: float
    limit: float
    fits_float32: bool

    def centred(self, codes: np.ndarray) -> np.ndarray:
        """Codes [..., D] centred: float32 from float32 codes that fit it, else float64."""
        codes = codes if self.fits_float32 else codes.astype(np.float64)
        return (codes - self.mean) / self.unit


def frame_of(codes: np.ndarray) -> Frame:
    """The frame of codes [N, D] of any float type, which may be a memory map; read in parts.

    Raises:
        ValueError: codes hold NaN or infinity, or one lies too far from the others for float32.
    """
    some = codes[np.linspace(0, len(codes) - 1, min(len(codes), SAMPLE)).astype(int)]
    some = some.astype(np.float64)
    with np.errstate(all="ignore"):
        middle = np.median(some, axis=0)
        sizes = np.abs(some - middle).max(axis=1)
    size = float(np.median(sizes[sizes > 0])) if (sizes > 0).any() else 0.0
    far = FAR * size if size > 0 else np.inf
    # Differences from the middle: float32 is exact enough for float32 codes, and twice as fast.
    is_small = codes.dtype.itemsize <= 4
    middle = middle.astype(np.float32) if is_small else middle
    total, count, fits = np.zeros(codes.shape[1]), 0, True
    farthest, value, place = 0.0, 0.0, (0, 0)
    for start in range(0, len(codes), ROWS):
        part: Any = np.asarray(codes[start : start + ROWS])
        with np.errstate(over="ignore", invalid="ignore"):
            away = part - middle
            sizes = np.abs(away).max(axis=1)
            fits = fits and (is_small or (part.astype(np.float32) == part).all())
        if not np.isfinite(sizes).all():
            bad = ~np.isfinite(part).all(axis=1)
            if bad.any():
                first = start + int(np.argmax(bad))
                raise ValueError(f"codes hold NaN or infinity, the first at row {first}")
        near = sizes <= far
        summed = part if is_small else away  # float64 loses nothing of sums of float32
        total += (summed if near.all() else summed[near]).sum(axis=0, dtype=np.float64)
        count += int(np.count_nonzero(near))
        if sizes.max() > farthest:
            row = int(np.argmax(sizes))
            column = int(np.argmax(np.abs(away[row])))
            farthest, value = float(sizes[row]), float(part[row, column])
            place = (start + row, column)
    mean = total / count if is_small else middle + total / count
    size = size or farthest or 1.0
    unit = 1.0
    if not SMALLEST_SIZE <= size <= LARGEST_SIZE or farthest > FARTHEST:
        unit = float(2.0 ** np.round(np.log2(size)))
    if not farthest / unit <= FARTHEST:
        raise ValueError(
            f"row {place[0]} of the codes holds {value:.3g} in column {place[1]}, where half of "
            f"the codes lie within {size:.3g} of {middle[place[1]]:.3g}: expected at most "
            f"{FARTHEST:.0e} times as far"
        )
    limit = float(far + np.abs(mean - middle).max()) / unit
    fits = bool(fits) and unit == 1
    return Frame(mean.astype(np.float32) if fits else mean, unit, size, limit, fits)


def statistics(codes: np.ndarray, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Statistics of the centred codes that are not far outside the others.

    Args:
        codes: [N, D] of any float type, which may be a memory map; read in parts.
        frame: of these codes.

    Returns:
        Covariance [D, D] and the largest absolute value [D]; both float32.
    """
    dimension = codes.shape[1]
    products, extent, count = np.zeros((dimension, dimension)), np.zeros(dimension), 0
    for start in range(0, len(codes), ROWS):
        centred = frame.centred(np.asarray(codes[start : start + ROWS]))
        near = np.abs(centred).max(axis=1) <= frame.limit
        centred = centred if near.all() else centred[near]
        products += centred.T @ centred
        extent = np.maximum(extent, np.abs(centred).max(axis=0, initial=0))
        count += len(centred)
    return (products / count).astype(np.float32), extent.astype(np.float32)


def count_different(codes: np.ndarray) -> int:
    """How many of codes [N, D] of any float type differ; read in parts."""
    factors = np.random.default_rng(0).integers(2**63, size=codes.shape[1], dtype=np.uint64)
    factors |= np.uint64(1)
    hashes = np.empty(len(codes), np.uint64)
    for start in range(0, len(codes), ROWS):
        part = np.asarray(codes[start : start + ROWS], np.float64) + 0.0  # -0.0 is 0.0
        hashes[start : start + ROWS] = (part.view(np.uint64) * factors).sum(axis=1, dtype=np.uint64)
    return len(np.unique(hashes))


def exact_top(
    scorer: Scorer,
    candidates: tuple[np.ndarray, np.ndarray],
    centred: Callable[[np.ndarray], np.ndarray],
    deviation: np.ndarray,
    size: int,
    k: int,
    without: np.ndarray,
    show: str,
    *,
    moved: float,
    lost: float,
    longest: float,
) -> Top:
    """The first k of candidates, scored again in double precision.

    Args:
        scorer: of B rankings.
        candidates: scores and positions [B, R] of the highest scores in float32, descending.
        centred: codes [n, D] float64 of positions [n].
        deviation: [D] of the database.
        size: N, images in the database.
        k: images wanted.
        without: [B, H] or [1, H] positions that are left out.
        show: of `scorers.SHOW`.
        moved: the largest distance between a code that was given and the one that was searched.
        lost: likewise, and the one that `centred` gives.
        longest: the largest length of a standardised code.
    """
    approximate, positions = candidates
    values = np.stack(
        [
            scorers.SHOW[show](scorers.exact_scores(scorer, b, centred(own), deviation))
            for b, own in enumerate(positions)
        ]
    )
    values = np.where((positions[:, :, None] == without[:, None]).any(axis=2), -np.inf, values)
    order = np.lexsort((positions, -values), axis=1)
    values = np.take_along_axis(values, order, axis=1)
    first, rest = values[:, :k], values[:, k : k + 1]
    change = partial(scorers.largest_change, scorer, deviation=deviation, longest=longest)
    low = first[:, -1] - change(first[:, -1], moved=lost)
    certain = np.ones(len(values), bool)
    if rest.size:
        left_out = rest[:, 0]
        certain &= (low >= left_out + change(left_out, moved=lost)) | np.isneginf(left_out)
    if positions.shape[1] < size:
        last = approximate[:, -1].astype(np.float64)
        certain &= low >= last + change(last, moved=moved, in_float32=True)
    positions = np.take_along_axis(positions, order[:, :k], axis=1)
    return Top(positions, first.astype(np.float32), certain)
