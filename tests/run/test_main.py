"""The program as it is used: its stages, what it leaves, and what it refuses."""

import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import ROOT, class_images
from program import ENVIRONMENT, call, command, results, run

from air_jax.feedback import learners
from air_jax.main import main
from air_jax.run import dry_run, jobs
from air_jax.runtime.command_line import find_config
from air_jax.training import loop
from air_jax.training.checkpoints import Checkpoints

ROUND_KEYS = {
    "map",
    "map_ci95",
    "residual_map",
    "residual_map_ci95",
    "baseline_residual_map",
    "residual_precision_at_10",
    "no_relevant",
    "no_irrelevant",
    "residual_empty",
    "unconverged",
    "seconds",
}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "images.npz"
    pixels, labels = class_images(80)
    np.savez(path, image=pixels, label=labels)
    return path


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory) -> Path:
    """The work directory of a run of all stages."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    done = run(workdir, images)
    assert done.returncode == 0, done.stderr
    return workdir


def test_results_have_every_key_of_the_schema(finished):
    found = results(finished)
    assert found["schema_version"] == 1
    keys = {
        "dataset": "name database queries split",
        "model": "name depth width pool skip parameters code_dim",
        "train": "epochs steps batch dtype seconds compile_seconds images_per_second loss "
        "constant_loss pca_loss code_shuffled_loss",
        "encode": "images_per_second",
        "retrieval": "different_codes map map_ci95 precision_at_10 precision_at_100 "
        "recall_at_1000 nn_accuracy seconds",
        "baselines": "random pixels pca untrained",
        "feedback": "none svc svc_linear svc_pseudo rocchio",
    }
    for section, names in keys.items():
        assert set(names.split()) <= found[section].keys(), section
    for name in ("config", "config_hash", "commit", "seed", "split_seed", "environment"):
        assert name in found
    for entry in found["feedback"].values():
        assert entry.keys() >= {"params", "marks_per_round", "rounds"}
        assert [r["round"] for r in entry["rounds"]] == [0, 1, 2]
        assert entry["rounds"][0].keys() >= ROUND_KEYS
    assert found["dataset"] == {"name": "arrays", "database": 64, "queries": 16, "split": "paper"}
    assert found["model"]["name"] == "Sortcut"


def test_every_null_in_the_results_has_a_reason_beside_it(finished):
    def check(value, path):
        if isinstance(value, dict):
            for key, inner in value.items():
                if inner is None:
                    assert f"{key}_reason" in value, f"{path}.{key}"
                check(inner, f"{path}.{key}".lstrip("."))
        elif isinstance(value, list):
            for inner in value:
                check(inner, path)

    check(results(finished), "")


def test_per_query_figures_average_to_those_of_the_results(finished):
    found = results(finished)
    with np.load(finished / "per_query.npz") as file:
        assert len(file["query_index"]) == 16
        assert file["retrieval/ap"].mean() == pytest.approx(found["retrieval"]["map"])
        assert file["retrieval/pixels_ap"].mean() == pytest.approx(
            found["baselines"]["pixels"]["map"]
        )
        for learner, entry in found["feedback"].items():
            for r in entry["rounds"]:
                for key, array in (("map", "ap"), ("residual_map", "residual_ap")):
                    values = file[f"feedback/{learner}/{array}"][:, r["round"]]
                    assert np.nanmean(values) == pytest.approx(r[key])


def test_round_zero_of_every_learner_is_the_first_retrieval(finished):
    found = results(finished)
    for entry in found["feedback"].values():
        assert entry["rounds"][0]["map"] == pytest.approx(found["retrieval"]["map"], abs=1e-6)


def test_the_figures_are_pictures(finished):
    for name in ("loss", "reconstructions", "map_over_rounds", "time", "retrieval"):
        content = (finished / "figures" / f"{name}.png").read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 3000


def test_the_same_command_again_does_nothing_twice(finished, images):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*.npz")}
    again = run(finished, images)
    assert again.returncode == 0, again.stderr
    for stage in ("train", "encode", "retrieve", "feedback", "report"):
        assert f"{stage}: done before" in again.stdout
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*.npz")} == before


def test_a_changed_evaluation_key_redoes_only_later_stages_and_says_so(finished, images, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(finished, workdir)
    again = run(workdir, images, feedback__marks_per_round=3)
    assert again.returncode == 0, again.stderr
    assert "retrieve: done before" in again.stdout
    assert "feedback: feedback.marks_per_round was 5, now 3" in again.stdout
    assert results(workdir)["feedback"]["svc"]["marks_per_round"] == 3


def test_a_learner_that_changed_gives_feedback_again_and_the_others_do_not(
    finished, images, tmp_path, monkeypatch
):
    workdir = tmp_path / "copy"
    shutil.copytree(finished, workdir)
    rocchio = partial(learners.rocchio, alpha=1.0, beta=0.75, gamma=0.5)
    monkeypatch.setitem(learners.LEARNERS, "rocchio", rocchio)
    before = {p.stem: p.stat().st_mtime_ns for p in (workdir / "feedback").iterdir()}
    again = run(workdir, images)
    assert again.returncode == 0, again.stderr
    assert "feedback: rocchio: gamma was 0.15, now 0.5\n" in again.stdout
    after = {p.stem: p.stat().st_mtime_ns for p in (workdir / "feedback").iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"rocchio"}
    assert results(workdir)["feedback"]["rocchio"]["params"]["gamma"] == 0.5


def test_learners_that_are_no_longer_asked_for_keep_their_files_and_are_named(
    finished, images, tmp_path
):
    workdir = tmp_path / "copy"
    shutil.copytree(finished, workdir)
    before = {p.name: p.stat().st_mtime_ns for p in (workdir / "feedback").iterdir()}
    fewer = run(workdir, images, feedback__learners="('none','svc')")
    assert fewer.returncode == 0, fewer.stderr
    assert "rocchio, svc_linear, svc_pseudo: not in feedback.learners" in fewer.stdout
    assert results(workdir)["feedback"].keys() == {"none", "svc"}
    all_again = run(workdir, images)
    assert "not in feedback.learners" not in all_again.stdout
    assert results(workdir)["feedback"].keys() == results(finished)["feedback"].keys()
    assert before == {p.name: p.stat().st_mtime_ns for p in (workdir / "feedback").iterdir()}


def test_a_changed_training_key_is_refused_and_overwrite_keeps_the_old(finished, images, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(finished, workdir)
    refused = run(workdir, images, model__width=4)
    assert refused.returncode == 2
    assert "model.width was 8, now 4" in refused.stderr
    assert "Traceback" not in refused.stderr
    anew = run(workdir, images, "--overwrite", "--stages=train", model__width=4)
    assert anew.returncode == 0, anew.stderr
    (aside,) = tmp_path.glob("copy.old-*")
    assert results(aside)["model"]["width"] == 8


def test_stages_can_be_run_alone_and_say_what_they_miss(images, tmp_path):
    workdir = tmp_path / "run"
    missing = run(workdir, images, "--stages=retrieve")
    assert missing.returncode == 2
    assert "stage retrieve needs train and encode" in missing.stderr
    trained = run(workdir, images, "--stages=report,train")
    assert trained.returncode == 0, trained.stderr
    found = results(workdir)
    assert found["train"]["steps"] == 8
    assert found["retrieval"] is None
    assert found["retrieval_reason"] == "stage retrieve: not done yet"
    whole = run(workdir, images)
    assert whole.returncode == 0, whole.stderr
    assert "report: done before" not in whole.stdout
    assert results(workdir)["retrieval"]["map"] > 0


def test_dry_run_prints_the_plan_and_changes_nothing(images, tmp_path):
    planned = run(tmp_path / "run", images, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    for part in ("parameters", "MiB", "of training", "2 epochs, 8 steps of 16", "not done yet"):
        assert part in planned.stdout
    assert not (tmp_path / "run").exists()


def test_dry_run_says_what_comes_on_top_of_training(images, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(dry_run, "encoding_rate", lambda job: 2.0)

    def on_top(workdir, *flags):
        planned = run(workdir, images, "--dry-run", *flags)
        assert planned.returncode == 0, planned.stderr
        (line,) = (one for one in planned.stdout.splitlines() if one.startswith("on top"))
        return line, planned.stdout

    line, _ = on_top(tmp_path / "run")
    # 80 images, each encoded by the trained and by an untrained net.
    assert "encode: about 1 min 20 s, 80 images" in line
    assert "feedback: 2 rounds of 16 queries by none, svc, " in line
    assert [part.split(":")[0] for part in line.removeprefix("on top").split("; ")] == [
        *("          train", "encode", "retrieve", "feedback", "report")
    ]
    line, _ = on_top(tmp_path / "run", "--stages=train")
    assert "encode" not in line
    line, whole = on_top(finished)
    assert line.split() == ["on", "top", "nothing"]
    assert "no training is to do" in whole


def test_the_dry_runs_rate_of_encoding_is_measured(images, small_config, capsys):
    small_config.data.update(name="arrays", dir=str(images))
    assert dry_run.encoding_rate(jobs.load(small_config)) > 0
    assert "timing the encoder on 64 images" in capsys.readouterr().out


def test_killed_in_the_middle_of_training_the_same_command_ends_as_if_undisturbed(
    images, tmp_path, small_config
):
    keys = {"train__epochs": 60, "log__checkpoint_steps": 40, "train__learning_rate": 0.01}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    undisturbed = run(whole, images, "--stages=train", **keys)
    assert undisturbed.returncode == 0, undisturbed.stderr

    process = subprocess.Popen(
        command(parts, images, "--stages=train", **keys),
        cwd=ROOT,
        env=ENVIRONMENT | {"JAX_NUM_CPU_DEVICES": str(jax.device_count())},
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (parts / "checkpoints" / "80").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "training ended before it was killed"
    assert not (parts / "stages" / "train.json").exists()

    resumed = run(parts, images, "--stages=train", **keys)
    assert resumed.returncode == 0, resumed.stderr
    assert "going on from the checkpoint of step" in resumed.stdout
    small_config.update_from_flattened_dict({k.replace("__", "."): v for k, v in keys.items()})
    mesh = loop.sharding.make_mesh(jax.devices()[:1])
    nets = [loop.load_net(small_config, workdir, mesh) for workdir in (whole, parts)]
    for ours, theirs in zip(*(jax.tree.leaves(n.params) for n in nets), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with Checkpoints(parts / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() == 240


@pytest.mark.parametrize(
    ("flags", "keys", "message"),
    [
        ((), {"model__depht": 10}, "depht"),
        ((), {"model__depth": 7}, "model.depth=7"),
        ((), {"model__depth": "deep"}, "model.depth"),
        ((), {"train__batch": 1000}, "train.batch=1000 is larger than the training set"),
        ((), {"data__dir": "nowhere.npz"}, "nowhere.npz"),
        ((), {"data__dir": str(ROOT)}, "is a folder; data.name='arrays' needs an .npz file"),
        ((), {"data__queries_per_class": 20}, "takes 20 of each class"),
        ((), {"data__train_images": 65}, "data.train_images=65"),
        ((), {"data__loader": "disk"}, "data.loader='disk'"),
        ((), {"report__learner": "svm"}, "report.learner='svm'"),
        (("--stages=train,retrieve",), {}, "stage retrieve needs encode"),
        (("--overwrite", "--stages=feedback"), {}, "--stages=train,encode,feedback"),
        (("--stages=report",), {}, "nothing to report"),
        (("--stages=",), {}, "--stages: ''"),
        (("--workdir=",), {}, "is no run of air_jax"),
        ((), {"retrieval__baselines": "('pixel',)"}, "'pixel' is not one of"),
        (("--stages=train,rank",), {}, "'rank' is not one of train, encode"),
        (("train",), {}, "unexpected argument 'train'"),
    ],
)
def test_bad_input_is_one_clear_error_before_anything_is_done(
    images, tmp_path, flags, keys, message
):
    refused = run(tmp_path / "run", images, *flags, **keys)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "no such file"), ("def get_config(:", "SyntaxError"), ("", "get_config")],
)
def test_a_config_file_that_cannot_be_loaded_is_named(images, tmp_path, text, message):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    refused = run(tmp_path / "run", images, config=str(path))
    assert refused.returncode == 2
    assert "mine.py" in refused.stderr
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("flag", [["--config=quickstart"], ["--config", "quickstart.py"]])
def test_a_config_of_air_jaxs_own_is_named_without_its_path(tmp_path, monkeypatch, flag):
    monkeypatch.chdir(tmp_path)
    done = call(main, *flag, "--stages=train", "--dry-run", "--config.data.name", "arrays")
    # As far as the config: it is found, and its data is then missing.
    assert "data.dir" in done.stderr


def test_a_file_of_ones_own_goes_before_the_config_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart.py").touch()
    assert find_config("quickstart.py") == "quickstart.py"
    assert Path(find_config("quickstart")).samefile(ROOT / "configs" / "quickstart.py")
    assert find_config("quickstart:text") == f"{find_config('quickstart')}:text"


def test_of_an_unknown_config_the_known_ones_are_named():
    with pytest.raises(ValueError, match="--config=depth41: there is no such file") as error:
        find_config("depth41")
    assert all(path.stem in str(error.value) for path in (ROOT / "configs").glob("[!_]*.py"))


@pytest.mark.long
def test_the_quickstart_reaches_what_the_readme_says(tmp_path):
    workdir = tmp_path / "quickstart"
    program = [sys.executable, "-m", "air_jax.main", f"--workdir={workdir}"]
    quickstart = [*program, f"--config={ROOT / 'configs' / 'quickstart.py'}"]
    done = subprocess.run(quickstart, capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    found = results(workdir)
    assert found["retrieval"]["map"] >= max(0.667, found["baselines"]["pixels"]["map"])
    maps = [r["map"] for r in found["feedback"]["svc"]["rounds"]]
    assert maps == sorted(maps)
    assert maps[3] >= 0.80
    assert found["train"]["loss"] < found["train"]["constant_loss"]
    assert found["train"]["code_shuffled_loss"] > 1.5 * found["train"]["loss"]
