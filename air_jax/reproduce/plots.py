"""Pictures of sweeps: first retrieval, loss curves, gradients, feedback, choices."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from air_jax.reproduce.figures import DENOISING, variant
from air_jax.reproduce.sweep import Member
from air_jax.run.figures import marker, save
from air_jax.training.training_log import GRADIENTS_FILE, METRICS_FILE, read_metrics

# {"configuration", "depth", "lines" of a log} of a member.
Log = dict[str, Any]

# One colour for each configuration; its denoising variant is hatched or dotted.
_COLOURS = {
    "classic": "#7f7f7f",
    "Sortcut (con-decon)": "#ff7f0e",
    "NoP_sortcut (con-decon)": "#d62728",
    "Sortcut": "#1f77b4",
    "NoP_sortcut": "#17becf",
}
_LINES = {"smt": "C5", "kmeans": "C2", "pca": "C4", "pixels": "0.4", "random": "0.8"}
_POINTS = {"ms": 4, "capsize": 2}


def draw(found: dict[str, Any], members: list[Member], folder: Path) -> list[str]:
    """Draw what a JSON file of a sweep holds; returns the names of the pictures in `folder`."""
    if "nets" in found:
        _first_retrieval(folder / "figure3.png", found["nets"], found["baselines"])
        _curves(folder / "curves.png", _logs(members, METRICS_FILE), found["nets"])
        _gradients(folder / "gradients.png", _logs(members, GRADIENTS_FILE))
        return ["figure3.png", "curves.png", "gradients.png"]
    if "methods" in found:
        _feedback(folder / "figure4.png", found["methods"])
        return ["figure4.png"]
    if "objectives" in found:
        _objectives(folder / "objectives.png", found["objectives"], found["baselines"])
        return ["objectives.png"]
    _choices(folder / "choices.png", found["choices"])
    return ["choices.png"]


def remark(net: dict[str, Any]) -> str:
    """What to know of a net of `figure3.json` before its mAP is read."""
    seeds, learn = net["seeds"], net["seeds_that_learn"]
    if learn is None:  # nothing was reconstructed
        return ""
    use = net["seeds_that_use_the_code"]
    unused = 0 if use is None else learn - use  # of a single query it is not known
    remarks = [
        f"{text}{'' if count == seeds else f' in {count} of {seeds} seeds'}"
        for text, count in (("does not learn", seeds - learn), ("code unused", unused))
        if count
    ]
    return ", ".join(remarks)


def convolution_norms(norms: dict[str, float]) -> list[float]:
    """The norms of the convolutions' kernels, from the first layer to the last."""

    def place(name: str) -> tuple[int, int]:
        part, layers, *rest = name.split(".")
        if layers == "to_image":
            return 2, 0
        return (0 if part == "encoder" else 1), int(rest[0])

    kernels = [name for name in norms if name.endswith(".conv.kernel")]
    return [norms[name] for name in sorted(kernels, key=place)]


def _logs(members: list[Member], name: str) -> list[Log]:
    """A log of each member that has one."""
    return [
        {"configuration": variant(member), "depth": member.job.config.model.depth, "lines": lines}
        for member in members
        if (lines := read_metrics(member.workdir / name))
    ]


