"""Sweeps: members, resuming, failing members, and what the figures and pages are made of."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, class_images
from program import ENVIRONMENT
from sklearn.metrics import average_precision_score

from air_jax.reproduce import figures, plots, sweep
from air_jax.reproduce import report as reports
from air_jax.reproduce.figures import FIGURES
from air_jax.run import jobs, pipeline
from air_jax.run.work_directory import CODES_FILE, RETRIEVAL_FILE
from air_jax.runtime.atomic_files import read_npz
from air_jax.training import loop

NETS = {
    "depth4/classic": {"model": {"depth": 4, "pool": True, "skip": "none"}},
    "depth4/asymmetric-pool": {"model": {"depth": 4, "pool": True, "skip": "asymmetric"}},
    "depth6/classic": {"model": {"depth": 6, "pool": True, "skip": "none"}},
}

STAGES = FIGURES["figure3"].stages


@pytest.fixture
def config(small_config, small_arrays):
    small_config.unlock()
    small_config.data.update(name="arrays", dir=str(small_arrays))
    small_config.model.pools = 1
    small_config.retrieval.baselines = ("random", "untrained")
    small_config.feedback.learners = ("svc", "rocchio")
    small_config.sweep = {
        "figure": "figure3",
        "name": "test",
        "seeds": (0, 1, 2),
        "depths": (4, 6),
        "nets": NETS,
    }
    return small_config


def members_of(config, folder):
    job = jobs.load(config)
    return job, sweep.make_members(job, folder)


def report(config, folder):
    job, members = members_of(config, folder)
    written = reports.write(job, members, figures.baselines(job, folder), folder)
    return written, json.loads((folder / written[0]).read_text())


def without_times(found):
    """What two runs of the same sweep have in common."""
    text = json.dumps(found)
    return re.sub(r'"(compile_seconds|seconds|images_per_second)": [0-9.e-]+', "", text)


def test_a_sweep_writes_members_claims_and_pictures(config, tmp_path):
    del config.sweep.nets["depth6/classic"]
    _, members = members_of(config, tmp_path)
    assert sweep.run(members, STAGES) == []
    written, found = report(config, tmp_path)
    assert written == ["figure3.json", "figure3.png", "curves.png", "gradients.png", "claims.md"]
    assert all((tmp_path / name).stat().st_size > 500 for name in written)
    assert len(found["members"]) == 6
    assert {"pixels", "pca", "kmeans"} == found["baselines"].keys()
    member = found["members"][0]
    held = read_npz(tmp_path / "members" / member["name"] / RETRIEVAL_FILE)
    assert member["map"] == pytest.approx(held["ap"].mean())
    assert member["configuration"] == "Sortcut"
    net = next(net for net in found["nets"] if net["net"] == "depth4/classic")
    assert net["seeds"] == 3
    assert net["map"] == pytest.approx(np.mean(net["map_by_seed"]))
    assert len(set(net["map_by_seed"])) == 3
    assert [claim["claim"] for claim in found["claims"]] == ["a", "b", "c", "c'"]
    page = (tmp_path / "claims.md").read_text()
    assert "Sortcut, 4 | " in page
    assert page.count("undecided") >= 4


def test_baselines_of_a_sweep_have_the_map_that_scikit_learn_gives(config, tmp_path):
    job, _ = members_of(config, tmp_path)
    found = pipeline.baseline_ap("pixels", job)
    codes = [i.reshape(len(i), -1) / 255 for i in (job.database_images(), job.query_images())]
    for query, label, ap in zip(codes[1], job.query_labels(), found, strict=True):
        distances = np.linalg.norm(codes[0] - query, axis=1)
        relevant = job.dataset.labels[job.database] == label
        assert ap == pytest.approx(average_precision_score(relevant, -distances), abs=1e-4)
    assert figures.baselines(job, tmp_path)["pixels"]["map"] == pytest.approx(found.mean())


def test_a_sweep_stopped_and_continued_equals_an_uninterrupted_one(config, tmp_path, monkeypatch):
    config.sweep.seeds = (0, 1)
    del config.sweep.nets["depth6/classic"]
    _, members = members_of(config, tmp_path / "whole")
    sweep.run(members, STAGES)
    _, whole = report(config, tmp_path / "whole")

    steps = 0

    def interrupt(self, step, *args, add=loop.TrainingLog.add):
        nonlocal steps
        steps += 1
        if steps == 14:  # in the second member
            raise KeyboardInterrupt
        add(self, step, *args)

    _, members = members_of(config, tmp_path / "parts")
    with monkeypatch.context() as patch:
        patch.setattr(loop.TrainingLog, "add", interrupt)
        with pytest.raises(KeyboardInterrupt):
            sweep.run(members, STAGES)
    _, between = report(config, tmp_path / "parts")
    assert sum(member["map"] is not None for member in between["members"]) == 1
    assert between["members"][-1]["map_reason"] == "not done yet"
    assert "3 to do" in sweep.describe(members, STAGES)
    sweep.run(members, STAGES)
    _, parts = report(config, tmp_path / "parts")
    assert without_times(parts) == without_times(whole)
    assert "0 to do" in sweep.describe(members, STAGES)


def test_a_failing_member_is_reported_and_the_others_go_on(config, tmp_path):
    config.sweep.seeds = (0,)
    del config.sweep.nets["depth6/classic"]
    config.sweep.nets["depth4/classic"].train = {"learning_rate": 1e30, "clip_norm": 0.0}
    _, members = members_of(config, tmp_path)
    assert sweep.run(members, STAGES) == ["depth4/classic/seed0"]
    _, found = report(config, tmp_path)
    failed = next(m for m in found["members"] if m["name"] == "depth4/classic/seed0")
    assert failed["map"] is None
    assert "NonFiniteError" in failed["map_reason"]
    assert sum(member["map"] is not None for member in found["members"]) == 1
    assert "depth4/classic/seed0: NonFiniteError" in (tmp_path / "claims.md").read_text()


def test_a_member_of_a_changed_training_is_an_error_before_any_work(config, tmp_path):
    _, members = members_of(config, tmp_path)
    sweep.run(members[:1], STAGES)
    sweep.prepare(members, anew=False)
    config.train.learning_rate = 0.01
    _, members = members_of(config, tmp_path)
    with pytest.raises(ValueError, match="train.learning_rate was 0.05, now 0.01"):
        sweep.prepare(members, anew=False)
    sweep.prepare(members, anew=True)
    assert members[0].left_to_do(("train",)) == ["train"]
    assert len(list(members[0].workdir.path.parent.glob("seed0.old-*"))) == 1


def test_a_net_that_cannot_be_is_named(config, tmp_path):
    config.sweep.nets["odd"] = {"model": {"depth": 7}}
    with pytest.raises(ValueError, match="sweep.nets: 'odd': model.depth=7"):
        members_of(config, tmp_path)
    config.sweep.nets["odd"] = {"model": {"deepness": 7}}
    with pytest.raises(ValueError, match="sweep.nets: 'odd'.*deepness"):
        members_of(config, tmp_path)


def test_only_selects_by_the_beginning_of_names(config, tmp_path):
    _, members = members_of(config, tmp_path)
    assert len(sweep.select(members, [])) == 9
    assert {m.net for m in sweep.select(members, ["depth4"])} == set(NETS) - {"depth6/classic"}
    assert len(sweep.select(members, ["depth4/asym", "depth6/classic/seed1"])) == 4
    with pytest.raises(ValueError, match="--only=depth9: .* nets: depth4/asymmetric-pool"):
        sweep.select(members, ["depth9"])


def test_parts_are_all_members_and_share_none(config, tmp_path):
    _, members = members_of(config, tmp_path)
    parts = [sweep.part(members, f"{index}/4") for index in range(4)]
    assert sorted(m.name for part in parts for m in part) == sorted(m.name for m in members)
    assert {len(part) for part in parts} == {2, 3}
    assert sweep.part(members, "0/1") == members


@pytest.mark.parametrize("which", ["4/4", "-1/4", "1", "a/b", "0/0"])
def test_a_part_that_cannot_be_is_an_error(config, tmp_path, which):
    _, members = members_of(config, tmp_path)
    with pytest.raises(ValueError, match=f"--part={which}: expected I/N with 0 <= I < N"):
        sweep.part(members, which)


def test_figure4_compares_methods_on_their_own_codes_and_the_baseline_on_airs(config, tmp_path):
    config.sweep.figure = "figure4"
    config.sweep.seeds = (0,)
    config.sweep.methods = {
        "AIR": "depth4/asymmetric-pool",
        "EDSSCIR": "depth6/classic",
        "SSCAIR": "depth4/classic",
    }
    _, members = members_of(config, tmp_path)
    assert sweep.run(members, FIGURES["figure4"].stages) == []
    written, found = report(config, tmp_path)
    assert written == ["figure4.json", "figure4.png", "claims.md"]
    rows = {(row["method"], row["learner"]): row["rounds"] for row in found["methods"]}
    assert len(rows) == 8
    air, baseline = rows["AIR", "svc"], rows["Baseline", "svc"]
    assert {r["map"] for r in baseline} == {air[0]["map"]}
    assert baseline[0]["residual_map"] == pytest.approx(air[0]["residual_map"])
    assert air[2]["map"] > air[0]["map"]
    claim = found["claims"][0]
    assert claim["claim"] == "d (svc)"
    # In two rounds: AIR against two rivals, and three methods against the Baseline.
    assert len(claim["comparisons"]) == 2 * (2 + 3)
    difference = next(
        c["difference"] for c in claim["comparisons"] if c["what"] == "AIR - Baseline, round 2"
    )
    assert difference == pytest.approx(air[2]["map"] - air[0]["map"])


def test_choices_are_compared_in_pairs_with_their_base_by_both_metrics(config, tmp_path):
    config.sweep.figure = "choices"
    config.sweep.seeds = (0, 1)
    config.sweep.nets = {"base": NETS["depth4/classic"], "deeper": NETS["depth6/classic"]}
    config.sweep.compared_with = (("base", "base"), ("deeper", "base"))
    _, members = members_of(config, tmp_path)
    assert sweep.run(members, STAGES) == []
    written, found = report(config, tmp_path)
    assert written == ["choices.json", "choices.png", "choices.md"]
    rows = {(row["net"], row["metric"]): row for row in found["choices"]}
    assert len(rows) == 4
    assert rows["base", "L2"]["comparison"]["ci95"] == [0, 0]
    difference = rows["deeper", "L2"]["map"] - rows["base", "L2"]["map"]
    assert rows["deeper", "L2"]["comparison"]["difference"] == pytest.approx(difference)
    # The standardised metric, by brute force.
    found_aps = []
    for seed in (0, 1):
        codes = read_npz(tmp_path / f"members/base/seed{seed}" / CODES_FILE)
        scale = codes["database"].std(axis=0)
        for query, label in zip(codes["query"], codes["query_label"], strict=True):
            distances = np.linalg.norm((codes["database"] - query) / scale, axis=1)
            relevant = codes["database_label"] == label
            found_aps.append(average_precision_score(relevant, -distances))
    assert rows["base", "standardised"]["map"] == pytest.approx(np.mean(found_aps), abs=1e-3)
    assert "| deeper | standardised | " in (tmp_path / "choices.md").read_text()


def test_gradient_norms_run_from_the_first_convolution_to_the_last():
    norms = {
        "decoder.deconvs.0.conv.kernel": 11.0,
        "decoder.deconvs.10.conv.kernel": 13.0,
        "decoder.deconvs.2.conv.kernel": 12.0,
        "decoder.expand.kernel": 0.0,
        "decoder.to_image.conv.kernel": 14.0,
        "encoder.convs.0.conv.bias": 0.0,
        "encoder.convs.0.conv.kernel": 1.0,
        "encoder.convs.10.conv.kernel": 3.0,
        "encoder.convs.9.conv.kernel": 2.0,
    }
    assert plots.convolution_norms(norms) == [1, 2, 3, 11, 12, 13, 14]


SWEEP_FILE = """
from air_jax.configs import figure3


