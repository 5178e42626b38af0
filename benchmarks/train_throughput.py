"""Images per second of the training step, and its ratio to PyTorch on the same net.

    python benchmarks/train_throughput.py --peer=torch
    python benchmarks/train_throughput.py --depths 40 --batches 150 600 2400 --dtype=bfloat16
    python benchmarks/train_throughput.py --depths 40 --steps-per-call 1 16 --remat off on

Times `step.compile_step` as training calls it: standardisation, forward, backward, clipping,
update, and the metrics, of a batch that is on the device. With several steps in a call the images
are also picked out of a set on the device. Compilation, warm-up and input are left out;
`input_pipeline.py` times the input. All ways of one net, and the peer, are timed in turns.
"""

import argparse
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))  # this clone, and `benchmarks`

import jax
import ml_collections
import numpy as np

from air_jax.data.loaders import make_loader
from air_jax.models.net import Net, architecture_of, count_parameters
from air_jax.runtime import sharding
from benchmarks import measure

CHECKED_STEPS = 10
TOLERANCE = {"float32": 0.01, "bfloat16": 0.05}  # of the loss after them


def main() -> None:
    arguments = _parse()
    mesh = measure.make_mesh(arguments.devices)
    ceiling = measure.matmul_flops(arguments.dtype)
    print(f"a device multiplies at {ceiling / 1e12:.3g} TFLOP/s ({arguments.dtype})")
    rows: list[dict[str, Any]] = []
    for depth, variant, batch in itertools.product(
        arguments.depths, arguments.variants, arguments.batches
    ):
        rows += _measure(arguments, depth, variant, batch, mesh, ceiling)
    ours = [row for row in rows if row["peer"] is None]
    first = ours[0]
    summary = {
        f"ratio_to_torch_{variant}": next(
            (row["ratio_to_torch"] for row in ours if row["variant"] == variant), None
        )
        for variant in measure.VARIANTS
    }
    summary |= {
        "images_per_second": first["images_per_second"]["median"],
        "share_of_ceiling": first["share_of_ceiling"],
        "compile_seconds": first["compile_seconds"],
    }
    measure.report(arguments, summary, rows, limits={"matmul_flops": ceiling})


def _parse() -> argparse.Namespace:
    parser = measure.parser(__doc__)
    parser.add_argument("--depths", type=int, nargs="+", default=[10])
    parser.add_argument(
        "--variants", nargs="+", choices=measure.VARIANTS, default=[*measure.VARIANTS]
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[150])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--dtype", choices=TOLERANCE, default="float32")
    parser.add_argument(
        "--steps-per-call", type=int, nargs="+", default=[1], help="ways to time in turns"
    )
    parser.add_argument(
        "--remat", nargs="+", choices=["off", "on"], default=["off"], help="likewise"
    )
    parser.add_argument("--rounds", type=int, default=15, help="calls timed of each")
    parser.add_argument("--peer", choices=["torch"], help="time PyTorch's step in turns with ours")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds = min(arguments.rounds, 3)
        arguments.batches = [16]
    return arguments


class Way(NamedTuple):
    """One way to train the same net.

    Attributes:
        peer: whose step it is; None: ours.
        steps_per_call: of ours.
        remat: of ours.
    """

    peer: str | None = None
    steps_per_call: int = 1
    remat: bool = False

    def __str__(self) -> str:
        if self.peer:
            return self.peer
        return f"air_jax x{self.steps_per_call}" + (" remat" if self.remat else "")


