"""Damaged files: the same command makes the same again, or ends with an error that names the file.

Never a wrong result, never a traceback. All kinds of file that a command leaves are tried.
"""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import (
    DAMAGES,
    Launcher,
    Table,
    Tried,
    contents,
    damage,
    differences,
    files_in,
    kind_of,
    refused_by_name,
)
from jobs import Job

# Kinds of file that may stay changed, and what is made of them. Nothing is made again of logs: they
# are for people. SQLite finds a changed byte only where that breaks its structure: elsewhere, it
# changes what the catalogue holds.
NOT_MENDED: dict[str, set[str]] = {
    "log": set(),
    "catalogue of an index": {"contact_sheet.png", "index.json"},
}


def try_all(
    launcher: Launcher,
    done: tuple[Job, Path],
    folder: Path,
    table: Table,
    wanted: Callable[[str], bool],
    per_kind: int,
    damages: tuple[str, ...],
) -> int:
    """Damage files of every kind in a finished folder, and run its command again each time.

    Args:
        launcher: of the command.
        done: a job and its folder.
        folder: to work in.
        table: of what was tried.
        wanted: of a file by its name.
        per_kind: files of each kind at most.
        damages: done to each.

    Returns:
        How many were tried.
    """
    job, whole = done
    expected = contents(whole)
    by_kind: dict[str, list[str]] = {}
    for name, _ in files_in(whole):
        if wanted(name):
            by_kind.setdefault(kind_of(name).name, []).append(name)
    lost: list[str] = []
    count, draw = 0, random.Random(0)
    out = folder / "out"
    for kind, names in by_kind.items():
        for name in draw.sample(names, min(per_kind, len(names))):
            for how in damages:
                shutil.rmtree(out, ignore_errors=True)
                shutil.copytree(whole, out)
                damage(out / name, how, draw)
                ended = launcher.run(job.command_in(out))
                refused = refused_by_name(ended, name)
                same = ended.status == 0
                if same:
                    changed = {name} | NOT_MENDED[kind] if kind in NOT_MENDED else set()
                    wrong = {*differences(contents(out, changed), expected)} - changed
                    same = not wrong
                if not (same or refused):
                    said = ended.errors[-1500:] or f"differs in {wrong}"
                    lost.append(f"{name} {how}: status {ended.status}: {said}")
                count += 1
                table.add(how, kind, Tried(1, int(same), int(refused)))
    assert not lost, "\n\n".join(lost)
    return count


def any_file(name: str) -> bool:
    return True


def of_the_sweep(name: str) -> bool:
    """Files that single runs do not leave too."""
    return not name.startswith("members/")


def test_a_run_with_a_damaged_file_is_mended_or_refused(launcher, run, tmp_path, faults_tried):
    changed = ("one byte changed",)
    some = ("codes.npz", "config.json")
    assert try_all(launcher, run, tmp_path, faults_tried, some.__contains__, 1, changed) == 2


@pytest.mark.long
def test_an_index_with_a_damaged_file_is_mended_or_refused(launcher, index, tmp_path, faults_tried):
    changed = ("one byte changed", "cut to half")
    assert try_all(launcher, index, tmp_path, faults_tried, any_file, 1, changed) >= 10


@pytest.mark.long
@pytest.mark.parametrize(
    ("job", "wanted", "per_kind", "changes"),
    [
        ("run", any_file, 1, 3),
        ("index", any_file, 1, 10),
        ("sweep", of_the_sweep, 1, 3),
        ("comparison", any_file, 1, 5),
    ],
)
def test_whatever_is_damaged_is_mended_or_refused(
    launcher, job, wanted, per_kind, changes, request, tmp_path, faults_tried
):
    done = request.getfixturevalue(job)
    damages = (*DAMAGES, *["one byte changed"] * (changes - 1))
    assert try_all(launcher, done, tmp_path, faults_tried, wanted, per_kind, damages) > 10
