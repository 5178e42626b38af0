"""What the counts of `scaling.py` say about accelerators that are not at hand: docs/scaling.md.

    python benchmarks/scaling_plan.py benchmarks/results/scaling_cpu.json docs/scaling.md

Writes the page's tables and sentences with numbers in their places in it, which comments mark, and
draws its picture, scaling.png beside it. A plain model: a step takes as long as its
multiplications or its kernels, whichever is longer, then as long as its collectives; or, where
they overlap, the backward pass hides them. All that it assumes is in `ASSUMED`.
"""

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # this clone, and `benchmarks`

import matplotlib
import numpy as np

from air_jax.configs import depth40
from air_jax.models import autoencoder
from benchmarks import scaling

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# By name: value, unit, where it comes from.
ASSUMED = {
    "peak": (790e12, "FLOP/s", "bfloat16 product on an H200, measured for this project elsewhere"),
    "efficiency": (0.36, "of peak", "the lower end of airbench's, an A100; ours is not measured"),
    "kernels": (315, "a step", "fusions of the step, compiled for TPU v5e (libtpu 0.0.52)"),
    "kernel": (3e-6, "s, the shortest", "a guess: small kernels in a CUDA graph"),
    "memory": (4.3e12, "bytes/s", "copy on an H200, measured for this project elsewhere"),
    "capacity": (141e9, "bytes", "an H200's memory, NVIDIA's figure"),
    "float32": (67e12, "FLOP/s", "an H200's float32 without tensor cores, NVIDIA's figure"),
    "host": (8, "accelerators", "of an NVIDIA HGX board"),
    "nvlink": (450e9, "bytes/s each way", "NVLink 4: 900 GB/s both ways, NVIDIA's figure"),
    "network": (400e9, "bytes/s each way", "a host's eight links of 400 Gbit/s, one to a ring"),
    "reached": (0.8, "of a link", "a guess: what large collectives reach"),
    "call": (14e-6, "s a collective", "NCCL's cost model (tuning.cc, LL128)"),
    "ring_nvlink": (1.9e-6, "s a hop", "likewise"),
    "ring_network": (4.0e-6, "s a hop", "likewise"),
    "tree_nvlink": (1.25e-6, "s a hop", "likewise; all-reduces take ring or tree"),
    "tree_network": (8.5e-6, "s a hop", "likewise"),
}
DEVICES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
(DEPTH, WIDTH), BATCH = scaling.PAPER, scaling.PAPER_BATCH
INTERACTIVE = 0.2  # seconds a query may take
DIMENSION, QUERIES = scaling.DIMENSION, scaling.QUERIES
SCORE_PASSES = 3  # a score is written, read for its group's maximum, and some are read again


def given(name: str) -> float:
    return ASSUMED[name][0]


def collective_seconds(kind: str, payload: float, devices: int, calls: float = 1) -> float:
    """Of `calls` collectives of `payload` bytes in all, over hosts of eight.

    Args:
        kind: "all-reduce", whose devices take a ring or a tree, or "all-gather", a ring.
        payload: bytes on each device that are reduced, or that are there afterwards.
        devices: that take part.
        calls: collectives that the payload is spread over.
    """
    if devices == 1:
        return 0.0
    hosts = math.ceil(devices / given("host"))
    rounds = 2 if kind == "all-reduce" else 1
    link = given("nvlink") if hosts == 1 else min(given("nvlink"), given("network"))
    sending = rounds * (devices - 1) / devices * payload / (link * given("reached"))
    between = hosts if hosts > 1 else 0  # hops of a ring that leave a host
    ring = rounds * (
        (devices - 1 - between) * given("ring_nvlink") + between * given("ring_network")
    )
    within = min(devices, given("host")) - 1
    tree = 2 * (within * given("tree_nvlink") + math.ceil(math.log2(hosts)) * given("tree_network"))
    hops = min(ring, tree) if kind == "all-reduce" else ring
    return sending + calls * (given("call") + hops)


def flops_per_image() -> int:
    """Of a training step of the paper's net: forward and twice as much backward."""
    return 6 * autoencoder.multiplications(**depth40.get_config().model, image_shape=(32, 32, 3))


