"""Seconds of full rankings, of the nearest 100, and of one interactive round.

    python benchmarks/retrieval.py --json=benchmarks/results/retrieval_cpu.json

- mAP of `--queries` over `--database` codes with 500 relevant images each, by full ranking; the
  peer sorts with NumPy and takes scikit-learn's AP, for a sample, extrapolated.
- The nearest 100 of 1,000 queries: ours, FAISS flat, PyTorch, NumPy, in turns; all exact, checked.
- One round of a user on `--large` codes: fit on 60 marks, rank, nearest 100; by learner.

Codes are random, 128-d float32.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # this clone, and `benchmarks`

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.metrics import average_precision_score

from air_jax import learners, metrics, retrieval
from benchmarks import measure

DIMENSION, CLASSES, NEAREST, SEARCHED, MARKS = 128, 100, 100, 1000, 60
LEARNERS = ("svc", "svc_linear", "rocchio")


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
        _interactive_rounds(arguments, rng),
    ):
        summary |= measured[0]
        rows += measured[1]
    measure.report(arguments, summary, rows)


def _parse() -> argparse.Namespace:
    parser = measure.parser(__doc__)
    parser.add_argument("--database", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--large", type=int, default=1_000_000, help="codes of interactive rounds")
    parser.add_argument("--rounds", type=int, default=15, help="times the short ones are timed")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=[*PEERS])
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.queries, arguments.large, arguments.rounds = 1_000, 50_000, 5
    return arguments


def _full_rankings(
    arguments: argparse.Namespace, codes: np.ndarray, queries: np.ndarray
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    labels = np.arange(len(codes)) % CLASSES
    query_labels = np.arange(len(queries)) % CLASSES
    items = retrieval.relevant_items(query_labels, labels)
    database = retrieval.make_database(codes)
    retrieval.ranks_by_distance(database, queries[:1], items[:1])  # compiles
    started = time.perf_counter()
    ap = metrics.average_precision(
        retrieval.ranks_by_distance(database, queries, items, label="full rankings"), len(codes)
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
    row = {"what": "mAP by full ranking", "size": size, "seconds": ours, "sklearn_seconds": seconds}
    summary = {f"map_seconds_{size}": ours, "map_ratio_to_sklearn": seconds / ours}
    return summary, [row]


def _numpy_distances(query: np.ndarray, codes: np.ndarray) -> np.ndarray:
    return np.square(codes - query).sum(axis=1)


def _nearest(
    arguments: argparse.Namespace, codes: np.ndarray, queries: np.ndarray
) -> tuple[dict[str, float | None], list[dict[str, Any]]]:
    database = retrieval.make_database(codes)
    work: dict[str, Callable[[], np.ndarray]] = {
        "air_jax": lambda: retrieval.search(database, queries, NEAREST)[1]
    }
    work |= {name: PEERS[name](codes, queries) for name in arguments.peers}
    ours = work["air_jax"]()
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


def _interactive_rounds(
    arguments: argparse.Namespace, rng: np.random.Generator
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    codes = rng.normal(size=(arguments.large, DIMENSION)).astype(np.float32)
    space = learners.make_space(codes)
    del codes
    best = jax.jit(lambda scores: retrieval.nearest(scores, NEAREST))
    summary, rows = {}, []
    for name in LEARNERS:
        seconds = []
        for number in range(arguments.rounds + 1):
            query = retrieval.centre(
                space.database, rng.normal(size=(1, DIMENSION)).astype(np.float32)
            )
            positions = rng.choice(arguments.large, (1, MARKS), replace=False)
            relevant = np.arange(MARKS)[None] % 3 == 0
            started = time.perf_counter()
            marks = learners.Marks(positions, relevant)
            ranking = learners.LEARNERS[name](space, query, marks, [[0, number]])
            jax.block_until_ready(best(jnp.asarray(ranking.scores)))
            seconds.append(time.perf_counter() - started)
        p50, p95 = (1e3 * np.percentile(seconds[1:], q) for q in (50, 95))  # the first compiles
        of = f"{arguments.large / 1e6:g}m"
        summary[f"round_p95_ms_{of}" + ("" if name == LEARNERS[0] else f"_{name}")] = float(p95)
        rows.append(
            {
                "what": f"round on {arguments.large} codes",
                "learner": name,
                "marks": MARKS,
                "p50_ms": float(p50),
                "p95_ms": float(p95),
                "first_ms": 1e3 * seconds[0],
            }
        )
        print(f"round on {of} codes, {name}: p50 {p50:.0f} ms, p95 {p95:.0f} ms", flush=True)
    return summary, rows


if __name__ == "__main__":
    main()
