"""Codes in a folder, memory-mapped: more of them than fit the device, or the machine's memory.

    store.json       how many, of which dimension, how they are kept; their mean and unit
    covariance.npy   [D, D] float32, of centred codes
    codes.npy        [N, D] float32, float16 or int8: what is searched
    scale.npy        [D] float32, beside float16 and int8: a centred code is scale * codes
    exact.npy        [N, D] float32, beside float16 and int8: what candidates are scored by again

Exact codes are kept as they were given where float32 holds them, else centred (see `codes`);
float16 and int8 codes are centred. Format 1, which is still read, kept float16 codes as given.

A search goes through the codes tile by tile: each tile is scored and its best are merged with the
best so far, while the next tile is on its way. An accelerator keeps all tiles, if they fit its
free memory: a round then moves marks in and the best images out. Smaller codes are searched
faster, since reading them is what takes the time. A search finds some more images than were asked
for, and puts these in order by their exact codes in double precision. `error` and `lost` bound
what is kept: no code that was given lies farther than `error` from the one that is searched, nor
than `lost` from the exact one.
"""

import json
import shutil
from collections import deque
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from air_jax.runtime.atomic_files import write_json
from air_jax.runtime.sharding import free_memory, on_cpu
from air_jax.search import distances, scorers
from air_jax.search.codes import (
    ROWS,
    Top,
    candidates_for,
    checked_without,
    deviation_of,
    exact_top,
    frame_of,
    statistics,
)
from air_jax.search.scorers import Kernel, Near, Scorer

FORMAT = 2  # 1 is read, too
STORAGES = ("float32", "float16", "int8")
LARGEST = 127  # of int8; -128 is not used
LARGEST_FLOAT16 = float(np.finfo(np.float16).max)
TILE = 2**17  # codes: 64 MB of 128-d float32
SCORES = 2**24  # of all rankings in a tile, at most
CHUNK = 4096  # codes scored at once; on a CPU these stay in its cache
UNDER_WAY = 2  # tiles
KEPT_TILE = 2**22  # codes that an accelerator keeps in one piece
SHARE = 0.6  # of an accelerator's free memory that codes may take; scores need some, too


