"""Codes in a folder, memory-mapped: more of them than fit the device, or the machine's memory.

    store.json       how many, of which dimension, how they are kept; their mean
    covariance.npy   [D, D] float32
    codes.npy        [N, D] float32, float16 or int8
    scale.npy        [D] float32, of int8 only: a code is mean + scale * codes
    exact.npy        [N, D] float32, beside float16 and int8: what candidates are re-ranked by
    ids.npy          [N] int64, if they were given any: see `vector_store`

Smaller codes are searched faster, since reading them is what takes the time. `error` bounds what
they lose: no code lies farther than that from the one it stands for.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from air_jax.runtime.atomic_files import write_json
from air_jax.search import scorers

FORMAT = 1
STORAGES = ("float32", "float16", "int8")
ROWS = 65_536  # read at a time: 32 MB of 128-d float32
LARGEST = 127  # of int8; -128 is not used


class CodeStore:
    """A folder of codes, opened for reading.

    Args:
        path: of the folder.

    Attributes:
        codes: [N, D] as stored, memory-mapped.
        exact: [N, D] float32, memory-mapped: the codes that were given.
        ids: [N] int64 that the codes were given; their rows, if they were given none.
        scale: [D] float32 that `codes` are multiplied by (ones but for int8).
        mean: [D] float32 of the codes given.
        covariance: [D, D] float32 of the codes given.
        deviation: [D] float32 of the codes given; 1 where they are constant.
        error: the largest distance between a code as stored and as given; 0 for float32.

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
        self.deviation = scorers.deviation_of(self.covariance)
        self.codes = _mapped(path / "codes.npy", shape, self.storage)
        self.exact, self.scale = self.codes, np.ones(self.dimension, np.float32)
        self.ids = np.arange(self.size)
        if said.get("ids", False):
            self.ids = np.array(_mapped(path / "ids.npy", (self.size,), "int64"))
        if self.storage != "float32":
            self.exact = _mapped(path / "exact.npy", shape, "float32")
        if self.storage == "int8":
            self.scale = np.array(_mapped(path / "scale.npy", (self.dimension,), "float32"))

    def __len__(self) -> int:
        return self.size

    def offset(self) -> np.ndarray:
        """[D] float32 to add to `scale * codes` for a code with the mean taken off."""
        return np.zeros_like(self.mean) if self.storage == "int8" else -self.mean

    def get(self, positions: np.ndarray) -> np.ndarray:
        """Exact codes of positions of any shape [...]: [..., D] float32."""
        return np.array(self.exact[positions])

    def centred(self, positions: np.ndarray) -> np.ndarray:
        """Exact codes of positions of any shape [...], the mean taken off: [..., D] float32."""
        return self.exact[positions] - self.mean


def write(
    path: Path, codes: np.ndarray, storage: str = "float32", ids: np.ndarray | None = None
) -> CodeStore:
    """Write codes to a folder, whole or not at all; one that was there is replaced.

    Args:
        path: of the folder.
        codes: [N, D] of any float type, an array or a memory map; read in parts, three times.
        storage: one of `STORAGES`.
        ids: [N] int64, kept beside them.

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
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    stored = np.lib.format.open_memmap(partial / "codes.npy", "w+", storage, codes.shape)
    exact = stored
    if storage != "float32":
        exact = np.lib.format.open_memmap(partial / "exact.npy", "w+", "float32", codes.shape)
    if storage == "int8":
        np.save(partial / "scale.npy", scale)
    if ids is not None:
        np.save(partial / "ids.npy", ids)
    np.save(partial / "covariance.npy", covariance)
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
        "ids": ids is not None,
        "error": error,
        "mean": mean.tolist(),
    }
    write_json(partial / "store.json", header)
    shutil.rmtree(path, ignore_errors=True)
    partial.replace(path)
    return CodeStore(path)


def statistics(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean [D], covariance [D, D], and the largest distance from the mean [D]; all float32.

    Raises:
        ValueError: codes [N, D] hold NaN or infinity.
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
        part = np.asarray(codes[start : start + ROWS], np.float32)
        centred = part - mean
        products += centred.T @ centred
    covariance = (products / len(codes)).astype(np.float32)
    return mean, covariance, np.maximum(high - mean, mean - low)


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
