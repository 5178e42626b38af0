"""Figure 4: four methods over the rounds of feedback, and claim (d)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from air_jax import claims, metrics, paper_figures
from air_jax.claims import Values
from air_jax.files import read_npz
from air_jax.plan import Job
from air_jax.sweep import Member
from air_jax.sweep_report import Figure
from air_jax.workdir import FEEDBACK_FOLDER


def _simulations(members: list[Member], net: str, learner: str) -> dict[int, dict[str, np.ndarray]]:
    """Feedback on the codes of one net, by seed; of members done."""
    return {
        member.seed: read_npz(member.workdir / FEEDBACK_FOLDER / f"{learner}.npz")
        for member in members
        if member.net == net and member.workdir.why_redo("feedback") is None
    }


def _find(job: Job, members: list[Member]) -> dict[str, Any]:
    """Methods by learner; the Baseline is the paper's: AIR's codes, no learning."""
    config = job.config
    methods = config.sweep.methods.to_dict()
    rounds = range(config.feedback.rounds + 1)
    labels_of_all = job.query_labels()
    rows, judged = [], []
    for learner in config.feedback.learners:
        if learner == "none":
            continue
        runs = {name: _simulations(members, net, learner) for name, net in methods.items()}
        some = next((s for by_seed in runs.values() for s in by_seed.values()), None)
        if some is None:
            continue
        labels = labels_of_all[some["query"]]

        def values(name: str, key: str, number: int, runs: Any = runs) -> Values:
            return {seed: s[key][:, number] for seed, s in runs[name].items()}

        def baseline(key: str, number: int, values: Any = values) -> Values:
            residual = key == "residual_ap"
            return values("AIR", "baseline_residual_ap" if residual else "ap", number * residual)

        for name in ("Baseline", *methods):
            of = baseline if name == "Baseline" else _partial_values(values, name)
            if not of("ap", 0):
                continue
            rows.append({"method": name, "learner": learner, "seeds": len(of("ap", 0))})
            rows[-1]["rounds"] = [
                {"round": number}
                | _summary("map", of("ap", number), labels)
                | _summary("residual_map", of("residual_ap", number), labels)
                for number in rounds
            ]
        beaten = [("AIR", "EDSSCIR"), ("AIR", "SSCAIR")]
        full = [
            claims.compare(
                f"{better} - {worse}, round {number}",
                values(better, "ap", number),
                values(worse, "ap", number),
                labels,
            )
            for number in rounds[1:]
            for better, worse in beaten
        ]
        full += [
            claims.compare(
                f"{name} - Baseline, round {number}",
                values(name, "ap", number),
                baseline("ap", number),
                labels,
            )
            for number in rounds[1:]
            for name in methods
        ]
        residual = [
            claims.compare(
                f"{name} - first retrieval by its own codes, round {number}, residual",
                values(name, "residual_ap", number),
                values(name, "baseline_residual_ap", number),
                labels,
            )
            for number in rounds[1:]
            for name in methods
        ]
        judged.append(
            claims.judge(
                f"d ({learner})",
                "AIR beats EDSSCIR and SSCAIR, and all beat the Baseline, in every round "
                f"(full mAP, learner `{learner}`)",
                full,
            )
        )
        judged.append(
            claims.judge(
                f"d' ({learner})",
                "feedback gains on the images that were not marked, with every method's codes, in "
                f"every round (residual mAP, learner `{learner}`; not a claim of the paper)",
                residual,
            )
        )
    return {"methods": rows, "claims": judged}


def _partial_values(values: Callable[..., Values], name: str) -> Callable[[str, int], Values]:
    return lambda key, number: values(name, key, number)


def _summary(key: str, values: Values, labels: np.ndarray) -> dict[str, Any]:
    pooled = claims.pool(values)
    summary = {
        key: metrics.mean(pooled),
        f"{key}_ci95": metrics.bootstrap_interval(pooled, labels),
    }
    if summary[key] is None:
        reason = "no query has an unmarked relevant image left"
        summary |= {f"{key}_reason": reason, f"{key}_ci95_reason": reason}
    return summary


def _draw(found: dict[str, Any], members: list[Member], folder: Path) -> list[str]:
    paper_figures.feedback(folder / "figure4.png", found["methods"])
    return ["figure4.png"]


FIGURE = Figure(("train", "encode", "retrieve", "feedback"), _find, _draw)
