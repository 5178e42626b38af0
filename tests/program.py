"""Runs `air_jax.main` on a small `.npz` of images, for the tests of whole runs."""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from conftest import ROOT

from air_jax import main

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


def call(main: Callable[[list[str]], int], *arguments: object) -> subprocess.CompletedProcess:
    """What a command does with these arguments, in this process; as `subprocess.run` tells it."""
    given = [str(argument) for argument in arguments]
    sys.modules.pop("config_config", None)  # the last config file: the next is loaded into it
    with (
        contextlib.redirect_stdout(io.StringIO()) as output,
        contextlib.redirect_stderr(io.StringIO()) as errors,
    ):
        try:
            status = main(given)
        except SystemExit as ended:
            status = ended.code
    return subprocess.CompletedProcess(given, status, output.getvalue(), errors.getvalue())


def run(*args, **keys) -> subprocess.CompletedProcess:
    """A run in this process."""
    return call(main.main, *command(*args, **keys)[3:])


def results(workdir: Path) -> dict:
    return json.loads((workdir / "results.json").read_text())
