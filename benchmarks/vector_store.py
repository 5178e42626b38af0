"""Rounds on codes in Milvus Lite against the same codes in a folder: time, and what is found.

    python benchmarks/vector_store.py --cifar100 FOLDER --json benchmarks/results/vector_store.json

128 principal components of CIFAR-100's 60,000 images, or random clusters as many; 30 marks by
class; the two are asked in turns. `found` is the share of the folder's 100 images that Milvus finds
too, and the folder misses none. Needs `air_jax[milvus]`.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import measure
import numpy as np
from sklearn.decomposition import PCA

from air_jax.data import datasets
from air_jax.feedback.engine import Engine
from air_jax.search import code_store
from air_jax.search.milvus_store import MilvusStore
from air_jax.search.stored_space import StoredCodes

DIMENSION, CLASSES, NEAREST, MARKS = 128, 100, 100, 30
LEARNERS = ("first", "discriminant", "svc_linear", "svc", "ridge_pseudo", "svc_distance")


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="of each learner")
    parser.add_argument("--size", type=int, default=60_000, help="codes; of CIFAR-100 at most")
    parser.add_argument("--cifar100", help="of tensorflow_datasets; default: random clusters")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.size, arguments.rounds = min(arguments.size, 6000), min(arguments.rounds, 2)
    size = arguments.size
    codes, labels = _codes(size, arguments.cifar100)
    with tempfile.TemporaryDirectory() as folder:
        here = code_store.write(Path(folder) / "codes", codes)
        milvus = MilvusStore(f"milvus:{folder}/codes.db", DIMENSION)
        started = time.perf_counter()
        milvus.add(np.arange(size), codes)
        summary = {"codes_per_second_added": size / (time.perf_counter() - started)}
        there = StoredCodes(milvus, np.arange(size), here.mean, here.covariance)
        rows = []
        for learner in LEARNERS:
            rows.append(_in_turns(learner, Engine(here), Engine(there), codes, labels, arguments))
            row = rows[-1]
            summary[f"{learner}_folder_ms"] = row["folder"]["p50_ms"]
            summary[f"{learner}_milvus_ms"] = row["milvus"]["p50_ms"]
            summary[f"{learner}_found"] = row["found"]
        milvus.close()
    measure.report(arguments, summary, rows, size=size, dimension=DIMENSION)


def _codes(size: int, cifar100: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Codes [size, D] float32 and their classes [size]."""
    rng = np.random.default_rng(0)
    if cifar100 is None:
        labels = rng.integers(0, CLASSES, size)
        codes = 0.5 * rng.normal(size=(CLASSES, DIMENSION))[labels]
        return (codes + rng.normal(size=codes.shape)).astype(np.float32), labels
    data = datasets.load("cifar100", cifar100)
    pixels = data.images[:size].reshape(size, -1).astype(np.float32) / 255
    return PCA(DIMENSION, random_state=0).fit_transform(pixels), data.labels[:size]


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
    seconds, shares, certain = {"folder": [], "milvus": []}, [], []
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
        both = np.intersect1d(found["folder"].positions, found["milvus"].positions)
        shares.append(len(both) / NEAREST)
        certain.append(found["milvus"].certain)
    times = {
        name: {
            "p50_ms": 1e3 * float(np.median(own[1:])),
            "p95_ms": 1e3 * float(np.percentile(own[1:], 95)),
        }
        for name, own in seconds.items()
    }
    milliseconds = {name: round(own["p50_ms"]) for name, own in times.items()}
    print(
        learner,
        milliseconds,
        f"found {np.mean(shares):.4f}, at least {min(shares):.2f}",
        flush=True,
    )
    said = {"found": float(np.mean(shares)), "found_least": min(shares)}
    return {"learner": learner, **times, **said, "certain": float(np.mean(certain))}


if __name__ == "__main__":
    main()
