"""Where codes live: a small protocol, and its default, a folder of codes on this machine.

A store keeps codes [D] under ids, and finds the best of them by distance or by inner product.
`milvus_store` has the one that spans machines. Both find what NumPy finds in double precision: they
look for some more than were asked for, and put those in order by their exact codes.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from air_jax.search import code_store
from air_jax.search.code_store import CodeStore
from air_jax.search.scorers import Linear, Near
from air_jax.search.streaming import StreamedSpace

METRICS = ("l2", "ip")
NOTHING = np.zeros(0, np.int64)
MARGIN = 128  # looked for beyond those asked for
WIDER = 4  # times as many, where that was not enough


class Hits(NamedTuple):
    """The best codes for B queries.

    Attributes:
        ids: [B, n] int64; n is k, or what there is if that is fewer.
        codes: [B, n, D] float32.
        scores: [B, n] float64, minus the squared distance, or the inner product: descending
            (ascending if the worst were asked for), equal ones in order of ids.
        certain: [B] bool: no other code can belong among them.
    """

    ids: np.ndarray
    codes: np.ndarray
    scores: np.ndarray
    certain: np.ndarray


class VectorStore(Protocol):
    """Codes under ids.

    Attributes:
        dimension: D.
        most: the largest k that can be asked for.
    """

    dimension: int
    most: int

    def add(self, ids: np.ndarray, codes: np.ndarray) -> None:
        """Keep codes [n, D] of any float type under ids [n] int64; those there are replaced.

        Raises:
            ValueError: ids that are not different, or codes of another dimension, NaN or infinite.
        """

    def get(self, ids: np.ndarray) -> np.ndarray:
        """Codes of ids of any shape [...], as they were given: [..., D] float32.

        Raises:
            ValueError: there is no such id.
        """

    def search(
        self,
        queries: np.ndarray,
        k: int,
        metric: str,
        *,
        without: np.ndarray = NOTHING,
        reverse: bool = False,
    ) -> Hits:
        """The k codes with the highest scores for each query [B, D].

        Args:
            queries: [B, D].
            k: from 1 to `most`.
            metric: "l2" or "ip", see `Hits.scores`.
            without: [H] ids that are left out; those that are not there do not matter.
            reverse: the lowest scores instead.

        Raises:
            ValueError: k or the metric is out of range, or queries do not fit.
        """

    def delete(self, ids: np.ndarray) -> None:
        """Forget codes; ids that are not there do not matter."""

    def count(self) -> int:
        """How many codes there are."""

    def ids(self) -> np.ndarray:
        """[count] int64, of all codes, in any order."""


class MappedStore:
    """A store in a folder, memory-mapped: a `code_store` that knows its codes' ids.

    Each change writes the folder anew, whole or not at all: add much at once. A folder that was
    written without ids has its rows for them.

    Args:
        path: of the folder; made by the first `add`.
        dimension: D; of a folder that is there, what it has to be. 0: what it is.
        storage: of `code_store.STORAGES`, when it is written.

    Attributes:
        kept: the codes as they are searched; None if there are none.

    Raises:
        FileNotFoundError: there is no such folder, and no dimension to begin one with.
        ValueError: it is damaged, or of another dimension.
    """

    def __init__(self, path: Path, dimension: int = 0, storage: str = "float32"):
        self.path, self.dimension, self.storage = path, dimension, storage
        self.kept: CodeStore | None = None
        self.most = np.iinfo(np.int64).max
        if path.exists() or not dimension:
            self._open()

    def add(self, ids: np.ndarray, codes: np.ndarray) -> None:
        """See `VectorStore`; codes may be a memory map, and are read in parts if all are new."""
        check_codes(ids, codes, self.dimension)
        if self.kept is not None:
            stay = ~np.isin(self.kept.ids, ids)
            codes = np.concatenate([self.kept.exact[stay], np.asarray(codes, np.float32)])
            ids = np.concatenate([self.kept.ids[stay], ids])
        self._write(ids, codes)

    def get(self, ids: np.ndarray) -> np.ndarray:
        """See `VectorStore`."""
        if self.kept is None:
            check_found(ids, NOTHING, self.path)
            return np.zeros((*np.shape(ids), self.dimension), np.float32)
        check_found(ids, self.kept.ids, self.path)
        order = np.argsort(self.kept.ids)
        return self.kept.get(order[np.searchsorted(self.kept.ids, ids, sorter=order)])

    def search(
        self,
        queries: np.ndarray,
        k: int,
        metric: str,
        *,
        without: np.ndarray = NOTHING,
        reverse: bool = False,
    ) -> Hits:
        """See `VectorStore`."""
        check_search(queries, k, metric, self)
        kept = self.kept
        hidden = NOTHING if kept is None else np.flatnonzero(np.isin(kept.ids, without))
        left = self.count() - len(hidden)
        if kept is None or not left:
            return no_hits(len(queries), self.dimension)
        if metric == "l2":
            scorer = Near((queries - kept.mean).astype(np.float32))
        else:
            weights = (queries * kept.deviation).astype(np.float32)
            scorer = Linear(weights, (queries @ kept.mean).astype(np.float32))
        space, show = StreamedSpace(kept), "worst" if reverse else "best"

        def find(count: int) -> Hits:
            best = space.search(scorer, min(count, left), hidden[None], show)
            codes = kept.get(best.positions)
            hits = rank(queries, kept.ids[best.positions], codes, metric, reverse)
            return hits._replace(certain=best.certain)

        return search_beyond(find, min(k, left), left + 1, reverse)

    def delete(self, ids: np.ndarray) -> None:
        """See `VectorStore`."""
        if self.kept is None or not np.isin(ids, self.kept.ids).any():
            return
        stay = ~np.isin(self.kept.ids, ids)
        if stay.any():
            self._write(self.kept.ids[stay], self.kept.exact[stay])
        else:
            self.kept = None
            shutil.rmtree(self.path)

    def count(self) -> int:
        """See `VectorStore`."""
        return 0 if self.kept is None else len(self.kept)

    def ids(self) -> np.ndarray:
        """See `VectorStore`."""
        return NOTHING if self.kept is None else self.kept.ids

    def _open(self) -> None:
        kept = CodeStore(self.path)
        if self.dimension not in (0, kept.dimension):
            raise ValueError(f"{self.path} holds codes of {kept.dimension}, not {self.dimension}")
        self.kept, self.dimension, self.storage = kept, kept.dimension, kept.storage

    def _write(self, ids: np.ndarray, codes: np.ndarray) -> None:
        self.kept = code_store.write(self.path, codes, self.storage, np.asarray(ids, np.int64))


def rank(
    queries: np.ndarray, ids: np.ndarray, codes: np.ndarray, metric: str, reverse: bool
) -> Hits:
    """Put codes [B, n, D] with ids [B, n] in order for queries [B, D], in double precision."""
    exact = codes.astype(np.float64)
    if metric == "l2":
        scores = -np.square(exact - np.asarray(queries, np.float64)[:, None]).sum(axis=2)
    else:
        scores = np.einsum("bnd,bd->bn", exact, np.asarray(queries, np.float64))
    order = np.lexsort((ids, scores if reverse else -scores), axis=1)
    return Hits(
        np.take_along_axis(ids, order, axis=1),
        np.take_along_axis(codes, order[:, :, None], axis=1),
        np.take_along_axis(scores, order, axis=1),
        np.ones(len(ids), bool),
    )


def search_beyond(
    find: Callable[[int], Hits],
    k: int,
    most: int,
    reverse: bool = False,
    loss: np.ndarray | float = 0.0,
) -> Hits:
    """The k best out of more, so that neither rounding nor equal scores decide who is among them.

    Args:
        find: so many of the best, in order; fewer if there are no more.
        k: wanted.
        most: `find` can be asked for; more than there are, to know that there are no more.
        reverse: whether scores ascend.
        loss: [B] by how much `find` may misjudge a score.
    """
    count = min(k + MARGIN, most)
    while True:
        hits = find(count)
        gap = hits.scores[:, k - 1 : k] - hits.scores[:, -1:]
        beyond = (np.abs(gap).sum(axis=1) > loss) | (hits.ids.shape[1] < count)
        if beyond.all() or count == most:
            break
        count = min(WIDER * count, most)
    ids, codes, scores = (array[:, :k] for array in hits[:3])
    return Hits(ids, codes, scores, hits.certain & beyond)


def no_hits(queries: int, dimension: int) -> Hits:
    """Of an empty store."""
    codes = np.zeros((queries, 0, dimension), np.float32)
    return Hits(
        np.zeros((queries, 0), np.int64), codes, np.zeros((queries, 0)), np.ones(queries, bool)
    )


def check_codes(ids: np.ndarray, codes: np.ndarray, dimension: int) -> None:
    """Raises ValueError for what cannot be added."""
    if codes.shape != (*np.shape(ids), dimension) or codes.ndim != 2:
        raise ValueError(
            f"{list(np.shape(ids))} ids and codes {list(codes.shape)}: expected [n] and "
            f"[n, {dimension}]"
        )
    if len(np.unique(ids)) < len(ids):
        raise ValueError("ids are not different")


def check_search(queries: np.ndarray, k: int, metric: str, store: VectorStore) -> None:
    """Raises ValueError for what cannot be searched for."""
    if metric not in METRICS:
        raise ValueError(f"metric={metric!r}: expected one of {', '.join(METRICS)}")
    if not 1 <= k <= store.most:
        raise ValueError(f"k={k}: expected from 1 to {store.most}, which is the most it finds")
    if queries.ndim != 2 or queries.shape[1] != store.dimension:
        raise ValueError(f"queries {list(queries.shape)}: expected [B, {store.dimension}]")
    if not np.isfinite(queries).all():
        raise ValueError("queries hold NaN or infinity")


def check_found(asked: np.ndarray, found: np.ndarray, where: object) -> None:
    """Raises ValueError if an id is not among those found."""
    missing = np.asarray(asked)[~np.isin(asked, found)]
    if missing.size:
        raise ValueError(f"{where} has no code of id {int(missing.flat[0])}")
