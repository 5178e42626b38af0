"""Which learner is best: every one on its own rounds, and all on one recorded set of marks.

    python -m air_jax.compare --codes=runs/cifar100_small/codes.npz --out=runs/compare

Constants are chosen on queries drawn from the database part, which leave it for that time; figures
are of held-out queries. Residual mAP is comparable between learners only on the same marks, so the
recorded set is what decides: the images that the first retrieval shows, 20 in each round. Leaves
`compare.json` and `compare.md`.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags, logging

from air_jax import command, feedback, learners, metrics, retrieval
from air_jax.feedback import Simulation
from air_jax.files import read_npz, write_json
from air_jax.learners import LEARNERS, Learner
from air_jax.progress import say

_CODES = flags.DEFINE_string("codes", None, "a run's codes.npz", required=True)
_OUT = flags.DEFINE_string("out", None, "folder for what is found", required=True)
_QUERIES = flags.DEFINE_integer("queries", 1000, "held-out queries; 0: all", lower_bound=0)
_VALIDATION = flags.DEFINE_integer("validation", 500, "queries to choose constants by", 1)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "of feedback", lower_bound=1)
_MARKS = flags.DEFINE_integer("marks", 20, "images marked in each round", lower_bound=1)
_METRIC = flags.DEFINE_enum("metric", "l2", retrieval.METRICS, "of the first retrieval")

# What is tried for each learner; the others are compared as they are.
GRIDS: dict[str, list[dict[str, Any]]] = {
    "svc_balanced": [{"C": C} for C in (0.1, 1.0, 10.0)],
    "svc_farthest": [
        {"C": C, "pseudo_negatives": count} for C in (1.0, 10.0) for count in (20, 50, 200)
    ],
    "svc_distance": [
        {"C": C, "distance_weight": weight} for C in (1.0, 10.0) for weight in (0.5, 1.0, 2.0)
    ],
    "ridge": [{"ridge": ridge} for ridge in (0.1, 1.0, 10.0)],
    "ridge_pseudo": [
        {"ridge": ridge, "pseudo_negatives": count} for ridge in (0.1, 1.0) for count in (50, 200)
    ],
    "means": [{"away": away} for away in (0.0, 0.25, 0.5, 1.0)],
}


class Collection:
    """Codes of a database and of queries, with the sessions that the first retrieval leads to.

    Args:
        database: codes [N, D].
        labels: [N].
        queries: codes [Q, D].
        query_labels: [Q].
        rounds: of feedback.
        marks: in each.
    """

    def __init__(
        self,
        database: np.ndarray,
        labels: np.ndarray,
        queries: np.ndarray,
        query_labels: np.ndarray,
        rounds: int,
        marks: int,
    ):
        self.space = learners.make_space(database)
        self.labels, self.queries, self.query_labels = labels, queries, query_labels
        self.rounds, self.marks = rounds, marks
        self.first = self.play("none")

    def play(self, learner: str | Learner, recorded: bool = False, **others: Any) -> Simulation:
        """Sessions with a learner, on its own rounds or on the recorded marks."""
        return feedback.simulate(
            learner,
            self.space,
            self.queries,
            self.query_labels,
            self.labels,
            rounds_count=self.rounds,
            marks_per_round=self.marks,
            recorded=self.first.marked if recorded else None,
            **others,
        )


def choose(collection: Collection) -> dict[str, dict[str, Any]]:
    """The constants of each learner in `GRIDS` with the best residual mAP on the recorded marks.

    Returns:
        By learner {"constants", "residual_map", "tried": a list of both}.
    """
    chosen = {}
    for name, grid in GRIDS.items():
        tried = []
        for constants in grid:
            say(f"validation: {name} {constants}")
            found = collection.play(partial(LEARNERS[name], **constants), recorded=True)
            residual = float(np.nanmean(found.residual_ap[:, 1:]))
            tried.append({"constants": constants, "residual_map": residual})
        best = max(tried, key=lambda entry: entry["residual_map"])
        chosen[name] = best | {"tried": tried}
    return chosen


def compare(collection: Collection, chosen: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Every learner on held-out queries; by learner and kind of session, a list over rounds."""
    found: dict[str, Any] = {}
    for name, learner in LEARNERS.items():
        if name == "none":
            continue
        if name in chosen:
            learner = partial(learner, **chosen[name]["constants"])
        say(f"held-out queries: {name}")
        sessions = {
            "own": collection.play(learner),
            "recorded": collection.play(learner, recorded=True),
        }
        if name.startswith(("svc", "ridge")):
            sessions["uncertain"] = collection.play(learner, show="uncertain")
        found[name] = {
            kind: [
                _round(simulation, number, collection) for number in range(collection.rounds + 1)
            ]
            for kind, simulation in sessions.items()
        }
    return found


