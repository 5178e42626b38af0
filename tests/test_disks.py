"""Full disks and read-only folders: an error that names the place, and nothing is lost."""

import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jobs
import pytest
from faults import Launcher, Table, Tried, contents, differences, one_error

NOBODY = 65534
STAGES = "train,encode,retrieve,feedback,report"


@pytest.fixture(scope="module")
def data() -> Iterator[Path]:
    """A folder that any user can read."""
    folder = Path(tempfile.mkdtemp(prefix="air_jax-disks-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def run(launcher, data) -> jobs.Job:
    job = jobs.run(data, "run", STAGES)
    launcher.complete(job.command_in(data / "whole"))
    return job


@pytest.fixture(scope="module")
def index(launcher, data, run) -> jobs.Job:
    job = jobs.index(data, data / "whole", pictures=40)
    launcher.complete(job.command_in(data / "whole index"))
    return job


def fill(
    launcher: Launcher, job: jobs.Job, whole: Path, out: Path, limits: list[int], table: Table
) -> int:
    """Run a job with disks that take no larger files than these, then freely; how often it failed.

    Every failure has to name a file in the folder; the end has to be as undisturbed.
    """
    failed, named = 0, 0
    for limit in limits:
        ended = launcher.run(job.command_in(out), largest_file=limit)
        if ended.status != 0:
            failed += 1
            error = one_error(ended)
            assert error is not None, ended.errors
            assert str(out) in error
            named += 1
    launcher.complete(job.command_in(out))
    wrong = differences(contents(out), contents(whole))
    table.add("disk full", job.name, Tried(failed, 0 if wrong else failed))
    assert not wrong
    return failed


def test_a_full_disk_is_named_and_the_same_command_continues(
    launcher, run, data, tmp_path, faults_tried
):
    assert fill(launcher, run, data / "whole", tmp_path / "run", [300, 6000], faults_tried) == 2


@pytest.mark.long
def test_disks_full_at_any_size_are_named_and_the_same_command_continues(
    launcher, run, index, data, tmp_path, faults_tried
):
    draw = random.Random(0)
    limits = sorted(int(10 ** draw.uniform(0, 5.3)) for _ in range(16))
    assert fill(launcher, run, data / "whole", tmp_path / "run", limits, faults_tried) >= 8
    limits = [limit for limit in limits if limit > 10]
    assert fill(launcher, index, data / "whole index", tmp_path / "i", limits, faults_tried) >= 5


def test_a_full_file_system_is_named_and_the_same_command_continues(
    launcher, run, data, tmp_path, faults_tried
):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        error = one_error(launcher.run(run.command_in(disk / "run")))
        assert error is not None
        assert "No space left" in error
        assert str(disk) in error
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        launcher.complete(run.command_in(disk / "run"))
        wrong = differences(contents(disk / "run"), contents(data / "whole"))
        faults_tried.add("file system full", run.name, Tried(1, int(not wrong)))
        assert not wrong
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("job", ["run", "index"])
def test_a_folder_that_may_not_be_written_to_is_named(launcher, job, request, data, faults_tried):
    job = request.getfixturevalue(job)
    folder = data / "read only"
    folder.mkdir(mode=0o555, exist_ok=True)
    user = NOBODY if os.geteuid() == 0 else None
    ended = launcher.run(job.command_in(folder / job.name), user=user)
    error = one_error(ended)
    faults_tried.add("read-only folder", job.name, Tried(1, 0, int(error is not None)))
    assert error is not None, ended.errors
    assert str(folder) in error
