"""Images per second of each loader alone, and whether a training step ever waits for it.

    python benchmarks/input_pipeline.py --json=benchmarks/results/input_pipeline.json

Alone: batches are made and put on the devices, and nothing is done with them. Waiting: the share of
the time of training from the loader that training on one batch, already there, does not take; noise
can make it negative.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # this clone, and `benchmarks`

import jax
import numpy as np

from air_jax.data.loaders import Loader, make_loader
from air_jax.runtime import sharding
from benchmarks import measure

LOADERS = ("resident", "host", "tfdata")


def main() -> None:
    arguments = _parse()
    mesh = measure.make_mesh(arguments.devices)
    shape = (arguments.images, *measure.IMAGE)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    loaders = {kind: make_loader(kind, images, arguments.batch, 0, mesh) for kind in LOADERS}

    def empty(loader: Loader) -> None:
        for batch in loader(0, arguments.images // arguments.batch):
            batch.block_until_ready()

    whole = arguments.images // arguments.batch * arguments.batch
    alone = measure.seconds_in_turns(
        {kind: (lambda loader=loader: empty(loader)) for kind, loader in loaders.items()},
        arguments.rounds,
        warm_up=1,
    )
    training = _training_seconds(arguments, loaders, mesh)
    rows, summary = [], {}
    fixed = training.pop("one batch")
    for kind in LOADERS:
        rate = measure.spread(alone[kind], whole)
        waits = 1 - float(np.median(fixed) / np.median(training[kind]))
        rows.append(
            {
                "loader": kind,
                "batch": arguments.batch,
                "alone_images_per_second": rate,
                "training_images_per_second": measure.spread(
                    training[kind], arguments.steps * arguments.batch
                ),
                "training_on_one_batch_images_per_second": measure.spread(
                    fixed, arguments.steps * arguments.batch
                ),
                "waiting_share": waits,
            }
        )
        summary[f"{kind}_images_per_second"] = rate["median"]
        summary[f"{kind}_waiting_share"] = waits
    measure.report(arguments, summary, rows)


def _training_seconds(
    arguments: argparse.Namespace,
    loaders: dict[str, Loader],
    mesh: jax.sharding.Mesh,
) -> dict[str, np.ndarray]:
    """Seconds of `--steps` steps on batches of each loader, and on one batch again and again."""
    config = measure.net_config(
        10, "pooled", model__width=arguments.width, train__batch=arguments.batch
    )
    state, step, _ = measure.training_step(config, measure.untrained_net(config, mesh), mesh)
    key = jax.device_put(jax.random.key(0), sharding.replicated(mesh))
    same = next(iter(loaders["resident"](0, 1)))

    def run(loader: Loader | None) -> None:
        nonlocal state
        batches = [same] * arguments.steps if loader is None else loader(0, arguments.steps)
        for batch in batches:
            state, _ = step(state, batch, key)
        jax.block_until_ready(state)

    work = {"one batch": lambda: run(None)}
    work |= {kind: (lambda loader=loader: run(loader)) for kind, loader in loaders.items()}
    return measure.seconds_in_turns(work, arguments.rounds, warm_up=1)


def _parse() -> argparse.Namespace:
    parser = measure.parser(__doc__)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--batch", type=int, default=160)
    parser.add_argument("--width", type=int, default=16, help="of the 10-layer net that is trained")
    parser.add_argument("--steps", type=int, default=20, help="of training in a round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.images, arguments.steps, arguments.rounds = 5_000, 5, 3
        arguments.batch = min(arguments.batch, arguments.images // arguments.steps)
    if arguments.steps * arguments.batch > arguments.images:
        parser.error("--steps x --batch must not be more than --images")
    return arguments


if __name__ == "__main__":
    main()
