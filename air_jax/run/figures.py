"""Pictures of a run: loss curve, reconstructions, retrieval sheet, mAP over rounds."""

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
    axes.plot([m["step"] for m in lines], [m["loss"] for m in lines], lw=1.5, label="training")
    for key, label, colour in (
        ("constant_loss", "mean image (held-out)", "0.5"),
        ("code_shuffled_loss", "other images' codes (held-out)", "C3"),
        ("loss", "held-out, at the end", "C0"),
        ("pca_loss", "PCA (held-out)", "C2"),
    ):
        if losses.get(key) is not None:
            axes.axhline(losses[key], ls="--", lw=1, color=colour, label=label)
    axes.set(xlabel="step", ylabel="mean squared error, standardised pixels", ylim=(0, None))
    axes.legend(fontsize=8)
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
                first.set_xlabel(name, fontsize=7, labelpad=2)
            else:
                first.axis("off")
            pairs = zip(results[query][number], relevant[query][number], strict=True)
            for axes, (found, is_relevant) in zip(rest, pairs, strict=True):
                _show(axes, found, _RELEVANT if is_relevant else _IRRELEVANT)
    figure.suptitle(title, fontsize=9, y=0.9 + 0.2 / (0.6 * height + 0.4))
    save(figure, path)


def map_over_rounds(path: Path, learners: dict[str, Any]) -> None:
    """Full and residual mAP of each learner by round, with 95 % intervals."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 4), sharey=True)
    for axes, key, title in (
        (panels[0], "map", "full: the whole database"),
        (panels[1], "residual_map", "residual: without the marked images"),
    ):
        for place, (learner, entry) in enumerate(learners.items()):
            points = [r for r in entry["rounds"] if r[key] is not None]
            x, y = [r["round"] for r in points], np.array([r[key] for r in points])
            spread = np.abs(np.array([r[f"{key}_ci95"] for r in points]).T - y)
            apart = 0.04 * (place - (len(learners) - 1) / 2)  # so that intervals can be told apart
            axes.errorbar(
                np.add(x, apart), y, yerr=spread, marker="o", ms=4, lw=1.5, capsize=2, label=learner
            )
        axes.set(title=title, xlabel="round of feedback", xticks=x)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("mAP")
    panels[0].legend(fontsize=8)
    save(figure, path)


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
