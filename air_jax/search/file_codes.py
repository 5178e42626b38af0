"""Codes in a folder, memory-mapped: more of them than fit the device, or the machine's memory.

    store.json       how many, of which dimension, how they are kept; their mean
    covariance.npy   [D, D] float32
    codes.npy        [N, D] float32, float16 or int8
    scale.npy        [D] float32, of int8 only: a code is mean + scale * codes
    exact.npy        [N, D] float32, beside float16 and int8: what candidates are re-ranked by

A search goes through the codes tile by tile: each tile is scored and its best are merged with the
best so far, while the next tile is on its way. Smaller codes are searched faster, since reading
them is what takes the time. A search of float16 or int8 codes finds some more images than were
asked for, and puts these in order by their exact float32 codes. `error` bounds what small codes
lose: no code lies farther than that from the one it stands for.
"""

import json
import math
import shutil
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from air_jax.runtime.atomic_files import write_json
from air_jax.search import distances, scorers
from air_jax.search.codes import ROWS, Top, checked_without, deviation_of, statistics
from air_jax.search.scorers import Kernel, Linear, Mixture, Near, Scorer

FORMAT = 1
STORAGES = ("float32", "float16", "int8")
LARGEST = 127  # of int8; -128 is not used
TILE = 2**17  # codes: 64 MB of 128-d float32
SCORES = 2**24  # of all rankings in a tile, at most
CHUNK = 4096  # codes scored at once; on a CPU these stay in its cache
UNDER_WAY = 2  # tiles
MARGIN = 256  # candidates beyond those asked for, where codes are not exact
# A session's marks grow by a few a round, and every number of candidates is compiled for: it is
# rounded up.
CANDIDATES = 128