def step_seconds(batch_each: float, devices: int, train: dict[str, Any]) -> dict[str, float]:
    """{"computing", "sending", "apart", "overlapped"}: a step's, by what `scaling.py` counted."""
    computing = max(
        batch_each * flops_per_image() / (given("peak") * given("efficiency")),
        given("kernels") * given("kernel"),
    )
    sending = collective_seconds("all-reduce", train["payload_bytes"], devices, train["calls"])
    forward, backward = computing / 3, computing * 2 / 3
    return {
        "computing": computing,
        "sending": sending,
        "apart": computing + sending,
        "overlapped": forward + max(backward, sending),
    }


def search_seconds(size: float, queries: int, devices: int, search: dict[str, Any]) -> float:
    """Of exact sharded search for a block of queries in `size` codes."""
    each = size / devices
    row = 4 * (DIMENSION + 1) + 4 * SCORE_PASSES * queries  # code, norm, scores
    scoring = max(each * row / given("memory"), each * 2 * DIMENSION * queries / given("float32"))
    # Counted: bytes of all devices' candidates for a block of QUERIES.
    payload = search["payload_bytes"] / search["devices"] * devices * queries / QUERIES
    return scoring + collective_seconds("all-gather", payload, devices, search["calls"])


def largest_database(queries: int, devices: int, search: dict[str, Any]) -> float:
    """Codes that are searched in `INTERACTIVE` seconds; 0: sending alone takes longer."""
    spare = INTERACTIVE - search_seconds(0, queries, devices, search)
    one = search_seconds(1e9, queries, devices, search) - search_seconds(
        0, queries, devices, search
    )
    return max(0.0, spare / one * 1e9)


