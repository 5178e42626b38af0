"""Views per second of the step that compares views of images, and its ratio to PyTorch.

    python benchmarks/views_throughput.py --peer=torch
    python benchmarks/views_throughput.py --dtype=bfloat16 --batches 256 1024 --config=contrastive

Times `step.compile_step` as training calls it: random views, forward, loss, backward, update and
metrics, of a batch of images that is on the device. The peer is the same net from the same weights;
the benchmark stops unless both losses of the same views agree. All are timed in turns. `--parts`
times the views, the forward pass and the loss alone as well.
"""

import argparse
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # this clone, and `benchmarks`

import jax
import ml_collections
import numpy as np
from flax import nnx
from threadpoolctl import threadpool_limits

from air_jax.data import augmentation
from air_jax.models.net import Net, architecture_of, count_parameters
from air_jax.runtime import sharding
from air_jax.training import objectives
from benchmarks import measure

PEERS = ("torch", "torch compiled")
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05}  # of the loss of the same views


def main() -> None:
    arguments = _parse()
    mesh = measure.make_mesh(arguments.devices)
    ceiling = measure.matmul_flops(arguments.dtype)
    rows: list[dict[str, Any]] = []
    with threadpool_limits(1, user_api="blas"):  # as `loop.train` does
        for batch in arguments.batches:
            rows += _measure(arguments, batch, mesh, ceiling)
    first = rows[0]
    summary = {
        "views_per_second": first["views_per_second"]["median"],
        "share_of_ceiling": first["share_of_ceiling"],
        "share_of_views": first.get("share_of_views"),
        "compile_seconds": first["compile_seconds"],
    }
    for peer in PEERS:
        found = next((row for row in rows if row["name"] == peer), None)
        summary[f"ratio_to_{peer.replace(' ', '_')}"] = found and found["ours_times_as_fast"]
    measure.report(arguments, summary, rows, limits={"matmul_flops": ceiling})


def _parse() -> argparse.Namespace:
    parser = measure.parser(__doc__)
    parser.add_argument("--config", default="contrastive_small", help="a config of air_jax's")
    parser.add_argument("--batches", type=int, nargs="+", default=[256], help="images in a batch")
    parser.add_argument("--dtype", choices=TOLERANCE, default="float32")
    parser.add_argument("--rounds", type=int, default=15, help="steps timed of each")
    parser.add_argument("--parts", action="store_true", help="time parts of the step alone, too")
    parser.add_argument("--peer", choices=["torch"], help="time PyTorch's step in turns with ours")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds = min(arguments.rounds, 3)
        arguments.batches = [16]
    return arguments


def _measure(
    arguments: argparse.Namespace, batch: int, mesh: jax.sharding.Mesh, ceiling: float
) -> list[dict[str, Any]]:
    config = import_module(f"air_jax.configs.{arguments.config}").get_config()
    config.train.batch, config.train.dtype = batch, arguments.dtype
    net = measure.untrained_net(config, mesh)
    images = np.random.default_rng(0).integers(0, 256, (batch, *measure.IMAGE), np.uint8)
    rows = sharding.put(images, sharding.by_rows(mesh))
    runs, compile_seconds = _our_step(config, net, rows, mesh)
    if arguments.parts:
        runs |= _parts(config, net, rows)
    if arguments.peer:
        runs |= _torch_steps(config, net, images)
    times = measure.seconds_in_turns(runs, arguments.rounds)
    size = config.train.view_size or measure.IMAGE[0]
    flops = 6 * architecture_of(config.model, (size, size, 3)).multiplications()
    ours = float(np.median(times["air_jax"]))
    found = []
    for name, seconds in times.items():
        rate = measure.spread(seconds, batch * config.train.views)
        found.append(
            {
                "name": name,
                "batch": batch,
                "views": config.train.views,
                "dtype": arguments.dtype,
                "devices": mesh.size,
                "parameters": count_parameters(net.params),
                "views_per_second": rate,
                "ours_times_as_fast": float(np.median(seconds)) / ours,
            }
        )
        print(
            f"{name:16} batch {batch}: {rate['median']:,.0f} views/s "
            f"({rate['low']:,.0f} to {rate['high']:,.0f})",
            flush=True,
        )
    devices = 1 if jax.default_backend() == "cpu" else mesh.size
    found[0] |= {
        "compile_seconds": compile_seconds,
        "flops_per_view": flops,
        "share_of_ceiling": found[0]["views_per_second"]["median"] * flops / (ceiling * devices),
    }
    if arguments.parts:
        found[0]["share_of_views"] = float(np.median(times["views alone"])) / ours
    return found


