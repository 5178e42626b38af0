"""What the tests of the page stand on: the server as a process, Chromium, axe."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
AXE = "axe-core@4"  # of the npm registry
SECONDS = 60
CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class Server:
    """`python -m air_jax.serve` on an index, on the same port after every start."""

    def __init__(self, index: Path, *flags: str):
        self.index, self.flags, self.port = index, flags, 0
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "air_jax.serve", f"--index={self.index}"]
        command += [f"--port={self.port}", *self.flags]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
        )
        said = []
        for line in self.process.stdout:
            said.append(line)
            if match := re.search(r"(?:open|or) (http://[^/]+:(\d+)/)", line):
                self.address, self.port = match[1], int(match[2])
                self._wait()
                return
        raise RuntimeError("the server ended: " + "".join(said))

    def _wait(self) -> None:
        """Until it answers: it says its address a little earlier."""
        for _ in range(10 * SECONDS):
            with contextlib.suppress(urllib.error.URLError):
                self.get("index")
                return
            time.sleep(0.1)
        raise RuntimeError(f"{self.address} does not answer")

    def kill(self) -> None:
        """At once, as if the power had gone."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()

    def get(self, path: str) -> Any:
        """What the interface answers."""
        with urllib.request.urlopen(f"{self.address}api/{path}", timeout=SECONDS) as answer:
            return json.load(answer)


def chromium_path() -> str:
    """Debian's Chromium; skips the test where there is none."""
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("chromium is not installed on this machine (apt install chromium)")
    return found


def axe_source() -> str:
    """The script of axe-core; skips the test where it is not to be had.

    It is looked for in AXE_JS, in `node_modules`, in the cache, and then asked from npm.
    """
    cache = Path(os.environ.get("AIR_JAX_CACHE") or Path.home() / ".cache" / "air_jax")
    kept = cache / f"{AXE}.min.js"
    for path in (os.environ.get("AXE_JS"), ROOT / "node_modules/axe-core/axe.min.js", kept):
        if path and Path(path).is_file():
            return Path(path).read_text()
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("neither axe-core (AXE_JS) nor npm to fetch it is on this machine")
    cache.mkdir(parents=True, exist_ok=True)
    command = [npm, "pack", AXE, "--silent", f"--pack-destination={cache}"]
    fetched = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cache)
    if fetched.returncode:
        pytest.skip(f"npm could not fetch {AXE}: {fetched.stderr.strip()[-200:]}")
    package = cache / fetched.stdout.split()[-1]
    with tarfile.open(fileobj=io.BytesIO(package.read_bytes())) as files:
        source = files.extractfile("package/axe.min.js").read()
    package.unlink()
    kept.write_bytes(source)
    return source.decode()


def violations(page: Any, source: str) -> list[str]:
    """What axe finds serious or critical in a page whose context bypasses its CSP."""
    page.evaluate(source)
    found = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [
        f"{one['impact']}: {one['help']}: {[node['html'][:200] for node in one['nodes']][:5]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
