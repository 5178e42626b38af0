"""Pictures of a run: loss curve, reconstructions, retrieval sheet, mAP over rounds, time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

_RELEVANT, _IRRELEVANT = "#1a9641", "#d0d0d0"


def loss_curve(path: Path, lines: list[dict[str, float]], losses: dict[str, Any]) -> None:
    """Training loss by step, from `metrics.jsonl`, beside the held-out references."""
    figure, axes = plt.subplots(figsize=(6, 4))
    steps, means = [m["step"] for m in lines], [m["loss"] for m in lines]
    axes.plot(steps, means, lw=1.5, marker=marker(steps), label="training")
    for key, label, colour in (
        ("constant_loss", "mean image (held-out)", "0.5"),
        ("code_shuffled_loss", "other images' codes (held-out)", "C3"),
        ("loss", "held-out, at the end", "C0"),
        ("pca_loss", "PCA (held-out)", "C2"),
    ):
        if losses.get(key) is not None:
            axes.axhline(losses[key], ls="--", lw=1, color=colour, label=label)
    if losses.get("loss") is None:
        axes.set(xlabel="step", ylabel=f"loss ({losses['objective']})")
    else:
        axes.set(xlabel="step", ylabel="mean squared error, standardised pixels", ylim=(0, None))
    axes.legend(fontsize=8)
    save(figure, path)


def spread_curves(
    path: Path, lines: list[dict[str, float]], probes: list[dict[str, float]]
) -> None:
    """By step: how codes and embeddings of views lie, and what the probes found.

    Args:
        path: of the PNG.
        lines: of `metrics.jsonl`.
        probes: of `probes.jsonl`; may be empty.
    """
    drawn = (
        ("effective_rank", "effective rank of the codes"),
        ("alignment", "squared distance of two views of an image"),
        ("uniformity", "uniformity of the embeddings"),
        ("knn_accuracy", "accuracy by neighbours, validation queries"),
    )
    figure, rows = plt.subplots(2, 2, figsize=(8, 5), sharex=True)
    for axes, (key, label) in zip(rows.ravel(), drawn, strict=True):
        values = [line for line in [*lines, *probes] if key in line]
        if values:
            steps = [line["step"] for line in values]
            axes.plot(steps, [line[key] for line in values], lw=1.5, marker=marker(steps))
        else:
            axes.text(0.5, 0.5, "not measured (log.probe_steps)", ha="center", va="center")
        axes.set_title(label, fontsize=9)
    for axes in rows[1]:
        axes.set_xlabel("step")
    save(figure, path)


def reconstructions(path: Path, images: np.ndarray, reconstructed: np.ndarray) -> None:
    """Held-out images [n, S, S, C] uint8 above what the net makes of them."""
    figure, rows = plt.subplots(
        2, len(images), figsize=(1.1 * len(images) + 0.6, 2.5), squeeze=False
    )
    for axes, image in zip(rows.ravel(), [*images, *reconstructed], strict=True):
        _show(axes, image)
    for axes, label in zip(rows[:, 0], ("image", "decoded"), strict=True):
        axes.set_ylabel(label, fontsize=8)
    save(figure, path)


def retrieval_sheet(
    path: Path,
    query_images: np.ndarray,
    query_names: list[str],
    results: list[list[np.ndarray]],
    relevant: list[list[np.ndarray]],
    title: str,
) -> None:
    """Queries with their first images before feedback and after each round.

    Args:
        path: of the PNG.
        query_images: [n, S, S, C] uint8.
        query_names: their classes.
        results: for each query and round the images [k, S, S, C], best first.
        relevant: for each query and round, bool [k]; relevant ones get a green frame.
        title: above it.
    """
    rounds, k = len(results[0]), len(results[0][0])
    height = len(query_images) * rounds
    figure, grid = plt.subplots(
        height,
        k + 2,
        figsize=(0.6 * (k + 1.6), 0.6 * height + 0.4),
        squeeze=False,
        gridspec_kw={"width_ratios": [1, 0.6] + [1] * k, "wspace": 0.1, "hspace": 0.1},
    )
    for query, (image, name) in enumerate(zip(query_images, query_names, strict=True)):
        for number in range(rounds):
            first, label, *rest = grid[query * rounds + number]
            label.axis("off")
            text = f"round {number}" if number else "before"
            label.text(0.5, 0.5, text, fontsize=7, ha="center", va="center", rotation=90)
            if number == 0:
                _show(first, image)
                first.set_xlabel(name, fontsize=7, labelpad=2, parse_math=False)
            else:
                first.axis("off")
            pairs = zip(results[query][number], relevant[query][number], strict=True)
            for axes, (found, is_relevant) in zip(rest, pairs, strict=True):
                _show(axes, found, _RELEVANT if is_relevant else _IRRELEVANT)
    figure.suptitle(title, fontsize=9, y=0.9 + 0.2 / (0.6 * height + 0.4))
    save(figure, path)


def map_over_rounds(
    path: Path, learners: dict[str, Any], gains: dict[str, list[dict[str, Any]]]
) -> None:
    """mAP of each learner by round, and what it gains on images without a mark.

    Args:
        path: of the PNG.
        learners: `feedback` of `results.json`.
        gains: by learner and round {"mean", "ci95"} of the residual AP minus the first retrieval's
            on the same images, query by query; None where no query has such images.
    """
    figure, (full, residual) = plt.subplots(1, 2, figsize=(10, 4))
    for place, (learner, entry) in enumerate(learners.items()):
        look: dict[str, Any] = {"color": f"C{place}", "marker": "o", "ms": 4, "lw": 1.5}
        maps = [r["map"] for r in entry["rounds"]]
        full.plot(range(len(maps)), maps, label=learner, **look)
        points = [(n, gain) for n, gain in enumerate(gains[learner]) if gain["mean"] is not None]
        x = [number for number, _ in points]
        residual.plot(x, [gain["mean"] for _, gain in points], **look)
        low, high = np.array([gain["ci95"] for _, gain in points]).reshape(-1, 2).T
        residual.fill_between(x, low, high, color=look["color"], alpha=0.15, lw=0)
    full.set(title="the whole database", ylabel="full mAP")
    residual.set(
        title="images without a mark, with 95 % intervals",
        ylabel="residual mAP minus the first retrieval's",
    )
    for axes in (full, residual):
        axes.set(xlabel="round of feedback", xticks=range(len(maps)))
        axes.grid(alpha=0.3)
    full.legend(fontsize=8)
    figure.tight_layout()
    save(figure, path)


def time_of_stages(path: Path, stages: dict[str, dict[str, float]]) -> None:
    """Where the time of a run went: a bar for each stage, in the order of its parts.

    Args:
        path: of the PNG.
        stages: seconds of each part, by stage.
    """
    figure, axes = plt.subplots(figsize=(6, 0.6 * len(stages) + 1))
    for row, parts in enumerate(stages.values()):
        left = 0.0
        for place, (name, seconds) in enumerate(parts.items()):
            colour = "0.8" if name == "else" else f"C{place}"
            axes.barh(row, seconds, left=left, color=colour, edgecolor="white")
            left += seconds
        of_parts = (f"{part} {s:,.{0 if s >= 10 else 1}f}" for part, s in parts.items())
        told = f"{left:,.1f} s:\n" + ", ".join(of_parts)
        beside = axes.get_yaxis_transform()
        axes.text(1.02, row, told, fontsize=8, va="center", transform=beside)
    axes.set(yticks=range(len(stages)), yticklabels=list(stages), xlabel="seconds")
    axes.invert_yaxis()
    save(figure, path)


def marker(x: Sequence[float]) -> str | None:
    """Of a line: a single point has no length to be seen by."""
    return "o" if len(x) == 1 else None


def _show(axes: plt.Axes, image: np.ndarray, frame: str | None = None) -> None:
    axes.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=frame or "none", linewidth=2.5)


def save(figure: plt.Figure, path: Path) -> None:
    """Write a figure as PNG and forget it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)
