"""Commands killed at random moments: what they make in the end is what an undisturbed one makes.

Long ones count for the table in `docs/reliability.md`; of each kind there is a short one too.
"""

import shutil
import signal
from pathlib import Path

import jobs
import pytest
from faults import Launcher, Table, Tried, contents, differences, kill_at, life, moments
from jobs import Job

NAMES = {signal.SIGKILL: "SIGKILL", signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C (SIGINT)"}


def kill(
    launcher: Launcher, job: Job, folder: Path, times: dict[int, int], table: Table
) -> dict[int, Tried]:
    """Kill a job so often by each signal, at moments spread over its life, and compare the end."""
    whole = folder / "whole"
    for out in (folder / "compiles", whole):
        if job.start is not None:
            shutil.copytree(job.start, out)
        lasts = life(launcher, job.command_in(out))
    expected = contents(whole)
    found = {}
    for seed, (sent, count) in enumerate(times.items()):
        runs = folder / NAMES[sent]
        spread = moments(count, seed)
        killed = kill_at(launcher, job.command_in, runs, lasts, spread, sent, job.start)
        wrong = [differences(contents(run), expected) for run in killed.folders]
        same = sum(n for n, names in zip(killed.times, wrong, strict=True) if not names)
        found[sent] = Tried(sum(killed.times), same)
        table.add(f"killed by {NAMES[sent]}", job.name, found[sent])
        assert not any(wrong), f"{NAMES[sent]}: {wrong}"
    return found


@pytest.mark.parametrize("job", ["training", pytest.param("evaluation", marks=pytest.mark.long)])
def test_a_run_killed_at_any_moment_ends_as_if_undisturbed(
    launcher, job, request, tmp_path, faults_tried
):
    job = request.getfixturevalue(job)
    assert kill(launcher, job, tmp_path, {signal.SIGKILL: 1}, faults_tried)[signal.SIGKILL].times


@pytest.mark.long
@pytest.mark.parametrize(
    ("job", "times"),
    [
        ("training", {signal.SIGKILL: 12, signal.SIGTERM: 6, signal.SIGINT: 6}),
        ("evaluation", {signal.SIGKILL: 10, signal.SIGTERM: 3, signal.SIGINT: 3}),
    ],
)
def test_a_run_killed_many_times_ends_as_if_undisturbed(
    launcher, job, times, request, tmp_path, faults_tried
):
    found = kill(launcher, request.getfixturevalue(job), tmp_path, times, faults_tried)
    assert sum(tried.times for tried in found.values()) >= 8


@pytest.mark.long
def test_a_sweep_killed_many_times_ends_as_if_undisturbed(launcher, data, tmp_path, faults_tried):
    times = {signal.SIGKILL: 8, signal.SIGTERM: 2, signal.SIGINT: 2}
    found = kill(launcher, jobs.sweep(data), tmp_path, times, faults_tried)
    assert sum(tried.times for tried in found.values()) >= 6


@pytest.mark.long
def test_indexing_killed_at_any_moment_ends_as_if_undisturbed(
    launcher, data, trained, tmp_path, faults_tried
):
    job = jobs.index(data, trained, pictures=300)
    assert kill(launcher, job, tmp_path, {signal.SIGKILL: 2}, faults_tried)[signal.SIGKILL].times


@pytest.mark.long
def test_indexing_killed_many_times_ends_as_if_undisturbed(
    launcher, data, trained, tmp_path, faults_tried
):
    job = jobs.index(data, trained, pictures=2000)
    times = {signal.SIGKILL: 12, signal.SIGTERM: 3, signal.SIGINT: 3}
    found = kill(launcher, job, tmp_path, times, faults_tried)
    assert sum(tried.times for tried in found.values()) >= 9


@pytest.mark.long
def test_a_comparison_killed_ends_as_if_undisturbed(
    launcher, data, evaluation, tmp_path, faults_tried
):
    shutil.copytree(evaluation.start, tmp_path / "run")
    launcher.complete(evaluation.command_in(tmp_path / "run"))
    job = jobs.comparison(tmp_path, tmp_path / "run" / "codes.npz")
    found = kill(launcher, job, tmp_path, {signal.SIGKILL: 4}, faults_tried)
    assert found[signal.SIGKILL].times >= 2
