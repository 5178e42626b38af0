"""Figure 3: the first retrieval by five configurations at four depths, and claims (a) to (c)."""

from pathlib import Path
from typing import Any

import numpy as np

from air_jax.models.architecture import CONFIGURATIONS
from air_jax.reproduce import claims, plots
from air_jax.reproduce.claims import Values
from air_jax.reproduce.sweep import Member
from air_jax.reproduce.sweep_report import DENOISING, Figure, first_retrieval, variant
from air_jax.run.jobs import Job
from air_jax.training.training_log import GRADIENTS_FILE, METRICS_FILE, read_metrics

BEST_DEPTH = 40  # claim (a)
DEEPER = (40, 60)  # claim (b): "deeper network architectures", read as the deeper two of the four


def _find(job: Job, members: list[Member], entries: list[dict[str, Any]]) -> dict[str, Any]:
    labels = job.query_labels()
    aps = first_retrieval(members)
    nets = []
    for (configuration, depth), values in aps.items():
        own = [
            e
            for e in entries
            if (e["configuration"], e["depth"]) == (configuration, depth) and e["map"] is not None
        ]
        nets.append(
            {
                "net": own[0]["net"],
                "configuration": configuration,
                "depth": depth,
                "seeds": len(values),
                **claims.summary(values, labels),
                "map_by_seed": [e["map"] for e in own],
                "learning_rate": own[0]["learning_rate"],
                "clip_norm": own[0]["clip_norm"],
                "seeds_that_learn": sum(e["learns"] for e in own),
                "seeds_that_use_the_code": sum(e["learns"] and e["code_used"] for e in own),
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
    nets.sort(key=lambda net: (net["depth"], _place(net["configuration"])))
    return {"nets": nets, "claims": _claims(aps, labels, job.config.sweep.depths)}


def _place(configuration: str) -> int:
    """In the paper's order, each denoising variant after the one on clean images."""
    names = [*CONFIGURATIONS]
    name = configuration.removesuffix(DENOISING)
    place = names.index(name) if name in names else len(names)
    return 2 * place + configuration.endswith(DENOISING)


def _claims(
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
                for name in CONFIGURATIONS
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


def _draw(found: dict[str, Any], members: list[Member], folder: Path) -> list[str]:
    curves, gradients = [], []
    for member in members:
        lines = read_metrics(member.workdir / METRICS_FILE)
        norms = read_metrics(member.workdir / GRADIENTS_FILE)
        key = {"configuration": variant(member), "depth": member.job.config.model.depth}
        if lines:
            curves.append(key | {"lines": lines})
        if norms:
            gradients.append(key | {"lines": norms})
    plots.first_retrieval(folder / "figure3.png", found)
    plots.curves(folder / "curves.png", curves, found["nets"])
    plots.gradients(folder / "gradients.png", gradients)
    return ["figure3.png", "curves.png", "gradients.png"]


FIGURE = Figure(("train", "encode", "retrieve"), _find, _draw)
