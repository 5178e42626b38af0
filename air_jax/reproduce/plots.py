"""Pictures of sweeps: first retrieval, loss curves, gradients, feedback, choices."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from air_jax.reproduce.claims_page import remark
from air_jax.run.figures import save

# One colour for each configuration; its denoising variant is hatched or dotted.
_COLOURS = {
    "classic": "#7f7f7f",
    "Sortcut (con-decon)": "#ff7f0e",
    "NoP_sortcut (con-decon)": "#d62728",
    "Sortcut": "#1f77b4",
    "NoP_sortcut": "#17becf",
}
_LINES = {"kmeans": "C2", "pca": "C4", "pixels": "0.4", "random": "0.8"}


def _style(configuration: str) -> tuple[str, bool]:
    """Colour, and whether it is the denoising variant."""
    name, _, denoising = configuration.partition(", ")
    return _COLOURS.get(name, "C5"), bool(denoising)


def first_retrieval(path: Path, found: dict[str, Any]) -> None:
    """Figure 3: mAP of the first retrieval, bars grouped by depth, with 95 % intervals.

    Args:
        path: of the PNG.
        found: what `figure3.json` holds.
    """
    nets = found["nets"]
    depths = sorted({net["depth"] for net in nets})
    order = {name: i for i, name in enumerate(dict.fromkeys(n["configuration"] for n in nets))}
    width = 0.86 / max(len(order), 1)
    figure, axes = plt.subplots(figsize=(10, 4.5))
    named = set()
    for net in nets:
        colour, denoising = _style(net["configuration"])
        x = depths.index(net["depth"]) + width * (
            order[net["configuration"]] - (len(order) - 1) / 2
        )
        label = None if net["configuration"] in named else net["configuration"]
        named.add(net["configuration"])
        axes.bar(
            x,
            net["map"],
            width * 0.92,
            color=colour,
            hatch="///" if denoising else None,
            edgecolor="white",
            yerr=_spread(net["map"], net["map_ci95"]),
            error_kw={"lw": 0.8, "capsize": 2},
            label=label,
        )
        axes.plot([x - width / 2, x + width / 2], [net["untrained_map"]] * 2, color="black", lw=1.2)
        axes.text(x, 0.0004, remark(net), rotation=90, fontsize=6, ha="center", va="bottom")
    axes.plot([], [], color="black", lw=1.2, label="untrained net")
    for name, baseline in found["baselines"].items():
        axes.axhline(baseline["map"], ls="--", lw=1, color=_LINES[name], label=name)
    axes.set(
        xticks=range(len(depths)),
        xticklabels=[f"{depth} layers" for depth in depths],
        ylabel="mAP of the first retrieval",
        ylim=(0, None),
    )
    axes.legend(fontsize=7, ncols=2, loc="upper left", bbox_to_anchor=(1, 1))
    save(figure, path)


def curves(path: Path, members: list[dict[str, Any]], nets: list[dict[str, Any]]) -> None:
    """Training losses of all members by step, a panel for each depth.

    Args:
        path: of the PNG.
        members: {"configuration", "depth", "lines" of `metrics.jsonl`}.
        nets: those of `figure3.json`, for the loss of predicting the mean image.
    """
    depths = sorted({member["depth"] for member in members})
    figure, panels = _panels(1, len(depths))
    for axes, depth in zip(panels[0], depths, strict=True):
        for member in (m for m in members if m["depth"] == depth):
            colour, denoising = _style(member["configuration"])
            steps, losses = zip(*((m["step"], m["loss"]) for m in member["lines"]), strict=True)
            axes.plot(steps, losses, color=colour, ls=":" if denoising else "-", lw=1)
        for constant in {n["constant_loss"] for n in nets if n["depth"] == depth}:
            axes.axhline(constant, color="black", ls="--", lw=0.8)
        axes.set(title=f"{depth} layers", xlabel="step", yscale="log")
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel("training loss (dashed: mean image)")
    _legend(figure, members)
    save(figure, path)


def gradients(path: Path, members: list[dict[str, Any]]) -> None:
    """Gradient norms of the convolutions from input to output, at the start and after an epoch.

    Args:
        path: of the PNG.
        members: {"configuration", "depth", "lines" of `gradients.jsonl`}.
    """
    depths = sorted({member["depth"] for member in members})
    figure, panels = _panels(2, len(depths))
    for row, when in zip(panels, ("at the start", "after an epoch"), strict=True):
        for axes, depth in zip(row, depths, strict=True):
            for member in (m for m in members if m["depth"] == depth):
                colour, denoising = _style(member["configuration"])
                line = member["lines"][0 if when == "at the start" else -1]
                norms = convolution_norms(line["norms"])
                axes.plot(
                    range(1, len(norms) + 1),
                    norms,
                    color=colour,
                    ls=":" if denoising else "-",
                    lw=0.8,
                )
            axes.set(title=f"{depth} layers, {when}", yscale="log")
            axes.grid(alpha=0.3)
        row[0].set_ylabel("norm of the gradient")
    for axes in panels[-1]:
        axes.set_xlabel("layer, from image to image")
    _legend(figure, members)
    save(figure, path)


def convolution_norms(norms: dict[str, float]) -> list[float]:
    """The norms of the convolutions' kernels, from the first layer to the last."""

    def place(name: str) -> tuple[int, int]:
        part, layers, *rest = name.split(".")
        if layers == "to_image":
            return 2, 0
        return (0 if part == "encoder" else 1), int(rest[0])

    kernels = [name for name in norms if name.endswith(".conv.kernel")]
    return [norms[name] for name in sorted(kernels, key=place)]


