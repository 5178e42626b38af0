"""Full disks and read-only folders: an error that names the place, and nothing is lost."""

import contextlib
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import Launcher, Table, Tried, contents, differences, one_error
from jobs import Job


def fill(
    launcher: Launcher, done: tuple[Job, Path], out: Path, limits: list[int], table: Table
) -> int:
    """Run a job with disks that take no larger files than these, then freely; how often it failed.

    Every failure has to name a file in the folder; the end has to be as undisturbed.
    """
    job, whole = done
    failed = 0
    for limit in limits:
        ended = launcher.run(job.command_in(out), largest_file=limit)
        if ended.status != 0:
            failed += 1
            error = one_error(ended)
            assert error is not None, ended.errors
            assert str(out) in error
    launcher.complete(job.command_in(out))
    wrong = differences(contents(out), contents(whole))
    table.add("disk full", job.name, Tried(failed, 0 if wrong else failed))
    assert not wrong
    return failed


def test_a_full_disk_is_named_and_the_same_command_continues(launcher, run, tmp_path, faults_tried):
    assert fill(launcher, run, tmp_path / "run", [6000], faults_tried) == 1


@pytest.mark.long
def test_disks_full_at_any_size_are_named_and_the_same_command_continues(
    launcher, run, index, tmp_path, faults_tried
):
    draw = random.Random(0)
    limits = sorted(int(10 ** draw.uniform(0, 5.3)) for _ in range(16))
    assert fill(launcher, run, tmp_path / "run", limits, faults_tried) >= 8
    limits = [limit for limit in limits if limit > 10]
    assert fill(launcher, index, tmp_path / "i", limits, faults_tried) >= 5


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A file system in memory; skips where mounting is not allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system is not allowed here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.long
def test_a_full_file_system_is_named_and_the_same_command_continues(
    launcher, run, tmp_path, faults_tried
):
    job, whole = run
    disk = tmp_path / "disk"
    with mounted(disk, "size=100k"):
        ended = launcher.run(job.command_in(disk / "run"))
        error = one_error(ended)
        assert error is not None, ended
        assert "No space left" in error
        assert str(disk) in error
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        launcher.complete(job.command_in(disk / "run"))
        wrong = differences(contents(disk / "run"), contents(whole))
        faults_tried.add("file system full", job.name, Tried(1, int(not wrong)))
        assert not wrong


@pytest.mark.parametrize("job", ["run", pytest.param("index", marks=pytest.mark.long)])
def test_a_folder_that_may_not_be_written_to_is_named(
    launcher, job, request, tmp_path, faults_tried
):
    job, _ = request.getfixturevalue(job)
    folder = tmp_path / "read only"
    with mounted(folder, "ro") if os.geteuid() == 0 else contextlib.nullcontext():
        folder.mkdir(mode=0o555, exist_ok=True)
        ended = launcher.run(job.command_in(folder / job.name))
    error = one_error(ended)
    faults_tried.add("read-only folder", job.name, Tried(1, 0, int(error is not None)))
    assert error is not None, ended.errors
    assert str(folder) in error
