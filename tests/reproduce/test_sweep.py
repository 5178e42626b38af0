"""Sweeps: members, resuming, failing members, and what the figures and pages are made of."""

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import class_images
from program import call
from sklearn.metrics import average_precision_score

from air_jax import main
from air_jax.configs import default
from air_jax.reproduce import __main__ as reproduce
from air_jax.reproduce import figures, pages, plots, sweep
from air_jax.reproduce.figures import FIGURES
from air_jax.run import jobs, pipeline
from air_jax.run.work_directory import CODES_FILE, RETRIEVAL_FILE
from air_jax.runtime.atomic_files import read_npz
from air_jax.training import loop

CLASSIC = {"model": {"depth": 4, "pool": True, "skip": "none"}}
NETS = {
    "depth4/asymmetric-pool": {"model": {"depth": 4, "pool": True, "skip": "asymmetric"}},
    "depth4/classic": CLASSIC,
}
STAGES = FIGURES["figure3"].stages


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """An `.npz` of 80 images of 8x8 in four classes."""
    path = tmp_path_factory.mktemp("data") / "images.npz"
    pixels, labels = class_images(80)
    np.savez(path, image=pixels, label=labels)
    return path


def config_of(images):
    """Two nets of four layers, with three seeds."""
    config = default.get_config()
    config.data.update(name="arrays", dir=str(images), queries_per_class=4)
    config.model.update(depth=4, width=8, code_dim=16, pools=1)
    config.train.update(epochs=2, batch=16, warmup_steps=2)
    config.log.update(every_steps=2, checkpoint_steps=3)
    config.encode.batch = 32
    config.retrieval.baselines = ("random", "untrained")
    config.feedback.update(rounds=2, marks_per_round=5, queries=0, learners=("svc", "rocchio"))
    config.sweep = {
        "figure": "figure3",
        "name": "test",
        "seeds": (0, 1, 2),
        "nets": NETS,
    }
    return config


@pytest.fixture
def config(images):
    return config_of(images)


@pytest.fixture(scope="module")
def done(images, tmp_path_factory):
    """The folder of a sweep whose members and baselines are done."""
    folder = tmp_path_factory.mktemp("done")
    job, members = members_of(config_of(images), folder)
    assert sweep.run(members, STAGES) == []
    with pytest.MonkeyPatch.context() as patch:  # k-means takes longer than all members
        patch.setattr(pipeline, "baseline_ap", lambda name, job: np.full(len(job.queries), 0.25))
        figures.baselines(job, folder)
    return folder


def members_of(config, folder):
    job = jobs.load(config)
    return job, sweep.make_members(job, folder)


def report(config, folder):
    job, members = members_of(config, folder)
    written = pages.write(job, members, figures.baselines(job, folder), folder)
    return written, json.loads((folder / written[0]).read_text())


def copy_done(done, folder, *names):
    """Copy the baselines, and some members, of a sweep that is done."""
    shutil.copy(done / figures.BASELINES_FILE, folder)
    for name in names:
        shutil.copytree(done / "members" / name, folder / "members" / name)


def without_times(found):
    """What two runs of the same sweep have in common."""
    text = json.dumps(found)
    return re.sub(
        r'"(compile_seconds|saving_seconds|seconds|images_per_second)": [0-9.e-]+', "", text
    )


def test_a_sweep_writes_members_claims_and_pictures(config, done):
    written, found = report(config, done)
    assert written == ["figure3.json", "figure3.png", "curves.png", "gradients.png", "claims.md"]
    assert all((done / name).stat().st_size > 500 for name in written)
    assert len(found["members"]) == 6
    assert {"pixels", "pca", "kmeans"} == found["baselines"].keys()  # the images are small for smt
    member = found["members"][0]
    held = read_npz(done / "members" / member["name"] / RETRIEVAL_FILE)
    assert member["map"] == pytest.approx(held["ap"].mean())
    assert member["configuration"] == "Sortcut"
    net = next(net for net in found["nets"] if net["net"] == "depth4/classic")
    assert net["seeds"] == 3
    assert net["map"] == pytest.approx(np.mean(net["map_by_seed"]))
    assert len(set(net["map_by_seed"])) == 3
    # Without other depths and symmetric shortcuts there is nothing to say of (a) to (c).
    assert [(claim["claim"], claim["seeds"]) for claim in found["claims"]] == [("c''", 3)]
    page = (done / "claims.md").read_text()
    assert "Sortcut, 4 | " in page
    assert "asymmetric shortcuts help" in page


