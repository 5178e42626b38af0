"""Codes in Milvus: on a cluster, or in a file of this machine by Milvus Lite. Needs `pymilvus`.

    milvus://HOST:PORT/COLLECTION     a cluster; milvus+https:// if it takes encrypted connections
    milvus:FILE.db                    Milvus Lite

A collection has the fields `id` and `code`. A field has one index, and an index one metric, but
both metrics are wanted of the same codes: so a code is kept with its squared length behind it.
By inner products, 2 q on the code and -1 on the length is |q|^2 minus the squared distance, and a
query with 0 there is the plain inner product.

The index is FLAT and reads are of consistency Strong: what is found is exact, and what was added is
found at once. With an index of another type, which others may put in its place for speed, the codes
found are put in order exactly, but some may be missing: nothing is `certain` then.
"""

import contextlib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from air_jax.search.vector_store import (
    NOTHING,
    Hits,
    check_codes,
    check_found,
    check_search,
    rank,
    search_beyond,
)

TOKEN_VARIABLE = "MILVUS_TOKEN"
LITE_COLLECTION = "air_jax"
OWNER = "air_jax.index"  # the property of a collection that names the index it belongs to
MOST = 16_384  # Milvus finds and gives no more at once
BYTES = 2**23  # of codes added at once; a server takes 64 MB
TIMEOUT = 60.0  # seconds for one request
CONNECT_TIMEOUT = 10.0  # seconds
ROUNDING = 2.0**-24  # of float32
# Stores of this process share a Milvus Lite of a file: the last one that is closed ends it.
_opened: Counter[str] = Counter()


class Address(NamedTuple):
    """Where a collection is.

    Attributes:
        uri: as `pymilvus` takes it.
        collection: its name.
        text: as a user gives it, with the whole path of a file.
    """

    uri: str
    collection: str
    text: str


def parse(address: str) -> Address:
    """Read an address.

    Raises:
        ValueError: it is none, or holds a password.
    """
    expected = f"--store={address}: expected milvus://HOST:PORT/COLLECTION or milvus:FILE.db"
    try:
        parts = urlsplit(address)
        port = parts.port or 19530
    except ValueError as error:
        raise ValueError(f"{expected} ({error})") from error
    if parts.username is not None or parts.password is not None:
        # It would be kept in the index.
        raise ValueError(f"--store: give no password in the address, set {TOKEN_VARIABLE} instead")
    if parts.scheme == "milvus" and not parts.netloc and parts.path.endswith(".db"):
        path = Path(parts.path).resolve()
        if not path.parent.is_dir():
            raise ValueError(f"--store={address}: there is no folder {path.parent}")
        return Address(str(path), LITE_COLLECTION, f"milvus:{path}")
    protocols = {"milvus": "http", "milvus+https": "https"}
    collection = parts.path.removeprefix("/")
    named = re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", collection)
    if parts.scheme not in protocols or not parts.hostname or not named:
        raise ValueError(expected)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    text = f"{parts.scheme}://{host}:{port}/{collection}"
    return Address(f"{protocols[parts.scheme]}://{host}:{port}", collection, text)


