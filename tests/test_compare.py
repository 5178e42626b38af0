"""The comparison of learners, on codes of a few hundred images."""

import json
import subprocess
import sys

import numpy as np
import pytest

from air_jax import compare
from air_jax.learners import LEARNERS


@pytest.fixture
def codes(tmp_path):
    """A run's codes: four classes, 200 images in the database and 24 queries."""
    rng = np.random.default_rng(0)
    labels = np.arange(224) % 4
    values = (rng.normal(size=(4, 8))[labels] + rng.normal(size=(224, 8))).astype(np.float32)
    path = tmp_path / "codes.npz"
    np.savez(
        path,
        database=values[:200],
        query=values[200:],
        database_label=labels[:200],
        query_label=labels[200:],
    )
    return path


def run(*flags):
    command = [sys.executable, "-m", "air_jax.compare", *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_learner_is_compared_on_its_own_and_on_recorded_marks(codes, tmp_path):
    sizes = ["--validation=8", "--queries=12", "--rounds=2", "--marks=5"]
    done = run(f"--codes={codes}", f"--out={tmp_path / 'out'}", *sizes)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert found["queries"] == 12
    assert found["learners"].keys() == LEARNERS.keys() - {"none"}
    for kinds in found["learners"].values():
        for rounds in kinds.values():
            assert [entry["round"] for entry in rounds] == [0, 1, 2]
            assert rounds[0]["residual_gain"] == 0
    # On the recorded marks the first retrieval has the same residual set for every learner.
    bases = {
        round(kinds["recorded"][2]["residual_map"] - kinds["recorded"][2]["residual_gain"], 9)
        for kinds in found["learners"].values()
    }
    assert len(bases) == 1
    for name, chosen in found["chosen"].items():
        assert [entry["constants"] for entry in chosen["tried"]] == compare.GRIDS[name]
        assert chosen["residual_map"] == max(e["residual_map"] for e in chosen["tried"])
    assert found["winner"] == compare.winner(found["learners"])
    assert f"`{found['winner']}`" in (tmp_path / "out" / "compare.md").read_text()


def entry(gain, residual):
    return {"residual_gain": gain, "residual_map": residual}


def test_a_learner_that_loses_in_its_first_round_does_not_win():
    found = {
        "bold": {"own": [None, entry(-0.1, 0)], "recorded": [None, entry(0, 0.9)]},
        "steady": {"own": [None, entry(0.1, 0)], "recorded": [None, entry(0, 0.6)]},
        "weak": {"own": [None, entry(0.2, 0)], "recorded": [None, entry(0, 0.5)]},
    }
    assert compare.winner(found) == "steady"


def test_a_file_that_is_no_codes_is_one_clear_error(tmp_path):
    (tmp_path / "codes.npz").write_text("no")
    done = run(f"--codes={tmp_path / 'codes.npz'}", f"--out={tmp_path}")
    assert done.returncode == 2
    assert "codes.npz cannot be read" in done.stderr
    done = run(f"--codes={tmp_path / 'nothing.npz'}", f"--out={tmp_path}")
    assert done.returncode == 2
    assert "nothing.npz" in done.stderr
