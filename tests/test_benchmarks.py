"""The benchmarks run, at a small size, and write what they are asked for."""

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import class_images
from PIL import Image

from air_jax.models import net_file
from air_jax.run import trained_net
from air_jax.runtime import sharding
from air_jax.runtime.command_line import flatten
from air_jax.training import loop

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import measure, table  # noqa: E402

TINY = {
    "train_throughput": ["--width=4", "--batches=8", "--rounds=2"],
    "views_throughput": ["--batches=4", "--rounds=2", "--parts"],
    "encode_throughput": ["--depths=10", "--images=16", "--batch=8", "--rounds=1"],
    "input_pipeline": ["--images=64", "--batch=8", "--width=4", "--steps=2", "--rounds=1"],
    "compile_time": ["--depths=10", "--width=4", "--batch=8"],
    "retrieval": [
        *("--database=4000", "--queries=40", "--large=3000", "--largest=5000"),
        *("--rounds=2", "--peers", "numpy"),
    ],
    "feedback": [
        *("--database=2000", "--queries=12", "--sample=4", "--rounds=2", "--processes", "1"),
    ],
    "serve": [
        *("--sizes", "500", "--dimension=8", "--sessions=1", "--warm-up=1"),
    ],
    "milvus": ["--size=3000", "--rounds=1"],
    "indexing": ["--images=300", "--source=random", "--workers=1"],
}
NAMED = {
    "train_throughput": {
        "ratio_to_torch_unpooled",
        "ratio_to_torch_pooled",
        "images_per_second",
        "share_of_ceiling",
        "compile_seconds",
    },
    "views_throughput": {
        *("views_per_second", "share_of_ceiling", "share_of_views", "compile_seconds"),
        *("ratio_to_torch", "ratio_to_torch_compiled"),
    },
    "encode_throughput": {"images_per_second", "share_of_on_device"},
    "input_pipeline": {"resident_images_per_second", "host_waiting_share"},
    "compile_time": {"depth10_cold_seconds", "depth10_warm_seconds"},
    "retrieval": {
        "map_seconds_40x4000",
        "top100_ratio_to_faiss",
        "round_p95_ms_0.003m",
        "round_p95_ms_0.005m",
    },
    "feedback": {
        "linear_seconds",
        "rbf_seconds",
        "linear_ratio_to_sklearn",
        "rbf_ratio_to_sklearn",
    },
    "serve": {
        *("first_p50_ms_0.0005m", "round_p95_ms_0.0005m", "errors"),
        "start_to_first_results_s_0.0005m",
    },
    "indexing": {"new_seconds", "unchanged_images_per_second", "peak_mb"},
    "milvus": {"first_milvus_ms", "discriminant_milvus_ms", "svc_linear_folder_ms"},
}


# What changes the whole process, or starts processes of its own.
IN_A_PROCESS_OF_ITS_OWN = ("compile_time", "serve", "indexing", "milvus")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function that runs a benchmark and returns what it wrote."""
    monkeypatch.setattr(measure, "MATRIX", {"cpu": 64})

    def start(name: str, *arguments: str) -> dict:
        json_file = tmp_path / "found.json"
        command = [f"benchmarks/{name}.py", f"--json={json_file}", *arguments]
        if name in IN_A_PROCESS_OF_ITS_OWN:
            command = [sys.executable, *command]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        else:
            monkeypatch.setattr(sys, "argv", command)
            importlib.import_module(f"benchmarks.{name}").main()
        return json.loads(json_file.read_text())

    return start


@pytest.mark.parametrize("name", TINY)
def test_a_benchmark_writes_its_figures_rows_and_machine(name, run, tmp_path, request):
    if name == "milvus":
        reason = "milvus-lite is not installed (pip install 'air_jax[milvus]')"
        pytest.importorskip("milvus_lite", reason=reason)
    arguments = TINY[name]
    if name == "indexing":
        arguments = [*arguments, f"--model={request.getfixturevalue('trained_run')}"]
    found = run(name, *arguments)
    assert NAMED[name] <= found["summary"].keys()
    measured = [value for value in found["summary"].values() if value is not None]
    assert np.isfinite(measured).all()
    assert found["rows"]
    assert found["machine"]["versions"]["jax"]
    assert all(name in table.table(tmp_path) for name in found["summary"])


def test_pictures_of_a_folder_are_ranked_by_a_net_that_never_saw_them(run, tmp_path, small_config):
    small_config.model.update(encoder="conv", widths=(4, 8), blocks=(1, 1))
    small_config.train.objective = "contrastive"
    half = np.full(3, 0.5, np.float32)
    net = loop.new_net(small_config, (8, 8, 3), half, half, sharding.make_mesh())
    about = trained_net.about(tmp_path, flatten(small_config), 0, (8, 8, 3))
    net_file.write(tmp_path / "net.npz", net_file.keep(net, about))
    pixels, labels = class_images(40)
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        path = tmp_path / "pictures" / str(label) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).resize((16, 16), Image.Resampling.NEAREST).save(path)
    images = f"--images={tmp_path / 'pictures'}"
    found = run("other_pictures", f"--model={tmp_path}", images)
    summary = found["summary"]
    assert summary.keys() == {f"map_pictures_{codes}" for codes in ("net", "pixels", "pca")}
    assert 0.3 < summary["map_pictures_pixels"] <= 1  # classes differ in their mean colours
    assert {row["database"] + row["queries"] for row in found["rows"]} == {40}


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
def test_pytorchs_net_has_our_parameters_and_reaches_our_loss(run):
    # The benchmark itself stops if they differ.
    found = run("train_throughput", *TINY["train_throughput"], "--peer=torch")
    assert found["summary"]["ratio_to_torch_unpooled"] > 0
    assert found["summary"]["ratio_to_torch_pooled"] > 0


def test_every_way_of_training_a_net_is_timed(run):
    arguments = [*TINY["train_throughput"], "--variants", "pooled"]
    arguments += ["--steps-per-call", "1", "2", "--remat", "off", "on"]
    found = run("train_throughput", *arguments)
    ways = [(row["steps_per_call"], row["remat"]) for row in found["rows"]]
    assert ways == [(1, False), (2, False), (1, True), (2, True)]
    assert {row["parameters"] for row in found["rows"]} == {found["rows"][0]["parameters"]}


def test_functions_are_timed_alternately_after_their_warm_up():
    calls = []
    work = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    seconds = measure.seconds_in_turns(work, rounds=3, warm_up=2)
    assert "".join(calls) == "aabb" + "ababab"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_a_rate_is_the_median_with_its_quartiles():
    rate = measure.spread(np.array([1.0, 2.0, 4.0, 5.0, 10.0]), amount=20)
    assert rate == {"median": 5.0, "low": 4.0, "high": 10.0}


def test_a_folder_without_benchmarks_has_no_table(tmp_path):
    with pytest.raises(ValueError, match="no JSON file"):
        table.table(tmp_path)


def scaling_results() -> dict:
    return json.loads((ROOT / "benchmarks" / "results" / "scaling_cpu.json").read_text())


def test_the_results_about_scaling_count_the_gradients_of_the_papers_net_and_its_loss():
    steps = [row for row in scaling_results()["rows"] if row["depth"] == 40]
    parameters = 1_670_083  # as `depth40 --dry-run` says
    assert {row["devices"] for row in steps} == {2, 8, 32, 256}
    assert {row["payload_bytes"] for row in steps} == {4 * (parameters + 1)}
