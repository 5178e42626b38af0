"""What the tests of faults share: commands that are killed, files that are damaged, and comparing
what they leave with what an undisturbed run leaves.
"""

import fnmatch
import json
import os
import random
import re
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from air_jax.index.image_index import ImageIndex
from air_jax.run import trained_net
from air_jax.runtime import sharding

ROOT = Path(__file__).parent.parent
SECONDS_TO_END = 300  # a command that takes longer hangs
TABLE_VARIABLE = "FAULTS_TABLE"  # the file that the table of faults tried is written to


class Ended(NamedTuple):
    """How a command ended: its exit status, negative for a signal, and what it said."""

    status: int
    output: str
    errors: str


class Command(NamedTuple):
    """`python -m module arguments`."""

    module: str
    arguments: tuple[str, ...]


class Running:
    """A command under way."""

    def __init__(self, launcher: "Launcher", process: int):
        self._launcher, self.process = launcher, process
        self.status: int | None = None

    def wait(self, seconds: float) -> bool:
        """Whether it has ended, after waiting so long for it at most."""
        if self.status is None and select.select([self._launcher.answers], [], [], seconds)[0]:
            self.status = int(self._launcher.answer())
        return self.status is not None

    def send(self, sent: int) -> None:
        """Send a signal."""
        if not self.wait(0):
            os.kill(self.process, sent)

    def end(self) -> Ended:
        """Wait for its end."""
        if not self.wait(SECONDS_TO_END):
            os.kill(self.process, signal.SIGKILL)
            self.wait(SECONDS_TO_END)
            raise AssertionError(f"not ended after {SECONDS_TO_END} s: {self._launcher.said()}")
        return Ended(self.status, *self._launcher.said())


class Launcher:
    """Runs commands without the seconds that Python and JAX take to start (`command_server`)."""

    def __init__(self, environment: dict[str, str] | None = None):
        self._said = Path(tempfile.mkdtemp(prefix="air_jax-faults-"))
        self._server = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "command_server.py")],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu"} | (environment or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.answers = self._server.stdout
        ready = self.answer()
        assert ready == "ready", self._server.stderr.read().decode()

    def close(self) -> None:
        self._server.communicate()
        shutil.rmtree(self._said)

    def answer(self) -> str:
        return self.answers.readline().decode().strip()

    def said(self) -> tuple[str, str]:
        """Output and errors of the last command."""
        return tuple((self._said / name).read_text(errors="replace") for name in ("out", "err"))

    def start(self, command: Command, largest_file: int | None = None) -> Running:
        """Begin a command; the one before has to have ended.

        Args:
            command: which.
            largest_file: bytes that it can write to a file: more fail, as on a full disk.
        """
        asked = {
            "module": command.module,
            "arguments": command.arguments,
            "output": str(self._said / "out"),
            "errors": str(self._said / "err"),
            "largest_file": largest_file,
        }
        self._server.stdin.write(json.dumps(asked).encode() + b"\n")
        self._server.stdin.flush()
        return Running(self, int(self.answer()))

    def run(self, command: Command, largest_file: int | None = None) -> Ended:
        return self.start(command, largest_file).end()

    def complete(self, command: Command) -> Ended:
        """Run a command that has to succeed."""
        ended = self.run(command)
        assert ended.status == 0, ended.errors
        return ended


# -- Kills ----------------------------------------------------------------------------------------

# How a command may end that was sent a signal: by it, or with the status that says it was stopped.
STOPPED = {
    signal.SIGKILL: (-signal.SIGKILL,),
    signal.SIGTERM: (-signal.SIGTERM, 75),
    signal.SIGINT: (-signal.SIGINT, 130),
}


def life(launcher: Launcher, command: Command) -> float:
    """Seconds that a command takes, which has to succeed."""
    started = time.monotonic()
    launcher.complete(command)
    return time.monotonic() - started