def counted(results: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a step of the paper's net sends, and a block of searches.

    Raises:
        ValueError: they are not in the results, or a step's bytes depend on the devices.
    """
    rows = [row for row in results["rows"] if row["devices"] > 1]
    train = [row for row in rows if row["work"] == "train" and row["depth"] == DEPTH]
    search = [row for row in rows if row["work"] == "search"]
    if not train or not search:
        raise ValueError("expected a JSON file of scaling.py with the paper's net")
    if len({(row["payload_bytes"], row["calls"]) for row in train}) > 1:
        raise ValueError(
            "a step of the paper's net reduces other bytes on other numbers of devices"
        )
    return train[0], search[-1]


def tables(results: dict[str, Any]) -> dict[str, str]:
    """The page's tables and the sentences with numbers, by name."""
    train, search = counted(results)
    made = {
        "counts": _counts(results),
        "seconds": _seconds(results),
        "assumptions": _table(
            ["assumed", "value", "", "from"],
            [
                [name, f"{value:.4g}", unit, source]
                for name, (value, unit, source) in ASSUMED.items()
            ],
        ),
        "strong": _steps([n for n in DEVICES if BATCH % n == 0], lambda n: BATCH / n, train),
        "weak": _steps(DEVICES, lambda n: BATCH, train),
        "search": _searches(search),
    }
    one = step_seconds(BATCH, 1, train)
    least = given("kernels") * given("kernel")
    filled = least * given("peak") * given("efficiency") / flops_per_image()
    made["floor"] = (
        f"A step of {BATCH} images is {BATCH * flops_per_image() / 1e9:,.0f} GFLOP: "
        f"{one['computing'] * 1e3:.2f} ms on one accelerator. Its kernels take "
        f"{least * 1e3:.2f} ms however small they are, as long as {filled:.0f} images take."
    )
    weak = {n: step_seconds(BATCH, n, train) for n in (8, 256)}
    made["weak_said"] = "\n".join(
        f"- {n} accelerators, {BATCH} images each: "
        f"**{_rate(BATCH * n / step['apart'])} images/s**, "
        f"or {_rate(BATCH * n / step['overlapped'])} if collectives overlap."
        for n, step in weak.items()
    )
    strong = step_seconds(BATCH / 8, 8, train)
    free = BATCH / 8 * flops_per_image() / (given("peak") * given("efficiency"))
    made["strong_said"] = (
        f"- 8 accelerators, {BATCH} images in all: **{_rate(BATCH / strong['apart'])} images/s**, "
        f"{one['apart'] / strong['apart']:.2f} times one; "
        f"{_rate(BATCH / (free + strong['sending']))} if kernels had no shortest time.\n"
        f"- 256 accelerators, {BATCH} images in all: not possible, a batch divides evenly. "
        f"32 reach {_rate(BATCH / step_seconds(BATCH / 32, 32, train)['apart'])} images/s."
    )
    full = given("capacity") / (4 * (DIMENSION + 1))
    made["search_said"] = (
        f"{full / 1e6:,.0f} million codes fill one accelerator's memory; a query alone then takes "
        f"{search_seconds(full, 1, 1, search) * 1e3:.0f} ms, a block of {QUERIES} "
        f"{search_seconds(full, QUERIES, 1, search) * 1e3:.0f} ms. Positions are int32: "
        f"{2**31 / 1e9:.2f} × 10⁹ codes at most."
    )
    return made


def _counts(results: dict[str, Any]) -> str:
    """Strong and weak scaling are one line where they send the same."""
    lines = []
    for row in results["rows"]:
        if row["devices"] == 1:
            continue
        what = (
            f"training step, {row['depth']} layers, width {row['width']}"
            if row["work"] == "train"
            else f"{row['work']}, {QUERIES} queries"
        )
        kinds = sorted({each["kind"] for each in row["collectives"]})
        line = [
            what,
            f"{row['processes']} × {row['devices'] // row['processes']}",
            f"{row['calls']} {', '.join(kinds)}",
            f"{row['payload_bytes']:,}",
            f"{row['sent_bytes']:,.0f}",
        ]
        lines += [line] if line not in lines else []
    lines.sort(key=lambda line: line[0])
    head = ["program", "processes × devices", "calls", "payload, bytes", "sent by each, bytes"]
    return _table(head, lines)


def _seconds(results: dict[str, Any]) -> str:
    layouts: dict[str, dict[str, str]] = {}
    columns = []
    for row in results["rows"]:
        if row.get("rate"):
            layout = f"{row['processes']} × {row['devices'] // row['processes']}"
            column = f"{row['work']}, {row['scaling']}"
            columns += [column] if column not in columns else []
            rate = row["rate"]
            shown = "{median:.3g} ({low:.3g} – {high:.3g})".format(**rate)
            layouts.setdefault(layout, {})[column] = shown
    lines = [[name, *(found.get(c, "") for c in columns)] for name, found in layouts.items()]
    return _table(["processes × devices", *columns], lines)


def _steps(devices: Any, batch_each: Any, train: dict[str, Any]) -> str:
    one = step_seconds(BATCH, 1, train)["apart"] / BATCH
    lines = []
    for n in devices:
        step = step_seconds(batch_each(n), n, train)
        images = batch_each(n) * n
        lines.append(
            [
                str(n),
                f"{batch_each(n):g}",
                f"{step['computing'] * 1e3:.3f}",
                f"{step['sending'] * 1e3:.3f}",
                _rate(images / step["apart"]),
                _rate(images / step["overlapped"]),
                f"{images / step['apart'] * one / n:.0%}",
            ]
        )
    head = ["accelerators", "images each", "computing, ms", "sending, ms"]
    return _table([*head, "images/s", "overlapped", "of n times one"], lines)


def _searches(search: dict[str, Any]) -> str:
    lines = []
    for devices in (1, 8, 256):
        held = devices * given("capacity") / (4 * (DIMENSION + 1))
        gathered = search["payload_bytes"] / search["devices"] * devices / QUERIES
        for queries in (1, QUERIES):
            limit = largest_database(queries, devices, search)
            nothing = search_seconds(0, queries, devices, search)
            lines.append(
                [
                    str(devices),
                    str(queries),
                    f"{gathered * queries / 1e3:,.1f}" if devices > 1 else "0",
                    f"{nothing * 1e3:.2f}",
                    f"{limit / 1e9:,.2f}",
                    f"{held / 1e9:,.2f}",
                ]
            )
    head = ["accelerators", "queries at once", "gathered, kB", "sending, ms"]
    return _table([*head, "10⁹ codes in 200 ms", "10⁹ codes that fit"], lines)


def _rate(value: float) -> str:
    """Three digits of what is computed: its assumptions carry no more."""
    return f"{float(f'{value:.3g}'):,.0f}"


def _table(head: list[str], lines: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def draw(results: dict[str, Any], path: Path) -> None:
    """Write the page's picture as PNG: what is sent, what was timed, what is computed."""
    train, _ = counted(results)
    figure, (sent, timed, planned) = plt.subplots(1, 3, figsize=(14, 4.3), layout="constrained")
    alone = [row for row in results["rows"] if row["processes"] == 1]
    for label, kind in {
        f"training step, {DEPTH} layers, width {WIDTH}": ("train", DEPTH),
        "training step, 10 layers, width 16": ("train", 10),
        f"search, {QUERIES} queries": ("search", None),
        f"ranks, {QUERIES} queries": ("ranks", None),
    }.items():
        by_devices = {
            row["devices"]: row["sent_bytes"]
            for row in alone
            if (row["work"], row["depth"]) == kind and row["devices"] > 1
        }
        sent.plot(*zip(*sorted(by_devices.items()), strict=True), "o-", label=label)
    sent.set(title="Counted: bytes each device sends", xscale="log", yscale="log", xlabel="devices")
    for i, work in enumerate(scaling.WORK):
        for kind, line in (("strong", "-"), ("weak", "--")):
            rows = [
                row
                for row in results["rows"]
                if row.get("rate") and (row["work"], row["scaling"]) == (work, kind)
            ]
            one = _work_rate(next(row for row in rows if row["devices"] == 1))
            for processes, style in ((1, "o" + line), (2, "x")):  # two: crosses, without a line
                points = [
                    (row["devices"], _work_rate(row) / one)
                    for row in rows
                    if row["processes"] == processes
                ]
                label = f"{work}, {kind}" if processes == 1 else None
                timed.plot(*np.array(points).reshape(-1, 2).T, style, color=f"C{i}", label=label)
    timed.axhline(1, color="grey", linewidth=0.8)
    timed.set(
        title="Timed on two shared cores: work per second\n(× two processes)",
        xscale="log",
        ylim=(0, None),
        xlabel="virtual devices",
        ylabel="of one device",
    )
    strong = [n for n in DEVICES if BATCH % n == 0]
    for label, devices, each, color in (
        ("160 images each", DEVICES, lambda n: BATCH, "C0"),
        ("160 images in all", strong, lambda n: BATCH / n, "C1"),
    ):
        steps = [(n, each(n) * n, step_seconds(each(n), n, train)) for n in devices]
        for way, line in (("apart", "o-"), ("overlapped", "^:")):
            rates = [images / step[way] for _, images, step in steps]
            planned.plot(devices, rates, line, color=color, label=f"{label}, {way}")
    rate = BATCH / step_seconds(BATCH, 1, train)["apart"]
    planned.plot(DEVICES, [n * rate for n in DEVICES], color="grey", linewidth=0.8, label="n × one")
    planned.set(
        title=f"Computed, not measured: images/s,\n{DEPTH} layers, width {WIDTH}",
        xscale="log",
        yscale="log",
        xlabel="accelerators",
    )
    for axes in (sent, timed, planned):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _work_rate(row: dict[str, Any]) -> float:
    """Images/s of training; of others codes searched for a block of queries, a second."""
    return row["rate"]["median"] * (1 if row["work"] == "train" else row["size"])


def fill(page: str, texts: dict[str, str]) -> str:
    """A page with texts in their places: what stands between <!-- NAME --> and <!-- /NAME -->.

    Raises:
        ValueError: a text has no place, or a place no text.
    """
    places = set(re.findall(r"<!-- (\w+) -->", page))
    if places != set(texts):
        raise ValueError(f"places without text or texts without place: {places ^ set(texts)}")
    for name, text in texts.items():
        before, _, rest = page.partition(f"<!-- {name} -->")
        _, mark, after = rest.partition(f"<!-- /{name} -->")
        if not mark:
            raise ValueError(f"the place of {name} does not end")
        page = f"{before}<!-- {name} -->\n\n{text}\n\n{mark}{after}"
    return page


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    read, to = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    to.write_text(fill(to.read_text(), tables(read)))
    draw(read, to.with_suffix(".png"))