def _first_retrieval(path: Path, nets: list[dict[str, Any]], baselines: dict[str, Any]) -> None:
    """Figure 3: mAP of the first retrieval, bars grouped by depth, with 95 % intervals."""
    depths = sorted({net["depth"] for net in nets})
    order = list(dict.fromkeys(net["configuration"] for net in nets))
    width = 0.86 / max(len(order), 1)
    figure, axes = plt.subplots(figsize=(10, 4.5))
    named = set()
    for net in nets:
        name = net["configuration"]
        x = depths.index(net["depth"]) + width * (order.index(name) - (len(order) - 1) / 2)
        axes.bar(
            x,
            net["map"],
            width * 0.92,
            color=_colour(name),
            hatch="///" if DENOISING in name else None,
            edgecolor="white",
            yerr=_spread([net["map"]], [net["map_ci95"]]),
            error_kw={"lw": 0.8, "capsize": 2},
            label=None if name in named else name,
        )
        named.add(name)
        if net["untrained_map"] is not None:
            ends = [x - width / 2, x + width / 2]
            axes.plot(ends, [net["untrained_map"]] * 2, color="black", lw=1.2)
        axes.text(x, 0.0004, remark(net), rotation=90, fontsize=6, ha="center", va="bottom")
    axes.plot([], [], color="black", lw=1.2, label="untrained net")
    for name, baseline in baselines.items():
        axes.axhline(baseline["map"], ls="--", lw=1, color=_LINES[name], label=name)
    layers = [f"{depth} layers" for depth in depths]
    axes.set(xticks=range(len(depths)), xticklabels=layers, ylabel="mAP of the first retrieval")
    axes.set_ylim(0, None)
    axes.legend(fontsize=7, ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.08))
    save(figure, path)


def _curves(path: Path, logs: list[Log], nets: list[dict[str, Any]]) -> None:
    """Training losses by step, a panel for each depth, and the mean image's loss."""

    def points(log: Log) -> tuple[list[int], list[float]]:
        return [line["step"] for line in log["lines"]], [line["loss"] for line in log["lines"]]

    figure, (panels,) = _panels(1, logs)
    for depth, axes in _draw_by_depth(panels, logs, points, "", 1):
        constants = {net["constant_loss"] for net in nets if net["depth"] == depth} - {None}
        for constant in constants:
            axes.axhline(constant, color="black", ls="--", lw=0.8)
        axes.set_xlabel("step")
    panels[0].set_ylabel("training loss (dashed: mean image)")
    _legend(figure, logs)
    save(figure, path)


def _gradients(path: Path, logs: list[Log]) -> None:
    """Gradient norms of the convolutions from input to output, at the start and after an epoch."""

    def points(number: int, log: Log) -> tuple[range, list[float]]:
        norms = convolution_norms(log["lines"][number]["norms"])
        return range(1, len(norms) + 1), norms

    figure, (first, last) = _panels(2, logs)
    _draw_by_depth(first, logs, partial(points, 0), ", at the start", 0.8)
    _draw_by_depth(last, logs, partial(points, -1), ", after an epoch", 0.8)
    for axes in last:
        axes.set_xlabel("layer, from image to image")
    for row in (first, last):
        row[0].set_ylabel("norm of the gradient")
    _legend(figure, logs)
    save(figure, path)


def _panels(rows: int, logs: list[Log]) -> tuple[plt.Figure, np.ndarray]:
    """Panels [rows, depths], of one depth at least."""
    columns = max(len({log["depth"] for log in logs}), 1)
    size = 3.4 * columns, 3.1 * rows
    return plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False)


def _draw_by_depth(
    row: np.ndarray, logs: list[Log], points: Callable[[Log], Any], title: str, width: float
) -> list[tuple[int, plt.Axes]]:
    """A line for each member in the panel of its depth; returns depths and their panels."""
    depths = sorted({log["depth"] for log in logs})
    for axes, depth in zip(row, depths, strict=False):
        for log in (log for log in logs if log["depth"] == depth):
            x, y = points(log)
            axes.plot(x, y, lw=width, marker=marker(x), **_line(log["configuration"]))
        axes.set(title=f"{depth} layers{title}", yscale="log")
        axes.grid(alpha=0.3)
    return list(zip(depths, row, strict=False))


def _legend(figure: plt.Figure, logs: list[Log]) -> None:
    names = dict.fromkeys(log["configuration"] for log in logs)
    handles = [plt.plot([], [], label=name, **_line(name))[0] for name in names]
    figure.legend(handles=handles, fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 0))
    figure.tight_layout()


