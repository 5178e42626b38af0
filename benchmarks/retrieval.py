"""Seconds of full rankings, of the nearest 100, and of one interactive round.

    python benchmarks/retrieval.py --json=benchmarks/results/retrieval_cpu.json

- mAP of `--queries` over `--database` codes with 500 relevant images each, by full ranking; the
  peer sorts with NumPy and takes scikit-learn's AP, for a sample, extrapolated.
- The nearest 100 of 1,000 queries: ours, FAISS flat, PyTorch, NumPy, in turns; all exact, checked.
- Codes on disk, `--large` of float32 and `--largest` of int8: the nearest 100 of 16
  queries, FAISS's flat index and its 8-bit one beside; and one round of a user, from 60 marks to
  the 100 images shown, by learner. The files have been read before, so memory holds what it can.

Codes are random, 128-d. Ten million take 12 GB of `--folder` while it runs.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # this clone, and `benchmarks`

import numpy as np
from sklearn.metrics import average_precision_score

from air_jax.feedback.engine import DEFAULT_LEARNER, Engine
from air_jax.search import device_codes, distances, file_codes, full_ranking, metrics
from air_jax.search.device_codes import DeviceCodes
from air_jax.search.file_codes import FileCodes
from air_jax.search.scorers import Near
from benchmarks import measure

DIMENSION, CLASSES, NEAREST, SEARCHED, MARKS = 128, 100, 100, 1000, 60
STREAMED = 16  # queries on disk
LEARNERS = (DEFAULT_LEARNER, "svc", "svc_linear", "rocchio")
ROWS = 2**16  # random codes made at a time


def main() -> None:
    arguments = _parse()
    measure.set_devices(arguments.devices)
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(arguments.database, DIMENSION)).astype(np.float32)
    queries = rng.normal(size=(arguments.queries, DIMENSION)).astype(np.float32)
    summary, rows = {}, []
    for measured in (
        _full_rankings(arguments, codes, queries),
        _nearest(arguments, codes, queries[:SEARCHED]),
        _on_disk(arguments, arguments.large, "float32"),
        _on_disk(arguments, arguments.largest, "int8"),
    ):
        summary |= measured[0]
        rows += measured[1]
    measure.report(arguments, summary, rows)


def _parse() -> argparse.Namespace:
    parser = measure.parser(__doc__)
    parser.add_argument("--database", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--large", type=int, default=1_000_000, help="float32 codes on disk")
    parser.add_argument("--largest", type=int, default=10_000_000, help="int8 codes on disk")
    parser.add_argument("--folder", type=Path, help="for codes on disk; default: a temporary one")
    parser.add_argument("--rounds", type=int, default=15, help="times the short ones are timed")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=[*PEERS])
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.queries, arguments.rounds = 1_000, 5
        arguments.large, arguments.largest = 50_000, 100_000
    return arguments


def _full_rankings(
    arguments: argparse.Namespace, codes: np.ndarray, queries: np.ndarray
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    labels = np.arange(len(codes)) % CLASSES
    query_labels = np.arange(len(queries)) % CLASSES
    items = full_ranking.relevant_items(query_labels, labels)
    database = DeviceCodes(codes)
    block = distances.queries_at_once(len(queries), len(codes))
    started = time.perf_counter()
    full_ranking.ranks_by_distance(database, queries[:1], items[:1], block)
    compiling = time.perf_counter() - started  # and one block
    started = time.perf_counter()
    ap = metrics.average_precision(
        full_ranking.ranks_by_distance(database, queries, items, block, "full rankings"), len(codes)
    )
    ours = time.perf_counter() - started
    sample = range(0, len(queries), max(1, len(queries) // 50))
    started = time.perf_counter()
    theirs = [
        average_precision_score(labels == query_labels[q], -_numpy_distances(queries[q], codes))
        for q in sample
    ]
    seconds = (time.perf_counter() - started) * len(queries) / len(sample)
    if np.abs(ap[list(sample)] - theirs).max() > 1e-4:
        raise ValueError("our AP is not scikit-learn's")
    size = f"{len(queries)}x{len(codes)}"
    row = {
        "what": "mAP by full ranking",
        "size": size,
        "seconds": ours,
        "compile_seconds": compiling,
        "sklearn_seconds": seconds,
    }
    summary = {f"map_seconds_{size}": ours, "map_ratio_to_sklearn": seconds / ours}
    return summary, [row]


def _numpy_distances(query: np.ndarray, codes: np.ndarray) -> np.ndarray:
    return np.square(codes - query).sum(axis=1)


def _nearest(
    arguments: argparse.Namespace, codes: np.ndarray, queries: np.ndarray
) -> tuple[dict[str, float | None], list[dict[str, Any]]]:
    database = DeviceCodes(codes)
    work: dict[str, Callable[[], np.ndarray]] = {
        "air_jax": lambda: device_codes.search(database, queries, NEAREST)[1]
    }
    work |= {name: PEERS[name](codes, queries) for name in arguments.peers}
    started = time.perf_counter()
    ours = work["air_jax"]()
    first = time.perf_counter() - started
    for name, search in work.items():
        same = np.mean(search() == ours)
        if same < 0.999:
            raise ValueError(f"{name}: only {same:.2%} of the nearest {NEAREST} are ours")
    seconds = measure.seconds_in_turns(work, arguments.rounds, warm_up=1)
    rows = [
        {
            "what": f"nearest {NEAREST} of {len(queries)} queries over {len(codes)}",
            "by": name,
            "queries_per_second": measure.spread(values, len(queries)),
        }
        for name, values in seconds.items()
    ]
    own = np.median(seconds["air_jax"])
    rows[0]["compile_seconds"] = first - float(own)
    summary: dict[str, float | None] = {"top100_seconds": float(own)}
    summary |= {
        f"top100_ratio_to_{name}": float(np.median(seconds[name]) / own)
        if name in seconds
        else None
        for name in PEERS
    }
    return summary, rows


def _faiss(codes: np.ndarray, queries: np.ndarray) -> Callable[[], np.ndarray]:
    import faiss  # only as a peer

    index = faiss.IndexFlatL2(codes.shape[1])
    index.add(codes)
    return lambda: index.search(queries, NEAREST)[1]


def _torch(codes: np.ndarray, queries: np.ndarray) -> Callable[[], np.ndarray]:
    import torch  # only as a peer

    where = "cuda" if torch.cuda.is_available() else "cpu"
    database, asked = (torch.from_numpy(values).to(where) for values in (codes, queries))
    lengths = database.square().sum(1)

    def search() -> np.ndarray:
        distances = torch.addmm(lengths, asked, database.T, alpha=-2)
        return torch.topk(distances, NEAREST, largest=False).indices.cpu().numpy()

    return search


def _numpy(codes: np.ndarray, queries: np.ndarray) -> Callable[[], np.ndarray]:
    lengths = np.square(codes).sum(axis=1)

    def search() -> np.ndarray:
        distances = lengths - 2 * queries @ codes.T
        best = np.argpartition(distances, NEAREST, axis=1)[:, :NEAREST]
        order = np.argsort(np.take_along_axis(distances, best, axis=1), axis=1)
        return np.take_along_axis(best, order, axis=1)

    return search


PEERS = {"faiss": _faiss, "torch": _torch, "numpy": _numpy}


def _on_disk(
    arguments: argparse.Namespace, size: int, storage: str
) -> tuple[dict[str, float | None], list[dict[str, Any]]]:
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        random = _random_file(Path(folder) / "codes.npy", size)
        codes = file_codes.write(Path(folder) / "codes", random, storage)
        del random
        (Path(folder) / "codes.npy").unlink()
        found = [_nearest_on_disk(arguments, codes), _rounds_on_disk(arguments, codes)]
    return found[0][0] | found[1][0], found[0][1] + found[1][1]


def _random_file(path: Path, size: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    codes = np.lib.format.open_memmap(path, "w+", "float32", (size, DIMENSION))
    for start in range(0, size, ROWS):
        part = codes[start : start + ROWS]
        part[:] = rng.standard_normal(part.shape, np.float32)
    return codes


def _nearest_on_disk(
    arguments: argparse.Namespace, codes: FileCodes
) -> tuple[dict[str, float | None], list[dict[str, Any]]]:
    queries = np.random.default_rng(1).standard_normal((STREAMED, DIMENSION), np.float32)
    near = Near(queries - codes.mean)
    work = {"air_jax": lambda: codes.top(near, NEAREST)}
    if "faiss" in arguments.peers:
        work["faiss"] = _faiss_on_disk(codes, queries)
    seconds = measure.seconds_in_turns(work, arguments.rounds, warm_up=1)
    rows = [
        {
            "what": f"nearest {NEAREST} of {STREAMED} queries over {len(codes)} {codes.storage}",
            "by": name,
            "queries_per_second": measure.spread(values, STREAMED),
        }
        for name, values in seconds.items()
    ]
    rows[0]["certain"] = float(codes.top(near, NEAREST).certain.mean())
    of = _size_name(codes)
    own = np.median(seconds["air_jax"])
    ratio = float(np.median(seconds["faiss"]) / own) if "faiss" in seconds else None
    name = "faiss" if codes.storage == "float32" else "faiss_8_bit"
    return {f"top100_ms_{of}": 1e3 * float(own), f"top100_ratio_to_{name}_{of}": ratio}, rows


def _faiss_on_disk(codes: FileCodes, queries: np.ndarray) -> Callable[[], np.ndarray]:
    """FAISS flat; for int8 its scalar quantiser of 8 bits, which does not re-rank."""
    import faiss  # only as a peer

    index = faiss.IndexFlatL2(DIMENSION)
    if codes.storage == "int8":
        index = faiss.IndexScalarQuantizer(DIMENSION, faiss.ScalarQuantizer.QT_8bit)
        index.train(np.array(codes.exact[:100_000]))
    for start in range(0, len(codes), ROWS):
        index.add(np.array(codes.exact[start : start + ROWS]))
    return lambda: index.search(queries, NEAREST)[1]


def _size_name(codes: FileCodes) -> str:
    return f"{len(codes) / 1e6:g}m"


def _rounds_on_disk(
    arguments: argparse.Namespace, codes: FileCodes
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    engine, rng = Engine(codes), np.random.default_rng(2)
    of, summary, rows = _size_name(codes), {}, []
    relevant = np.arange(MARKS) % 3 == 0
    for learner in dict.fromkeys(LEARNERS):
        seconds, certain = [], []
        for _ in range(arguments.rounds + 1):
            query = rng.standard_normal(DIMENSION, np.float32)
            marked = rng.choice(len(codes), MARKS, replace=False)
            started = time.perf_counter()
            found = engine.next_round(
                learner, query, np.zeros((0, DIMENSION)), marked, relevant, NEAREST
            )
            seconds.append(time.perf_counter() - started)
            certain.append(found.certain)
        p50, p95 = (1e3 * np.percentile(seconds[1:], q) for q in (50, 95))  # the first compiles
        is_default = learner == DEFAULT_LEARNER
        summary[f"round_p95_ms_{of}" + ("" if is_default else f"_{learner}")] = float(p95)
        rows.append(
            {
                "what": f"round on {len(codes)} {codes.storage} codes",
                "learner": learner,
                "marks": MARKS,
                "p50_ms": float(p50),
                "p95_ms": float(p95),
                "first_ms": 1e3 * seconds[0],
                "certain": float(np.mean(certain)),
            }
        )
        print(f"round on {of} codes, {learner}: p50 {p50:.0f} ms, p95 {p95:.0f} ms", flush=True)
    return summary, rows


if __name__ == "__main__":
    main()
