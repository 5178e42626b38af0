"""The command line of the server: addresses that it prints, ports, and how it ends."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed (pip install 'air_jax[app]')")

from air_jax.index import build, vector_files
from air_jax.serve import __main__ as command

LONGEST_END = 3.0  # seconds from Ctrl-C on


def test_addresses_can_be_opened_as_they_are_printed():
    assert command.addresses("127.0.0.1", 8000, None, None) == ["http://127.0.0.1:8000/"]
    assert command.addresses("::1", 80, None, "a+b&c/#") == [
        "http://[::1]:80/?token=a%2Bb%26c%2F%23"
    ]
    for host in command.ALL:
        found = command.addresses(host, 8000, None, "t")
        assert found[-1] == f"http://{'[::1]' if ':' in host else '127.0.0.1'}:8000/?token=t"
        assert not [one for one in found if one.startswith((f"http://{host}:", f"http://[{host}]"))]
    public = command.read_public("https://example.org/photos/")
    found = command.addresses("127.0.0.1", 8000, public, "t")
    assert found[0] == "https://example.org/photos/?token=t"


@pytest.mark.parametrize(
    ("text", "origin", "path"),
    [
        ("https://Photos.example.org", "https://photos.example.org", ""),
        ("https://photos.example.org:443/", "https://photos.example.org", ""),
        ("http://photos.example.org:8080/a/b/", "http://photos.example.org:8080", "/a/b"),
        ("http://[::1]:80/a", "http://[::1]", "/a"),
    ],
)
def test_a_public_address_is_read_as_browsers_say_it(text, origin, path):
    assert command.read_public(text) == (origin, path)


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("--public-url=photos.example.org", "expected https://NAME"),
        ("--public-url=https://a:b@c/", "expected https://NAME"),
        ("--public-url=https://c:x/", "Port could not be cast"),
        ("--public-url=https://c/?a=b", "nothing after the path"),
        ("--public-url=https://c/api", "/api and /static"),
        ("--trusted-proxies=10.0.0.300", "10.0.0.300"),
        ("--trusted-proxies=proxy", "'proxy'"),
        ("--round_seconds=0", "from 1"),
    ],
)
def test_a_flag_that_cannot_be_meant_is_refused(flag, text, capsys):
    with pytest.raises(SystemExit) as ended:
        command.read(["--index=x", flag])
    assert ended.value.code == 2
    assert text in capsys.readouterr().err


def test_a_port_that_is_in_use_names_the_way_out():
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ValueError, match="--port=0 takes any that is free"),
    ):
        command._listen("127.0.0.1", taken.getsockname()[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_server_ends_in_three_seconds_whatever_is_under_way(tmp_path, number):
    np.save(tmp_path / "codes.npy", np.random.default_rng(0).normal(size=(20_000, 64)))
    vector_files.index_vectors(
        tmp_path / "codes.npy", None, None, tmp_path / "index", build.Options()
    )
    flags = [f"--index={tmp_path / 'index'}", "--port=0"]
    server = subprocess.Popen(
        [sys.executable, "-m", "air_jax.serve", *flags], stdout=subprocess.PIPE, text=True
    )
    address = ""
    while not address:
        address = (re.match(r"open (http://\S+)", server.stdout.readline()) or [""] * 2)[1]

    def post(path: str, body: dict) -> dict:
        head = {"content-type": "application/json"}
        request = urllib.request.Request(f"{address}api/{path}", json.dumps(body).encode(), head)
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def search() -> None:
        path = f"sessions/{post('sessions', {'images': [1]})['session']}"
        for start in range(1, 4001, 1000):
            marks = [{"image": n, "relevant": n % 2 == 0} for n in range(start, start + 1000)]
            post(f"{path}/marks", {"marks": marks})
        began.release()
        post(f"{path}/rounds", {"learner": "svc"})

    def quietly() -> None:
        try:
            search()
        except OSError:
            began.release()

    began = threading.Semaphore(0)
    threads = [threading.Thread(target=quietly, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in threads:
        began.acquire()
    time.sleep(1)
    server.send_signal(number)
    started = time.monotonic()
    status = server.wait(60)
    assert time.monotonic() - started < LONGEST_END
    assert status == (130 if number == signal.SIGINT else 75)
    server.stdout.close()
