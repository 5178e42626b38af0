"""Codes in Milvus: on a cluster, or in a file of this machine by Milvus Lite. Needs `pymilvus`.

    milvus://HOST:PORT/COLLECTION     a cluster; milvus+https:// if it takes encrypted connections
    milvus:FILE.db                    Milvus Lite

A collection has the fields `id` and `code`. A field has one index, and an index one metric, but
codes are searched by distance and by inner product: so a code is kept with its squared length
behind it, [D + 1] numbers. By inner products with these, 2 q on the code and -1 on the length is
|q|^2 minus the squared distance, and a query with 0 there is the plain inner product.

The index is FLAT and reads are of consistency Strong: a search compares all codes, and finds a code
that was just added. Others may put an index of another type in its place for speed; a search may
then miss codes.
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

TOKEN_VARIABLE = "MILVUS_TOKEN"
LITE_COLLECTION = "air_jax"
OWNER = "air_jax.index"  # the property of a collection that names the index it belongs to
MOST = 16_384  # Milvus finds and gives no more at once
BYTES = 2**23  # of codes added at once; a server takes 64 MB
TIMEOUT = 60.0  # seconds for one request
CONNECT_TIMEOUT = 10.0  # seconds
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


class Collection:
    """A collection of codes [D] under ids.

    Args:
        address: see above. A token for the cluster is taken from `MILVUS_TOKEN`.
        dimension: D, to make the collection if it is not there; 0: it has to be there.
        owner: names whose codes these are; another owner's collection is refused.
        within: the first and the last id that are seen; others are as if they were not there.

    Attributes:
        dimension: D.
        is_exact: whether a search compares all codes.

    Raises:
        ValueError: `pymilvus` is not installed; the collection is not there, of another dimension,
            of another owner, or not one that this made.
        ConnectionError: Milvus cannot be reached, or the file cannot be opened.
    """

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
                self.is_exact = index is not None and index["index_type"] == "FLAT"
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
        """Keep codes [n, D] of any float type under ids [n] int64; codes that are there go.

        Raises:
            ValueError: ids that are not different, or codes of another dimension, NaN or infinite.
        """
        if codes.shape != (len(ids), self.dimension):
            raise ValueError(
                f"{len(ids)} ids and codes {list(codes.shape)}: expected [n, {self.dimension}]"
            )
        if len(np.unique(ids)) < len(ids):
            raise ValueError("ids are not different")
        rows = max(1, BYTES // (4 * (self.dimension + 1)))
        for start in range(0, len(ids), rows):
            part = np.asarray(codes[start : start + rows], np.float32)
            kept = np.concatenate([part, _squares(part)], axis=1)
            bad = ~np.isfinite(kept).all(axis=1)
            if bad.any():
                raise ValueError(
                    f"the code of id {ids[start + int(np.argmax(bad))]} holds NaN or infinity, or "
                    "its squared length does not fit float32"
                )
            named = zip(ids[start : start + rows].tolist(), kept, strict=True)
            data = [{"id": one, "code": code} for one, code in named]
            with self._told():
                self._client.upsert(self.address.collection, data, timeout=TIMEOUT)
        if len(ids):
            self._flush()

    def get(self, ids: np.ndarray) -> np.ndarray:
        """Codes of ids of any shape [...], as they were given: [..., D] float32.

        Raises:
            ValueError: there is no such id.
        """
        asked, places = np.unique(np.asarray(ids, np.int64), return_inverse=True)
        rows: list[dict[str, Any]] = []
        step = max(1, min(MOST, BYTES // (4 * (self.dimension + 1))))
        for start in range(0, len(asked), step):
            named = f"id in {asked[start : start + step].tolist()}"
            rows += self._query(" and ".join([named, *self._within]), ["id", "code"])
        found = np.array([row["id"] for row in rows], np.int64)
        missing = asked[~np.isin(asked, found)]
        if missing.size:
            raise ValueError(f"{self.address.text} has no code of id {int(missing[0])}")
        codes = np.array([row["code"] for row in rows], np.float32).reshape(-1, self.dimension + 1)
        codes = codes[np.argsort(found), : self.dimension]
        return codes[places.reshape(np.shape(ids))]

    def search(
        self, asked: np.ndarray, count: int, without: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The codes that have the largest inner products with a query.

        Args:
            asked: [D + 1] float32; the last is for the squared length of a code.
            count: from 1 to `MOST`.
            without: [H] ids that are left out; ids that are not there do not matter.

        Returns:
            Ids [n] int64 and codes [n, D] float32; n is `count`, or fewer if there are no more.
        """
        conditions = [f"id not in {without.tolist()}"] if len(without) else []
        with self._told():
            (hits,) = self._client.search(
                self.address.collection,
                data=[asked],
                limit=count,
                filter=" and ".join([*self._within, *conditions]),
                output_fields=["code"],
                timeout=TIMEOUT,
            )
        ids = np.array([hit["id"] for hit in hits], np.int64)
        codes = np.array([hit["entity"]["code"] for hit in hits], np.float32)
        return ids, codes.reshape(len(ids), self.dimension + 1)[:, : self.dimension]

    def longest(self) -> float:
        """The length of the longest code; 0 if there is none."""
        if self._longest is None:
            asked = np.eye(1, self.dimension + 1, self.dimension, dtype=np.float32)[0]
            _, codes = self.search(asked, 1, without=np.zeros(0, np.int64))
            self._longest = float(np.linalg.norm(codes)) if codes.size else 0.0
        return self._longest

    def delete(self, ids: np.ndarray) -> None:
        """Forget codes; ids that are not there do not matter."""
        for start in range(0, len(ids), MOST):
            part = np.asarray(ids[start : start + MOST]).tolist()
            with self._told():
                self._client.delete(self.address.collection, ids=part, timeout=TIMEOUT)
        if len(ids):
            self._flush()

    def count(self, within: tuple[int, int] | None = None) -> int:
        """How many codes there are; of those between two ids, if they are given."""
        conditions = [*self._within, *_conditions(within)]
        rows = self._query(" and ".join(conditions), ["count(*)"])
        return int(rows[0]["count(*)"])

    def ids(self) -> np.ndarray:
        """[count] int64, of all codes, in any order."""
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
