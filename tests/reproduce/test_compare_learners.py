"""The comparison of learners, on codes of a few hundred images."""

import json
import re

import numpy as np
import pytest
from program import call
from sklearn.decomposition import PCA

from air_jax import compare
from air_jax.configs import quickstart
from air_jax.feedback.learners import LEARNERS
from air_jax.reproduce import compare_learners
from air_jax.reproduce.kept_results import KeptResults
from air_jax.run import jobs
from air_jax.runtime import command_line
from air_jax.runtime.atomic_files import write_json
from air_jax.runtime.checksums import write_checked_json

SIZES = ("--validation=8", "--queries=12", "--rounds=2", "--marks=5")


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    """A run's codes: four classes, 200 images in the database and 24 queries."""
    rng = np.random.default_rng(0)
    labels = np.arange(224) % 4
    values = (rng.normal(size=(4, 8))[labels] + rng.normal(size=(224, 8))).astype(np.float32)
    path = tmp_path_factory.mktemp("run") / "codes.npz"
    np.savez(
        path,
        database=values[:200],
        query=values[200:],
        database_label=labels[:200],
        query_label=labels[200:],
    )
    return path


@pytest.fixture(scope="module")
def compared(codes, tmp_path_factory):
    """The folder of a comparison."""
    folder = tmp_path_factory.mktemp("compared")
    done = call(compare.main, f"--codes={codes}", f"--out={folder}", *SIZES)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_learner_is_compared_on_its_own_and_on_recorded_marks(compared):
    found = json.loads((compared / "compare.json").read_text())
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
        assert [entry["constants"] for entry in chosen["tried"]] == compare_learners.GRIDS[name]
        assert chosen["residual_map"] == max(e["residual_map"] for e in chosen["tried"])
    assert found["winner"] == compare_learners.winner(found["learners"])
    assert f"`{found['winner']}`" in (compared / "compare.md").read_text()


def test_a_stopped_comparison_continues_with_what_is_missing(codes, compared, tmp_path):
    whole = json.loads((compared / "compare.json").read_text())
    parts = json.loads((compared / "parts.json").read_text())
    inputs, found = parts["inputs"], parts["found"]
    kept = dict(list(found.items())[:-2])
    write_checked_json(tmp_path / "parts.json", {"inputs": inputs, "found": kept})
    done = call(compare.main, f"--codes={codes}", f"--out={tmp_path}", *SIZES)
    assert done.stdout.count("held-out queries: ") == 2
    again = json.loads((tmp_path / "compare.json").read_text())
    for content in (whole, again):
        for kinds in content["learners"].values():
            for rounds in kinds.values():
                for entry in rounds:
                    del entry["seconds"]
    assert again == whole


def test_results_are_kept_unless_they_are_damaged_or_of_other_inputs(tmp_path):
    path, inputs = tmp_path / "results.json", {"marks": 5}
    assert KeptResults(path, inputs).get("a", lambda: [1.5]) == [1.5]
    assert KeptResults(path, inputs).get("a", lambda: [2.5]) == [1.5]
    assert KeptResults(path, {"marks": 4}).get("b", lambda: 1) == 1
    assert KeptResults(path, inputs).found == {}
    path.write_text(path.read_text().replace('"b": 1', '"b": 2'))
    assert KeptResults(path, {"marks": 4}).found == {}
    path.write_text("[]")
    assert KeptResults(path, inputs).found == {}


@pytest.fixture
def digits_run(tmp_path):
    """A work directory's config and codes, of scikit-learn's digits."""
    config = quickstart.get_config()
    config.data.size = 8
    write_json(tmp_path / "config.json", {"config": command_line.flatten(config)})
    job = jobs.load(config)
    labels = job.dataset.labels
    size, queries = len(job.database), len(job.queries)
    np.savez(
        tmp_path / "codes.npz",
        database=np.zeros((size, 4), np.float32),
        query=np.zeros((queries, 4), np.float32),
        database_label=labels[job.database],
        query_label=labels[job.queries],
    )
    return tmp_path, job


def test_codes_that_need_no_net_are_made_of_the_runs_images(digits_run):
    path, job = digits_run
    made = compare_learners.codes_of(path / "codes.npz", "pca")
    pixels = job.database_images().reshape(len(job.database), -1) / 255
    assert made["database"].shape == (len(job.database), 4)
    expected = PCA(4, svd_solver="full").fit(pixels).explained_variance_
    np.testing.assert_allclose(made["database"].var(axis=0, ddof=1), expected, rtol=1e-3)
    with pytest.raises(ValueError, match="no array named 'untrained_database'"):
        compare_learners.codes_of(path / "codes.npz", "untrained")


def test_images_that_are_not_the_runs_are_an_error(digits_run):
    path, _ = digits_run
    held = dict(np.load(path / "codes.npz"))
    held["database_label"] = held["database_label"][::-1]
    np.savez(path / "codes.npz", **held)
    with pytest.raises(ValueError, match="is of other images than config.json beside it loads"):
        compare_learners.codes_of(path / "codes.npz", "pca")


def entry(gain, residual):
    return {"residual_gain": gain, "residual_map": residual}


def test_a_learner_that_loses_in_its_first_round_does_not_win():
    found = {
        "bold": {"own": [None, entry(-0.1, 0)], "recorded": [None, entry(0, 0.9)]},
        "steady": {"own": [None, entry(0.1, 0)], "recorded": [None, entry(0, 0.6)]},
        "weak": {"own": [None, entry(0.2, 0)], "recorded": [None, entry(0, 0.5)]},
    }
    assert compare_learners.winner(found) == "steady"


def test_a_file_that_is_no_codes_is_one_clear_error(tmp_path):
    (tmp_path / "codes.npz").write_text("no")
    for name, message in (("codes", "codes.npz cannot be read"), ("nothing", "nothing.npz")):
        done = call(compare.main, f"--codes={tmp_path / name}.npz", f"--out={tmp_path}")
        assert done.returncode == 2
        assert message in done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rounds=2", "--marks=100", "--validation=8"], "lower --rounds or --marks"),
        (["--validation=200"], "--validation=200: .* has 200 images"),
    ],
)
def test_sizes_that_leave_nothing_to_judge_by_are_an_error_before_the_long_work(
    codes, tmp_path, flags, message
):
    done = call(compare.main, f"--codes={codes}", f"--out={tmp_path}", *flags)
    assert done.returncode == 2
    assert re.search(message, done.stderr)
    assert not (tmp_path / "parts.json").exists()


def test_a_learner_that_leaves_no_relevant_image_unmarked_can_win():
    found = {
        "all": {"own": [None, entry(None, None)], "recorded": [None, entry(0, 0.9)]},
        "some": {"own": [None, entry(0.1, 0)], "recorded": [None, entry(0, 0.5)]},
    }
    assert compare_learners.winner(found) == "all"
    for kinds in found.values():
        for rounds in kinds.values():
            rounds[1] |= {"residual_gain_ci95": [0, 0], "map": 0.5}
    assert "| `all` | +0.0000 (+0.0000 – +0.0000) | - |" in compare_learners.table(found)
