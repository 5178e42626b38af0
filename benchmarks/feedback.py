"""Seconds of simulated feedback for all queries, against scikit-learn one query after another.

    python benchmarks/feedback.py --json=benchmarks/results/feedback_cpu.json
    python benchmarks/feedback.py --codes=runs/depth40/codes.npz

Ours is `simulated_user.simulate`: showing, marking, fitting, ranking the database, full and
residual AP of every round. With `--quick`, and on an accelerator, all is played twice: the second
time counts, and what the first took longer is `compile_seconds`. Else it is played once, which
compiles, and `compile_seconds` is null. The peer does the same for a sample of the queries
with `sklearn.svm.SVC`, NumPy and `average_precision_score`; its time for all of them is
extrapolated.
Without `--codes`, codes are Gaussian clusters, one for each class.
"""

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # this clone, and `benchmarks`

import jax
import numpy as np
from sklearn.metrics import average_precision_score
from sklearn.svm import SVC

from air_jax.feedback import simulated_user
from air_jax.runtime.atomic_files import read_npz
from air_jax.search.device_codes import DeviceCodes
from benchmarks import measure

LEARNERS = {"linear": "svc_linear", "rbf": "svc"}
DIMENSION, CLASSES = 128, 100


def main() -> None:
    arguments = _parse()
    measure.set_devices(arguments.devices)
    codes, labels, queries, query_labels = _collection(arguments)
    searched = DeviceCodes(codes)
    rows, summary = [], {}
    for kernel, learner in LEARNERS.items():
        twice = arguments.quick or jax.default_backend() != "cpu"
        seconds = []
        for _ in range(1 + twice):
            started = time.perf_counter()
            found = simulated_user.simulate(
                learner,
                searched,
                queries,
                query_labels,
                labels,
                rounds_count=arguments.rounds,
                marks_per_round=arguments.marks,
            )
            seconds.append(time.perf_counter() - started)
        ours = seconds[-1]
        peers = {
            count: _sklearn_seconds(
                arguments, kernel, (codes, labels, queries, query_labels), found.ap, count
            )
            for count in arguments.processes
        }
        rows.append(
            {
                "kernel": kernel,
                "queries": len(queries),
                "database": len(codes),
                "rounds": arguments.rounds,
                "marks_per_round": arguments.marks,
                "seconds": ours,
                "compile_seconds": seconds[0] - ours if twice else None,
                "seconds_learning": float(found.seconds.sum()),
                "map": [float(value) for value in found.ap.mean(axis=0)],
                "unconverged": int(found.unconverged.sum()),
                "sklearn_seconds_by_processes": peers,
            }
        )
        summary[f"{kernel}_seconds"] = ours
        for count, seconds in peers.items():
            of = "" if count == 1 else f"_{count}_processes"
            summary[f"{kernel}_ratio_to_sklearn{of}"] = seconds / ours
        print(f"{kernel}: {ours:.1f} s, scikit-learn {peers}", flush=True)
    measure.report(arguments, summary, rows)


def _parse() -> argparse.Namespace:
    parser = measure.parser(__doc__)
    parser.add_argument("--codes", type=Path, help="a run's codes.npz instead of random codes")
    parser.add_argument("--database", type=int, default=50_000, help="random codes")
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--marks", type=int, default=20, help="in each round")
    parser.add_argument("--sample", type=int, default=24, help="queries that scikit-learn does")
    parser.add_argument(
        "--processes", type=int, nargs="+", default=[1, 2], help="that scikit-learn is spread over"
    )
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.database, arguments.queries, arguments.sample = 5_000, 1_000, 8
        arguments.processes = [1]
    return arguments


def _collection(arguments: argparse.Namespace) -> tuple[np.ndarray, ...]:
    """Codes and labels of database and queries."""
    if arguments.codes:
        held = read_npz(arguments.codes)
        chosen = simulated_user.choose_queries(held["query_label"], arguments.queries, seed=0)
        queries = held["query"][chosen], held["query_label"][chosen]
        return held["database"], held["database_label"], *queries
    rng = np.random.default_rng(0)
    size = arguments.database + arguments.queries
    labels = rng.permutation(np.arange(size) % CLASSES)
    centres = 0.25 * rng.normal(size=(CLASSES, DIMENSION))
    codes = (centres[labels] + rng.normal(size=(size, DIMENSION))).astype(np.float32)
    split = arguments.database
    return codes[:split], labels[:split], codes[split:], labels[split:]


def _sklearn_seconds(
    arguments: argparse.Namespace,
    kernel: str,
    collection: tuple[np.ndarray, ...],
    ours: np.ndarray,
    processes: int,
) -> float:
    """What all queries take, from a sample of them; ValueError if their AP is not ours."""
    codes, labels, queries, query_labels = collection
    rng = np.random.default_rng(1)
    sample = np.sort(rng.choice(len(queries), arguments.sample, replace=False))
    parts = [
        (kernel, arguments.rounds, arguments.marks, codes, labels, queries[p], query_labels[p])
        for p in np.array_split(sample, processes)
    ]
    if processes == 1:
        seconds, found = _sessions(*parts[0])
    else:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            # Each process times itself: starting it is not counted.
            done = [future.result() for future in [pool.submit(_sessions, *p) for p in parts]]
        seconds = max(seconds for seconds, _ in done)
        found = np.concatenate([aps for _, aps in done])
    difference = np.abs(found.mean(axis=0) - ours[sample].mean(axis=0)).max()
    if difference > 1e-3:
        raise ValueError(f"mAP of the sample differs from scikit-learn's by {difference:.2g}")
    return seconds * len(queries) / arguments.sample


def _sessions(
    kernel: str,
    rounds: int,
    marks: int,
    codes: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    query_labels: np.ndarray,
) -> tuple[float, np.ndarray]:
    """Seconds, and AP by query and round, of sessions by scikit-learn."""
    mean, std = codes.mean(axis=0), codes.std(axis=0)
    standard = (codes - mean) / std
    aps = []
    started = time.perf_counter()
    for query, label in zip(queries, query_labels, strict=True):
        relevant = labels == label
        baseline = -np.square(codes - query).sum(axis=1)
        scores, marked = baseline, np.zeros(0, int)
        aps.append([])
        for number in range(rounds + 1):
            left = np.ones(len(codes), bool)
            left[marked] = False
            aps[-1].append(average_precision_score(relevant, scores))
            for ranking in (scores, baseline):  # on the residual set
                average_precision_score(relevant[left], ranking[left])
            if number == rounds:
                break
            unmarked = np.where(left, scores, -np.inf)
            best = np.argpartition(-unmarked, marks)[:marks]
            marked = np.concatenate([marked, best[np.argsort(-unmarked[best], kind="stable")]])
            y = np.where(np.concatenate([[True], relevant[marked]]), 1, -1)
            if (y < 0).any():
                machine = SVC(kernel=kernel, C=10.0 if kernel == "rbf" else 1.0, gamma="scale")
                machine.fit(np.vstack([(query - mean) / std, standard[marked]]), y)
                scores = machine.decision_function(standard)
    return time.perf_counter() - started, np.array(aps)


if __name__ == "__main__":
    main()
