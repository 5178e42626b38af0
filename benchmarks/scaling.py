"""Weak and strong scaling of training and of sharded search: what is sent, and how long it takes.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --here --coordinator=HOST:PORT --processes=N --process=I

The first starts runs of 1 and 2 processes with 1 to 8 virtual devices in all, each in processes of
its own and all of them several times in turns, and counts without running it the paper's net (40
layers, width 64) on up to 256. The second measures the devices of the run that it is one process
of: the way to measure a cluster. With `--count --topology=v5e:2x4 --dtype=bfloat16` it compiles for
a TPU that is not there. Bytes and calls are those of the compiled program
(`communication.py`). Virtual devices share the cores: on a CPU seconds tell what splitting costs,
not what it gains.

Strong scaling keeps the batch or the database, weak scaling what each device has of it.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # this clone, and `benchmarks`

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.experimental import topologies

from air_jax.runtime import distributed, sharding
from air_jax.search import device_codes, full_ranking
from air_jax.search.device_codes import DeviceCodes
from air_jax.training.optimizer import make_optimizer
from air_jax.training.step import Phase, compile_step, initial_state
from benchmarks import communication, measure

# Processes and devices of each.
LAYOUTS = ["1x1", "1x2", "1x4", "1x8", "2x1", "2x2", "2x4"]
COUNTED = ["1x2", "1x8", "1x32", "1x256"]
PAPER = (40, 64)  # layers, width
PAPER_BATCH = 160
DIMENSION, NEAREST, ITEMS, QUERIES = 128, 100, 30, 64  # of codes; found; ranked; at a time


def main() -> None:
    arguments = _parse()
    if arguments.here:
        _measure_here(arguments)
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(arguments.turns):
            for layout in arguments.layouts[:: -1 if turn % 2 else 1]:
                _add(rows, _run(layout, Path(folder)))
        for layout in arguments.counted:
            _add(rows, _run(layout, Path(folder), "--count"))
    _show(rows)
    measure.report(arguments, _summary(rows), rows)


def _parse() -> argparse.Namespace:
    parser = measure.parser(__doc__)
    parser.add_argument("--layouts", nargs="*", default=LAYOUTS, help="PROCESSESxDEVICES, timed")
    parser.add_argument("--counted", nargs="*", default=COUNTED, help="likewise, only compiled")
    parser.add_argument("--turns", type=int, default=2, help="times that each layout is started")
    parser.add_argument("--rounds", type=int, default=5, help="calls timed each time")
    parser.add_argument("--depth", type=int, default=10)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch", type=int, default=PAPER_BATCH, help="of strong scaling")
    parser.add_argument("--batch-each", type=int, default=40, help="of weak scaling, per device")
    parser.add_argument("--database", type=int, default=48_000, help="codes of strong scaling")
    parser.add_argument("--database-each", type=int, default=12_000, help="of weak, per device")
    parser.add_argument("--here", action="store_true", help="only measure this run's devices")
    parser.add_argument("--count", action="store_true", help="with --here: count, do not time")
    parser.add_argument(
        "--topology", help="with --count: a TPU that need not be there, as v5e:2x4; needs libtpu"
    )
    parser.add_argument("--dtype", default="float32", help="that training computes in")
    parser.add_argument("--coordinator", help="with --here: HOST:PORT of the run's process 0")
    parser.add_argument("--processes", type=int, help="of the run")
    parser.add_argument("--process", type=int, help="this one, from 0")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.layouts, arguments.counted = ["1x1", "1x2", "2x1"], []
        arguments.turns, arguments.rounds = 1, 3
        arguments.batch, arguments.database, arguments.database_each = 40, 6_000, 3_000
    return arguments


def _run(layout: str, folder: Path, *others: str) -> list[dict[str, Any]]:
    """The rows of a run of its own, with this command's flags.

    Raises:
        RuntimeError: it failed; with its last lines.
    """
    processes, devices = map(int, layout.split("x"))
    command = [sys.executable, __file__, *sys.argv[1:], "--here", f"--devices={devices}", *others]
    command += [f"--json={folder / 'rows.json'}"]
    numbered = [command]
    if processes > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command += [f"--coordinator=127.0.0.1:{port}", f"--processes={processes}"]
        numbered = [[*command, f"--process={number}"] for number in range(processes)]
    # The second time a layout is started, and the second process, find its programs compiled.
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "compilations")}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started = [subprocess.Popen(each, env=environment, **pipes) for each in numbered]
    said = [each.communicate()[0] for each in started]
    if any(each.returncode for each in started):
        raise RuntimeError(f"layout {layout} failed:\n" + "\n".join(x[-2000:] for x in said))
    print(f"{layout}: done", flush=True)
    return json.loads((folder / "rows.json").read_text())


def _add(rows: list[dict[str, Any]], more: list[dict[str, Any]]) -> None:
    """Seconds of a layout that was there before join those it had."""
    for new in more:
        for row in rows:
            if all(row[key] == new[key] for key in new if key != "seconds"):
                row["seconds"] += new["seconds"]
                break
        else:
            rows.append(new)


def _show(rows: list[dict[str, Any]]) -> None:
    """Give the rows that were timed a rate, in images/s of training, and print all as markdown."""
    print("| | processes x devices | size | calls | bytes sent by each | images/s or calls/s |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        shown = ""
        if row["seconds"]:
            amount = row["size"] if row["work"] == "train" else 1
            row["rate"] = measure.spread(np.array(row["seconds"]), amount)
            shown = "{median:.3g} ({low:.3g} - {high:.3g})".format(**row["rate"])
        net = f", {row['depth']} layers, width {row['width']}" if row["depth"] else ""
        layout = f"{row['processes']} x {row['devices'] // row['processes']}"
        print(
            f"| {row['work']}, {row['scaling']}{net} | {layout} | {row['size']:,} | "
            f"{row['calls']} | {row['sent_bytes']:,.0f} | {shown} |"
        )


def _summary(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """Of the largest timed run of one process: what is sent, and its rate over one device's."""
    timed = [row for row in rows if row["seconds"] and row["processes"] == 1]
    one = {_kind(row): row["rate"]["median"] for row in timed if row["devices"] == 1}
    most = max(row["devices"] for row in timed)
    summary: dict[str, float | None] = {}
    for row in (row for row in timed if row["devices"] == most):
        name = f"{row['work']}_{row['scaling']}_{most}_devices"
        summary[f"{name}_calls"] = row["calls"]
        summary[f"{name}_sent_bytes"] = row["sent_bytes"]
        alone = one.get(_kind(row))
        summary[f"{name}_rate_over_one"] = alone and row["rate"]["median"] / alone
    return summary