def get_config():
    config = figure3.get_config()
    config.data.name = "arrays"
    config.data.queries_per_class = 4
    config.model.code_dim = 16
    config.train.update(batch=16, warmup_steps=2)
    config.encode.batch = 32
    config.feedback.update(rounds=1, marks_per_round=5)
    nets = config.sweep.nets
    config.sweep.nets = {name: nets[name] for name in ("depth10/classic", "depth10/asymmetric")}
    return config
"""


def reproduce(folder, *flags):
    file = folder / "tiny.py"
    file.write_text(SWEEP_FILE)
    images, labels = class_images(80, size=32)
    np.savez(folder / "images.npz", image=images, label=labels)
    program = [sys.executable, "-m", "air_jax.reproduce", f"--config={file}", *flags]
    program += [f"--config.data.dir={folder}/images.npz", f"--workdir={folder}/work"]
    return subprocess.run(program, capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT)


def test_the_smoke_size_goes_from_nothing_to_claims_that_are_undecided(tmp_path):
    done = reproduce(tmp_path, "--smoke", "--only=depth10/asym")
    assert done.returncode == 0, done.stderr
    assert "[1/1] depth10/asymmetric/seed0" in done.stdout
    found = json.loads((tmp_path / "work" / "figure3.json").read_text())
    assert found["dataset"]["image_side"] == 16
    assert {member["seed"] for member in found["members"]} == {0}
    assert {claim["verdict"] for claim in found["claims"]} == {"undecided"}
    assert "depth10/classic/seed0: not done yet" in (tmp_path / "work" / "claims.md").read_text()
    plan_of_rest = reproduce(tmp_path, "--smoke", "--dry-run")
    assert "2 members, 1 to do" in plan_of_rest.stdout
    (tmp_path / "work" / "figure3.json").unlink()
    again = reproduce(tmp_path, "--smoke", "--only=depth10/asym", "--stages=members")
    assert "1 members, 1 done before" in again.stdout
    assert not (tmp_path / "work" / "figure3.json").exists()
    reported = reproduce(tmp_path, "--smoke", "--stages=report")
    assert "members" not in reported.stdout.splitlines()[0]
    assert (
        json.loads((tmp_path / "work" / "figure3.json").read_text())["members"]
        == (found["members"])
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--only=depth11"], "--only=depth11: no member's name begins so; nets: depth10/asymm"),
        (["--config.sweep.figure=figure5"], "sweep.figure='figure5': expected one of figure3"),
        (["--stages=figure"], "--stages: 'figure' is not one of members, report"),
        (["--config.model.width=0"], "sweep.nets: 'depth10/asymmetric': model.width=0"),
    ],
)
def test_what_cannot_be_reproduced_is_an_error_that_says_so(tmp_path, flags, message):
    done = reproduce(tmp_path, *flags)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("module", "config", "message"),
    [
        ("reproduce", "quickstart", "this config is no sweep; .* or use python -m air_jax.main"),
        ("main", "figure3", "this config is a sweep over many nets: python -m air_jax.reproduce"),
    ],
)
def test_sweeps_and_single_runs_name_each_others_command(module, config, message):
    program = [sys.executable, "-m", f"air_jax.{module}", f"--config=configs/{config}.py"]
    done = subprocess.run(program, capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT)
    assert done.returncode == 2
    assert re.search(message, done.stderr)
