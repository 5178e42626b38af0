"""Which learner is best: every one on its own rounds, and all on one recorded set of marks.

Constants are chosen on queries drawn from the database part, which leave it for that time; figures
are of held-out queries. Residual mAP is comparable between learners only on the same marks, so the
recorded set is what decides: the images that the first retrieval shows, 20 in each round. Leaves
`compare.json` and `compare.md`. Stopped, the same command continues: what was found is kept in
`parts.json`.
"""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from air_jax.configs import default
from air_jax.feedback import simulated_user
from air_jax.feedback.learners import LEARNERS, Learner
from air_jax.feedback.simulated_user import Simulation
from air_jax.run import jobs
from air_jax.run.work_directory import CONFIG_FILE
from air_jax.runtime.atomic_files import read_npz, write_json
from air_jax.runtime.checksums import read_checked_json, write_checked_json
from air_jax.runtime.progress import say
from air_jax.search import baselines, exact_search, metrics, scorers

ROLES = ("database", "query")
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
    "means": [{"away": away} for away in (0.0, 0.5, 1.0, 2.0, 4.0)],
    "discriminant": [
        {"shrinkage": shrinkage, "away": away}
        for shrinkage in (0.3, 1.0, 3.0, 10.0)
        for away in (0.5, 1.0, 2.0)
    ],
}


