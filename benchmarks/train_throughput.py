"""Images per second of the training step, and its ratio to PyTorch on the same net.

    python benchmarks/train_throughput.py --peer=torch
    python benchmarks/train_throughput.py --depths 40 --batches 150 600 2400 --dtype=bfloat16

Times `sgd.compile_step` as training calls it: standardisation, forward, backward, clipping, update,
and the metrics, of a batch that is on the device. One dispatch is one step. Compilation, warm-up
and input are left out; `input_pipeline.py` times the input.
"""

import argparse
import itertools
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # this clone, and `benchmarks`

import jax
import ml_collections
import numpy as np
from air_jax.configs import default, figure3

from air_jax import models, sgd, sharding, train
from benchmarks import measure

TOTAL_STEPS = 1000  # of the learning rate's schedule
CHECKED_STEPS = 10
TOLERANCE = {"float32": 0.01, "bfloat16": 0.05}  # of the loss after them


def main() -> None:
    arguments = _parse()
    measure.set_devices(arguments.devices)
    mesh = sharding.make_mesh(jax.devices()[: arguments.devices])
    peers = [None] if arguments.peer is None else [None, arguments.peer]
    ceiling = measure.matmul_flops(arguments.dtype)
    print(f"matrix product, {arguments.dtype}: {ceiling / 1e12:.3g} TFLOP/s a device")
    rows: list[dict[str, Any]] = []
    for depth, variant, batch in itertools.product(
        arguments.depths, arguments.variants, arguments.batches
    ):
        rows += _measure(arguments, depth, variant, batch, mesh, peers, ceiling)
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
    measure.report(arguments, summary, rows)


def _parse() -> argparse.Namespace:
    parser = measure.parser(__doc__)
    parser.add_argument("--depths", type=int, nargs="+", default=[10])
    parser.add_argument(
        "--variants", nargs="+", choices=measure.VARIANTS, default=[*measure.VARIANTS]
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[150])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--dtype", choices=TOLERANCE, default="float32")
    parser.add_argument("--rounds", type=int, default=15, help="steps timed of each")
    parser.add_argument("--peer", choices=["torch"], help="time PyTorch's step in turns with ours")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds = min(arguments.rounds, 3)
        arguments.batches = [16]
    return arguments


def _measure(
    arguments: argparse.Namespace,
    depth: int,
    variant: str,
    batch: int,
    mesh: jax.sharding.Mesh,
    peers: list[str | None],
    ceiling: float,
) -> list[dict[str, Any]]:
    config = default.get_config()
    config.update(figure3.nets()[f"depth{depth}/{measure.VARIANTS[variant]}"])
    config.model.width = arguments.width
    config.train.batch, config.train.dtype = batch, arguments.dtype
    images = _images(batch)
    half = np.full(3, 0.5, np.float32)
    net = train.new_net(config, images.shape[1:], half, half / 2, mesh)
    run, made = _our_step(config, net, images, mesh)
    steps = {None: run}
    if "torch" in peers:
        steps["torch"], parameters = _torch_step(config, net, images)
        if parameters != models.count_parameters(net.params):
            raise ValueError(f"PyTorch trains {parameters:,} parameters, we {made['parameters']:,}")
        _check_losses(run, steps["torch"], arguments.dtype)
    times = measure.seconds_in_turns(steps, arguments.rounds, warm_up=0 if peers[1:] else 3)
    flops = 6 * models.multiplications(**config.model, image_shape=images.shape[1:])
    rows = []
    for peer, seconds in times.items():
        rate = measure.spread(seconds, batch)
        rows.append(
            {
                "peer": peer,
                "depth": depth,
                "variant": variant,
                "batch": batch,
                "dtype": arguments.dtype,
                "devices": mesh.size,
                "steps_per_call": 1,
                "images_per_second": rate,
                "flops_per_image": flops,
                "tflops": rate["median"] * flops / 1e12,
                # Virtual CPU devices share the cores, so the ceiling is of the machine.
                "share_of_ceiling": rate["median"]
                * flops
                / (ceiling * (1 if jax.default_backend() == "cpu" else mesh.size)),
            }
        )
        rows[-1] |= made if peer is None else {"parameters": made["parameters"]}
        print(
            f"{peer or 'air_jax':8} depth {depth} {variant:8} batch {batch} {arguments.dtype}: "
            f"{rate['median']:,.1f} images/s ({rate['low']:,.1f} to {rate['high']:,.1f})",
            flush=True,
        )
    theirs = times.get("torch")
    rows[0]["ratio_to_torch"] = (
        None if theirs is None else float(np.median(theirs) / np.median(times[None]))
    )
    rows[0]["watts"] = _watts(run)
    return rows


