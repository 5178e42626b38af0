"""Images per second from uint8 pixels in memory to float32 codes, as `encode.encode` does it.

    python benchmarks/encode_throughput.py --images=60000 --depths 40 --dtypes float32 bfloat16

Includes copying images to the device and codes back. In turns with it, the encoder alone runs as
often on one batch that lies on the device: their ratio says what the copies cost. Compilation and
warm-up are left out.
"""

import argparse
import itertools
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # this clone, and `benchmarks`

import jax
import numpy as np

from air_jax.models import encode
from air_jax.models.net import Net
from air_jax.runtime import sharding
from benchmarks import measure


def main() -> None:
    arguments = _parse()
    mesh = measure.make_mesh(arguments.devices)
    shape = (arguments.images, *measure.IMAGE)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    rows = []
    for depth, variant, dtype in itertools.product(
        arguments.depths, arguments.variants, arguments.dtypes
    ):
        config = measure.net_config(depth, variant, train__dtype=dtype)
        net = measure.untrained_net(config, mesh)

        def run(net: Net = net) -> np.ndarray:
            return encode.encode(net, images, mesh, arguments.batch, label=None)

        started = time.perf_counter()
        encode.encode(net, images[: arguments.batch], mesh, arguments.batch, label=None)
        first = time.perf_counter() - started
        batches = -(-arguments.images // arguments.batch)
        resident = jax.device_put(images[: arguments.batch], sharding.by_rows(mesh))

        def run_on_device(
            net: Net = net, resident: jax.Array = resident, batches: int = batches
        ) -> None:
            jax.block_until_ready([encode.encode_batch(net, resident) for _ in range(batches)])

        work = {"encode": run, "on_device": run_on_device}
        seconds = measure.seconds_in_turns(work, arguments.rounds, warm_up=1)
        rate = measure.spread(seconds["encode"], arguments.images)
        rows.append(
            {
                "depth": depth,
                "variant": variant,
                "dtype": dtype,
                "batch": arguments.batch,
                "devices": mesh.size,
                "images": arguments.images,
                "images_per_second": rate,
                "on_device_images_per_second": measure.spread(
                    seconds["on_device"], batches * arguments.batch
                ),
                "first_batch_seconds": first,
            }
        )
        print(f"depth {depth} {variant:8} {dtype}: {rate['median']:,.0f} images/s", flush=True)
    summary = {
        "images_per_second": rows[0]["images_per_second"]["median"],
        "share_of_on_device": rows[0]["images_per_second"]["median"]
        / rows[0]["on_device_images_per_second"]["median"],
        "first_batch_seconds": rows[0]["first_batch_seconds"],
        "seconds_for_60000": 60_000 / rows[0]["images_per_second"]["median"],
    }
    measure.report(arguments, summary, rows)


def _parse() -> argparse.Namespace:
    parser = measure.parser(__doc__)
    parser.add_argument("--depths", type=int, nargs="+", default=[40])
    parser.add_argument(
        "--variants", nargs="+", choices=measure.VARIANTS, default=[*measure.VARIANTS]
    )
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3, help="times all images are encoded")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.images, arguments.batch, arguments.rounds = 256, 64, 2
    if arguments.batch % (arguments.devices or 1):
        parser.error("--batch must be a multiple of --devices")
    return arguments


if __name__ == "__main__":
    main()
