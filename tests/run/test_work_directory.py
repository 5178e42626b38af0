"""Which stages are current, and which work directories are refused."""

import hashlib
import json
import os
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from air_jax.baselines import kmeans, manifold_transform
from air_jax.configs import default
from air_jax.feedback import learners
from air_jax.run import work_directory
from air_jax.run.work_directory import WorkDir


@pytest.fixture
def folder(small_config, tmp_path):
    """A work directory whose stages are all done."""
    made = WorkDir(tmp_path / "run", small_config, "data")
    with made.opened():
        for stage in work_directory.STAGES:
            (made / f"{stage}.bin").write_text(stage)
            made.finish(stage, {"of": stage}, [f"{stage}.bin"])
    return made


def redone(folder, config=None, data="data"):
    again = WorkDir(folder.path, config or folder.config, data)
    return {s: again.why_redo(s) for s in work_directory.STAGES if again.why_redo(s)}


def changed(config, **values):
    other = config.copy_and_resolve_references()
    other.update_from_flattened_dict(values)
    return other


def test_finished_stages_are_current_and_keep_their_results(folder):
    assert redone(folder) == {}
    assert folder.result("encode") == {"of": "encode"}


def test_a_changed_evaluation_key_redoes_its_stage_and_the_report_only(folder):
    config = changed(folder.config, **{"feedback.marks_per_round": 7})
    reasons = redone(folder, config)
    assert list(reasons) == ["feedback", "report"]
    assert reasons["feedback"] == "feedback.marks_per_round was 5, now 7"
    assert WorkDir(folder.path, config, "data").result("feedback") is None


def test_a_changed_encoding_redoes_all_that_reads_codes(folder):
    reasons = redone(folder, changed(folder.config, **{"encode.readout_dim": 64}))
    assert list(reasons) == ["encode", "retrieve", "feedback", "report"]


def test_codes_of_the_untrained_net_are_made_when_they_are_first_asked_for(folder):
    without = changed(folder.config, **{"retrieval.baselines": ("random", "pixels")})
    assert redone(folder, without)["encode"] == "codes of the untrained net was True, now False"
    fewer = changed(folder.config, **{"retrieval.baselines": ("random", "untrained")})
    assert list(redone(folder, fewer)) == ["retrieve", "report"]


def test_setting_aside_refuses_a_folder_that_is_no_run(small_config, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="no run of air_jax"):
        WorkDir(tmp_path, small_config, "data").set_aside()


@pytest.mark.parametrize("key", ["log.every_steps", "data.loader", "data.dir", "encode.batch"])
def test_keys_without_effect_on_the_results_redo_nothing(folder, key):
    value = {"data.loader": "host", "data.dir": "elsewhere"}.get(key, 96)
    config = changed(folder.config, **{key: value})
    assert redone(folder, config) == {}
    WorkDir(folder.path, config, "data").check()


def test_a_learners_other_constants_or_code_redo_its_stage_and_the_message_says_so(
    folder, monkeypatch
):
    monkeypatch.setitem(
        learners.LEARNERS, "svc", partial(learners.support_vector, kernel="rbf", C=0.1)
    )
    assert redone(folder)["feedback"] == "svc: C was 10.0, now 0.1"
    monkeypatch.undo()
    assert redone(folder) == {}
    monkeypatch.setitem(learners.LEARNERS, "svc", learners.no_feedback)
    assert "svc: its code changed" in redone(folder)["feedback"]
    monkeypatch.undo()
    monkeypatch.setattr(learners.svm, "TOLERANCE", 0.5)  # of a module that learners use
    assert "svc_linear: its code changed" in redone(folder)["feedback"]
    assert "none" not in redone(folder)["feedback"]