def _kind(row: dict[str, Any]) -> tuple[str, str]:
    return row["work"], row["scaling"]


def _measure_here(arguments: argparse.Namespace) -> None:
    """Measure, or count, on the devices of this run, and write rows to `--json`."""
    measure.set_devices(arguments.devices)
    place = distributed.find_place(arguments.coordinator, arguments.processes, arguments.process)
    distributed.start(place)
    chips = None
    if arguments.topology:
        described = topologies.get_topology_desc(platform="tpu", topology_name=arguments.topology)
        chips = list(described.devices)
    mesh = sharding.make_mesh(chips)
    net = PAPER if arguments.count else (arguments.depth, arguments.width)
    batch_each = PAPER_BATCH if arguments.count else arguments.batch_each
    codes = {"strong": arguments.database, "weak": arguments.database_each * mesh.size}
    sizes = {
        "train": {"strong": arguments.batch, "weak": batch_each * mesh.size},
        "search": codes,
        "ranks": codes,
    }
    rows, runs = [], {}
    cases = [(work, *case) for work, kinds in sizes.items() for case in kinds.items()]
    for work, scaling, size in cases:
        if size % mesh.size:
            continue  # the paper's batch does not divide over so many devices
        if work == "train":
            program, run = _training(*net, size, arguments.dtype, mesh, arguments.count)
        else:
            program, run = _retrieval(work, size, mesh, arguments.count)
        found = communication.collectives(program)
        rows.append(
            {
                "work": work,
                "scaling": scaling,
                "processes": place.processes,
                "devices": mesh.size,
                "size": size,
                "depth": net[0] if work == "train" else None,
                "width": net[1] if work == "train" else None,
                **communication.totals(found),
                "collectives": [each._asdict() for each in found],
                "seconds": [],
            }
        )
        if run:
            runs[work, scaling] = run
    distributed.barrier()  # compiling may take one process longer than others wait for it
    for kind, seconds in measure.seconds_in_turns(runs, arguments.rounds).items():
        next(row for row in rows if _kind(row) == kind)["seconds"] = seconds.tolist()
    if distributed.is_first():
        if arguments.json:
            arguments.json.write_text(json.dumps(rows))
        _show(rows)