def feedback(path: Path, methods: list[dict[str, Any]]) -> None:
    """Figure 4: full and residual mAP of each method over the rounds, a column for each learner.

    Args:
        path: of the PNG.
        methods: those of `figure4.json`.
    """
    learners = list(dict.fromkeys(entry["learner"] for entry in methods))
    figure, panels = plt.subplots(
        2,
        max(len(learners), 1),
        figsize=(3.6 * max(len(learners), 1) + 1, 6.5),
        sharey="row",
        squeeze=False,
    )
    for column, learner in zip(panels.T, learners, strict=False):
        entries = [entry for entry in methods if entry["learner"] == learner]
        for axes, key, title in (
            (column[0], "map", "full"),
            (column[1], "residual_map", "residual"),
        ):
            for place, entry in enumerate(entries):
                points = [r for r in entry["rounds"] if r[key] is not None]
                x = np.array([r["round"] for r in points]) + 0.05 * (place - len(entries) / 2)
                spread = np.hstack([_spread(r[key], r[f"{key}_ci95"]) for r in points])
                axes.errorbar(
                    x,
                    [r[key] for r in points],
                    yerr=spread,
                    marker="o",
                    ms=4,
                    lw=1.3,
                    capsize=2,
                    color="0.5" if entry["method"] == "Baseline" else None,
                    label=entry["method"],
                )
            axes.set(title=f"{learner}, {title} mAP", xticks=[r["round"] for r in points])
            axes.grid(alpha=0.3)
        column[1].set_xlabel("round of feedback")
        column[0].legend(fontsize=8)
    for row in panels:
        row[0].set_ylabel("mAP")
    figure.tight_layout()
    save(figure, path)


def choices(path: Path, rows: list[dict[str, Any]]) -> None:
    """Differences of mAP to each net's base, with paired 95 % intervals.

    Args:
        path: of the PNG.
        rows: the choices of `choices.json`.
    """
    nets = list(dict.fromkeys(row["net"] for row in rows))
    figure, axes = plt.subplots(figsize=(7, 0.32 * len(nets) + 1.2))
    for metric, colour, apart in (("L2", "C0", -0.12), ("standardised", "C1", 0.12)):
        own = [r for r in rows if r["metric"] == metric and r["comparison"]["ci95"] is not None]
        differences = [r["comparison"]["difference"] for r in own]
        spread = [_spread(r["comparison"]["difference"], r["comparison"]["ci95"]) for r in own]
        axes.errorbar(
            differences,
            [nets.index(r["net"]) + apart for r in own],
            xerr=np.hstack(spread) if spread else None,
            fmt="o",
            ms=4,
            capsize=2,
            color=colour,
            label=metric,
        )
    axes.axvline(0, color="black", lw=0.8)
    axes.set(yticks=range(len(nets)), yticklabels=nets, xlabel="mAP minus the base's, by L2")
    axes.invert_yaxis()
    axes.grid(alpha=0.3, axis="x")
    axes.legend(fontsize=8)
    save(figure, path)


def _spread(value: float, interval: list[float]) -> np.ndarray:
    """[2, 1]: how far an interval reaches below and above."""
    return np.abs(np.array(interval) - value)[:, None]


def _panels(rows: int, columns: int) -> tuple[plt.Figure, np.ndarray]:
    columns = max(columns, 1)
    return plt.subplots(
        rows, columns, figsize=(3.4 * columns, 3.1 * rows), sharey=True, squeeze=False
    )


def _legend(figure: plt.Figure, members: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(member["configuration"] for member in members))
    handles = []
    for name in names:
        colour, denoising = _style(name)
        handles += plt.plot([], [], color=colour, ls=":" if denoising else "-", label=name)
    figure.legend(handles=handles, fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 0))
    figure.tight_layout()