@pytest.mark.parametrize(
    ("module", "constant", "name"),
    [(kmeans, "CENTROIDS", "kmeans"), (manifold_transform, "ATOMS", "smt")],
)
def test_another_constant_of_a_baseline_redoes_the_first_retrieval(
    folder, monkeypatch, module, constant, name
):
    folder.config.retrieval.baselines = (name,)
    folder.finish("retrieve", {}, [])
    monkeypatch.setattr(module, constant, 7)
    assert f"{name}: its code changed" in redone(folder)["retrieve"]


def test_the_constants_of_learners_are_compared_in_records_that_hold_no_code(folder, monkeypatch):
    results = {name: {"params": learners.parameters(name)} for name in ("none", "svc", "rocchio")}
    folder.finish("feedback", results, ["feedback.bin"])
    record = folder / "stages" / "feedback.json"
    older = json.loads(record.read_text())
    del older["code"]
    record.write_text(json.dumps(older))
    folder.finish("report", {}, ["report.bin"])
    assert redone(folder) == {}
    svc = partial(learners.support_vector, kernel="rbf", C=0.1)
    monkeypatch.setitem(learners.LEARNERS, "svc", svc)
    assert redone(folder)["feedback"] == "svc: C was 10.0, now 0.1"


def test_a_key_that_an_older_run_does_not_have_means_its_default(folder, monkeypatch):
    with_more = default.get_config

    def newer():
        config = with_more()
        config.model.bias = True
        config.feedback.patience = 3
        return config

    monkeypatch.setattr(default, "get_config", newer)
    config = folder.config.copy_and_resolve_references()
    with config.unlocked():
        config.model.bias = True
        config.feedback.patience = 3
    assert redone(folder, config) == {}
    WorkDir(folder.path, config, "data").check()
    config.feedback.patience = 4
    assert redone(folder, config)["feedback"] == "feedback.patience was 3, now 4"
    config.model.bias = False
    with pytest.raises(ValueError, match="model.bias was True, now False"):
        WorkDir(folder.path, config, "data").check()


def test_a_key_that_is_no_more_is_named(folder):
    config = folder.config.copy_and_resolve_references()
    with config.unlocked():
        del config.model.input_residual
    with pytest.raises(ValueError, match="model.input_residual was False, and there is no such"):
        WorkDir(folder.path, config, "data").check()


def test_missing_and_damaged_files_redo_their_stage(folder):
    (folder / "retrieve.bin").write_text("retrieve!")
    assert "retrieve.bin is damaged" in redone(folder)["retrieve"]
    (folder / "encode.bin").unlink()
    assert redone(folder)["encode"] == "encode.bin is missing"


def test_a_damaged_record_redoes_its_stage(folder):
    record = folder / "stages" / "encode.json"
    whole = json.loads(record.read_text())
    emptied = json.dumps(whole | {"result": {}})
    for text in ('{"finger', "[]", '{"fingerprint": 1, "config": 2, "files": 3}', emptied):
        record.write_text(text)
        assert redone(folder)["encode"] == "not done yet"


def test_another_training_is_refused_and_its_keys_named(folder):
    config = changed(folder.config, **{"model.width": 4, "train.batch": 20})
    with pytest.raises(ValueError, match=r"model.width was 8, now 4\s+train.batch was 16, now 20"):
        WorkDir(folder.path, config, "data").check()
    with pytest.raises(ValueError, match="SHA-256.*was 'data', now 'other'"):
        WorkDir(folder.path, folder.config, "other").check()


def test_a_folder_that_is_no_run_is_refused(small_config, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match=r"holds 'thesis.tex' but no config.json"):
        WorkDir(tmp_path, small_config, "data").check()
    with pytest.raises(ValueError, match="is a file"):
        WorkDir(tmp_path / "thesis.tex", small_config, "data").check()


def test_a_damaged_config_file_is_named(folder):
    (folder / "config.json").write_text('{"train')
    with pytest.raises(ValueError, match=r"config.json is damaged"):
        folder.check()