def test_baselines_of_a_sweep_have_the_map_that_scikit_learn_gives(config, tmp_path):
    job, _ = members_of(config, tmp_path)
    found = pipeline.baseline_ap("pixels", job)
    codes = [i.reshape(len(i), -1) / 255 for i in (job.database_images(), job.query_images())]
    for query, label, ap in zip(codes[1], job.query_labels(), found, strict=True):
        distances = np.linalg.norm(codes[0] - query, axis=1)
        relevant = job.dataset.labels[job.database] == label
        assert ap == pytest.approx(average_precision_score(relevant, -distances), abs=1e-4)


def test_baselines_are_made_once(config, tmp_path, monkeypatch):
    job, _ = members_of(config, tmp_path)
    made = []

    def make(name, job):
        made.append(name)
        return np.full(len(job.queries), 0.25)

    monkeypatch.setattr(pipeline, "baseline_ap", make)
    first = figures.baselines(job, tmp_path)
    assert made == ["pixels", "pca", "kmeans"]
    assert first["pca"]["map"] == 0.25
    assert figures.baselines(job, tmp_path) == first
    assert len(made) == 3
    config.model.code_dim = 8
    figures.baselines(jobs.load(config), tmp_path)
    assert len(made) == 6


def test_a_sweep_stopped_and_continued_equals_an_uninterrupted_one(
    config, done, tmp_path, monkeypatch
):
    steps = 0

    def interrupt(self, step, *args, add=loop.TrainingLog.add):
        nonlocal steps
        steps += 1
        if steps == 14:  # in the second member
            raise KeyboardInterrupt
        add(self, step, *args)

    def described(folder):
        members = members_of(config, folder)[1]
        return members, [figures.describe(member) for member in members]

    config.sweep.seeds = (0,)
    members, _ = described(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(loop.TrainingLog, "add", interrupt)
        with pytest.raises(KeyboardInterrupt):
            sweep.run(members, STAGES)
    _, (first, second) = described(tmp_path)
    assert first["map"] is not None
    assert second["map_reason"] == "not done yet"
    told = sweep.describe(members, STAGES)
    assert "1 to do" in told
    assert "judged by those done: " in told
    assert "of compiling and evaluation" in told
    sweep.run(members, STAGES)
    assert without_times(described(tmp_path)[1]) == without_times(described(done)[1])
    assert "0 to do" in sweep.describe(members, STAGES)


def test_a_failing_member_is_reported_and_the_others_go_on(config, done, tmp_path):
    config.sweep.seeds = (0,)
    config.sweep.nets["depth4/asymmetric-pool"].train = {"learning_rate": 1e30, "clip_norm": 0.0}
    copy_done(done, tmp_path, "depth4/classic/seed0")
    (tmp_path / "members/depth4/classic/seed0/stages/retrieve.json").unlink()
    _, members = members_of(config, tmp_path)
    assert sweep.run(members, STAGES) == ["depth4/asymmetric-pool/seed0"]
    _, found = report(config, tmp_path)
    failed, other = found["members"]
    assert failed["name"] == "depth4/asymmetric-pool/seed0"
    assert failed["map"] is None
    assert "NonFiniteError" in failed["map_reason"]
    assert other["map"] is not None
    page = (tmp_path / "claims.md").read_text()
    assert "depth4/asymmetric-pool/seed0: NonFiniteError" in page


def test_a_member_of_a_changed_training_is_an_error_before_any_work(config, done, tmp_path):
    copy_done(done, tmp_path, "depth4/classic/seed0")
    _, members = members_of(config, tmp_path)
    sweep.prepare(members, anew=False)
    config.train.learning_rate = 0.01
    _, members = members_of(config, tmp_path)
    with pytest.raises(ValueError, match="train.learning_rate was 0.05, now 0.01"):
        sweep.prepare(members, anew=False)
    sweep.prepare(members, anew=True)
    changed = next(member for member in members if member.name == "depth4/classic/seed0")
    assert changed.left_to_do(("train",)) == ["train"]
    assert len(list(changed.workdir.path.parent.glob("seed0.old-*"))) == 1


def test_a_net_that_cannot_be_is_named(config, tmp_path):
    config.sweep.nets["odd"] = {"model": {"depth": 7}}
    with pytest.raises(ValueError, match="sweep.nets: 'odd': model.depth=7"):
        members_of(config, tmp_path)
    config.sweep.nets["odd"] = {"model": {"deepness": 7}}
    with pytest.raises(ValueError, match="sweep.nets: 'odd'.*deepness"):
        members_of(config, tmp_path)


def test_only_selects_by_the_beginning_of_names(config, tmp_path):
    _, members = members_of(config, tmp_path)
    assert len(sweep.select(members, [])) == 6
    assert {m.net for m in sweep.select(members, ["depth4/c"])} == {"depth4/classic"}
    assert len(sweep.select(members, ["depth4/asym", "depth4/classic/seed1"])) == 4
    with pytest.raises(ValueError, match="--only=depth9: .* nets: depth4/asymmetric-pool"):
        sweep.select(members, ["depth9"])


def test_parts_are_all_members_and_share_none(config, tmp_path):
    _, members = members_of(config, tmp_path)
    parts = [sweep.part(members, f"{index}/4") for index in range(4)]
    assert sorted(m.name for part in parts for m in part) == sorted(m.name for m in members)
    assert {len(part) for part in parts} == {1, 2}
    assert sweep.part(members, "0/1") == members


@pytest.mark.parametrize("which", ["4/4", "-1/4", "1", "a/b", "0/0"])
def test_a_part_that_cannot_be_is_an_error(config, tmp_path, which):
    _, members = members_of(config, tmp_path)
    with pytest.raises(ValueError, match=f"--part={which}: expected I/N with 0 <= I < N"):
        sweep.part(members, which)


def test_figure4_compares_methods_on_their_own_codes_and_the_baseline_on_airs(
    config, done, tmp_path
):
    config.sweep.figure = "figure4"
    config.sweep.seeds = (0,)
    config.sweep.nets = NETS | {"edsscir": CLASSIC | {"train": {"learning_rate": 0.01}}}
    config.sweep.methods = {
        "AIR": "depth4/asymmetric-pool",
        "EDSSCIR": "edsscir",
        "SSCAIR": "depth4/classic",
    }
    copy_done(done, tmp_path, "depth4/asymmetric-pool/seed0", "depth4/classic/seed0")
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


def test_choices_are_compared_in_pairs_with_their_base_by_both_metrics(config, done, tmp_path):
    config.sweep.figure = "choices"
    base, other = "depth4/classic", "depth4/asymmetric-pool"
    config.sweep.compared_with = ((base, base), (other, base))
    copy_done(done, tmp_path)
    (tmp_path / "members").symlink_to(done / "members")
    written, found = report(config, tmp_path)
    assert written == ["choices.json", "choices.png", "choices.md"]
    rows = {(row["net"], row["metric"]): row for row in found["choices"]}
    assert len(rows) == 4
    assert rows[base, "L2"]["comparison"]["ci95"] == [0, 0]
    difference = rows[other, "L2"]["map"] - rows[base, "L2"]["map"]
    assert rows[other, "L2"]["comparison"]["difference"] == pytest.approx(difference)
    # The standardised metric, by brute force.
    found_aps = []
    for seed in (0, 1, 2):
        codes = read_npz(tmp_path / f"members/{base}/seed{seed}" / CODES_FILE)
        scale = codes["database"].std(axis=0)
        for query, label in zip(codes["query"], codes["query_label"], strict=True):
            distances = np.linalg.norm((codes["database"] - query) / scale, axis=1)
            relevant = codes["database_label"] == label
            found_aps.append(average_precision_score(relevant, -distances))
    assert rows[base, "standardised"]["map"] == pytest.approx(np.mean(found_aps), abs=1e-3)
    assert f"| {other} | standardised | " in (tmp_path / "choices.md").read_text()


def test_a_sweep_on_one_query_says_what_it_cannot_know(tmp_path, monkeypatch):
    pixels, labels = class_images(40)
    path = tmp_path / "images.npz"
    np.savez(path, image=pixels, label=labels, query=np.arange(40) == 3)
    config = config_of(path)
    config.data.split = "official"
    config.retrieval.baselines = ("random",)
    config.sweep.seeds, config.sweep.nets = (0,), {"depth4/classic": CLASSIC}
    config.sweep.compared_with = (("depth4/classic", "depth4/classic"),)
    _, members = members_of(config, tmp_path)
    assert sweep.run(members, STAGES) == []
    monkeypatch.setattr(pipeline, "baseline_ap", lambda name, job: np.full(1, 0.25))
    monkeypatch.setattr(figures, "LEARNS_BELOW", np.inf)
    _, found = report(config, tmp_path)
    (net,) = found["nets"]
    for entry, key in ((found["members"][0], "code_used"), (net, "seeds_that_use_the_code")):
        assert entry[key] is entry["code_shuffled_loss"] is entry["untrained_map"] is None
        assert "one query" in entry[f"{key}_reason"]
        assert "one query" in entry["code_shuffled_loss_reason"]
        assert "not in retrieval.baselines" in entry["untrained_map_reason"]
    assert "| - | " in (tmp_path / "claims.md").read_text()
    config.sweep.figure = "choices"
    written, found = report(config, tmp_path)
    assert [row["code_used"] for row in found["choices"]] == [None, None]
    assert (tmp_path / "choices.png").stat().st_size > 500
    assert "| - | 1 |" in (tmp_path / written[-1]).read_text()


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
    config.sweep.nets = {
        f"depth4/{skip}": {"model": {"depth": 4, "skip": skip}} for skip in ("asymmetric", "none")
    }
    return config
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Flags of a sweep over two small nets."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.py").write_text(SWEEP_FILE)
    images, labels = class_images(80, size=16)
    np.savez(folder / "images.npz", image=images, label=labels)
    return f"--config={folder}/tiny.py", f"--config.data.dir={folder}/images.npz"


