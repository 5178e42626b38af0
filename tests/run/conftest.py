"""What the tests of kills, damage and disks disturb: jobs, and what each leaves undisturbed."""

from pathlib import Path

import jobs
import pytest
from faults import Launcher
from jobs import Job


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of what the jobs are of, and of what they left."""
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="session")
def run(launcher: Launcher, data: Path) -> tuple[Job, Path]:
    """A run of all stages, and its folder."""
    return _done(launcher, jobs.run(data, "run", "train,encode,retrieve,feedback,report"), data)


@pytest.fixture(scope="session")
def sweep(launcher: Launcher, data: Path) -> tuple[Job, Path]:
    """A sweep, and its folder."""
    return _done(launcher, jobs.sweep(data), data)


@pytest.fixture(scope="session")
def index(launcher: Launcher, data: Path, run: tuple[Job, Path]) -> tuple[Job, Path]:
    """An index by the net of that run, and its folder."""
    return _done(launcher, jobs.index(data, run[1], pictures=40), data)


@pytest.fixture(scope="session")
def comparison(launcher: Launcher, data: Path, run: tuple[Job, Path]) -> tuple[Job, Path]:
    """A comparison of learners on the codes of that run, and its folder."""
    return _done(launcher, jobs.comparison(data, run[1] / "codes.npz"), data)


@pytest.fixture(scope="session")
def training(data: Path) -> Job:
    """A run that trains."""
    return jobs.run(data, "training", "train")


@pytest.fixture(scope="session")
def trained(launcher: Launcher, data: Path, training: Job) -> Path:
    """The folder of a run whose net is trained."""
    return _done(launcher, training, data)[1]


@pytest.fixture(scope="session")
def evaluation(data: Path, trained: Path) -> Job:
    """A run of all other stages on that net."""
    return jobs.run(data, "evaluation", "encode,retrieve,feedback,report", trained)


def _done(launcher: Launcher, job: Job, data: Path) -> tuple[Job, Path]:
    """A job, and the folder that it left."""
    folder = data / "done" / job.name
    launcher.complete(job.command_in(folder))
    return job, folder
