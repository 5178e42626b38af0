"""Runs of two processes with two devices each, against one process with four."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, class_images
from program import command, results

from air_jax.runtime.atomic_files import read_npz
from air_jax.training import loop
from air_jax.training.checkpoints import newest_step
from air_jax.training.training_log import read_metrics

LONG_TRAINING = {
    "train__epochs": 60,
    "log__checkpoint_steps": 20,
    "train__learning_rate": 0.01,
}
STEPS = 240
PATIENCE = 300  # seconds; nothing here is judged by its time but where it says so


def environment(devices: int) -> dict[str, str]:
    return os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Processes:
    """The two processes of a run."""

    def __init__(self, *args, **keys):
        address = f"--coordinator=127.0.0.1:{free_port()}"
        self.processes = [
            subprocess.Popen(
                [*command(*args, **keys), address, "--processes=2", f"--process={number}"],
                cwd=ROOT,
                env=environment(devices=2),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for number in range(2)
        ]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.communicate()

    def end(self) -> list[tuple[int, str]]:
        """Status and output of each."""
        ended = []
        for process in self.processes:
            output, _ = process.communicate(timeout=PATIENCE)
            ended.append((process.returncode, output))
        return ended


@pytest.fixture
def run_two(tmp_path) -> Callable[..., str]:
    """Runs `launch/multiprocess_local.sh` to its end; what the first process says.

    The other one's output is then in `logs/process-1.log`.
    """
    venv, logs = tmp_path / "venv", tmp_path / "logs"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    (venv / "bin/python").chmod(0o755)
    stamp = subprocess.run(["cksum", "setup.py"], cwd=ROOT, capture_output=True, check=True)
    (venv / ".installed-base").write_bytes(stamp.stdout)
    variables = {"VENV": str(venv), "LOGS": str(logs), "PROCESSES": "2", "DEVICES": "2"}
    without = {key: value for key, value in os.environ.items() if key != "PYTHON"}

    def run(*args, **keys) -> str:
        done = subprocess.run(
            ["bash", "launch/multiprocess_local.sh", *command(*args, **keys)[3:]],
            cwd=ROOT,
            env=without | variables,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def run_one(*args, **keys) -> str:
    done = subprocess.run(
        command(*args, **keys),
        cwd=ROOT,
        env=environment(devices=4),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wait_for_checkpoint(workdir: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while newest_step(workdir / "checkpoints") is None and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "images.npz"
    pixels, labels = class_images(84)  # 21 a class: shares of queries and images are uneven
    np.savez(path, image=pixels, label=labels)
    return path


@pytest.fixture(scope="module")
def one(images, tmp_path_factory) -> Path:
    """All stages by one process."""
    workdir = tmp_path_factory.mktemp("runs") / "one"
    run_one(workdir, images, data__queries_per_class=3)
    return workdir


def parameters(workdir: Path, config, mesh) -> np.ndarray:
    leaves = loop.jax.tree.leaves(loop.load_net(config, workdir, mesh).params)
    return np.concatenate([np.ravel(leaf) for leaf in leaves])


def test_two_processes_reach_what_one_does_and_the_first_alone_speaks(
    one, images, tmp_path, run_two
):
    workdir = tmp_path / "two"
    assert "first retrieval" in run_two(workdir, images, data__queries_per_class=3)
    other_said = (tmp_path / "logs" / "process-1.log").read_text()
    assert not re.sub(r"\[Gloo\].*\n", "", other_said)
    ours, theirs = results(workdir), results(one)
    for key in ("loss", "code_shuffled_loss", "constant_loss", "pca_loss"):
        assert ours["train"][key] == pytest.approx(theirs["train"][key], rel=0.01)
    assert ours["retrieval"]["map"] == pytest.approx(theirs["retrieval"]["map"], abs=1e-3)
    assert ours["feedback"].keys() == theirs["feedback"].keys()
    lines, expected = (read_metrics(path / "metrics.jsonl") for path in (workdir, one))
    assert [line["step"] for line in lines] == [line["step"] for line in expected]
    np.testing.assert_allclose(
        [line["loss"] for line in lines], [line["loss"] for line in expected], rtol=0.01
    )
    assert "another training" not in run_one(workdir, images, data__queries_per_class=3)


def test_from_the_same_codes_two_processes_rank_and_simulate_as_one(one, images, tmp_path, run_two):
    workdir = tmp_path / "two"
    shutil.copytree(one, workdir)
    for stage in ("retrieve", "feedback"):
        (workdir / "stages" / f"{stage}.json").unlink()
    shutil.rmtree(workdir / "feedback")
    (workdir / "retrieval.npz").unlink()
    said = run_two(workdir, images, "--stages=retrieve,feedback", data__queries_per_class=3)
    assert "retrieve: done before" not in said
    ours, theirs = (read_npz(path / "retrieval.npz") for path in (workdir, one))
    for name, expected in theirs.items():
        np.testing.assert_allclose(ours[name], expected, rtol=1e-12, err_msg=name)
    for path in (one / "feedback").iterdir():
        ours, theirs = (read_npz(folder / "feedback" / path.name) for folder in (workdir, one))
        for name in theirs.keys() - {"seconds", "made_from"}:
            np.testing.assert_allclose(ours[name], theirs[name], err_msg=f"{path.name} {name}")


def test_sigterm_to_one_of_two_stops_both_at_one_step_and_one_process_continues(
    images, tmp_path, small_config, mesh
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_one(whole, images, "--stages=train", **LONG_TRAINING)
    with Processes(parts, images, "--stages=train", **LONG_TRAINING) as both:
        wait_for_checkpoint(parts)
        both.processes[1].send_signal(signal.SIGTERM)
        (status, said), (other_status, other_said) = both.end()
    assert (status, other_status) == (75, 75), said + other_said
    assert f"the same command continues in {parts}" in said
    stopped_at = newest_step(parts / "checkpoints")
    assert stopped_at < STEPS
    said = run_one(parts, images, "--stages=train", **LONG_TRAINING)
    assert f"going on from the checkpoint of step {stopped_at}" in said
    ours, theirs = (parameters(path, small_config, mesh) for path in (parts, whole))
    # Sums over devices are in another order; training makes the difference grow.
    assert np.abs(ours - theirs).max() < 0.01 * np.abs(theirs).max()


@pytest.mark.long
def test_a_checkpoint_of_one_process_continues_on_two(
    images, tmp_path, small_config, mesh, run_two
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_one(whole, images, "--stages=train", **LONG_TRAINING)
    process = subprocess.Popen(
        command(parts, images, "--stages=train", **LONG_TRAINING), cwd=ROOT, env=environment(4)
    )
    wait_for_checkpoint(parts)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 75
    stopped_at = newest_step(parts / "checkpoints")
    said = run_two(parts, images, "--stages=train", **LONG_TRAINING)
    assert f"going on from the checkpoint of step {stopped_at}" in said
    ours, theirs = (parameters(path, small_config, mesh) for path in (parts, whole))
    assert np.abs(ours - theirs).max() < 0.01 * np.abs(theirs).max()


@pytest.mark.parametrize("lost", [0, pytest.param(1, marks=pytest.mark.long)])
def test_where_one_of_two_is_killed_the_other_says_so_within_a_minute_and_both_continue(
    images, tmp_path, run_two, lost
):
    workdir = tmp_path / "run"
    with Processes(workdir, images, "--stages=train", **LONG_TRAINING) as both:
        wait_for_checkpoint(workdir)
        both.processes[lost].kill()
        killed = time.monotonic()
        left = both.processes[1 - lost]
        said, _ = left.communicate(timeout=PATIENCE)
        assert time.monotonic() - killed < 60
    assert left.returncode == 75, said
    assert "another process of the run was lost" in said
    step = newest_step(workdir / "checkpoints")
    assert step < STEPS
    said = run_two(workdir, images, "--stages=train", **LONG_TRAINING)
    assert f"going on from the checkpoint of step {step}" in said
    assert newest_step(workdir / "checkpoints") == STEPS


def test_wrong_input_ends_all_processes_with_its_error(images, tmp_path):
    with Processes(tmp_path / "run", images, model__depth=7) as both:
        ended = both.end()
    assert [status for status, _ in ended] == [2, 2]
    assert all("error: model.depth=7" in said for _, said in ended)


def test_a_place_that_cannot_be_is_refused_before_anything_is_done(images, tmp_path):
    refused = subprocess.run(
        [*command(tmp_path / "run", images), "--processes=2"],
        cwd=ROOT,
        env=environment(1),
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 2
    assert "expected all three: --coordinator=HOST:PORT" in refused.stderr