def _round(simulation: Simulation, number: int, collection: Collection) -> dict[str, Any]:
    gain = simulation.residual_ap[:, number] - simulation.baseline_residual_ap[:, number]
    drawn = int(simulation.pseudo_negatives[:, number].sum())
    return {
        "round": number,
        "map": metrics.mean(simulation.ap[:, number]),
        "residual_map": metrics.mean(simulation.residual_ap[:, number]),
        "residual_gain": metrics.mean(gain),
        "residual_gain_ci95": metrics.bootstrap_interval(gain, collection.query_labels),
        "pseudo_negatives": drawn,
        "pseudo_negatives_relevant": int(simulation.pseudo_relevant[:, number].sum()),
        "unconverged": int(simulation.unconverged[number]),
        "seconds": float(simulation.seconds[number]),
    }


def winner(found: dict[str, Any]) -> str:
    """Best on the recorded marks in the last round, of those that gain in round 1 of their own."""
    good = [name for name, kinds in found.items() if kinds["own"][1]["residual_gain"] >= 0]
    return max(good or found, key=lambda name: found[name]["recorded"][-1]["residual_map"])


def table(found: dict[str, Any]) -> str:
    """Residual mAP minus the first retrieval's on the same set, with intervals, as markdown."""
    rounds = len(next(iter(found.values()))["own"])
    numbers = range(1, rounds)
    head = [f"recorded {n}" for n in numbers] + [f"own {n}" for n in numbers]
    lines = [
        "| learner | " + " | ".join(head) + f" | full mAP, own {rounds - 1} | showing uncertain |",
        "|" + "---|" * (len(head) + 3),
    ]
    for name, kinds in found.items():
        cells = []
        for kind in ("recorded", "own"):
            for entry in kinds[kind][1:]:
                low, high = entry["residual_gain_ci95"]
                cells.append(f"{entry['residual_gain']:+.4f} ({low:+.4f} – {high:+.4f})")
        uncertain = kinds.get("uncertain")
        cells.append(f"{kinds['own'][-1]['map']:.4f}")
        cells.append(f"{uncertain[-1]['map']:.4f}" if uncertain else "")
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(_: list[str]) -> int:
    logging.set_verbosity(logging.WARNING)
    command.keep_compilations()
    return command.guard(_run, Path(_OUT.value))


def _run() -> None:
    needed = ("database", "database_label", "query", "query_label")
    held = read_npz(Path(_CODES.value), needed)
    database, queries = retrieval.for_metric(_METRIC.value, held["database"], held["query"])
    labels, query_labels = held["database_label"], held["query_label"]
    asked = feedback.choose_queries(labels, _VALIDATION.value, seed=0)
    rest = np.setdiff1d(np.arange(len(labels)), asked)
    sizes = _ROUNDS.value, _MARKS.value
    chosen = choose(
        Collection(database[rest], labels[rest], database[asked], labels[asked], *sizes)
    )
    kept = feedback.choose_queries(query_labels, _QUERIES.value, seed=0)
    found = compare(Collection(database, labels, queries[kept], query_labels[kept], *sizes), chosen)
    best = winner(found)
    content = {"winner": best, "queries": len(kept), "chosen": chosen, "learners": found}
    out = Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "compare.json", content)
    text = table(found)
    (out / "compare.md").write_text(f"Winner: `{best}`\n\n{text}\n")
    print(text)
    say(f"winner: {best}; all in {out / 'compare.json'}")


if __name__ == "__main__":
    app.run(main)
