"""Seconds of rounds on codes in Milvus Lite against the same codes in a folder.

    python benchmarks/milvus.py --json benchmarks/results/milvus_cpu.json

Random clusters of 128-d codes; 30 marks by class; the two are asked in turns, and have to find the
same images. Needs `air_jax[milvus]`.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import measure
import numpy as np

from air_jax.feedback.engine import Engine
from air_jax.search import file_codes
from air_jax.search.milvus_codes import MilvusCodes
from air_jax.search.milvus_collection import Collection

DIMENSION, CLASSES, NEAREST, MARKS = 128, 100, 100, 30
LEARNERS = ("first", "discriminant", "svc_linear")


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="of each learner")
    parser.add_argument("--size", type=int, default=60_000, help="codes")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.size, arguments.rounds = min(arguments.size, 6000), min(arguments.rounds, 2)
    size = arguments.size
    codes, labels = _clusters(size)
    with tempfile.TemporaryDirectory() as folder:
        here = file_codes.write(Path(folder) / "codes", codes)
        collection = Collection(f"milvus:{folder}/codes.db", DIMENSION)
        started = time.perf_counter()
        collection.add(np.arange(size), codes)
        summary = {"codes_per_second_added": size / (time.perf_counter() - started)}
        there = MilvusCodes(collection, np.arange(size), here.mean, here.covariance)
        rows = []
        for learner in LEARNERS:
            row = _in_turns(learner, Engine(here), Engine(there), codes, labels, arguments)
            rows.append(row)
            summary[f"{learner}_folder_ms"] = row["folder"]["p50_ms"]
            summary[f"{learner}_milvus_ms"] = row["milvus"]["p50_ms"]
        collection.close()
    measure.report(arguments, summary, rows, size=size, dimension=DIMENSION)


def _clusters(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes [size, D] float32 and their classes [size]."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, size)
    codes = 0.5 * rng.normal(size=(CLASSES, DIMENSION))[labels]
    return (codes + rng.normal(size=codes.shape)).astype(np.float32), labels


def _in_turns(
    learner: str,
    here: Engine,
    there: Engine,
    codes: np.ndarray,
    labels: np.ndarray,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """A round of each of several queries, by both; the first round, which compiles, is left out."""
    rng = np.random.default_rng(1)
    seconds: dict[str, list[float]] = {"folder": [], "milvus": []}
    for _ in range(arguments.rounds + 1):
        query = rng.integers(len(codes))
        same = rng.choice(np.flatnonzero(labels == labels[query]), MARKS // 3, replace=False)
        other = rng.choice(np.flatnonzero(labels != labels[query]), MARKS - len(same), False)
        marked = np.concatenate([same, other])
        found = {}
        for name, engine in (("folder", here), ("milvus", there)):
            started = time.perf_counter()
            if learner == "first":
                found[name] = engine.first(codes[query], NEAREST)
            else:
                none = np.zeros((0, DIMENSION), np.float32)
                relevant = labels[marked] == labels[query]
                found[name] = engine.next_round(
                    learner, codes[query], none, marked, relevant, NEAREST
                )
            seconds[name].append(time.perf_counter() - started)
        if found["folder"].positions.tolist() != found["milvus"].positions.tolist():
            raise ValueError(f"{learner}: Milvus finds other images than the folder")
    times = {
        name: {
            "p50_ms": 1e3 * float(np.median(own[1:])),
            "p95_ms": 1e3 * float(np.percentile(own[1:], 95)),
        }
        for name, own in seconds.items()
    }
    milliseconds = {name: round(own["p50_ms"]) for name, own in times.items()}
    print(learner, milliseconds, flush=True)
    return {"learner": learner, **times}


if __name__ == "__main__":
    main()
