"""Many people search at once in one server for a while: nothing fails, nothing mixes."""

import json
import random
import re
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import SECONDS, Server

from air_jax.index import vector_files
from air_jax.index.image_index import ImageIndex
from air_jax.index.index_writer import Options
from air_jax.serve import session_files, sessions

pytest.importorskip("fastapi", reason="the page's server needs fastapi (extra app)")

PEOPLE = 20
ROUNDS, SHOWN, MARKED = 4, 30, 6
LEARNERS = ("discriminant", "discriminant", "discriminant", "svc", "rocchio")
REPLAYED = 5  # sessions of each person
EVERY = 1.0  # seconds between looks at the server's memory
LONG = 60.0  # seconds from which on its memory has had the time to settle


class Person(threading.Thread):
    """Searches again and again, and compares what the server keeps with a book of its own."""

    def __init__(self, server: Server, size: int, seed: int, end: float):
        super().__init__()
        self.server, self.size, self.draw, self.end = server, size, random.Random(seed), end
        self.error: Exception | None = None
        self.exported: list[dict[str, Any]] = []
        self.seconds: list[float] = []  # of rounds

    def run(self) -> None:
        try:
            while not self.exported or time.monotonic() < self.end:
                self.exported.append(self.search())
        except Exception as error:
            self.error = error

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        content, head = json.dumps(body).encode(), {"content-type": "application/json"}
        request = urllib.request.Request(f"{self.server.address}api/{path}", content, head)
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return json.load(answer)

    def search(self) -> dict[str, Any]:
        """One session, checked and exported."""
        image = self.draw.randrange(1, self.size + 1)
        shown = self.post("sessions", {"images": [image], "count": SHOWN})
        path = f"sessions/{shown['session']}"
        marks: dict[int, bool] = {}
        rankings = [ranking(shown)]
        for _ in range(self.draw.randint(1, ROUNDS)):
            for one in self.draw.sample(rankings[-1], MARKED):
                marks[one] = self.draw.random() < 0.4
                said = [{"image": one, "relevant": marks[one]}]
                self.post(f"{path}/marks", {"marks": said})
            if self.draw.random() < 0.3:  # the last mark was a mistake
                self.post(f"{path}/undo", {})
                marks.popitem()
            started = time.perf_counter()
            asked = {"learner": self.draw.choice(LEARNERS), "count": SHOWN}
            rankings.append(ranking(self.post(f"{path}/rounds", asked)))
            self.seconds.append(time.perf_counter() - started)
        exported = self.server.get(f"{path}/export.json")
        held = sessions.from_json(exported["session"])
        assert held.images == [image]
        assert {one: mark.relevant for one, mark in held.marks.items()} == marks
        assert [made.images for made in held.rounds] == rankings
        return exported


def ranking(session: dict[str, Any]) -> list[int]:
    return [one["image"] for one in session["round"]["results"]]


def megabytes(server: Server) -> float:
    """The server's own memory, without the pages of files it has mapped."""
    text = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"^RssAnon:\s+(\d+) kB", text, re.MULTILINE)[1]) / 1000


@pytest.mark.parametrize(
    ("size", "dimension", "seconds"),
    [(2_000, 16, 1.0), pytest.param(60_000, 128, 300.0, marks=pytest.mark.long)],
)
def test_twenty_people_at_once_get_their_own_rankings_and_the_servers_memory_settles(
    tmp_path: Path,
    record_property: Callable[[str, object], None],
    size: int,
    dimension: int,
    seconds: float,
) -> None:
    vectors = np.random.default_rng(0).normal(size=(size, dimension)).astype(np.float32)
    np.save(tmp_path / "vectors.npy", vectors)
    out = tmp_path / "index"
    vector_files.index_vectors(tmp_path / "vectors.npy", None, None, out, Options())
    server = Server(out)
    try:
        end = time.monotonic() + seconds
        people = [Person(server, size, seed, end) for seed in range(PEOPLE)]
        for person in people:
            person.start()
        memory = []
        while any(person.is_alive() for person in people):
            memory.append(megabytes(server))
            time.sleep(EVERY)
        memory.append(megabytes(server))
        listed = {one["session"]: one for one in server.get("sessions")["sessions"]}
    finally:
        server.kill()
    assert [person.error for person in people] == [None] * PEOPLE

    held = [sessions.from_json(one["session"]) for person in people for one in person.exported]
    assert set(listed) == {session.token for session in held}
    assert all(listed[session.token]["rounds"] == len(session.rounds) for session in held)

    index = ImageIndex(out)
    drawn = random.Random(0)
    for person in people:
        for exported in drawn.sample(person.exported, min(REPLAYED, len(person.exported))):
            for shown, again in session_files.replay(exported, index):
                assert session_files.compared(shown, again)["same"], (shown, again)

    rounds = np.concatenate([person.seconds for person in people]) * 1000
    figures = {
        "sessions": len(held),
        "rounds": len(rounds),
        "round_p50_ms": float(np.percentile(rounds, 50)),
        "round_p95_ms": float(np.percentile(rounds, 95)),
        "server_mb_each_tenth": [
            round(float(np.median(part))) for part in np.array_split(memory, min(10, len(memory)))
        ],
    }
    record_property("soak", figures)
    print(figures)
    if seconds >= LONG:
        _, second, third, last = (np.median(part) for part in np.array_split(memory, 4))
        assert last <= 1.05 * max(second, third), figures