def _images(batch: int) -> np.ndarray:
    """Smooth coloured blobs [batch, 32, 32, 3] uint8: a net learns on them as on photographs."""
    coarse = np.random.default_rng(0).random((batch, 5, 5, 3))
    at = np.linspace(0, 3.999, 32)
    low, part = at.astype(int), at % 1
    rows = coarse[:, low] * (1 - part)[:, None, None] + coarse[:, low + 1] * part[:, None, None]
    both = rows[:, :, low] * (1 - part)[:, None] + rows[:, :, low + 1] * part[:, None]
    return (255 * both).astype(np.uint8)


def _our_step(
    config: ml_collections.ConfigDict, net: models.Net, images: np.ndarray, mesh: jax.sharding.Mesh
) -> tuple[Callable[[], float], dict[str, Any]]:
    """A function that trains one step and returns its loss; and what is known without timing."""
    state = sgd.initial_state(net, sgd.make_optimizer(config.train, TOTAL_STEPS), mesh)
    phase = sgd.Phase(0, TOTAL_STEPS, None)
    step, seconds = sgd.compile_step(config, net, state, phase, images.shape[1:], mesh)
    batch = jax.device_put(images, sharding.by_rows(mesh))
    key = jax.device_put(jax.random.key(0), sharding.replicated(mesh))

    def run() -> float:
        nonlocal state
        state, metrics = step(state, batch, key)
        jax.block_until_ready(state)
        return float(metrics["loss"])

    memory = step.memory_analysis()
    return run, {
        "compile_seconds": seconds,
        "parameters": models.count_parameters(net.params),
        "peak_bytes_of_each_device": memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes,
    }


def _torch_step(
    config: ml_collections.ConfigDict, net: models.Net, images: np.ndarray
) -> tuple[Callable[[], float], int]:
    """As `_our_step` in PyTorch, the batch on the device too; and the number of parameters."""
    import torch  # only with --peer

    from benchmarks import torch_peer

    step, parameters = torch_peer.make_step(net, config, TOTAL_STEPS)
    batch = torch.from_numpy(images).to("cuda" if torch.cuda.is_available() else "cpu")
    return lambda: float(step(batch)), parameters


def _check_losses(ours: Callable[[], float], theirs: Callable[[], float], dtype: str) -> None:
    """Raise ValueError unless both reach the same loss from the same weights."""
    for _ in range(CHECKED_STEPS):
        pair = ours(), theirs()
    if abs(pair[0] / pair[1] - 1) > TOLERANCE[dtype]:
        raise ValueError(
            f"after {CHECKED_STEPS} steps our loss is {pair[0]:.5f}, PyTorch's {pair[1]:.5f}: "
            "they do not train the same net"
        )
    print(f"loss after {CHECKED_STEPS} steps: {pair[0]:.5f}, PyTorch {pair[1]:.5f}")


def _watts(run: Callable[[], float]) -> float | None:
    """Power draw of the first GPU after a few steps; None where it cannot be read."""
    if jax.default_backend() != "gpu" or not shutil.which("nvidia-smi"):
        return None
    for _ in range(5):
        run()
    query = ["nvidia-smi", "--query-gpu=power.draw", "--format=csv,noheader,nounits"]
    found = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    return float(found[0]) if found else None


if __name__ == "__main__":
    main()
