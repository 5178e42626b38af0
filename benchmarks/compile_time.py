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

from benchmarks import measure


def main() -> None:
    arguments = _parse()
    mesh = measure.make_mesh(arguments.devices)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    rows = []
    for depth in arguments.depths:
        for variant in measure.VARIANTS:
            with tempfile.TemporaryDirectory() as cache:
                jax.config.update("jax_compilation_cache_dir", cache)
                jax.experimental.compilation_cache.compilation_cache.reset_cache()
                cold = _seconds(depth, variant, arguments, mesh)
                warm = _seconds(depth, variant, arguments, mesh)
            rows.append({"depth": depth, "variant": variant, "cold": cold, "warm": warm})
            print(f"depth {depth} {variant:8}: cold {cold:.1f} s, warm {warm:.1f} s", flush=True)
    summary = {}
    for depth in arguments.depths:
        for kind in ("cold", "warm"):
            slowest = max(row[kind] for row in rows if row["depth"] == depth)
            summary[f"depth{depth}_{kind}_seconds"] = slowest
    measure.report(arguments, summary, rows)


def _seconds(
    depth: int, variant: str, arguments: argparse.Namespace, mesh: jax.sharding.Mesh
) -> float:
    jax.clear_caches()
    config = measure.net_config(
        depth, variant, model__width=arguments.width, train__batch=arguments.batch
    )
    _, _, seconds = measure.training_step(config, measure.untrained_net(config, mesh), mesh)
    return seconds


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