class MilvusStore:
    """A collection as a `vector_store.VectorStore`.

    Args:
        address: see above. A token for the cluster is taken from `MILVUS_TOKEN`.
        dimension: D, to make the collection if it is not there; 0: it has to be there.
        owner: names whose codes these are; another owner's collection is refused.
        within: the first and the last id that are seen; others are as if they were not there.

    Attributes:
        dimension: D.
        most: the largest k that can be asked for.

    Raises:
        ValueError: `pymilvus` is not installed; the collection is not there, of another dimension,
            of another owner, or not one that this made.
        ConnectionError: Milvus cannot be reached, or the file cannot be opened.
    """

    most = MOST

    def __init__(
        self,
        address: str,
        dimension: int = 0,
        owner: str = "",
        within: tuple[int, int] | None = None,
    ):
        self.address = parse(address)
        self._client = _connect(self.address)
        try:
            with self._told():
                if not self._client.has_collection(self.address.collection, timeout=TIMEOUT):
                    if not dimension:
                        raise ValueError(f"{self.address.text}: there is no such collection")
                    self._create(dimension, owner)
                self.dimension = self._checked(dimension, owner)
                index = self._client.describe_index(
                    self.address.collection, "code", timeout=TIMEOUT
                )
                # Someone may have chosen another one, for speed.
                self._exact = index is not None and index["index_type"] == "FLAT"
                self._client.load_collection(self.address.collection, timeout=TIMEOUT)
        except BaseException:
            self.close()
            raise
        self._within = _conditions(within)
        self._longest: float | None = None

    def close(self) -> None:
        """Let go of it: of Milvus Lite's file, so that another process can open it."""
        self._client.close()
        if not self.address.uri.endswith(".db"):
            return
        from milvus_lite.server_manager import server_manager_instance

        _opened[self.address.uri] -= 1
        if not _opened[self.address.uri]:
            server_manager_instance.release_server(self.address.uri)

    def add(self, ids: np.ndarray, codes: np.ndarray) -> None:
        """See `VectorStore`."""
        check_codes(ids, codes, self.dimension)
        rows = max(1, BYTES // (4 * (self.dimension + 1)))
        for start in range(0, len(ids), rows):
            part = np.asarray(codes[start : start + rows], np.float32)
            kept = np.concatenate([part, _squares(part)], axis=1)
            if not np.isfinite(kept).all():
                raise ValueError("codes hold NaN or infinity, or are too long for float32")
            named = zip(ids[start : start + rows].tolist(), kept, strict=True)
            data = [{"id": one, "code": code} for one, code in named]
            with self._told():
                self._client.upsert(self.address.collection, data, timeout=TIMEOUT)
        if len(ids):
            self._flush()

    def get(self, ids: np.ndarray) -> np.ndarray:
        """See `VectorStore`."""
        asked, places = np.unique(np.asarray(ids, np.int64), return_inverse=True)
        rows: list[dict[str, Any]] = []
        step = max(1, min(MOST, BYTES // (4 * (self.dimension + 1))))
        for start in range(0, len(asked), step):
            named = f"id in {asked[start : start + step].tolist()}"
            rows += self._query(" and ".join([named, *self._within]), ["id", "code"])
        found = np.array([row["id"] for row in rows], np.int64)
        check_found(asked, found, self.address.text)
        codes = np.array([row["code"] for row in rows], np.float32).reshape(-1, self.dimension + 1)
        codes = codes[np.argsort(found), : self.dimension]
        return codes[places.reshape(np.shape(ids))]

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
        lengths = np.linalg.norm(queries, axis=1, keepdims=True)
        longest = self._longest_code()
        if metric == "l2":
            asked = np.concatenate([2 * queries, -np.ones_like(lengths)], axis=1)
            size = (2 * lengths[:, 0] + longest) * longest
        else:
            asked = np.concatenate([queries, np.zeros_like(lengths)], axis=1)
            size = lengths[:, 0] * longest
        asked = (-asked if reverse else asked).astype(np.float32)
        conditions = [f"id not in {np.asarray(without).tolist()}"] if len(without) else []

        def find(count: int) -> Hits:
            ids, codes = self._nearest(asked, count, [*self._within, *conditions])
            return rank(queries, ids, codes, metric, reverse)

        # What is not found can be better by what was lost on it and on the last one found.
        loss = 2 * (self.dimension + 2) * ROUNDING * size
        hits = search_beyond(find, k, MOST, reverse, loss)
        return hits._replace(certain=hits.certain & self._exact)

    def delete(self, ids: np.ndarray) -> None:
        """See `VectorStore`."""
        for start in range(0, len(ids), MOST):
            part = np.asarray(ids[start : start + MOST]).tolist()
            with self._told():
                self._client.delete(self.address.collection, ids=part, timeout=TIMEOUT)
        if len(ids):
            self._flush()

    def count(self, within: tuple[int, int] | None = None) -> int:
        """See `VectorStore`; of those between two ids, if they are given."""
        conditions = [*self._within, *_conditions(within)]
        rows = self._query(" and ".join(conditions), ["count(*)"])
        return int(rows[0]["count(*)"])

    def ids(self) -> np.ndarray:
        """See `VectorStore`."""
        found = []
        with self._told():
            rows = self._client.query_iterator(
                self.address.collection,
                batch_size=MOST,
                filter=" and ".join(self._within),
                output_fields=["id"],
                timeout=TIMEOUT,
            )
            while batch := rows.next():
                found += [row["id"] for row in batch]
            rows.close()
        return np.array(found, np.int64)

    def _create(self, dimension: int, owner: str) -> None:
        from pymilvus import DataType

        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("code", DataType.FLOAT_VECTOR, dim=dimension + 1)
        index = self._client.prepare_index_params()
        index.add_index("code", index_type="FLAT", metric_type="IP")
        self._client.create_collection(
            self.address.collection,
            schema=schema,
            index_params=index,
            consistency_level="Strong",
            properties={OWNER: owner},
            timeout=TIMEOUT,
        )

    def _checked(self, dimension: int, owner: str) -> int:
        """The dimension of the collection that is there, if it is the one that is meant."""
        said = self._client.describe_collection(self.address.collection, timeout=TIMEOUT)
        fields = {field["name"]: field for field in said["fields"]}
        if set(fields) != {"id", "code"} or OWNER not in said["properties"]:
            raise ValueError(f"{self.address.text}: air_jax did not make this collection")
        there = int(fields["code"]["params"]["dim"]) - 1
        if said["properties"][OWNER] != owner:
            raise ValueError(
                f"{self.address.text} belongs to another index; name another collection, or drop it"
            )
        if dimension not in (0, there):
            raise ValueError(f"{self.address.text} holds codes of {there}, not {dimension}")
        return there

    def _nearest(
        self, asked: np.ndarray, count: int, conditions: list[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids [B, n] and codes [B, n, D] of the largest inner products with `asked` [B, D + 1]."""
        with self._told():
            hits = self._client.search(
                self.address.collection,
                data=list(asked),
                limit=count,
                filter=" and ".join(conditions),
                output_fields=["code"],
                timeout=TIMEOUT,
            )
        ids = np.array([[hit["id"] for hit in own] for own in hits], np.int64)
        codes = np.array([[hit["entity"]["code"] for hit in own] for own in hits], np.float32)
        shape = len(asked), ids.size // len(asked)
        codes = codes.reshape(*shape, self.dimension + 1)[:, :, : self.dimension]
        return ids.reshape(shape), codes

    def _longest_code(self) -> float:
        """The length of the longest code."""
        if self._longest is None:
            asked = np.eye(1, self.dimension + 1, self.dimension, dtype=np.float32)
            _, codes = self._nearest(asked, 1, self._within)
            self._longest = float(np.linalg.norm(codes[0, 0])) if codes.size else 0.0
        return self._longest

    def _query(self, condition: str, fields: list[str]) -> list[dict[str, Any]]:
        with self._told():
            return self._client.query(
                self.address.collection, filter=condition, output_fields=fields, timeout=TIMEOUT
            )

    def _flush(self) -> None:
        self._longest = None
        with self._told():
            self._client.flush(self.address.collection, timeout=TIMEOUT)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Errors of Milvus as ConnectionError, in one line."""
        from pymilvus.exceptions import MilvusException

        try:
            yield
        except MilvusException as error:
            said = " ".join(str(error.message).split())
            raise ConnectionError(f"{self.address.text}: {said}") from error


def _conditions(within: tuple[int, int] | None) -> list[str]:
    return [] if within is None else [f"id >= {within[0]}", f"id <= {within[1]}"]


def _squares(codes: np.ndarray) -> np.ndarray:
    """The squared length of each code, [n, 1] float32."""
    return np.square(codes, dtype=np.float64).sum(axis=1, keepdims=True).astype(np.float32)


def _connect(address: Address) -> Any:
    lite = address.uri.endswith(".db")
    try:
        import pymilvus
        from pymilvus.exceptions import MilvusException

        if lite:
            import milvus_lite  # noqa: F401
    except ImportError as error:
        raise ValueError(f"{error}; --store needs: pip install 'air_jax[milvus]'") from error
    # They log every error with its trace, and then raise it.
    for name in ("pymilvus", "milvus_lite", *(["grpc._server"] if lite else [])):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        _opened[address.uri] += 1
        token = "" if lite else os.environ.get(TOKEN_VARIABLE, "")
        return pymilvus.MilvusClient(address.uri, token=token, timeout=CONNECT_TIMEOUT)
    except MilvusException as error:
        _opened[address.uri] -= 1
        if lite:
            why = "cannot be opened: another process has it open, or it is damaged"
        else:
            why = f"cannot be reached: {' '.join(str(error.message).split())}"
        raise ConnectionError(f"{address.text} {why}") from error
