"""Whether training in bfloat16 reaches the loss of float32, over seeds, on CIFAR-100.

    python benchmarks/bfloat16_loss.py --data=FOLDER_OF_TENSORFLOW_DATASETS --seeds 0 1 2

The same initial weights, batches and steps in both; compared are the mean losses of the last tenth
of the steps. A difference is noise if it is no larger than the seeds' spread.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # this clone, and `benchmarks`

import jax
import ml_collections
import numpy as np

from air_jax.run import jobs
from air_jax.runtime import sharding
from air_jax.training import loop
from benchmarks import measure

DTYPES = ("float32", "bfloat16")


def main() -> None:
    arguments = _parse()
    measure.set_devices(arguments.devices)
    mesh = sharding.make_mesh(jax.devices()[: arguments.devices])
    rows = []
    for seed in arguments.seeds:
        for dtype in DTYPES:
            config = _config(arguments, seed, dtype)
            job = jobs.prepare(config)
            images = job.dataset.images[job.training_positions()]
            with tempfile.TemporaryDirectory() as folder:
                result = loop.train(config, images, mesh, Path(folder))
                lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
            losses = [json.loads(line)["loss"] for line in lines]
            last = losses[-max(1, len(losses) // 10) :]
            rows.append(
                {
                    "seed": seed,
                    "dtype": dtype,
                    "steps": result.steps,
                    "first_loss": losses[0],
                    "last_loss": float(np.mean(last)),
                    "images_per_second": result.steps * config.train.batch / result.seconds,
                }
            )
            print(rows[-1], flush=True)
    loss = {
        dtype: np.array([row["last_loss"] for row in rows if row["dtype"] == dtype])
        for dtype in DTYPES
    }
    difference = loss["bfloat16"] - loss["float32"]
    summary = {f"loss_{dtype}": float(values.mean()) for dtype, values in loss.items()}
    summary |= {
        "mean_difference": float(difference.mean()),
        "largest_difference": float(np.abs(difference).max()),
        "spread_of_float32_over_seeds": float(np.ptp(loss["float32"])),
    }
    measure.report(arguments, summary, rows)


def _config(arguments: argparse.Namespace, seed: int, dtype: str) -> ml_collections.ConfigDict:
    return measure.net_config(
        arguments.depth,
        "pooled",
        seed=seed,
        data__dir=arguments.data,
        data__size=arguments.size,
        data__keep_database_per_class=arguments.per_class,
        model__width=arguments.width,
        train__dtype=dtype,
        train__epochs=arguments.epochs,
        train__warmup_steps=20,
        log__every_steps=5,
    )


def _parse() -> argparse.Namespace:
    parser = measure.parser(__doc__)
    parser.add_argument("--data", default="", help="as config.data.dir")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--depth", type=int, default=10)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--size", type=int, default=16, help="pixels to a side; 0: all")
    parser.add_argument("--per-class", type=int, default=100, help="images to train on; 0: all")
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.per_class, arguments.epochs = [0, 1], 20, 1
    return arguments


if __name__ == "__main__":
    main()