def test_the_smoke_size_goes_from_nothing_to_claims_that_are_undecided(tiny, tmp_path):
    def reproduced(*flags):
        return call(reproduce.main, *tiny, "--smoke", f"--workdir={tmp_path}", *flags)

    done = reproduced("--only=depth4/asym")
    assert done.returncode == 0, done.stderr
    assert "[1/1] depth4/asymmetric/seed0" in done.stdout
    found = json.loads((tmp_path / "figure3.json").read_text())
    assert found["dataset"]["image_side"] == 16
    assert found["baselines"].keys() == {"pixels", "pca", "kmeans", "smt"}
    assert {member["seed"] for member in found["members"]} == {0}
    assert {claim["verdict"] for claim in found["claims"]} == {"undecided"}
    assert "depth4/none/seed0: not done yet" in (tmp_path / "claims.md").read_text()
    assert "2 members, 1 to do" in reproduced("--dry-run").stdout
    (tmp_path / "figure3.json").unlink()
    again = reproduced("--only=depth4/asym", "--stages=members")
    assert "1 members, 1 done before" in again.stdout
    assert not (tmp_path / "figure3.json").exists()
    reported = reproduced("--stages=report")
    assert "members" not in reported.stdout.splitlines()[0]
    assert json.loads((tmp_path / "figure3.json").read_text())["members"] == found["members"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--only=depth11"], "--only=depth11: no member's name begins so; nets: depth4/asymm"),
        (["--config.sweep.figure=figure5"], "sweep.figure='figure5': expected one of figure3"),
        (["--stages=figure"], "--stages: 'figure' is not one of members, report"),
        (["--config.model.width=0"], "sweep.nets: 'depth4/asymmetric': model.width=0"),
    ],
)
def test_what_cannot_be_reproduced_is_an_error_that_says_so(tiny, tmp_path, flags, message):
    done = call(reproduce.main, *tiny, f"--workdir={tmp_path / 'work'}", *flags)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("command", "config", "message"),
    [
        (
            reproduce.main,
            "quickstart",
            "this config is no sweep; .* or use python -m air_jax.main",
        ),
        (
            main.main,
            "figure3",
            "this config is a sweep over many nets: python -m air_jax.reproduce",
        ),
    ],
)
def test_sweeps_and_single_runs_name_each_others_command(command, config, message):
    done = call(command, f"--config={config}")
    assert done.returncode == 2
    assert re.search(message, done.stderr)