def moments(count: int, seed: int) -> list[float]:
    """Random moments of a life, spread evenly from 0 to 1, in random order."""
    draw = random.Random(seed)
    found = [(place + draw.random()) / count for place in range(count)]
    draw.shuffle(found)
    return found


class Killed(NamedTuple):
    """What kills led to: how many hit in each run, and the folders of these, all completed."""

    times: list[int]
    folders: list[Path]


def kill_at(
    launcher: Launcher,
    command_in: Callable[[Path], Command],
    parent: Path,
    lasts: float,
    moments: list[float],
    sent: int,
    start: Path | None = None,
) -> Killed:
    """Kill a command at moments of its life, the next one each time it is continued.

    When a command ends before its moment comes, what it made is kept, and the moment is tried on a
    new run, which takes its whole life. The last run is completed.

    Args:
        launcher: of the command.
        command_in: the command whose folder is this.
        parent: of the folders of the runs.
        lasts: seconds of its life; other work on the machine changes them.
        moments: from 0, its start, to 1, its end.
        sent: the signal.
        start: a folder that runs begin with a copy of.
    """
    times: list[int] = []
    folders: list[Path] = []

    def begin() -> None:
        times.append(0)
        folders.append(parent / str(len(folders)))
        if start is not None:
            shutil.copytree(start, folders[-1])

    begin()
    fresh = True
    for moment in moments:
        for _ in range(3):
            started = time.monotonic()
            running = launcher.start(command_in(folders[-1]))
            if not running.wait(moment * lasts):
                running.send(sent)
            ended = running.end()
            if ended.status in STOPPED[sent]:
                assert "Traceback" not in ended.errors, ended.errors
                times[-1] += 1
                fresh = False
                break
            assert ended.status == 0, ended.errors
            if fresh:
                lasts = time.monotonic() - started
            begin()
            fresh = True
    launcher.complete(command_in(folders[-1]))
    return Killed(times, folders)


# -- Damage ---------------------------------------------------------------------------------------

DAMAGES = ("emptied", "cut to half", "one byte changed", "deleted", "a folder instead")


