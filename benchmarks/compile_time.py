"""Seconds to compile the training step: cold, and again with XLA's cache on disk.

    python benchmarks/compile_time.py --depths 10 40 60

Both include tracing and lowering in Python, which the cache does not save.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # this clone, and `benchmarks`

import jax
import numpy as np

from air_jax.configs import default, figure3
from air_jax.runtime import sharding
from air_jax.training import loop, sgd
from benchmarks import measure


def main() -> None:
    arguments = _parse()
    measure.set_devices(arguments.devices)
    mesh = sharding.make_mesh(jax.devices()[: arguments.devices])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    rows = []
    for depth in arguments.depths:
        for variant, net in measure.VARIANTS.items():
            with tempfile.TemporaryDirectory() as cache:
                jax.config.update("jax_compilation_cache_dir", cache)
                jax.experimental.compilation_cache.compilation_cache.reset_cache()
                cold = _seconds(f"depth{depth}/{net}", arguments, mesh)
                warm = _seconds(f"depth{depth}/{net}", arguments, mesh)
            rows.append({"depth": depth, "variant": variant, "cold": cold, "warm": warm})
            print(f"depth {depth} {variant:8}: cold {cold:.1f} s, warm {warm:.1f} s", flush=True)
    summary = {}
    for depth in arguments.depths:
        for kind in ("cold", "warm"):
            slowest = max(row[kind] for row in rows if row["depth"] == depth)
            summary[f"depth{depth}_{kind}_seconds"] = slowest
    measure.report(arguments, summary, rows)


def _seconds(net_name: str, arguments: argparse.Namespace, mesh: jax.sharding.Mesh) -> float:
    jax.clear_caches()
    config = default.get_config()
    config.update(figure3.nets()[net_name])
    config.model.width, config.train.batch = arguments.width, arguments.batch
    half = np.full(3, 0.5, np.float32)
    net = loop.new_net(config, (32, 32, 3), half, half / 2, mesh)
    state = sgd.initial_state(net, sgd.make_optimizer(config.train, 1000), mesh)
    phase = sgd.Phase(0, 1000, None)
    return sgd.compile_step(config, net, state, phase, (32, 32, 3), mesh)[1]


def _parse() -> argparse.Namespace:
    parser = measure.parser(__doc__)
    parser.add_argument("--depths", type=int, nargs="+", default=[10, 40, 60])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=160)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.depths = [10, 40]
    return arguments


if __name__ == "__main__":
    main()
