"""Which learner is best: every one on its own rounds, and all on one recorded set of marks.

Constants are chosen on queries drawn from the database part, which leave it for that time; figures
are of held-out queries. Residual mAP is comparable between learners only on the same marks, so the
recorded set is what decides: the images that the first retrieval shows, 20 in each round. Leaves
`compare.json` and `compare.md`. Stopped, the same command continues: what was found is kept in
`parts.json`.
"""

import hashlib
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from air_jax.baselines import baseline_codes
from air_jax.configs import default
from air_jax.feedback import learners, simulated_user
from air_jax.feedback.learners import LEARNERS, Learner
from air_jax.feedback.simulated_user import Simulation
from air_jax.reproduce import pages
from air_jax.reproduce.kept_results import KeptResults
from air_jax.run import jobs
from air_jax.run.work_directory import CONFIG_FILE
from air_jax.runtime.atomic_files import read_npz, write_json
from air_jax.runtime.checksums import hash_of, read_checked_json
from air_jax.runtime.progress import say
from air_jax.search import distances, metrics
from air_jax.search.device_codes import DeviceCodes

LABELS = ("database_label", "query_label")
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


class Collection(NamedTuple):
    """A database, queries, and how feedback goes.

    Attributes:
        codes: the database's, [N, D].
        labels: [N].
        queries: codes [Q, D].
        query_labels: [Q].
        rounds: of feedback.
        marks: in each.
    """

    codes: DeviceCodes
    labels: np.ndarray
    queries: np.ndarray
    query_labels: np.ndarray
    rounds: int
    marks: int

    def play(self, learner: str | Learner, **others: Any) -> Simulation:
        """Sessions with a learner; `others` as of `simulated_user.simulate`."""
        return simulated_user.simulate(
            learner,
            self.codes,
            self.queries,
            self.query_labels,
            self.labels,
            rounds_count=self.rounds,
            marks_per_round=self.marks,
            **others,
        )


def record_marks(collection: Collection, called: str) -> np.ndarray:
    """The marks [Q, M] of images that the first retrieval shows, on which learners are compared.

    Raises:
        ValueError: they leave no relevant image to judge learners by.
    """
    played = collection.play("none")
    if np.isnan(played.residual_ap[:, -1]).all():
        raise ValueError(
            f"{collection.rounds} rounds of {collection.marks} marks leave none of the "
            f"{len(collection.queries)} {called} queries a relevant image to judge learners by: "
            "lower --rounds or --marks"
        )
    return played.marked


def choose(
    collection: Collection, marks: np.ndarray, kept: KeptResults
) -> dict[str, dict[str, Any]]:
    """The constants of each learner in `GRIDS` with the best residual mAP on the recorded marks.

    Returns:
        By learner {"constants", "residual_map", "tried": a list of both}.
    """

    def residual_map(called: str, learner: Learner) -> float:
        say(called)
        return float(np.nanmean(collection.play(learner, recorded=marks).residual_ap[:, 1:]))

    chosen = {}
    for name, grid in GRIDS.items():
        tried = []
        for constants in grid:
            called = f"validation queries: {name} {constants}"
            work = partial(residual_map, called, partial(LEARNERS[name], **constants))
            found = kept.get(called + _code(name), work)
            tried.append({"constants": constants, "residual_map": found})
        best = max(tried, key=lambda entry: entry["residual_map"])
        chosen[name] = best | {"tried": tried}
    return chosen


def compare(
    collection: Collection,
    marks: np.ndarray,
    chosen: dict[str, dict[str, Any]],
    kept: KeptResults,
) -> dict[str, Any]:
    """Every learner on held-out queries; by learner and kind of session, a list over rounds."""

    def rounds(called: str, learner: Learner, how: dict[str, Any]) -> list[dict[str, Any]]:
        say(called)
        played = collection.play(learner, **how)
        return [_round(played, n, collection.query_labels) for n in range(collection.rounds + 1)]

    found: dict[str, Any] = {}
    for name in (name for name in LEARNERS if name != "none"):
        learner = LEARNERS[name]
        if name in chosen:
            learner = partial(learner, **chosen[name]["constants"])
        kinds: dict[str, dict[str, Any]] = {"own": {}, "recorded": {"recorded": marks}}
        if name.startswith(("svc", "ridge", "discriminant")) and name != "svc_distance":
            kinds["uncertain"] = {"show": "uncertain"}
        found[name] = {}
        for kind, how in kinds.items():
            called = f"held-out queries: {name}, {kind}"
            work = partial(rounds, called, learner, how)
            found[name][kind] = kept.get(called + _code(name), work)
    return found


def _code(learner: str) -> str:
    """Tells what was kept of a learner apart from what was kept of its earlier code."""
    return f" {hash_of([learners.made_from(learner)])[:16]}"


def _round(played: Simulation, number: int, labels: np.ndarray) -> dict[str, Any]:
    gain = played.residual_ap[:, number] - played.baseline_residual_ap[:, number]
    return {
        "round": number,
        "map": metrics.mean(played.ap[:, number]),
        "residual_map": metrics.mean(played.residual_ap[:, number]),
        "residual_gain": metrics.mean(gain),
        "residual_gain_ci95": metrics.bootstrap_interval(gain, labels),
        "pseudo_negatives": int(played.pseudo_negatives[:, number].sum()),
        "pseudo_negatives_relevant": int(played.pseudo_relevant[:, number].sum()),
        "unconverged": int(played.unconverged[number]),
        "seconds": float(played.seconds[number]),
    }


