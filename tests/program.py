"""Runs `air_jax.main` on a small `.npz` of images, for the tests of whole runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

from conftest import ROOT

CONFIG = str(ROOT / "configs" / "default.py")
SMALL = {
    "data.name": "arrays",
    "data.queries_per_class": 4,
    "model.depth": 4,
    "model.width": 8,
    "model.code_dim": 16,
    "train.epochs": 2,
    "train.batch": 16,
    "train.warmup_steps": 2,
    "log.every_steps": 2,
    "encode.batch": 32,
    "feedback.rounds": 2,
    "feedback.marks_per_round": 5,
    "feedback.queries": 0,
    "report.queries": 2,
}
ENVIRONMENT = os.environ | {"JAX_PLATFORMS": "cpu"}


def command(workdir: Path, data: Path | None, *flags: str, config=CONFIG, **keys) -> list[str]:
    values = {**SMALL, "data.dir": data, **{k.replace("__", "."): v for k, v in keys.items()}}
    overrides = [f"--config.{key}={value}" for key, value in values.items() if value is not None]
    program = [sys.executable, "-m", "air_jax.main", f"--config={config}"]
    return [*program, f"--workdir={workdir}", *overrides, *flags]


def run(*args, **keys) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(*args, **keys), capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT
    )


def results(workdir: Path) -> dict:
    return json.loads((workdir / "results.json").read_text())