def damage(path: Path, how: str, draw: random.Random) -> None:
    """Damage a file in one of the ways of `DAMAGES`."""
    content = path.read_bytes()
    if how == "emptied":
        path.write_bytes(b"")
    elif how == "cut to half":
        path.write_bytes(content[: len(content) // 2])
    elif how == "one byte changed":
        place = draw.randrange(max(1, len(content)))
        changed = bytes([(content[place] if content else 0) ^ draw.randrange(1, 256)])
        path.write_bytes(content[:place] + changed + content[place + 1 :])
    else:
        path.unlink()
        if how == "a folder instead":
            path.mkdir()


def refused_by_name(ended: Ended, name: str) -> bool:
    """Whether a command ended with one error that names a file, or the checkpoint that it is of."""
    parts = name.split("/")
    if "checkpoints" in parts:
        at = parts.index("checkpoints")
        parts = parts[at : at + 2]
    error = one_error(ended)
    return error is not None and parts[-1] in error


def one_error(ended: Ended) -> str | None:
    """The error that a command ended with, if it was one, in a line, with the status for it.

    No traceback of ours; TensorStore's threads may print theirs when a checkpoint fails.
    """
    said = [line for line in ended.errors.splitlines() if line.startswith("error: ")]
    ours = re.search(r'File ".*air_jax/[\w/]+\.py"', ended.errors)
    good = ended.status == 2 and len(said) == 1 and not ours
    return said[0] if good else None


# -- What was tried -------------------------------------------------------------------------------


class Tried(NamedTuple):
    """How often a fault was tried on something, and what the same command then led to."""

    times: int = 0
    same: int = 0
    refused: int = 0

    @property
    def lost(self) -> int:
        return self.times - self.same - self.refused

    def __add__(self, other: "Tried") -> "Tried":
        return Tried(*(a + b for a, b in zip(self, other, strict=True)))


class Table:
    """Counts the faults that the tests try, by fault and by what it was done to."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], Tried] = {}

    def add(self, fault: str, to: str, tried: Tried) -> None:
        self._rows[fault, to] = self._rows.get((fault, to), Tried()) + tried

    def markdown(self) -> str:
        lines = [
            "| fault | of | tried | same result | refused by name | lost |",
            "|---|---|---|---|---|---|",
        ]
        rows = [*self._rows.items(), (("all", ""), sum(self._rows.values(), Tried()))]
        lines += [
            f"| {fault} | {to} | {tried.times} | {tried.same} | {tried.refused} | {tried.lost} |"
            for (fault, to), tried in rows
        ]
        return "\n".join(lines) + "\n"


# -- What is compared -----------------------------------------------------------------------------

TIMES = {"seconds", "compile_seconds", "probe_seconds", "saving_seconds", "images_per_second"}
# Of an index, what tells how it came about rather than what is in it.
HISTORY = {"added", "unchanged", "moved", "unseen", "dropped", "generation"}
HISTORY |= {"commit", "commit_reason"}


def without_times(value: Any) -> Any:
    """A JSON value without what two runs of the same work do not have in common."""
    if isinstance(value, dict):
        # A checksum is also of the times.
        left_out = TIMES | HISTORY | {"checksum"}
        return {k: without_times(v) for k, v in value.items() if k not in left_out}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def _json(path: Path) -> Any:
    return without_times(json.loads(path.read_text()))


def _json_lines(path: Path) -> Any:
    return [without_times(json.loads(line)) for line in path.read_text().splitlines()]


def _record(path: Path) -> Any:
    """A stage's record; its fingerprint and checksums are of files with times in them."""
    held = _json(path)
    return held["config"], held["result"], sorted(held["files"])


def _npz(path: Path) -> Any:
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files if key not in TIMES | {"made_from"}}
    return {key: (a.dtype.str, a.shape, a.tobytes()) for key, a in arrays.items()}


def _net(path: Path) -> Any:
    about = json.loads(str(np.load(path)["about"]))
    return about["fingerprint"]


def index_content(out: Path) -> dict[str, tuple]:
    """By path all that an index holds of an image."""
    index = ImageIndex(out)
    images = index.images(index.ids.tolist())
    assert [image.path for image in images] == sorted(
        (image.path for image in images), key=os.fsencode
    )
    return {
        image.path: (
            *image[2:],
            index.thumbnail(image.id),
            index.codes.exact[index.position(image.id)].tobytes(),
        )
        for image in images
    }


def _catalogue(path: Path) -> Any:
    return index_content(path.parent)


def _sessions(path: Path) -> Any:
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return [
            database.execute(f"SELECT * FROM {table} ORDER BY token").fetchall()
            for table in ("sessions", "uploads")
        ]
    finally:
        database.close()


def _claims(path: Path) -> Any:
    """A page of claims without the seconds, which stand before the remark in their table."""
    return re.sub(r"\| [\d,.]+ (\| [^|]* \|\n)", r"\1", path.read_text())


def _bytes(path: Path) -> Any:
    return path.read_bytes()


class Kind(NamedTuple):
    """A kind of file that commands leave.

    Attributes:
        name: for people.
        pattern: of its path in the folder, for `fnmatch`: a `*` is any text, slashes included.
        read: what is compared of it; None if it holds nothing of its own.
    """

    name: str
    pattern: str
    read: Callable[[Path], Any] | None


# The first whose pattern fits.
KINDS = (
    # Only the newest state is compared, as a net: `nets_of`.
    Kind("checkpoint: arrays", "*checkpoints/*/state/*/d/*", None),
    Kind("checkpoint: arrays", "*checkpoints/*/state/d/*", None),
    Kind("checkpoint: .ocdbt files", "*checkpoints/*.ocdbt", None),
    Kind("checkpoint: metadata files", "*checkpoints/*/state/_*", None),
    Kind("checkpoint: metadata files", "*checkpoints/*/array_metadatas/process_*", None),
    Kind("checkpoint: info/metadata", "*checkpoints/*/info/metadata", None),
    Kind("checkpoint: metadata files", "*checkpoints/*/_CHECKPOINT_METADATA", None),
    Kind("checkpoint: commit_success.txt", "*checkpoints/*commit_success.txt", None),
    Kind("checkpoint: checksums", "*checkpoints/*/checksums.json", None),
    Kind("checksums of an index", "checksums.json", None),
    Kind("config.json", "*config.json", _json),
    Kind("model.json", "*model.json", _json),
    Kind("record of a stage", "*stages/*.json", _record),
    Kind("log", "*metrics.jsonl", _json_lines),
    Kind("log", "*gradients.jsonl", _json_lines),
    Kind("codes of a run", "*codes.npz", _npz),
    Kind("reconstructions", "*reconstructions.npz", _npz),
    Kind("ranking", "*retrieval.npz", _npz),
    Kind("feedback/LEARNER.npz", "*feedback/*.npz", _npz),
    Kind("per_query.npz", "*per_query.npz", _npz),
    Kind("results.json", "*results.json", _json),
    Kind("picture of a run's time", "*time.png", None),
    Kind("picture", "*.png", _bytes),
    Kind("baselines of a sweep", "baselines.json", _json),
    Kind("findings of a sweep", "figure[34].json", _json),
    Kind("claims of a sweep", "claims.md", _claims),
    Kind("why a member failed", "*error.json", _json),
    Kind("catalogue of an index", "catalogue.sqlite", _catalogue),
    Kind("catalogue of an index: its journal", "catalogue.sqlite-*", None),
    Kind("codes of an index", "codes-*/*.npy", None),  # in the catalogue's content
    Kind("codes of an index: store.json", "codes-*/store.json", None),
    Kind("net of an index", "net.npz", _net),
    Kind("index.json", "index.json", _json),
    Kind("lock", "*lock", None),
    Kind("file that was being written", "*.partial", None),
    Kind("sessions of an index", "sessions.sqlite", _sessions),
    Kind("sessions of an index: their journal", "sessions.sqlite-*", None),
    Kind("parts of a comparison", "parts.json", _json),
    Kind("comparison of learners", "compare.json", _json),
    Kind("comparison of learners", "compare.md", _bytes),
)


def kind_of(name: str) -> Kind:
    """The kind of a file by its path in the folder that a command left.

    Raises:
        AssertionError: none; these tests have to learn of it.
    """
    for kind in KINDS:
        if fnmatch.fnmatch(name, kind.pattern):
            return kind
    raise AssertionError(f"{name!r}: commands leave a kind of file that faults.KINDS does not have")


def files_in(folder: Path) -> Iterator[tuple[str, Path]]:
    """The files in a folder by their path in it."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path


def nets_of(folder: Path) -> dict[str, str]:
    """By the path of a run in a folder, a hash of its net's parameters, bit for bit."""
    mesh = sharding.make_mesh(jax.devices()[:1])
    runs = [path.parent for path in folder.rglob("checkpoints")]
    return {
        f"{run.relative_to(folder)}/net": trained_net.of_run(run, mesh).about["fingerprint"]
        for run in runs
    }


def contents(folder: Path, without: Container[str] = ()) -> dict[str, Any]:
    """Everything that matters of what a command left, by file, but for some; times do not."""
    found: dict[str, Any] = nets_of(folder)
    for name, path in files_in(folder):
        kind = kind_of(name)
        if kind.read is not None and name not in without:
            found[name] = kind.read(path)
    return found


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """The names of what is in only one of two contents, or not the same in both."""
    names = sorted(found.keys() | expected.keys())
    return [name for name in names if found.get(name) != expected.get(name)]
