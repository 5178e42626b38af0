"""An index whose codes are in Milvus: how they get there, and how they are opened.

The catalogue stays the truth. Codes are added under keys that never stand for another code, the
catalogue publishes, then codes that are no longer published are deleted. A process killed at any
moment leaves what was published; what else it left is used or deleted by the next. A server that is
open meanwhile sees only the keys of what it opened.

    codes-<generation>.npz   mean and covariance of the codes
"""

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from air_jax.index.catalogue import Catalogue, codes_name
from air_jax.runtime.atomic_files import read_npz, write_npz
from air_jax.search.codes import ROWS, Frame, frame_of, statistics
from air_jax.search.milvus_codes import MilvusCodes
from air_jax.search.milvus_collection import Collection, parse

MOST_LOST = 1e-6  # of a typical difference of codes: so much float32 loses anyway
KEYS_OF_VECTORS = 2**32  # one file of vectors has no more


def whole_address(address: str | None) -> str | None:
    """An address as it is remembered; ValueError if it is none."""
    return None if address is None else parse(address).text


@contextlib.contextmanager
def opened(
    catalogue: Catalogue, address: str | None, storage: str, dimension: int
) -> Iterator[Collection | None]:
    """The store of an index, made if it is not there; None without an address.

    Raises:
        ValueError: codes cannot be kept so, or the collection is not this index's.
        ConnectionError: Milvus cannot be reached.
    """
    if address is None:
        yield None
        return
    if storage != "float32":
        raise ValueError(f"--storage={storage}: a --store keeps float32")
    if "owner" not in catalogue.meta:
        catalogue.set_meta(owner=uuid.uuid4().hex)
    with contextlib.closing(Collection(address, dimension, catalogue.meta["owner"])) as store:
        yield store


def about_store(catalogue: Catalogue, store: Collection | None, content: str) -> dict[str, Any]:
    """What an index says of its store: nothing without one.

    Args:
        catalogue: of the index.
        store: the store.
        content: a SHA-256 that changes whenever an id gets another code; "" if it never does.
    """
    if store is None:
        return {}
    number = int(content, 16) % 2**30 if content else 0
    owner = catalogue.meta["owner"]
    return {"store": store.address.text, "owner": owner, "first_key": KEYS_OF_VECTORS * number}


def is_whole(store: Collection, keys: np.ndarray) -> bool:
    """Whether a store seems to hold these keys: as many in their range."""
    return store.count((int(keys.min()), int(keys.max()))) == len(keys)


def write(
    store: Collection, keys: np.ndarray, codes: np.ndarray, out: Path, generation: int
) -> None:
    """Add what is missing of codes [N, D], which may be a memory map, and their statistics.

    Raises:
        ValueError: float32, in which Milvus keeps codes as they are given, does not hold them.
    """
    frame = frame_of(codes)
    if not frame.fits_float32:
        _check_float32(codes, frame)
    mean, (covariance, _) = frame.mean.astype(np.float32), statistics(codes, frame)
    write_npz(out / f"{codes_name(generation)}.npz", mean=mean, covariance=covariance)
    missing = np.flatnonzero(~np.isin(keys, store.ids()))
    for start in range(0, len(missing), ROWS):
        rows = missing[start : start + ROWS]
        store.add(keys[rows], codes[rows])


def _check_float32(codes: np.ndarray, frame: Frame) -> None:
    if frame.unit != 1:
        raise ValueError(
            f"the codes differ by about {frame.unit:.0e}, whose squares Milvus's float32 does not "
            "hold: divide them by that, or make the index without --store"
        )
    for start in range(0, len(codes), ROWS):
        part = np.asarray(codes[start : start + ROWS], np.float64)
        lost = np.abs(part - part.astype(np.float32)).max(axis=1)
        row = int(np.argmax(lost))
        if lost[row] > MOST_LOST * frame.size:
            raise ValueError(
                f"row {start + row} of the codes loses {lost[row]:.0e} in float32, in which Milvus "
                f"keeps them, and codes differ by about {frame.size:.0e}: subtract the mean from "
                "all codes, or make the index without --store"
            )


def delete_others(store: Collection, keys: np.ndarray) -> None:
    """Delete what is not published."""
    if store.count() != len(keys):
        store.delete(np.setdiff1d(store.ids(), keys))


def open_codes(path: Path, about: dict[str, Any], ids: np.ndarray) -> MilvusCodes:
    """The codes of what is published.

    Args:
        path: of the index.
        about: what is published.
        ids: [N] int64 of its images, by position.

    Raises:
        FileNotFoundError, ValueError: statistics or codes are missing, or not of this index.
        ConnectionError: Milvus cannot be reached.
    """
    file = path / f"{codes_name(about['generation'])}.npz"
    dimension = about["dimension"]
    arrays = read_npz(file, ("mean", "covariance"))
    if arrays["covariance"].shape != (dimension, dimension) or arrays["mean"].shape != (dimension,):
        raise ValueError(f"{file} is not of codes of {dimension} dimensions")
    keys = ids + about["first_key"]
    within = int(keys.min()), int(keys.max())
    store = Collection(about["store"], owner=about["owner"], within=within)
    there = store.count()
    if store.dimension != dimension or there != len(keys):
        store.close()
        raise ValueError(
            f"{path} has {len(keys)} images with codes of {dimension}, {about['store']} has "
            f"{there} of {store.dimension}: run air_jax.index again, it continues"
        )
    return MilvusCodes(store, keys, arrays["mean"], arrays["covariance"])
