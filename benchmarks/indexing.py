"""Seconds and peak memory of `air_jax.index` on CIFAR-100 written out as PNG files.

    python benchmarks/indexing.py --images=60000

The command is run as a person runs it: from nothing, and again on the unchanged folder.
`--source=random` needs no CIFAR-100 (`TFDS_DATA_DIR`).
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

from air_jax.data import datasets, decode_pool
from benchmarks import measure

ROOT = Path(__file__).parent.parent
PART = 1000  # files of one folder


def write_images(folder: Path, count: int, source: str) -> None:
    """So many images as PNG files; CIFAR-100 is begun again where it ends."""
    if source == "cifar100":
        images = datasets.load("cifar100", os.environ.get("TFDS_DATA_DIR", "")).images
        images = np.resize(images, (count, *images.shape[1:]))
    else:
        images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)
    for number, pixels in enumerate(images[:count]):
        path = folder / f"{number // PART:03d}" / f"{number:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def train(workdir: Path) -> None:
    """A net to encode with, trained for an epoch on scikit-learn's digits."""
    command = [sys.executable, "-m", "air_jax.main", "--config=configs/quickstart.py"]
    command += [f"--workdir={workdir}", "--stages=train", "--config.train.epochs=1"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def run_command(folder: Path, model: Path, out: Path, workers: int) -> dict[str, float]:
    """Wall seconds and peak memory of the command and its largest decoding process."""
    command = [sys.executable, "-m", "air_jax.index", f"--images={folder}", f"--model={model}"]
    command += [f"--out={out}", f"--workers={workers}"]
    # A process of its own waits for it: the peak that it is told is of no other child.
    peak = (
        "import resource, subprocess, sys; "
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
        "print('peak', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", peak, *command], cwd=ROOT, capture_output=True, text=True
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"air_jax.index failed: {done.stderr[-500:]}")
    kilobytes = int(re.search(r"peak (\d+)", done.stdout)[1])
    return {"seconds": seconds, "peak_mb": kilobytes / 1000}


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--images", type=int, default=6_000)
    parser.add_argument("--source", default="cifar100", choices=["cifar100", "random"])
    parser.add_argument("--model", type=Path, help="work directory; default: one is trained")
    parser.add_argument("--workers", type=int, default=decode_pool.usable_cores())
    args = parser.parse_args()
    if args.quick:
        args.images = min(args.images, 1_000)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        folder, out = scratch / "images", scratch / "index"
        write_images(folder, args.images, args.source)
        model = args.model
        if model is None:
            model = scratch / "run"
            train(model)
        rows: list[dict[str, Any]] = []
        for what in ("new", "unchanged"):
            rows.append({"what": what, **run_command(folder, model, out, args.workers)})
    summary: dict[str, float | None] = {}
    for row in rows:
        row["images_per_second"] = args.images / row["seconds"]
        summary[f"{row['what']}_images_per_second"] = row["images_per_second"]
        summary[f"{row['what']}_seconds"] = row["seconds"]
    summary["peak_mb"] = rows[0]["peak_mb"]
    measure.report(args, summary, rows)


if __name__ == "__main__":
    main()
