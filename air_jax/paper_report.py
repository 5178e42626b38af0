"""What a sweep over the paper's figures found: `figure3.json`, `figure4.json`, pictures, claims."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from air_jax import claims, claims_page, metrics, models, paper_figures, report, sweep
from air_jax.claims import Values
from air_jax.files import read_npz, write_json
from air_jax.plan import Job
from air_jax.sweep import Member
from air_jax.training_log import read_metrics
from air_jax.workdir import FEEDBACK_FOLDER, GRADIENTS_FILE, METRICS_FILE, RETRIEVAL_FILE

CLAIMS_FILE = "claims.md"
SCHEMA_VERSION = 1
BEST_DEPTH = 40  # claim (a)
DEEPER = (40, 60)  # claim (b): "deeper network architectures", read as the deeper two of the four
# A net learns if its loss is clearly below the mean image's, and uses its code if decoding another
# image's code is clearly worse than decoding its own.
LEARNS_BELOW, USED_ABOVE = 0.9, 1.1

DENOISING = ", denoising"


class Figure(NamedTuple):
    """What a figure is made from, and how.

    Attributes:
        stages: that every member goes through.
        find: (members, query labels) -> what goes into the JSON beside the members.
        draw: (found, members, folder) -> pictures drawn, by name.
    """

    stages: tuple[str, ...]
    find: Callable[[Job, list[Member]], dict[str, Any]]
    draw: Callable[[dict[str, Any], list[Member], Path], list[str]]


def write(
    job: Job, members: list[Member], baselines: dict[str, np.ndarray], folder: Path
) -> list[str]:
    """Write what the members that are done show; returns the files' names.

    Args:
        job: the sweep's.
        members: all of them, done or not.
        baselines: average precision [Q] by name, from `sweep.baselines_ap`.
        folder: of the sweep.
    """
    name = job.config.sweep.figure
    figure = FIGURES[name]
    labels = job.query_labels()
    config = job.config
    found = {
        "schema_version": SCHEMA_VERSION,
        "figure": name,
        "sweep": config.sweep.name,
        **report.commit(),
        "environment": report.environment(),
        "dataset": {
            "name": job.dataset.name,
            "split": config.data.split,
            "image_side": job.dataset.images.shape[1],
            "database": len(job.database),
            "training_images": len(job.training_positions()),
            "queries": len(job.queries),
        },
        "width": config.model.width,
        "epochs": config.train.epochs,
        "batch": config.train.batch,
        "dtype": config.train.dtype,
        "baselines": {
            baseline: {
                "map": metrics.mean(ap),
                "map_ci95": metrics.bootstrap_interval(ap, labels),
            }
            for baseline, ap in baselines.items()
        },
        "members": [describe(member) for member in members],
        **figure.find(job, members),
    }
    write_json(folder / f"{name}.json", found)
    pictures = figure.draw(found, members, folder)
    pages = [folder / f"{known}.json" for known in FIGURES]
    write_claims(folder, [json.loads(page.read_text()) for page in pages if page.exists()])
    return [f"{name}.json", *pictures, CLAIMS_FILE]


def write_claims(folder: Path, figures: list[dict[str, Any]]) -> None:
    """Write `claims.md` from the JSON of one figure or both."""
    (folder / CLAIMS_FILE).write_text(claims_page.page(figures))


def variant(member: Member) -> str:
    """The paper's name for a member's net, and whether it is trained on corrupted input."""
    model, train = member.job.config.model, member.job.config.train
    name = models.configuration_name(model.pool, model.skip, model.input_residual)
    return name + (DENOISING if train.corruption != "none" else "")


def describe(member: Member) -> dict[str, Any]:
    """A member as the JSON holds it; nulls, with a reason, for what is not there."""
    config = member.job.config
    entry: dict[str, Any] = {
        "name": member.name,
        "net": member.net,
        "seed": member.seed,
        "configuration": variant(member),
        "depth": config.model.depth,
        "learning_rate": config.train.learning_rate,
        "clip_norm": config.train.clip_norm,
    }
    trained, retrieved = member.workdir.result("train"), member.workdir.result("retrieve")
    if trained is None or retrieved is None:
        reason = sweep.error_of(member) or "not done yet"
        return entry | {"map": None, "map_reason": reason}
    losses = {
        key: value
        for key, value in trained.items()
        if "loss" in key or "second" in key or key in ("steps", "parameters")
    }
    losses["learns"] = trained["loss"] < LEARNS_BELOW * trained["constant_loss"]
    losses["code_used"] = trained["code_shuffled_loss"] > USED_ABOVE * trained["loss"]
    return entry | {
        "map": retrieved["retrieval"]["map"],
        "map_ci95": retrieved["retrieval"]["map_ci95"],
        "untrained_map": retrieved["baselines"]["untrained"]["map"],
        **losses,
    }


def _first_retrieval(members: Iterable[Member]) -> dict[tuple[str, int], Values]:
    """AP of the first retrieval by configuration and depth, then by seed; of members done."""
    found: dict[tuple[str, int], dict[int, np.ndarray]] = {}
    for member in members:
        if member.workdir.why_redo("retrieve") is None:
            key = variant(member), member.job.config.model.depth
            ap = read_npz(member.workdir / RETRIEVAL_FILE)["ap"]
            found.setdefault(key, {})[member.seed] = ap
    return found


def _figure3(job: Job, members: list[Member]) -> dict[str, Any]:
    labels = job.query_labels()
    aps = _first_retrieval(members)
    entries = [describe(member) for member in members]
    nets = []
    for (configuration, depth), values in aps.items():
        own = [
            e
            for e in entries
            if (e["configuration"], e["depth"]) == (configuration, depth) and e["map"] is not None
        ]
        pooled = claims.pool(values)
        nets.append(
            {
                "net": own[0]["net"],
                "configuration": configuration,
                "depth": depth,
                "seeds": len(values),
                "map": metrics.mean(pooled),
                "map_ci95": metrics.bootstrap_interval(pooled, labels),
                "map_by_seed": [e["map"] for e in own],
                "learning_rate": own[0]["learning_rate"],
                "learns": all(e["learns"] for e in own),
                "code_used": all(e["code_used"] for e in own),
            }
            | {
                key: float(np.mean([e[key] for e in own]))
                for key in (
                    "untrained_map",
                    "loss",
                    "constant_loss",
                    "code_shuffled_loss",
                    "seconds",
                    "images_per_second",
                )
            }
        )
    return {"nets": nets, "claims": _claims_of_figure3(aps, labels, job.config.sweep.depths)}


def _claims_of_figure3(
    aps: dict[tuple[str, int], Values], labels: np.ndarray, depths: tuple[int, ...]
) -> list[dict[str, Any]]:
    def compare(better: tuple[str, int], worse: tuple[str, int]) -> dict[str, Any]:
        what = "{}, {} layers - {}, {} layers".format(*better, *worse)
        return claims.compare(what, aps.get(better, {}), aps.get(worse, {}), labels)

    symmetric = ("Sortcut (con-decon)", "NoP_sortcut (con-decon)")
    asymmetric = ("Sortcut", "NoP_sortcut")
    found = [
        claims.judge(
            "a",
            f"{BEST_DEPTH} layers are best in every configuration",
            [
                compare((name, BEST_DEPTH), (name, depth))
                for name in models.CONFIGURATIONS
                for depth in depths
                if depth != BEST_DEPTH
            ],
        ),
        claims.judge(
            "b",
            "pooling helps the deeper nets (" + " and ".join(map(str, DEEPER)) + " layers)",
            [
                compare((pooled, depth), (pooled_not, depth))
                for pooled, pooled_not in (symmetric, asymmetric)
                for depth in DEEPER
            ],
        ),
    ]
    for name, how, suffix in (
        ("c", "trained on clean images", ""),
        ("c'", "the symmetric ones trained on denoising", DENOISING),
    ):
        found.append(
            claims.judge(
                name,
                f"both asymmetric configurations beat both symmetric ones at every depth, {how}",
                [
                    compare((better, depth), (worse + suffix, depth))
                    for depth in depths
                    for better in asymmetric
                    for worse in symmetric
                ],
            )
        )
    return found


def _draw_figure3(found: dict[str, Any], members: list[Member], folder: Path) -> list[str]:
    curves, gradients = [], []
    for member in members:
        lines = read_metrics(member.workdir / METRICS_FILE)
        norms = read_metrics(member.workdir / GRADIENTS_FILE)
        key = {"configuration": variant(member), "depth": member.job.config.model.depth}
        if lines:
            curves.append(key | {"lines": lines})
        if norms:
            gradients.append(key | {"lines": norms})
    paper_figures.first_retrieval(folder / "figure3.png", found)
    paper_figures.curves(folder / "curves.png", curves, found["nets"])
    paper_figures.gradients(folder / "gradients.png", gradients)
    return ["figure3.png", "curves.png", "gradients.png"]


def _simulations(members: list[Member], net: str, learner: str) -> dict[int, dict[str, np.ndarray]]:
    """Feedback on the codes of one net, by seed; of members done."""
    return {
        member.seed: read_npz(member.workdir / FEEDBACK_FOLDER / f"{learner}.npz")
        for member in members
        if member.net == net and member.workdir.why_redo("feedback") is None
    }


def _figure4(job: Job, members: list[Member]) -> dict[str, Any]:
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


def _draw_figure4(found: dict[str, Any], members: list[Member], folder: Path) -> list[str]:
    paper_figures.feedback(folder / "figure4.png", found["methods"])
    return ["figure4.png"]


FIGURES = {
    "figure3": Figure(("train", "encode", "retrieve"), _figure3, _draw_figure3),
    "figure4": Figure(("train", "encode", "retrieve", "feedback"), _figure4, _draw_figure4),
}
