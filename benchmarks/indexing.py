"""Seconds of `air_jax.index` on CIFAR-100 written out as PNG files, in all and part by part.

The command is run as a person runs it, for the total and its memory: from nothing, and again on the
unchanged folder. Then each part alone, on the same files: listing and hashing them, decoding in as
many processes, encoding in the same batches, SQLite. In the command the first ones overlap.
`--source=random` needs no CIFAR-100 (`TFDS_DATA_DIR`).
"""

import hashlib
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

from air_jax.data import datasets
from air_jax.index import build, decode_pool, image_files
from air_jax.index.catalogue import Catalogue
from air_jax.index.decoding import Limits, read_file
from air_jax.models import encode
from air_jax.run import trained_net
from air_jax.runtime import sharding
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


def parts(folder: Path, model: Path, scratch: Path, workers: int) -> dict[str, float]:
    """Seconds of each part alone."""
    seconds: dict[str, float] = {}
    started = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal started
        seconds[name] = time.perf_counter() - started
        started = time.perf_counter()

    files = image_files.walk(folder).files
    lap("walk")
    for file in files:
        hashlib.sha256(read_file(folder / file.path, Limits())).hexdigest()
    lap("read_and_hash")
    mesh = sharding.make_mesh()
    kept = trained_net.of_run(model, mesh)
    shape = tuple(kept.about["image_shape"])
    task = decode_pool.Task(str(folder), shape, "crop", Limits())
    started = time.perf_counter()
    decoded = list(decode_pool.decode([file.path for file in files], task, workers))
    lap("decode")
    batch = build.BATCH * mesh.size
    pixels = np.stack([one.pixels for one in decoded])
    started = time.perf_counter()
    codes = [
        encode.encode(kept.net, pixels[start : start + batch], mesh, batch, label=None)
        for start in range(0, len(pixels), batch)
    ]
    lap("encode")
    catalogue = Catalogue(scratch)
    rows = zip(files, decoded, np.concatenate(codes), strict=True)
    added = [(file, one, code.astype("<f4").tobytes(), None) for file, one, code in rows]
    started = time.perf_counter()
    for start in range(0, len(added), batch):
        catalogue.add(added[start : start + batch])
    catalogue.publish([known.image for known in catalogue.known()], {"generation": 1})
    lap("sqlite")
    catalogue.close()
    return seconds


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
        for what, seconds in parts(folder, model, scratch / "parts", args.workers).items():
            rows.append({"what": what, "seconds": seconds})
    summary: dict[str, float | None] = {}
    for row in rows:
        row["images_per_second"] = args.images / row["seconds"]
        summary[f"{row['what']}_images_per_second"] = row["images_per_second"]
    summary |= {f"{row['what']}_seconds": row["seconds"] for row in rows[:2]}
    summary["peak_mb"] = rows[0]["peak_mb"]
    measure.report(args, summary, rows)


if __name__ == "__main__":
    main()
