"""What the benchmarks share: flags, timing in turns, the machine they ran on, and their JSON."""

import argparse
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from air_jax.configs import default, figure3
from air_jax.models.net import Net
from air_jax.runtime import cpu, sharding
from air_jax.training import loop
from air_jax.training.optimizer import make_optimizer
from air_jax.training.step import Phase, TrainState, compile_step, initial_state

IMAGE = (32, 32, 3)
TOTAL_STEPS = 1000  # of the learning rate's schedule
VARIANTS = {"unpooled": "asymmetric", "pooled": "asymmetric-pool"}  # nets of Figure 3
MATRIX = {"cpu": 2048, "gpu": 8192, "tpu": 8192}  # side of the product that measures the ceiling


def parser(description: str | None) -> argparse.ArgumentParser:
    """With the flags that every benchmark takes."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--quick", action="store_true", help="at most a minute on two cores")
    made.add_argument("--json", type=Path, help="write what was found to this file")
    made.add_argument(
        "--devices", type=int, help="devices to use; default: all. On a CPU they are virtual"
    )
    return made


def set_devices(count: int | None) -> None:
    """Make so many virtual CPU devices; before JAX first looks for devices."""
    if count and os.environ.get("JAX_PLATFORMS", "cpu") == "cpu":
        jax.config.update("jax_num_cpu_devices", count)


def make_mesh(count: int | None) -> jax.sharding.Mesh:
    """A mesh of so many devices, virtual ones on a CPU; of all devices for None."""
    set_devices(count)
    return sharding.make_mesh(jax.devices()[:count])


def net_config(depth: int, variant: str, **changes: Any) -> ml_collections.ConfigDict:
    """The default config with a net of Figure 3.

    Args:
        depth: one of `figure3.DEPTHS`.
        variant: one of `VARIANTS`.
        changes: values by key, with two underscores for the dot: `train__batch=4`.
    """
    config = default.get_config()
    config.update(figure3.nets()[f"depth{depth}/{VARIANTS[variant]}"])
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


def untrained_net(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh) -> Net:
    """A net for 32x32 colour images whose pixels have mean 0.5 and deviation 0.25."""
    half = np.full(3, 0.5, np.float32)
    return loop.new_net(config, IMAGE, half, half / 2, mesh)


def training_step(
    config: ml_collections.ConfigDict,
    net: Net,
    mesh: jax.sharding.Mesh,
    steps: int = 1,
    resident_images: int = 0,
) -> tuple[TrainState, jax.stages.Compiled, float]:
    """A state to start from, `step.compile_step`'s call, and the seconds that compiling took.

    From here on memory is kept as `loop.train` keeps it, which makes peers faster, too.
    """
    cpu.keep_freed_memory()
    optimizer = make_optimizer(config.train, TOTAL_STEPS)
    state = jax.jit(initial_state, static_argnums=1)(net, optimizer)
    whole = Phase(0, TOTAL_STEPS, None)
    call, seconds = compile_step(config, net, state, whole, IMAGE, mesh, steps, resident_images)
    return state, call, seconds


def seconds_in_turns(
    work: dict[str, Callable[[], Any]], rounds: int, warm_up: int = 2
) -> dict[str, np.ndarray]:
    """Time functions alternately, so that what else the machine does falls on all of them.

    Args:
        work: by name; each returns when its work is done, not when it is started.
        rounds: how often each is timed.
        warm_up: calls before that, not timed.

    Returns:
        Seconds of each call, by name, float64 [rounds].
    """
    for run in work.values():
        for _ in range(warm_up):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, run in work.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return {name: np.array(values) for name, values in seconds.items()}


def spread(seconds: np.ndarray, amount: float) -> dict[str, float]:
    """Median rate of `amount` per call, and its quartiles: {"median", "low", "high"}."""
    low, median, high = np.percentile(amount / seconds, [25, 50, 75])
    return {"median": float(median), "low": float(low), "high": float(high)}


def matmul_flops(dtype: str, rounds: int = 10) -> float:
    """FLOP/s of a large matrix product on one device: the ceiling that shares refer to."""
    side = MATRIX[jax.default_backend()]
    matrix = jnp.ones((side, side), dtype)
    multiply = jax.jit(lambda a: a @ a)
    work = {"matmul": lambda: jax.block_until_ready(multiply(matrix))}
    return 2 * side**3 / float(np.median(seconds_in_turns(work, rounds)["matmul"]))


def machine() -> dict[str, Any]:
    """Where this runs: processor, devices, versions, flags."""
    names = ("jax", "jaxlib", "flax", "optax", "numpy", "torch")
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "devices": [device.device_kind for device in jax.devices()],
        "python": platform.python_version(),
        "versions": versions,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "unknown")


def report(
    arguments: argparse.Namespace,
    summary: dict[str, float | None],
    rows: list[dict[str, Any]],
    **others: Any,
) -> None:
    """Print the summary, and write it with all rows and the machine to `--json`.

    Args:
        arguments: parsed ones.
        summary: the figures by name; None for what was not measured.
        rows: one for each thing that was timed.
        others: what else is to be written.
    """
    for name, value in summary.items():
        print(f"{name:32} {'not measured' if value is None else f'{value:,.4g}'}")
    if arguments.json:
        content = {"summary": summary, "arguments": vars(arguments), "machine": machine(), **others}
        content["rows"] = rows
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(content, indent=2, default=str) + "\n")
