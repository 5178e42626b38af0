"""A roofline picture of what `train_throughput.py` measured: our points and the peer's.

    python benchmarks/roofline.py OUT.png RESULTS.json [RESULTS.json ...]

The roof is what was measured in the same run: the rate of adding one to a large array, times
intensity, up to the rate of a large matrix product. A point's intensity is FLOPs over the bytes of
maps that a net must move if each layer's are moved once for each use (`map_bytes_per_image`), for
ours and the peer's alike: it is a property of the net, not of what a program really moves.
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Write the picture as PNG.

    Args:
        results: by name, contents of JSON files of `train_throughput.py`, of one machine.
        path: of the picture.

    Raises:
        ValueError: one of them lacks the limits or the rows of that benchmark.
    """
    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    points = []
    for name, content in results.items():
        if "copy_bytes" not in content.get("limits", {}):
            raise ValueError(f"{name}: expected a JSON file of train_throughput.py, with limits")
        points += [
            (row["flops_per_image"] / row["map_bytes_per_image"], row, name)
            for row in content["rows"]
        ]
    intensities = np.array([intensity for intensity, _, _ in points])
    limits = [content["limits"] for content in results.values()]
    ridges = [each["matmul_flops"] / each["copy_bytes"] for each in limits]
    ends = min(*ridges, intensities.min()) / 4, max(*ridges, intensities.max()) * 4
    across = np.geomspace(*ends, 400)
    for i, (name, content) in enumerate(results.items()):
        limits = content["limits"]
        roof = np.minimum(limits["copy_bytes"] * across, limits["matmul_flops"])
        axes.plot(across, roof, color=f"C{i}", label=f"limits, {name}")
    for intensity, row, name in points:
        color = f"C{list(results).index(name)}"
        rate = row["images_per_second"]
        marker = "x" if row["peer"] else ("o" if row["variant"] == "unpooled" else "s")
        scale = row["flops_per_image"]
        axes.vlines(intensity, rate["low"] * scale, rate["high"] * scale, color=color)
        axes.plot(intensity, rate["median"] * scale, marker, color=color)
        way = row["peer"] or "air_jax"
        way += f" ×{row['steps_per_call']}" if row["steps_per_call"] > 1 else ""
        way += " remat" if row["remat"] else ""
        axes.annotate(
            f"{way}, {row['variant']}, depth {row['depth']}, batch {row['batch']}, {row['dtype']}",
            (intensity, rate["median"] * scale),
            xytext=(-6, -3) if row["peer"] else (6, -3),
            ha="right" if row["peer"] else "left",
            textcoords="offset points",
            fontsize=7,
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="FLOP per byte of maps moved",
        ylabel="FLOP/s",
        title=f"Training step on {_device(next(iter(results.values())))}",
    )
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="lower left")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _device(content: dict[str, Any]) -> str:
    machine = content["machine"]
    kinds = machine["devices"]
    on_cpu = set(kinds) == {"cpu"}
    return f"{machine['cores']} cores, {machine['processor']}" if on_cpu else kinds[0]


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    read = {Path(name).stem: json.loads(Path(name).read_text()) for name in sys.argv[2:]}
    draw(read, Path(sys.argv[1]))