def winner(found: dict[str, Any]) -> str:
    """Best on the recorded marks in the last round, of those that gain in round 1 of their own.

    A learner by which all relevant images were marked in round 1 has no gain to be told.
    """
    gains = {name: kinds["own"][1]["residual_gain"] for name, kinds in found.items()}
    good = [name for name, gain in gains.items() if gain is None or gain >= 0]
    return max(good or found, key=lambda name: found[name]["recorded"][-1]["residual_map"])


def table(found: dict[str, Any]) -> str:
    """Residual mAP minus the first retrieval's on the same set, with intervals, as markdown."""
    last = len(next(iter(found.values()))["own"]) - 1

    def gain(kind: str, number: int, row: dict[str, Any]) -> str:
        entry = row[kind][number]
        if entry["residual_gain"] is None:
            return "-"
        low, high = entry["residual_gain_ci95"]
        return f"{entry['residual_gain']:+.4f} ({low:+.4f} – {high:+.4f})"

    columns: pages.Columns = {"learner": "`{learner}`"}
    for kind in ("recorded", "own"):
        columns |= {f"{kind} {n}": partial(gain, kind, n) for n in range(1, last + 1)}
    columns[f"full mAP, own {last}"] = f"{{own[{last}][map]:.4f}}"
    columns["showing uncertain"] = lambda row: (
        f"{row['uncertain'][-1]['map']:.4f}" if "uncertain" in row else ""
    )
    return pages.table(({"learner": name, **kinds} for name, kinds in found.items()), columns)


def codes_of(path: Path, of: str) -> dict[str, np.ndarray]:
    """Codes and labels of database and queries, from a run's file or made of its images.

    Returns:
        "database" [N, D] and "query" [Q, D] float32, "database_label" [N] and "query_label" [Q].

    Raises:
        FileNotFoundError: the file, or the run's config beside it, is not there.
        ValueError: the file lacks an array, or is of other images than its config loads.
    """
    prefix = "untrained_" if of == "untrained" else ""
    names = f"{prefix}database", f"{prefix}query"
    held = read_npz(path, (*names, *LABELS))
    database, query = (held[name] for name in names)
    if of in baseline_codes.WITHOUT_NET:
        config = default.get_config()
        kept = read_checked_json(path.parent / CONFIG_FILE)["config"]
        data = {key: value for key, value in kept.items() if key.startswith("data.")}
        config.update_from_flattened_dict(data)
        job = jobs.load(config)
        if not np.array_equal(job.database_labels(), held["database_label"]):
            raise ValueError(f"{path} is of other images than {CONFIG_FILE} beside it loads")
        images = job.database_images(), job.query_images()
        database, query = baseline_codes.make(of, *images, database.shape[1])
    return {"database": database, "query": query} | {key: held[key] for key in LABELS}


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
        of: "codes", "untrained", or a name of `baseline_codes.WITHOUT_NET`: which codes.
        out: folder for what is found.
        queries: held-out queries; 0: all.
        validation: queries to choose constants by.
        rounds: of feedback.
        marks: images marked in each round.
        metric: of the first retrieval, of `distances.METRICS`.

    Raises:
        FileNotFoundError, ValueError: as `codes_of`.
        ValueError: as many validation queries as images, or so many marks that nothing is left
            to judge learners by.
    """
    held = codes_of(codes, of)
    database, queried = distances.for_metric(metric, held["database"], held["query"])
    labels, query_labels = held["database_label"], held["query_label"]
    inputs: dict[str, Any] = {
        "codes": hashlib.sha256(b"".join(held[key].tobytes() for key in held)).hexdigest(),
        "queries": queries,
        "validation": validation,
        "rounds": rounds,
        "marks": marks,
        "metric": metric,
    }
    results = KeptResults(out / "parts.json", inputs)
    if validation >= len(labels):
        raise ValueError(
            f"--validation={validation}: these queries are taken out of the database, which has "
            f"{len(labels)} images"
        )
    asked = simulated_user.choose_queries(labels, validation, seed=0)
    rest = np.setdiff1d(np.arange(len(labels)), asked)
    searched = DeviceCodes(database[rest])
    drawn = Collection(searched, labels[rest], database[asked], labels[asked], rounds, marks)
    kept = simulated_user.choose_queries(query_labels, queries, seed=0)
    searched = DeviceCodes(database)
    held_out = Collection(searched, labels, queried[kept], query_labels[kept], rounds, marks)
    held_out_marks = record_marks(held_out, "held-out")
    chosen = choose(drawn, record_marks(drawn, "validation"), results)
    found = compare(held_out, held_out_marks, chosen, results)
    best = winner(found)
    content = {"winner": best, "queries": len(kept), "chosen": chosen, "learners": found}
    write_json(out / "compare.json", content)
    text = table(found)
    (out / "compare.md").write_text(f"Winner: `{best}`\n\n{text}\n")
    print(text)
    say(f"winner: {best}; all in {out / 'compare.json'}")