def test_without_a_member_that_is_done_nothing_is_promised_of_evaluation(
    config, tmp_path, monkeypatch
):
    measured = sweep.dry_run.Measured(16.0, 3.0, 0, 0, 2)
    monkeypatch.setattr(sweep.dry_run, "measure", lambda job: measured)
    told = sweep.describe(members_of(config, tmp_path)[1], STAGES)
    assert "judged by a few steps of the first" in told
    # Six members, each of 8 steps of 16 images, and with two compilations of 3 s.
    assert "48 s of training steps, 36 s of compiling; encoding, ranking and feedback" in told


def test_the_time_left_counts_training_by_its_work_and_all_else_by_members():
    def member(work, steps):
        workdir = SimpleNamespace(result=lambda stage: {"seconds": steps})
        return SimpleNamespace(work=lambda: work, workdir=workdir)

    pace = sweep._Pace()
    pace.add(member(10, 5.0), ["train", "encode"], 25.0)
    pace.add(member(30, 15.0), ["train", "encode"], 35.0)
    pace.add(member(30, 15.0), ["encode"], 20.0)  # it was trained before
    left = [(member(100, None), ["train", "encode"]), (member(100, None), ["encode"])]
    assert pace.seconds(left) == (50.0, 40.0)


VIEWS = {"train": {"objective": "contrastive", "batch": 16}}


