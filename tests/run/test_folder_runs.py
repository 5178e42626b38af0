"""Runs on a person's folder of pictures, with labels and without, and the index by their nets."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, class_images, write_odd_pictures
from PIL import Image
from program import results, run

from air_jax.configs import default
from air_jax.data import folder as data_folder
from air_jax.index import build
from air_jax.index.image_index import ImageIndex
from air_jax.reproduce import sweep
from air_jax.run import jobs

CONFIG = str(ROOT / "configs" / "folder.py")
KEYS = {
    **{"data__name": "folder", "data__size": 8, "data__split": "official"},
    **{"train__batch": 8, "log__checkpoint_steps": 3},
}


def run_on(folder: Path, workdir: Path, *flags: str, **keys):
    return run(workdir, folder, *flags, config=CONFIG, **KEYS, **keys)


def write_classes(folder: Path, count: int, sorted_in: bool) -> None:
    pixels, labels = class_images(count, size=12)
    for number, (picture, label) in enumerate(zip(pixels, labels, strict=True)):
        path = folder / (f"class {label}" if sorted_in else ".") / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> tuple[Path, Path]:
    """A folder with sub-folders, odd files and loose pictures, and the work directory of a run."""
    folder = tmp_path_factory.mktemp("pictures")
    write_classes(folder, 48, sorted_in=True)
    write_odd_pictures(folder)
    Image.new("RGB", (9, 9)).save(folder / "loose.png")
    workdir = tmp_path_factory.mktemp("runs") / "labelled"
    done = run_on(folder, workdir)
    assert done.returncode == 0, done.stderr
    return folder, workdir


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory) -> tuple[Path, Path, str]:
    """A folder without sub-folders, the work directory of a run, and what the run said."""
    folder = tmp_path_factory.mktemp("pictures")
    write_classes(folder, 40, sorted_in=False)
    workdir = tmp_path_factory.mktemp("runs") / "unlabelled"
    done = run_on(folder, workdir)
    assert done.returncode == 0, done.stderr
    return folder, workdir, done.stdout


def test_a_run_on_sorted_pictures_judges_its_codes_by_the_sub_folders(labelled):
    _, workdir = labelled
    found = results(workdir)
    # One of each of six classes of 12 or fewer; 写真 has one picture, and no query.
    assert found["dataset"] == {
        **{"name": "folder", "database": 51, "queries": 6, "split": "official"}
    }
    assert 0 < found["retrieval"]["map"] <= 1
    assert found["feedback"].keys() >= {"none", "svc"}
    figures = {path.stem for path in (workdir / "figures").iterdir()}
    assert figures == {"loss", "spread", "map_over_rounds", "time", "retrieval"}


def test_a_run_on_pictures_without_labels_ends_well_and_says_what_it_skips(unlabelled):
    _, workdir, said = unlabelled
    assert "folder: no labels: 0 sub-folders hold pictures" in said
    assert "retrieve: skipped: no labels" in said
    assert "feedback: skipped: no labels" in said
    found = results(workdir)
    assert found["dataset"]["database"] == 36
    assert found["dataset"]["queries"] == 4
    assert found["train"]["objective"] == "contrastive"
    assert found["encode"]["images_per_second"] > 0
    for section, stage in (
        *(("retrieval", "retrieve"), ("baselines", "retrieve")),
        ("feedback", "feedback"),
    ):
        assert found[section] is None
        assert found[f"{section}_reason"] == f"stage {stage}: skipped: no labels"
    assert {path.stem for path in (workdir / "figures").iterdir()} == {"loss", "spread", "time"}
    assert not (workdir / "per_query.npz").exists()
    with np.load(workdir / "codes.npz") as codes:
        assert not {name for name in codes if "label" in name}


def test_the_same_command_again_on_pictures_without_labels_does_nothing_twice(unlabelled):
    folder, workdir, _ = unlabelled
    again = run_on(folder, workdir)
    assert again.returncode == 0, again.stderr
    for stage in ("train", "encode", "report"):
        assert f"{stage}: done before" in again.stdout
    planned = run_on(folder, workdir, "--dry-run")
    assert "retrieve: skipped: no labels" in planned.stdout
    asked = run_on(folder, workdir, "--stages=feedback")
    assert asked.returncode == 0, asked.stderr
    assert "feedback: skipped: no labels" in asked.stdout


def test_a_run_that_goes_on_from_a_checkpoint_ends_as_if_undisturbed(unlabelled, tmp_path):
    folder, workdir, _ = unlabelled
    again = tmp_path / "again"
    shutil.copytree(workdir, again)
    shutil.rmtree(max((again / "checkpoints").iterdir(), key=lambda path: int(path.name)))
    shutil.rmtree(again / "stages")
    done = run_on(folder, again)
    assert done.returncode == 0, done.stderr
    assert "going on from the checkpoint of step" in done.stdout
    with np.load(workdir / "codes.npz") as ours, np.load(again / "codes.npz") as theirs:
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])


def test_a_folder_that_changed_is_another_training(unlabelled, tmp_path):
    folder, workdir, _ = unlabelled
    changed = tmp_path / "changed"
    shutil.copytree(folder, changed)
    (changed / "000.png").unlink()
    refused = run_on(changed, workdir)
    assert refused.returncode == 2
    assert "another training" in refused.stderr
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    assert run_on(moved, workdir).returncode == 0  # where the pictures lie does not matter


def test_a_picture_has_the_same_code_in_the_index_as_in_the_run(labelled, tmp_path):
    folder, workdir = labelled
    build.index_images(folder, workdir, tmp_path / "index", build.Options())
    index = ImageIndex(tmp_path / "index")
    indexed = dict(
        zip(
            (image.path for image in index.images(index.ids.tolist())),
            np.asarray(index.codes.exact),
            strict=True,
        )
    )
    _, paths = data_folder.read(str(folder), 8)
    assert sorted(indexed) == sorted(paths)
    with np.load(workdir / "codes.npz") as codes:
        for part in ("database", "query"):
            of_index = np.stack([indexed[paths[i]] for i in codes[f"{part}_index"]])
            np.testing.assert_allclose(codes[part], of_index, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"train__batch": 40}, "train.batch=40 is larger than the training set of 36"),
        ({"data__size": 0}, "data.size=0"),
        ({"data__size": 9}, "data.size"),
        ({"data__size": 10**6}, "data.size=1000000"),
        ({"data__split": "paper"}, "data.split='paper'"),
        ({"data__keep_database_per_class": 3}, "data.keep_database_per_class=3"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_done(unlabelled, tmp_path, keys, message):
    refused = run(tmp_path / "run", unlabelled[0], config=CONFIG, **(KEYS | keys))
    assert refused.returncode == 2
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "run").exists()
    if keys == {"data__size": 9}:
        assert "decode" not in refused.stdout


def test_too_few_pictures_to_give_feedback_on_are_refused_by_their_number(labelled, tmp_path):
    refused = run_on(labelled[0], tmp_path / "run", feedback__rounds=20)
    assert refused.returncode == 2
    assert "more images than the 51 of the database" in refused.stderr


def test_a_sweep_over_pictures_without_labels_is_refused(unlabelled, tmp_path):
    config = default.get_config()
    config.data.update(name="folder", dir=str(unlabelled[0]), size=8, split="official")
    with pytest.raises(ValueError, match="the images have no labels, and a sweep compares"):
        sweep.make_members(jobs.load(config), tmp_path)
