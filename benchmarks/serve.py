"""Seconds of a round as a browser waits for it: `air_jax.serve` over HTTP, from marks to results.

Also those to the first results: from starting the server, over HTTP, and in Chromium from opening
the page, where Playwright and Chromium are installed.

The benchmark starts the server as a process of its own on an index of random vectors, and lets a
user search again and again: start from an image, mark ten of the results, ask for the next round,
four times. `tests/browser/test_soak.py` measures many users at once.
"""

import importlib.util
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from air_jax.index import vector_files
from air_jax.index.index_writer import Options
from air_jax.search import file_codes
from benchmarks import measure

MARKS, ROUNDS, SHOWN = 10, 4, 60


class User:
    """Searches again and again; keeps the seconds of each request by kind, and errors."""

    def __init__(self, address: str, size: int, seed: int):
        self.address, self.size, self.draw = address, size, random.Random(seed)
        self.seconds: dict[str, list[float]] = {"first": [], "mark": [], "round": []}
        self.errors: list[str] = []

    def ask(self, kind: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self.address}api/{path}",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        started = time.perf_counter()
        with urllib.request.urlopen(request, timeout=60) as answer:
            found = json.load(answer)
        self.seconds[kind].append(time.perf_counter() - started)
        return found

    def search(self, learner: str) -> None:
        """One session."""
        try:
            image = self.draw.randrange(1, self.size + 1)
            session = self.ask("first", "sessions", {"images": [image], "count": SHOWN})
            path = f"sessions/{session['session']}"
            for _ in range(ROUNDS):
                results = session["round"]["results"][:MARKS]
                for place, one in enumerate(results):
                    marks = [{"image": one["image"], "relevant": place % 3 == 0}]
                    self.ask("mark", f"{path}/marks", {"marks": marks})
                session = self.ask("round", f"{path}/rounds", {"count": SHOWN, "learner": learner})
                fresh = {one["image"] for one in session["round"]["results"]}
                if len(fresh) != SHOWN or fresh & {one["image"] for one in results}:
                    raise ValueError("a round showed what was judged, or too little")
        except Exception as error:
            self.errors.append(repr(error))


class Server:
    """`air_jax.serve` in a process of its own."""

    def __init__(self, index: Path):
        command = [sys.executable, "-m", "air_jax.serve", f"--index={index}", "--port=0"]
        self.started = started = time.perf_counter()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for line in self.process.stdout or ():
            if found := re.match(r"open (http\S+)", line):
                self.address = found[1]
                break
        else:
            sys.exit("the server did not start")
        self.seconds_to_start = time.perf_counter() - started

    def megabytes(self) -> dict[str, float]:
        """Resident memory now: of its own, and with the pages of files that are mapped."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        kilobytes = dict(re.findall(r"^(Rss\w+|VmRSS):\s+(\d+) kB", text, re.MULTILINE))
        return {
            "own": int(kilobytes["RssAnon"]) / 1000,
            "with_files": int(kilobytes["VmRSS"]) / 1000,
        }

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


def seconds_to_first_results(server: Server) -> float:
    """From starting the server to the results of the first image over HTTP; before any warm-up."""
    user = User(server.address, 1, seed=0)
    user.ask("first", "sessions", {"images": [1], "count": SHOWN})
    return time.perf_counter() - server.started


def seconds_in_chromium(server: Server, rounds: int = 5) -> dict[str, float] | None:
    """From opening the page to images, and from a click on one to its results; None without it.

    The median of some fresh visits.
    """
    chromium = shutil.which("chromium")
    if chromium is None or importlib.util.find_spec("playwright") is None:
        return None
    from playwright.sync_api import sync_playwright

    opened, searched = [], []
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        for _ in range(rounds):
            context = browser.new_context(viewport={"width": 1280, "height": 800})
            page = context.new_page()
            started = time.perf_counter()
            page.goto(server.address)
            first = page.locator("#browse .tile[data-image]").first
            first.wait_for()
            opened.append(time.perf_counter() - started)
            started = time.perf_counter()
            first.locator(".picture").click()
            page.locator("#results .tile[data-image]").first.wait_for()
            searched.append(time.perf_counter() - started)
            context.close()
        browser.close()
    return {"open": float(np.median(opened)), "first_results": float(np.median(searched))}


def at_size(size: int, args: Any, folder: Path) -> dict[str, Any]:
    """One user, one after another, on an index of random vectors."""
    rng = np.random.default_rng(0)
    vectors = folder / "vectors.npy"
    codes = np.lib.format.open_memmap(vectors, "w+", np.float32, (size, args.dimension))
    for start in range(0, size, 2**16):
        part = codes[start : start + 2**16]
        part[:] = rng.normal(size=part.shape)
    out = folder / f"index-{size}"
    vector_files.index_vectors(vectors, None, None, out, Options(storage=args.storage))
    server = Server(out)
    to_first_results = seconds_to_first_results(server)
    user = User(server.address, size, seed=0)
    for _ in range(args.warm_up):
        user.search(args.learner)
    if user.errors:
        sys.exit(f"searches fail: {user.errors[0]}")
    cold = max(user.seconds["round"])
    user.seconds = {kind: [] for kind in user.seconds}
    for _ in range(args.sessions):
        user.search(args.learner)
    memory = server.megabytes()
    row = {"size": size, "learner": args.learner, "errors": user.errors, "memory_mb": memory}
    row |= {"seconds_to_start": server.seconds_to_start, "slowest_cold_round_seconds": cold}
    row |= {"seconds_to_first_results": to_first_results}
    row |= {"seconds_in_chromium": seconds_in_chromium(server)}
    row |= {kind: milliseconds(values) for kind, values in user.seconds.items()}
    server.close()
    return row


def milliseconds(seconds: list[float]) -> dict[str, float | int]:
    if not seconds:
        return {"count": 0}
    p50, p95 = np.percentile(np.array(seconds) * 1000, [50, 95])
    return {"count": len(seconds), "p50": float(p50), "p95": float(p95)}


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[60_000, 1_000_000])
    parser.add_argument("--dimension", type=int, default=128)
    parser.add_argument("--learner", default="discriminant")
    parser.add_argument("--storage", default="float32", choices=file_codes.STORAGES)
    parser.add_argument("--sessions", type=int, default=25, help="of one user, one by one")
    parser.add_argument("--warm-up", type=int, default=2, help="sessions before, not counted")
    args = parser.parse_args()
    if args.quick:
        args.sizes, args.sessions = args.sizes[:1], min(args.sessions, 3)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in args.sizes:
            row = at_size(size, args, Path(folder))
            print(json.dumps(row, indent=1), flush=True)
            rows.append(row)
    summary: dict[str, Any] = {}
    for row in rows:
        for kind in ("first", "round"):
            for quantile in ("p50", "p95"):
                name = f"{kind}_{quantile}_ms_{row['size'] / 1e6:g}m"
                summary[name] = row[kind].get(quantile)
        millions = f"{row['size'] / 1e6:g}m"
        summary[f"server_mb_{millions}"] = row["memory_mb"]["own"]
        summary[f"start_to_first_results_s_{millions}"] = row["seconds_to_first_results"]
        in_chromium = row["seconds_in_chromium"] or {"open": None, "first_results": None}
        summary[f"chromium_open_s_{millions}"] = in_chromium["open"]
        summary[f"chromium_first_results_s_{millions}"] = in_chromium["first_results"]
        summary["errors"] = summary.get("errors", 0) + len(row["errors"])
    measure.report(args, summary, rows)


if __name__ == "__main__":
    main()