def test_nets_that_compare_views_are_judged_without_losses(config, done, tmp_path):
    config.sweep.seeds = (0,)
    config.sweep.nets = {name: VIEWS | net for name, net in NETS.items()}
    copy_done(done, tmp_path)
    _, members = members_of(config, tmp_path)
    assert sweep.run(members, STAGES) == []
    written, found = report(config, tmp_path)
    assert {net["loss"] for net in found["nets"]} == {None}
    assert {member["learns"] for member in found["members"]} == {None}
    # No symmetric shortcuts, and no depth but 4: what is left is shortcuts against none.
    assert [claim["claim"] for claim in found["claims"]] == ["c''"]
    assert found["claims"][0]["comparisons"][0]["difference"] == pytest.approx(
        found["members"][0]["map"] - found["members"][1]["map"]
    )
    page = (tmp_path / written[-1]).read_text()
    assert "Nothing is reconstructed" in page
    assert all((tmp_path / name).stat().st_size > 500 for name in written)


def test_objectives_are_compared_with_the_longest_training_of_each(config, done, tmp_path):
    config.sweep.update(figure="objectives", seeds=(0,))
    config.sweep.nets = {
        "contrastive/1 epochs": VIEWS | CLASSIC | {"train": VIEWS["train"] | {"epochs": 1}},
        "contrastive/2 epochs": VIEWS | CLASSIC,
        "reconstruction/2 epochs": CLASSIC,
    }
    copy_done(done, tmp_path)
    _, members = members_of(config, tmp_path)
    assert sweep.run(members, FIGURES["objectives"].stages) == []
    written, found = report(config, tmp_path)
    assert written == ["objectives.json", "objectives.png", "objectives.md"]
    short, long, other = found["objectives"]
    assert (short["epochs"], long["epochs"], other["objective"]) == (1, 2, "reconstruction")
    compared = [[c["what"] for c in row["comparisons"]] for row in (short, long, other)]
    assert compared == [
        [f"{short['net']} - {long['net']}", f"{short['net']} - {other['net']}"],
        [f"{long['net']} - {other['net']}"],
        [f"{other['net']} - {long['net']}"],
    ]
    aps = [read_npz(member.workdir / RETRIEVAL_FILE)["ap"] for member in members]
    assert other["comparisons"][0]["difference"] == pytest.approx((aps[2] - aps[1]).mean())
    assert "reconstruction" in (tmp_path / "objectives.md").read_text()