def _measure(
    arguments: argparse.Namespace,
    depth: int,
    variant: str,
    batch: int,
    mesh: jax.sharding.Mesh,
    ceiling: float,
) -> list[dict[str, Any]]:
    config = measure.net_config(
        depth,
        variant,
        model__width=arguments.width,
        train__batch=batch,
        train__dtype=arguments.dtype,
    )
    images = _images(batch)
    runs: dict[Way, Callable[[], float]] = {}
    made: dict[Way, dict[str, Any]] = {}
    for remat, steps in itertools.product(arguments.remat, arguments.steps_per_call):
        config.train.remat = remat == "on"
        net = measure.untrained_net(config, mesh)
        way = Way(None, steps, config.train.remat)
        runs[way], made[way] = _our_steps(config, net, images, mesh, steps)
    first = next(iter(runs))
    parameters = count_parameters(net.params)
    if arguments.peer:
        peer = Way(arguments.peer)
        runs[peer], theirs = _torch_step(config, net, images)
        if theirs != parameters:
            raise ValueError(f"PyTorch trains {theirs:,} parameters, we {parameters:,}")
        _check_losses(runs[first], runs[peer], arguments.dtype, first.steps_per_call)
    times = measure.seconds_in_turns(runs, arguments.rounds, warm_up=1 if arguments.peer else 3)
    flops = 6 * architecture_of(config.model, measure.IMAGE).multiplications()
    # Virtual CPU devices share the cores, so the ceiling is of the machine.
    devices = 1 if jax.default_backend() == "cpu" else mesh.size
    rows = []
    for way, seconds in times.items():
        rate = measure.spread(seconds, batch * way.steps_per_call)
        peer_seconds = times.get(Way(arguments.peer)) if arguments.peer else None
        rows.append(
            {
                "peer": way.peer,
                "depth": depth,
                "variant": variant,
                "batch": batch,
                "dtype": arguments.dtype,
                "devices": mesh.size,
                "steps_per_call": way.steps_per_call,
                "remat": way.remat,
                "parameters": parameters,
                "images_per_second": rate,
                "flops_per_image": flops,
                "tflops": rate["median"] * flops / 1e12,
                "share_of_ceiling": rate["median"] * flops / (ceiling * devices),
                "ratio_to_torch": None
                if way.peer or peer_seconds is None
                else float(np.median(peer_seconds) / np.median(seconds)) * way.steps_per_call,
            }
            | made.get(way, {})
        )
        print(
            f"{way!s:16} depth {depth} {variant:8} batch {batch} {arguments.dtype}: "
            f"{rate['median']:,.1f} images/s ({rate['low']:,.1f} to {rate['high']:,.1f})",
            flush=True,
        )
    return rows


def _images(batch: int) -> np.ndarray:
    """Smooth coloured blobs [batch, 32, 32, 3] uint8: a net learns on them as on photographs."""
    coarse = np.random.default_rng(0).random((batch, 5, 5, 3))
    at = np.linspace(0, 3.999, 32)
    low, part = at.astype(int), at % 1
    rows = coarse[:, low] * (1 - part)[:, None, None] + coarse[:, low + 1] * part[:, None, None]
    both = rows[:, :, low] * (1 - part)[:, None] + rows[:, :, low + 1] * part[:, None]
    return (255 * both).astype(np.uint8)


def _our_steps(
    config: ml_collections.ConfigDict,
    net: Net,
    images: np.ndarray,
    mesh: jax.sharding.Mesh,
    steps: int,
) -> tuple[Callable[[], float], dict[str, Any]]:
    """A function that makes one call and returns its last loss; what is known without timing."""
    state, call, seconds = measure.training_step(config, net, mesh, steps, len(images))
    key = jax.random.key(0)
    load = make_loader("resident", images, len(images), 0, mesh, 1, steps)
    batch = next(iter(load(0, steps)))  # every batch is the whole set; the order does not matter
    key = jax.device_put(key, sharding.replicated(mesh))

    def run() -> float:
        nonlocal state
        state, metrics = call(state, batch, key)
        jax.block_until_ready(state)
        return float(metrics["loss"][-1])

    memory = call.memory_analysis()
    return run, {
        "compile_seconds": seconds,
        "peak_bytes_of_each_device": memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes,
    }


def _torch_step(
    config: ml_collections.ConfigDict, net: Net, images: np.ndarray
) -> tuple[Callable[[], float], int]:
    """As `_our_steps` in PyTorch, the batch on the device too; and the number of parameters."""
    import torch  # only with --peer

    from benchmarks import torch_peer

    step, parameters = torch_peer.make_step(net, config, measure.TOTAL_STEPS)
    batch = torch.from_numpy(images).to("cuda" if torch.cuda.is_available() else "cpu")
    return lambda: float(step(batch)), parameters


def _check_losses(
    ours: Callable[[], float], theirs: Callable[[], float], dtype: str, steps_per_call: int
) -> None:
    """Raise ValueError unless both reach the same loss from the same weights."""
    calls = -(-CHECKED_STEPS // steps_per_call)
    steps = calls * steps_per_call
    ours = [ours() for _ in range(calls)][-1]
    theirs = [theirs() for _ in range(steps)][-1]
    if abs(ours / theirs - 1) > TOLERANCE[dtype]:
        raise ValueError(
            f"after {steps} steps our loss is {ours:.5f}, PyTorch's {theirs:.5f}: "
            "they do not train the same net"
        )
    print(f"loss after {steps} steps: {ours:.5f}, PyTorch {theirs:.5f}")


if __name__ == "__main__":
    main()