def test_a_folder_that_cannot_be_made_is_named(small_config, tmp_path):
    (tmp_path / "file").write_text("")
    run = WorkDir(tmp_path / "file" / "run", small_config, "data")
    run.check()
    assert run.why_redo("train") == "not done yet"
    with (
        pytest.raises(ValueError, match="file/run cannot be made or written to: Not a directory"),
        run.opened(),
    ):
        pass


def test_a_folder_that_cannot_be_written_to_is_named(small_config, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    run = WorkDir(tmp_path / "run", small_config, "data")
    monkeypatch.setattr(work_directory, "locked", refuse)
    with pytest.raises(ValueError, match="run cannot be made or written to: Perm"), run.opened():
        pass


def test_a_second_run_in_the_same_folder_is_refused_and_the_first_named(folder):
    again = WorkDir(folder.path, folder.config, "data")
    holder = rf"run: another process is working in it \(process {os.getpid()} on"
    with folder.opened(), pytest.raises(ValueError, match=holder), again.opened():
        pass
    with again.opened():
        assert not redone(again)


def test_a_damaged_file_in_a_folder_that_a_stage_left_redoes_it(small_config, tmp_path):
    run = WorkDir(tmp_path / "run", small_config, "data")
    (run / "checkpoints/5/state").mkdir(parents=True)
    (run / "checkpoints/5/state/array").write_bytes(b"\x00\x01")
    run.finish("train", {}, ["checkpoints/5"])
    assert run.why_redo("train") is None
    (run / "checkpoints/5/state/array").write_bytes(b"\x00\x03")
    os.utime(run / "checkpoints/5/state/array", ns=(0, 0))  # the clock of files may not have ticked
    assert "checkpoints/5 is damaged" in run.why_redo("train")


def test_every_file_is_read_for_its_checksum_once(small_config, tmp_path, monkeypatch):
    read = Counter()

    def counted(file, name):
        read[Path(file.name).name] += 1
        return digest(file, name)

    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", counted)
    run = WorkDir(tmp_path / "run", small_config, "data")
    with run.opened():
        for stage in work_directory.STAGES:
            assert run.why_redo(stage) == "not done yet"
            (run / stage).mkdir()
            (run / stage / f"{stage}.bin").write_text(stage)
            run.finish(stage, {}, [stage])
    assert redone(run) == {}
    assert read == {f"{stage}.bin": 1 for stage in work_directory.STAGES}
    (run / "encode/encode.bin").write_text("changed")
    assert redone(run)["encode"] == "encode is damaged: its checksum is not the recorded one"
    assert read["encode.bin"] == 2


def test_an_empty_or_new_folder_is_taken(small_config, tmp_path):
    WorkDir(tmp_path, small_config, "data").check()
    WorkDir(tmp_path / "new", small_config, "data").check()


def test_setting_aside_keeps_everything(folder):
    aside = folder.set_aside()
    assert not folder.path.exists()
    assert (aside / "encode.bin").read_text() == "encode"
    assert folder.set_aside() is None


def test_a_report_made_before_its_stages_is_made_again(small_config, tmp_path):
    run = WorkDir(tmp_path / "run", small_config, "data")
    with run.opened():
        for stage in ("train", "report", "encode"):
            (run / f"{stage}.bin").write_text(stage)
            run.finish(stage, {}, [f"{stage}.bin"])
    assert "report" in redone(run)
    assert "encode" not in redone(run)


def test_a_stage_done_anew_makes_those_that_read_it_stale(folder):
    folder.finish("train", {"of": "another training"}, ["train.bin"])
    assert list(redone(folder)) == ["encode", "retrieve", "feedback", "report"]


def test_stages_name_those_they_cannot_do_without():
    assert work_directory.all_needs("retrieve") == ("train", "encode")
    assert work_directory.all_needs("report") == ()


def test_the_configs_hash_is_of_all_its_values(small_config):
    assert work_directory.config_hash(small_config) == work_directory.config_hash(small_config)
    other = changed(small_config, **{"log.every_steps": 99})
    assert work_directory.config_hash(other) != work_directory.config_hash(small_config)
