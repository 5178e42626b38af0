"""Figure 4: four methods over the rounds of feedback, and claim (d)."""

from pathlib import Path
from typing import Any

import numpy as np

from air_jax.reproduce import claims, plots
from air_jax.reproduce.claims import Values
from air_jax.reproduce.sweep import Member
from air_jax.reproduce.sweep_report import Figure
from air_jax.run.jobs import Job
from air_jax.run.work_directory import FEEDBACK_FOLDER
from air_jax.runtime.atomic_files import read_npz

# Average precision of each method in each round, by seed.
ByRound = dict[str, list[Values]]


def _simulations(members: list[Member], net: str, learner: str) -> dict[int, dict[str, np.ndarray]]:
    """Feedback on the codes of one net, by seed; of members done."""
    return {
        member.seed: read_npz(member.workdir / FEEDBACK_FOLDER / f"{learner}.npz")
        for member in members
        if member.net == net and member.workdir.why_redo("feedback") is None
    }


def _find(job: Job, members: list[Member], entries: list[dict[str, Any]]) -> dict[str, Any]:
    config = job.config
    numbers = range(config.feedback.rounds + 1)
    rows, judged = [], []
    for learner in (name for name in config.feedback.learners if name != "none"):
        runs = {
            method: _simulations(members, net, learner)
            for method, net in config.sweep.methods.items()
        }
        some = next((s for by_seed in runs.values() for s in by_seed.values()), None)
        if some is None:
            continue
        full, residual, own_first = (
            {method: [_values(run, key, n) for n in numbers] for method, run in runs.items()}
            for key in ("ap", "residual_ap", "baseline_residual_ap")
        )
        # The paper's Baseline: AIR's codes, no learning; its residual set is of AIR's marks.
        full = {"Baseline": [full["AIR"][0] for _ in numbers]} | full
        residual = {"Baseline": own_first["AIR"]} | residual
        labels = job.query_labels()[some["query"]]
        rows += [
            {
                "method": method,
                "learner": learner,
                "seeds": len(by_round[0]),
                "rounds": [
                    {"round": n}
                    | claims.summary(by_round[n], labels)
                    | claims.summary(residual[method][n], labels, "residual_map")
                    for n in numbers
                ],
            }
            for method, by_round in full.items()
            if by_round[0]
        ]
        judged += _judge(learner, full, residual, own_first, labels)
    return {"methods": rows, "claims": judged}


def _values(run: dict[int, dict[str, np.ndarray]], key: str, number: int) -> Values:
    return {seed: simulation[key][:, number] for seed, simulation in run.items()}


def _judge(
    learner: str, full: ByRound, residual: ByRound, own_first: ByRound, labels: np.ndarray
) -> list[dict[str, Any]]:
    """Claim (d) by one learner, and what feedback gains beyond the marked images."""
    methods = list(own_first)
    beaten = [("AIR", other) for other in methods if other != "AIR"]
    beaten += [(method, "Baseline") for method in methods]
    after_feedback = range(1, len(full["AIR"]))
    return [
        claims.judge(
            f"d ({learner})",
            f"{', '.join(other for _, other in beaten if other in methods)} are beaten by AIR, "
            f"and the Baseline by all, in every round (full mAP, learner `{learner}`)",
            [
                claims.compare(
                    f"{better} - {worse}, round {n}", full[better][n], full[worse][n], labels
                )
                for n in after_feedback
                for better, worse in beaten
            ],
        ),
        claims.judge(
            f"d' ({learner})",
            "not the paper's: with every method's codes, feedback gains in every round on the "
            f"images that were not marked (residual mAP, learner `{learner}`)",
            [
                claims.compare(
                    f"{method} - first retrieval by its codes, round {n}, residual",
                    residual[method][n],
                    own_first[method][n],
                    labels,
                )
                for n in after_feedback
                for method in methods
            ],
        ),
    ]


def _draw(found: dict[str, Any], members: list[Member], folder: Path) -> list[str]:
    plots.feedback(folder / "figure4.png", found["methods"])
    return ["figure4.png"]


FIGURE = Figure(("train", "encode", "retrieve", "feedback"), _find, _draw)