def _feedback(path: Path, methods: list[dict[str, Any]]) -> None:
    """Figure 4: full and residual mAP of each method by round, a column for each learner."""
    learners = list(dict.fromkeys(entry["learner"] for entry in methods))
    columns = max(len(learners), 1)
    size = 3.6 * columns + 1, 6.5
    figure, panels = plt.subplots(2, columns, figsize=size, sharey="row", squeeze=False)
    for column, learner in zip(panels.T, learners, strict=False):
        entries = [entry for entry in methods if entry["learner"] == learner]
        for axes, key in zip(column, ("map", "residual_map"), strict=True):
            for place, entry in enumerate(entries):
                points = [r for r in entry["rounds"] if r[key] is not None]
                means = [r[key] for r in points]
                axes.errorbar(
                    np.array([r["round"] for r in points]) + 0.05 * (place - len(entries) / 2),
                    means,
                    yerr=_spread(means, [r[f"{key}_ci95"] for r in points]),
                    marker="o",
                    lw=1.3,
                    color="0.5" if entry["method"] == "Baseline" else None,
                    label=entry["method"],
                    **_POINTS,
                )
            axes.set(title=f"{learner}, {'full' if key == 'map' else 'residual'} mAP")
            axes.set_xticks([r["round"] for r in points])
            axes.grid(alpha=0.3)
        column[1].set_xlabel("round of feedback")
        column[0].legend(fontsize=8)
    for row in panels:
        row[0].set_ylabel("mAP")
    figure.tight_layout()
    save(figure, path)


def _choices(path: Path, rows: list[dict[str, Any]]) -> None:
    """Differences of mAP to each net's base, with paired 95 % intervals."""
    nets = list(dict.fromkeys(row["net"] for row in rows))
    figure, axes = plt.subplots(figsize=(7, 0.32 * len(nets) + 1.2))
    for metric, colour, apart in (("L2", "C0", -0.12), ("standardised", "C1", 0.12)):
        own = [r for r in rows if r["metric"] == metric and r["comparison"]["ci95"] is not None]
        differences = [r["comparison"]["difference"] for r in own]
        places = [nets.index(r["net"]) + apart for r in own]
        spread = _spread(differences, [r["comparison"]["ci95"] for r in own])
        axes.errorbar(
            differences, places, xerr=spread, fmt="o", color=colour, label=metric, **_POINTS
        )
    axes.axvline(0, color="black", lw=0.8)
    axes.set(yticks=range(len(nets)), yticklabels=nets, xlabel="mAP minus the base's, by L2")
    axes.invert_yaxis()
    axes.grid(alpha=0.3, axis="x")
    axes.legend(fontsize=8)
    save(figure, path)


def _objectives(path: Path, rows: list[dict[str, Any]], baselines: dict[str, Any]) -> None:
    """mAP of the first retrieval by seconds of training, with 95 % intervals."""
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for objective in dict.fromkeys(row["objective"] for row in rows):
        own = sorted((r for r in rows if r["objective"] == objective), key=lambda r: r["seconds"])
        means = [row["map"] for row in own]
        axes.errorbar(
            [row["seconds"] for row in own],
            means,
            yerr=_spread(means, [row["map_ci95"] for row in own]),
            marker="o",
            label=objective,
            **_POINTS,
        )
    for name, baseline in baselines.items():
        axes.axhline(baseline["map"], ls="--", lw=1, color=_LINES[name], label=name)
    axes.set(xscale="log", xlabel="seconds of training", ylabel="mAP of the first retrieval")
    axes.set_ylim(0, None)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    save(figure, path)


def _colour(configuration: str) -> str:
    return _COLOURS.get(configuration.removesuffix(DENOISING), "C5")


def _line(configuration: str) -> dict[str, str]:
    """How a line is drawn."""
    return {"color": _colour(configuration), "ls": ":" if DENOISING in configuration else "-"}


def _spread(values: list[float], intervals: list[list[float]]) -> np.ndarray:
    """[2, values]: how far the intervals reach below and above."""
    return np.abs(np.reshape(intervals, (-1, 2)).T - values)