def _training(
    depth: int, width: int, batch: int, dtype: str, mesh: jax.sharding.Mesh, count: bool
) -> tuple[str, Callable[[], Any] | None]:
    """The text of the compiled step, and a function that does one, unless it is only to count."""
    config = measure.net_config(
        depth, "pooled", model__width=width, train__batch=batch, train__dtype=dtype
    )
    if count:
        return _compiled_step(config, mesh), None
    state, call, _ = measure.training_step(config, measure.untrained_net(config, mesh), mesh)
    images = np.random.default_rng(0).integers(0, 256, (batch, *measure.IMAGE), np.uint8)
    own = images[distributed.share(batch)]
    images = sharding.put_share(own, sharding.by_rows(mesh))
    key = sharding.put(jax.random.key(0), sharding.replicated(mesh))

    def run() -> None:
        nonlocal state
        state, _ = call(state, images, key)
        jax.block_until_ready(state)

    return call.as_text(), run


def _compiled_step(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh) -> str:
    """The text of the step on a mesh whose devices need not be there."""
    here = sharding.make_mesh(jax.local_devices()[:1])
    net = measure.untrained_net(config, here)
    net = net._replace(mean=np.asarray(net.mean), std=np.asarray(net.std))
    optimizer = make_optimizer(config.train, measure.TOTAL_STEPS)
    state = jax.eval_shape(lambda: initial_state(net, optimizer))
    phase = Phase(0, measure.TOTAL_STEPS, None)
    return compile_step(config, net, state, phase, measure.IMAGE, mesh)[0].as_text()


def _retrieval(
    work: str, size: int, mesh: jax.sharding.Mesh, count: bool
) -> tuple[str, Callable[[], Any] | None]:
    """Likewise of `device_codes.search` or `full_ranking.ranks_by_distance`, for one block."""
    rows, whole = sharding.by_rows(mesh), sharding.replicated(mesh)

    def array(
        shape: tuple[int, ...], where: jax.sharding.Sharding, dtype: Any = jnp.float32
    ) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    database = array((size, DIMENSION), rows), array((size,), rows)
    queries = array((QUERIES, DIMENSION), whole)
    if work == "search":
        block = device_codes._search_block
        lowered = block.lower(queries, *database, k=NEAREST, mesh=mesh)
    else:
        items = array((QUERIES, ITEMS), whole, jnp.int32)
        order = array((size,), whole, jnp.int32)
        lowered = full_ranking._ranks_block.lower(queries, items, order, *database, mesh=mesh)
    program = lowered.compile().as_text()
    if count:
        return program, None
    random = np.random.default_rng(0)
    made = DeviceCodes(random.standard_normal((size, DIMENSION), np.float32), mesh)
    wanted = random.standard_normal((QUERIES, DIMENSION), np.float32)
    if work == "search":
        return program, lambda: device_codes.search(made, wanted, NEAREST)
    ranked = random.integers(0, size, (QUERIES, ITEMS), np.int32)
    return program, lambda: full_ranking.ranks_by_distance(made, wanted, ranked)


if __name__ == "__main__":
    main()