def _our_step(
    config: ml_collections.ConfigDict, net: Net, images: jax.Array, mesh: jax.sharding.Mesh
) -> tuple[dict[str, Callable[[], Any]], float]:
    state, call, seconds = measure.training_step(config, net, mesh)
    key = jax.device_put(jax.random.key(0), sharding.replicated(mesh))

    def run() -> None:
        nonlocal state
        state, _ = call(state, images, key)
        jax.block_until_ready(state)

    return {"air_jax": run}, seconds


def _parts(
    config: ml_collections.ConfigDict, net: Net, images: jax.Array
) -> dict[str, Callable[[], Any]]:
    """Parts of the step as programs of their own; in the step XLA may fuse them with others."""
    train = config.train
    make = jax.jit(
        lambda images, key: augmentation.random_views(
            images,
            key,
            views=train.views,
            size=train.view_size or images.shape[1],
            area=tuple(train.view_area),
        )
    )
    views = make(images, jax.random.key(0))
    forward = jax.jit(lambda params, views: _forward(net, params, views)[1])
    embeddings = forward(net.params, views)
    z = embeddings.reshape(len(images), train.views, -1)
    loss = jax.jit(jax.value_and_grad(objectives.OF_VIEWS[train.objective]))
    return {
        "views alone": lambda: jax.block_until_ready(make(images, jax.random.key(0))),
        "forward alone": lambda: jax.block_until_ready(forward(net.params, views)),
        "loss alone": lambda: jax.block_until_ready(loss(z)),
    }


def _forward(net: Net, params: nnx.State, views: jax.Array) -> tuple[jax.Array, jax.Array]:
    model = nnx.merge(net.graphdef, params, net.stats, copy=True)
    model.train()
    return model(net.standardise_pixels(views.reshape(-1, *views.shape[2:])))


def _torch_steps(
    config: ml_collections.ConfigDict, net: Net, images: np.ndarray
) -> dict[str, Callable[[], Any]]:
    """PyTorch's steps, after a check that both compute the same loss of the same views."""
    import torch  # only with --peer

    from benchmarks import torch_views_peer

    made = np.random.default_rng(1).random((len(images), config.train.views, 16, 16, 3))
    made = made.astype(np.float32)
    embeddings = np.asarray(_forward(net, net.params, made)[1], np.float32)
    z = embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)
    ours = float(objectives.contrastive(z.reshape(len(images), config.train.views, -1)))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = torch.from_numpy(images).to(device)
    runs = {}
    for name in PEERS:
        step, peer = torch_views_peer.make_step(
            net, config, measure.TOTAL_STEPS, compiled=name.endswith("compiled")
        )
        with torch.no_grad():
            theirs = float(peer.loss(torch.from_numpy(made).to(device)))
        if abs(ours / theirs - 1) > TOLERANCE[config.train.dtype]:
            raise ValueError(
                f"our loss of the same views is {ours:.5f}, PyTorch's {theirs:.5f}: they do not "
                "train the same net"
            )
        counted = sum(p.numel() for p in peer.parameters())
        if counted != count_parameters(net.params):
            raise ValueError(
                f"PyTorch trains {counted:,} parameters, we {count_parameters(net.params):,}"
            )
        runs[name] = lambda step=step: float(step(batch))
    return runs


if __name__ == "__main__":
    main()