class FileCodes:
    """Codes of a folder, opened for reading: `codes.Codes`.

    Args:
        path: of the folder.

    Attributes:
        stored: [N, D] as searched, memory-mapped.
        exact: [N, D] float32, memory-mapped: the codes as given, or centred if `is_centred`.
        is_centred: see `exact`.
        storage: one of `STORAGES`.
        scale: [D] float32 that `stored` is multiplied by; ones of float32.
        offset: [D] float32 to add to `scale * stored` for a centred code.
        error: the largest distance between a centred code as stored and as given.
        lost: likewise of `exact`; 0 where it holds the codes as given.
        dimension, mean, unit, covariance, deviation: see `codes.Codes`.

    Raises:
        FileNotFoundError: it is no such folder, or a file is missing.
        ValueError: a file is damaged, truncated, or of another shape than `store.json` says.
    """

    ranks_by_all = True

    def __init__(self, path: Path):
        self.path = path
        said = _read_header(path)
        self.size, self.dimension = int(said["size"]), int(said["dimension"])
        self.storage, self.error = said["storage"], float(said["error"])
        # Format 1 has none of these.
        self.unit, self.lost = float(said.get("unit", 1.0)), float(said.get("lost", 0.0))
        self.is_centred = bool(said.get("centred", False))
        self.mean = np.array(said["mean"], np.float64 if self.is_centred else np.float32)
        self._longest = said.get("longest")
        shape = self.size, self.dimension
        square = self.dimension, self.dimension
        self.covariance = np.array(_mapped(path / "covariance.npy", square, "float32"))
        self.deviation = deviation_of(self.covariance)
        self.stored = _mapped(path / "codes.npy", shape, self.storage)
        self.exact, self.scale = self.stored, np.ones(self.dimension, np.float32)
        if self.storage != "float32":
            self.exact = _mapped(path / "exact.npy", shape, "float32")
        is_scaled = self.storage == "int8" or (self.storage == "float16" and said["format"] != 1)
        if is_scaled:
            self.scale = np.array(_mapped(path / "scale.npy", (self.dimension,), "float32"))
        self.offset = np.zeros(self.dimension, np.float32)
        if not (is_scaled or self.is_centred):
            self.offset = -np.asarray(said["mean"], np.float32)

    def __len__(self) -> int:
        return self.size

    @cached_property
    def longest(self) -> float:
        """The largest length of a standardised code; format 1 does not say it."""
        if self._longest is not None:
            return float(self._longest)
        starts = range(0, self.size, ROWS)
        parts = (self._exactly(slice(start, start + ROWS)) for start in starts)
        return max(_longest(part, self.deviation) for part in parts)

    def get(self, positions: np.ndarray) -> np.ndarray:
        kept = self.exact[positions]
        return (
            self.unit * kept.astype(np.float64) + self.mean if self.is_centred else np.array(kept)
        )

    def take(self, positions: np.ndarray) -> np.ndarray:
        return (
            np.array(self.exact[positions])
            if self.is_centred
            else self.exact[positions] - self.mean
        )

    def _exactly(self, positions: np.ndarray | slice) -> np.ndarray:
        """As `take`, in double precision."""
        kept = self.exact[positions].astype(np.float64)
        return kept if self.is_centred else np.subtract(kept, self.mean)

    def top(
        self, scorer: Scorer, k: int, without: np.ndarray | None = None, show: str = "best"
    ) -> Top:
        without = checked_without(k, self.size, without)
        scorer = scorers.without_idle_samples(scorer)
        candidates = candidates_for(k + without.shape[1], self.size)
        return exact_top(
            scorer,
            self._best(scorer, candidates, show),
            self._exactly,
            self.deviation,
            self.size,
            k,
            without,
            show,
            moved=self.error,
            lost=self.lost,
            longest=0.0 if isinstance(scorer, Near | Kernel) else self.longest,  # not used by those
        )

    def _best(self, scorer: Scorer, count: int, show: str) -> tuple[np.ndarray, np.ndarray]:
        """Scores and positions [B, count] of the highest scores by the codes as stored."""
        rankings = len(jax.tree.leaves(scorer)[0])
        at_once = SCORES // rankings
        rows = max(CHUNK, min(TILE, at_once) // CHUNK * CHUNK)
        chunk = CHUNK if self._kept is None else max(CHUNK, min(KEPT_TILE, at_once))
        best = (
            np.full((rankings, count), -np.inf, np.float32),
            np.full((rankings, count), self.size, np.int32),
        )
        given = jax.device_put((best, scorer, (self.scale, self.offset, self.deviation)))
        best, scorer, unpacking = given
        under_way: deque[jax.Array] = deque()
        for first, tile in self._kept or _tiles(self.stored, rows):
            best = _merge(best, scorer, tile, first, unpacking, show, chunk)
            under_way.append(best[0])
            if self._kept is None and len(under_way) > UNDER_WAY:
                under_way.popleft().block_until_ready()  # tiles that are read wait in memory
        values, positions = jax.device_get(best)
        return values, positions.astype(np.int64)

    @cached_property
    def _kept(self) -> list[tuple[np.int32, jax.Array]] | None:
        """All tiles, where an accelerator has room for them; a CPU reads the file's own pages."""
        if on_cpu():
            return None
        room = SHARE * free_memory(jax.local_devices()[0])
        return list(_tiles(self.stored, KEPT_TILE)) if self.stored.nbytes <= room else None


def _tiles(codes: np.ndarray, rows: int) -> Iterator[tuple[np.int32, jax.Array]]:
    """The first row of each tile, and the tile on its way to the device."""
    for first in map(np.int32, range(0, len(codes), rows)):
        # On a CPU this makes no copy (`jnp.asarray` does): reading it is reading the file.
        yield first, jax.device_put(codes[first : first + rows])


@partial(jax.jit, static_argnames=("show", "chunk"))
def _merge(
    best: tuple[jax.Array, jax.Array],
    scorer: Scorer,
    tile: jax.Array,
    first: jax.Array,
    unpacking: tuple[jax.Array, jax.Array, jax.Array],
    show: str,
    chunk: int,
) -> tuple[jax.Array, jax.Array]:
    """The best so far [B, R] and those of a tile [n, D], whose first row is at `first`.

    So many codes of a `chunk` are scored at once.
    """
    scale, offset, deviation = unpacking

    def score(part: jax.Array) -> jax.Array:
        codes = part.astype(jnp.float32) * scale + offset
        return scorers.SHOW[show](scorers.of_codes(scorer, codes, deviation))

    count = len(tile) // chunk
    whole = count * chunk
    parts = []
    if count:
        scores = jax.lax.map(score, tile[:whole].reshape(count, chunk, tile.shape[1]))
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
        ValueError: an unknown storage, not a matrix, no codes, NaN or infinite ones, or one
            too far from the others for float32.
    """
    if storage not in STORAGES:
        raise ValueError(f"storage={storage!r}: expected one of {', '.join(STORAGES)}")
    if codes.ndim != 2 or not codes.size:
        raise ValueError(f"codes have shape {list(codes.shape)}; expected [N > 0, D > 0]")
    frame = frame_of(codes)
    covariance, extent = statistics(codes, frame)
    deviation = deviation_of(covariance)
    scale = np.where(extent > 0, extent / LARGEST, 1).astype(np.float32)
    if storage == "float16":  # of a size that float16 has most digits for
        scale = np.full(codes.shape[1], 2.0 ** np.round(np.log2(frame.size / frame.unit)), "f4")
    unfinished = path.with_name(f".{path.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    stored = np.lib.format.open_memmap(unfinished / "codes.npy", "w+", storage, codes.shape)
    exact = stored
    if storage != "float32":
        exact = np.lib.format.open_memmap(unfinished / "exact.npy", "w+", "float32", codes.shape)
        np.save(unfinished / "scale.npy", scale)
    np.save(unfinished / "covariance.npy", covariance)
    error = lost = longest = 0.0
    for start in range(0, len(codes), ROWS):
        rows = slice(start, start + ROWS)
        given = np.asarray(codes[rows])
        if frame.fits_float32 and storage == "float32":
            exact[rows] = given
            longest = max(longest, _longest(frame.centred(given), deviation))
            continue
        centred = (given.astype(np.float64) - frame.mean) / frame.unit
        exact[rows] = given if frame.fits_float32 else centred
        if not frame.fits_float32:
            lost = max(lost, _distance(exact[rows], centred))
        # A code far outside the others is moved to where the small numbers end.
        if storage != "float32":
            small, most = centred / scale, LARGEST_FLOAT16
            if storage == "int8":
                small, most = np.rint(small), LARGEST
            stored[rows] = np.clip(small, -most, most)
            error = max(error, _distance(scale * stored[rows].astype(np.float32), centred))
        longest = max(longest, _longest(centred, deviation))
    for array in {id(array): array for array in (stored, exact)}.values():
        array.flush()
    header = {
        "format": FORMAT,
        "size": len(codes),
        "dimension": codes.shape[1],
        "storage": storage,
        "error": max(error, lost),
        "lost": lost,
        "longest": longest,
        "centred": not frame.fits_float32,
        "unit": frame.unit,
        "mean": frame.mean.tolist(),
    }
    write_json(unfinished / "store.json", header)
    shutil.rmtree(path, ignore_errors=True)
    unfinished.replace(path)
    return FileCodes(path)


def _distance(kept: np.ndarray, given: np.ndarray) -> float:
    """The largest distance between a kept code and a given one [n, D] float64."""
    return float(np.sqrt(np.square(kept.astype(np.float64) - given).sum(axis=1).max()))


def _longest(centred: np.ndarray, deviation: np.ndarray) -> float:
    """The largest length of centred codes [n, D], standardised."""
    return float(np.max(np.linalg.norm(centred / deviation, axis=1)))


def _read_header(path: Path) -> dict[str, Any]:
    try:
        said = json.loads((path / "store.json").read_text())
        version = said["format"]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} holds no store.json: it is no folder of codes") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path / 'store.json'} is damaged: {error!r}") from error
    if version not in (1, FORMAT):
        raise ValueError(f"{path / 'store.json'} is of format {version}; expected 1 or {FORMAT}")
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