class Parts:
    """What has been found so far, in a file, so that a stopped comparison continues.

    Args:
        path: of the file.
        inputs: what the comparison is of; parts of other inputs, or damaged ones, are done anew.
    """

    def __init__(self, path: Path, inputs: dict[str, Any]):
        self.path, self.inputs = path, inputs
        self.found: dict[str, Any] = {}
        try:
            held = read_checked_json(path)
            self.found = held["found"] if held["inputs"] == inputs else {}
        except FileNotFoundError:
            pass
        except (ValueError, KeyError) as error:
            say(f"{error}; starting anew")

    def of(self, name: str, work: Callable[[], Any]) -> Any:
        """What `work` returns, a JSON value; done only if it is not there under this name."""
        if name not in self.found:
            say(name)
            self.found[name] = work()
            write_checked_json(self.path, {"inputs": self.inputs, "found": self.found})
        return self.found[name]


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
        self.space = scorers.make_space(database)
        self.labels, self.queries, self.query_labels = labels, queries, query_labels
        self.rounds, self.marks = rounds, marks
        self.first = self.play("none")

    def play(self, learner: str | Learner, recorded: bool = False, **others: Any) -> Simulation:
        """Sessions with a learner, on its own rounds or on the recorded marks."""
        return simulated_user.simulate(
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


def choose(collection: Collection, parts: Parts) -> dict[str, dict[str, Any]]:
    """The constants of each learner in `GRIDS` with the best residual mAP on the recorded marks.

    Returns:
        By learner {"constants", "residual_map", "tried": a list of both}.
    """
    chosen = {}
    for name, grid in GRIDS.items():
        tried = []
        for constants in grid:
            work = partial(_residual_map, collection, partial(LEARNERS[name], **constants))
            residual = parts.of(f"validation queries: {name} {constants}", work)
            tried.append({"constants": constants, "residual_map": residual})
        best = max(tried, key=lambda entry: entry["residual_map"])
        chosen[name] = best | {"tried": tried}
    return chosen


def _residual_map(collection: Collection, learner: Learner) -> float:
    return float(np.nanmean(collection.play(learner, recorded=True).residual_ap[:, 1:]))


def compare(
    collection: Collection, chosen: dict[str, dict[str, Any]], parts: Parts
) -> dict[str, Any]:
    """Every learner on held-out queries; by learner and kind of session, a list over rounds."""
    found: dict[str, Any] = {}
    for name, learner in LEARNERS.items():
        if name == "none":
            continue
        if name in chosen:
            learner = partial(learner, **chosen[name]["constants"])
        kinds: dict[str, dict[str, Any]] = {"own": {}, "recorded": {"recorded": True}}
        if name.startswith(("svc", "ridge", "discriminant")) and name != "svc_distance":
            kinds["uncertain"] = {"show": "uncertain"}
        found[name] = {
            kind: parts.of(
                f"held-out queries: {name}, {kind}", partial(_rounds, collection, learner, **how)
            )
            for kind, how in kinds.items()
        }
    return found


def _rounds(collection: Collection, learner: Learner, **how: Any) -> list[dict[str, Any]]:
    simulation = collection.play(learner, **how)
    return [_round(simulation, number, collection) for number in range(collection.rounds + 1)]


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


def codes_of(path: Path, of: str) -> dict[str, np.ndarray]:
    """Codes and labels of database and queries, from a run's file or made of its images.

    Raises:
        FileNotFoundError: the file, or the run's config beside it, is not there.
        ValueError: the file lacks an array, or is of other images than its config loads.
    """
    names = {part: f"untrained_{part}" if of == "untrained" else part for part in ROLES}
    labels = [f"{part}_label" for part in ROLES]
    held = read_npz(path, (*names.values(), *labels))
    if of in baselines.WITHOUT_NET:
        config = default.get_config()
        kept = read_checked_json(path.parent / CONFIG_FILE)["config"]
        config.update_from_flattened_dict(
            {key: value for key, value in kept.items() if key.startswith("data.")}
        )
        job = jobs.load(config)
        if not np.array_equal(job.dataset.labels[job.database], held["database_label"]):
            raise ValueError(f"{path} is of other images than {CONFIG_FILE} beside it loads")
        dimension = held["database"].shape[1]
        images = job.database_images(), job.query_images()
        made = baselines.codes(of, *images, dimension)
        held |= dict(zip(ROLES, made, strict=True))
        names = {part: part for part in ROLES}
    return {part: held[name] for part, name in names.items()} | {key: held[key] for key in labels}


def run(
    codes: Path,
    of: str,
    out: Path,
    *,
    queries: int,
    validation: int,
    rounds: int,
    marks: int,
    metric: str,
) -> None:
    """Compare all learners; leaves `compare.json` and `compare.md`.

    Args:
        codes: a run's `codes.npz`.
        of: "codes", "untrained", or a name of `baselines.WITHOUT_NET`: which codes.
        out: folder for what is found.
        queries: held-out queries; 0: all.
        validation: queries to choose constants by.
        rounds: of feedback.
        marks: images marked in each round.
        metric: of the first retrieval, of `exact_search.METRICS`.

    Raises:
        FileNotFoundError, ValueError: as `codes_of`.
    """
    held = codes_of(codes, of)
    database, queried = exact_search.for_metric(metric, held["database"], held["query"])
    labels, query_labels = held["database_label"], held["query_label"]
    inputs: dict[str, Any] = {
        "codes": hashlib.sha256(b"".join(held[key].tobytes() for key in held)).hexdigest(),
        "queries": queries,
        "validation": validation,
        "rounds": rounds,
        "marks": marks,
        "metric": metric,
    }
    parts = Parts(out / "parts.json", inputs)
    asked = simulated_user.choose_queries(labels, validation, seed=0)
    rest = np.setdiff1d(np.arange(len(labels)), asked)
    sizes = rounds, marks
    drawn = Collection(database[rest], labels[rest], database[asked], labels[asked], *sizes)
    chosen = choose(drawn, parts)
    kept = simulated_user.choose_queries(query_labels, queries, seed=0)
    held_out = Collection(database, labels, queried[kept], query_labels[kept], *sizes)
    found = compare(held_out, chosen, parts)
    best = winner(found)
    content = {"winner": best, "queries": len(kept), "chosen": chosen, "learners": found}
    write_json(out / "compare.json", content)
    text = table(found)
    (out / "compare.md").write_text(f"Winner: `{best}`\n\n{text}\n")
    print(text)
    say(f"winner: {best}; all in {out / 'compare.json'}")