class FileCodes:
    """Codes of a folder, opened for reading: `codes.Codes`.

    Args:
        path: of the folder.

    Attributes:
        stored: [N, D] as stored, memory-mapped.
        exact: [N, D] float32, memory-mapped: the codes that were given.
        storage: one of `STORAGES`.
        scale: [D] float32 that `stored` is multiplied by (ones but for int8).
        error: the largest distance between a code as stored and as given; 0 for float32.
        dimension, mean, covariance, deviation: see `codes.Codes`.

    Raises:
        FileNotFoundError: it is no such folder, or a file is missing.
        ValueError: a file is damaged, truncated, or of another shape than `store.json` says.
    """

    def __init__(self, path: Path):
        self.path = path
        said = _read_header(path)
        self.size, self.dimension = int(said["size"]), int(said["dimension"])
        self.storage, self.error = said["storage"], float(said["error"])
        self.mean = np.array(said["mean"], np.float32)
        shape = self.size, self.dimension
        square = self.dimension, self.dimension
        self.covariance = np.array(_mapped(path / "covariance.npy", square, "float32"))
        self.deviation = deviation_of(self.covariance)
        self.stored = _mapped(path / "codes.npy", shape, self.storage)
        self.exact, self.scale = self.stored, np.ones(self.dimension, np.float32)
        if self.storage != "float32":
            self.exact = _mapped(path / "exact.npy", shape, "float32")
        if self.storage == "int8":
            self.scale = np.array(_mapped(path / "scale.npy", (self.dimension,), "float32"))

    def __len__(self) -> int:
        return self.size

    def offset(self) -> np.ndarray:
        """[D] float32 to add to `scale * stored` for a centred code."""
        return np.zeros_like(self.mean) if self.storage == "int8" else -self.mean

    def get(self, positions: np.ndarray) -> np.ndarray:
        return np.array(self.exact[positions])

    def take(self, positions: np.ndarray) -> np.ndarray:
        return self.exact[positions] - self.mean

    def top(
        self, scorer: Scorer, k: int, without: np.ndarray | None = None, show: str = "best"
    ) -> Top:
        without = checked_without(k, self.size, without)
        scorer = scorers.without_idle_samples(scorer)
        exact = self.storage == "float32"
        wanted = k + without.shape[1]
        candidates = CANDIDATES * math.ceil((wanted if exact else wanted + MARGIN) / CANDIDATES)
        candidates = min(self.size, candidates)
        values, positions = self._best(scorer, candidates, show)
        last = values[:, -1]
        if not exact:
            values = self._exact_scores(scorer, positions, show)
        values = np.where((positions[:, :, None] == without[:, None]).any(axis=2), -np.inf, values)
        order = np.lexsort((positions, -values), axis=1)[:, :k]
        values = np.take_along_axis(values, order, axis=1)
        positions = np.take_along_axis(positions, order, axis=1)
        certain = np.full(len(values), exact or candidates == self.size)
        if not certain.all():
            certain = values[:, -1] >= last + self._largest_loss(scorer, last)
        return Top(positions, values, certain)

    def _best(self, scorer: Scorer, count: int, show: str) -> tuple[np.ndarray, np.ndarray]:
        """Scores and positions [B, count] of the highest scores by the codes as stored."""
        rankings = len(jax.tree.leaves(scorer)[0])
        rows = max(CHUNK, min(TILE, SCORES // rankings) // CHUNK * CHUNK)
        best = (
            jnp.full((rankings, count), -jnp.inf, jnp.float32),
            jnp.full((rankings, count), self.size, jnp.int32),
        )
        unpacking = (self.scale, self.offset(), self.deviation)
        under_way: deque[jax.Array] = deque()
        for first, tile in _tiles(self.stored, rows):
            best = _merge(best, scorer, tile, first, unpacking, show)
            under_way.append(best[0])
            if len(under_way) > UNDER_WAY:  # tiles that are read wait in memory
                under_way.popleft().block_until_ready()
        values, positions = jax.device_get(best)
        return values, positions.astype(np.int64)

    def _exact_scores(self, scorer: Scorer, positions: np.ndarray, show: str) -> np.ndarray:
        rows = []
        for b, own in enumerate(positions):
            one = jax.tree.map(lambda array, b=b: array[b : b + 1], scorer)
            scores = scorers.of_codes(one, self.take(own), self.deviation)
            rows.append(np.asarray(scorers.SHOW[show](scores))[0])
        return np.stack(rows)

    def _largest_loss(self, scorer: Scorer, last: np.ndarray) -> np.ndarray:
        """By how much scores below `last` [B] can rise when codes are replaced by exact ones: [B].

        No code moves farther than `error`; the loss is that, times how steep the scorer is.
        """
        match scorer:
            case Near():
                # (d +- error)^2 instead of d^2, with d the distance.
                return 2 * np.sqrt(np.abs(last)) * self.error + self.error**2
            case Linear(weights, _):
                return np.linalg.norm(weights / self.deviation, axis=1) * self.error
            case Kernel(machines, _):
                # exp(-gamma d^2) falls fastest at d^2 = 1 / (2 gamma), by sqrt(2 gamma / e).
                total = np.abs(machines.coefficients).sum(axis=1)
                farthest = self.error / self.deviation.min()  # of standardised codes
                return total * np.sqrt(2 * machines.gamma / math.e) * farthest
            case Mixture():
                return np.full(len(last), np.inf)  # not worked out


def _tiles(codes: np.ndarray, rows: int) -> Iterator[tuple[int, jax.Array]]:
    """The first row of each tile, and the tile on its way to the device."""
    for first in range(0, len(codes), rows):
        # On a CPU this makes no copy (`jnp.asarray` does): reading it is reading the file.
        yield first, jax.device_put(codes[first : first + rows])


@partial(jax.jit, static_argnames="show")
def _merge(
    best: tuple[jax.Array, jax.Array],
    scorer: Scorer,
    tile: jax.Array,
    first: jax.Array,
    unpacking: tuple[jax.Array, jax.Array, jax.Array],
    show: str,
) -> tuple[jax.Array, jax.Array]:
    """The best so far [B, R] and those of a tile [n, D], whose first row is at `first`."""
    scale, offset, deviation = unpacking

    def score(chunk: jax.Array) -> jax.Array:
        codes = chunk.astype(jnp.float32) * scale + offset
        return scorers.SHOW[show](scorers.of_codes(scorer, codes, deviation))

    count = len(tile) // CHUNK
    whole = count * CHUNK
    parts = []
    if count:
        scores = jax.lax.map(score, tile[:whole].reshape(count, CHUNK, tile.shape[1]))
        parts.append(jnp.moveaxis(scores, 0, 1).reshape(-1, whole))
    if whole < len(tile):
        parts.append(score(tile[whole:]))
    scores = jnp.concatenate(parts, axis=1)
    values, places = distances.nearest(scores, min(best[0].shape[1], len(tile)))
    # Those so far come first: equal scores keep the order of the store.
    values = jnp.concatenate([best[0], values], axis=1)
    positions = jnp.concatenate([best[1], first + places], axis=1)
    values, places = jax.lax.top_k(values, best[0].shape[1])
    return values, jnp.take_along_axis(positions, places, axis=1)


def write(path: Path, codes: np.ndarray, storage: str = "float32") -> FileCodes:
    """Write codes to a folder, whole or not at all; one that was there is replaced.

    Args:
        path: of the folder.
        codes: [N, D] of any float type, an array or a memory map; read in parts, three times.
        storage: one of `STORAGES`.

    Raises:
        ValueError: an unknown storage, not a matrix, no codes, NaN or infinite ones, or codes
            too large for float16.
    """
    if storage not in STORAGES:
        raise ValueError(f"storage={storage!r}: expected one of {', '.join(STORAGES)}")
    if codes.ndim != 2 or not codes.size:
        raise ValueError(f"codes have shape {list(codes.shape)}; expected [N > 0, D > 0]")
    mean, covariance, extent = statistics(codes)
    largest = float(np.finfo(np.float16).max)
    if storage == "float16" and (np.abs(mean) + extent).max() > largest:
        raise ValueError(f"codes beyond {largest:.0f} do not fit float16; use int8 or float32")
    scale = np.where(extent > 0, extent / LARGEST, 1).astype(np.float32)
    unfinished = path.with_name(f".{path.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    stored = np.lib.format.open_memmap(unfinished / "codes.npy", "w+", storage, codes.shape)
    exact = stored
    if storage != "float32":
        exact = np.lib.format.open_memmap(unfinished / "exact.npy", "w+", "float32", codes.shape)
    if storage == "int8":
        np.save(unfinished / "scale.npy", scale)
    np.save(unfinished / "covariance.npy", covariance)
    error = 0.0
    for start in range(0, len(codes), ROWS):
        rows = slice(start, start + ROWS)
        given = np.asarray(codes[rows], np.float32)
        exact[rows] = given
        if storage == "int8":
            stored[rows] = np.rint((given - mean) / scale)
            kept = mean + scale * stored[rows].astype(np.float32)
        else:
            stored[rows] = given
            kept = stored[rows].astype(np.float32)
        lost = np.square(kept.astype(np.float64) - given).sum(axis=1)
        error = max(error, float(np.sqrt(lost.max())))
    for array in {id(array): array for array in (stored, exact)}.values():
        array.flush()
    header = {
        "format": FORMAT,
        "size": len(codes),
        "dimension": codes.shape[1],
        "storage": storage,
        "error": error,
        "mean": mean.tolist(),
    }
    write_json(unfinished / "store.json", header)
    shutil.rmtree(path, ignore_errors=True)
    unfinished.replace(path)
    return FileCodes(path)


def _read_header(path: Path) -> dict[str, Any]:
    try:
        said = json.loads((path / "store.json").read_text())
        version = said["format"]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} holds no store.json: it is no folder of codes") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path / 'store.json'} is damaged: {error!r}") from error
    if version != FORMAT:
        raise ValueError(f"{path / 'store.json'} is of format {version}; expected {FORMAT}")
    return said


def _mapped(path: Path, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is missing: codes need it") from error
    except ValueError as error:  # NumPy's for a truncated file, or none of its own
        raise ValueError(f"{path} cannot be read, it may be truncated: {error}") from error
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(
            f"{path} holds {list(array.shape)} {array.dtype}; store.json says {list(shape)} {dtype}"
        )
    return array
