"""Tiny jobs for each command, for tests that disturb them: seconds once their nets are compiled."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from conftest import class_images, write_pictures
from faults import Command

NET = {"model.depth": 4, "model.width": 8, "model.code_dim": 16, "model.pools": 1}
RUN = {
    **{"data.name": "arrays", "data.queries_per_class": 4, **NET},
    **{"train.epochs": 8, "train.batch": 16, "train.warmup_steps": 2},
    **{"log.every_steps": 2, "log.checkpoint_steps": 3, "encode.batch": 32},
    **{"feedback.rounds": 2, "feedback.marks_per_round": 5, "feedback.queries": 0},
    **{"feedback.learners": ("none", "svc", "rocchio"), "report.queries": 2},
    **{"retrieval.baselines": ("random", "pixels", "untrained")},
}
SWEEP_FILE = f"""
from air_jax.configs import figure3


def get_config():
    config = figure3.get_config()
    config.update_from_flattened_dict({ {**RUN, "train.dtype": "float32", "train.epochs": 3} })
    config.sweep.nets = {{
        f"depth4/{{skip}}": {{"model": {{"skip": skip}}}} for skip in ("none", "asymmetric")
    }}
    config.sweep.update(seeds=(0, 1), depths=(4,))
    return config
"""


class Job(NamedTuple):
    """A command that leaves a folder.

    Attributes:
        name: what the command does.
        command_in: the command that leaves this folder.
        start: a folder that it continues from; None: it begins with nothing.
    """

    name: str
    command_in: Callable[[Path], Command]
    start: Path | None = None


def run(data: Path, name: str, stages: str, start: Path | None = None, **changed: object) -> Job:
    """A run of `air_jax.main` on 80 images."""
    images = data / "images.npz"
    if not images.exists():
        pixels, labels = class_images(80)
        np.savez(images, image=pixels, label=labels)
    keys = RUN | {"data.dir": images} | {k.replace("__", "."): v for k, v in changed.items()}
    flags = [f"--config.{key}={value}" for key, value in keys.items()]
    arguments = ("--config=configs/default.py", *flags, f"--stages={stages}")
    return Job(name, lambda out: Command("air_jax.main", (*arguments, f"--workdir={out}")), start)


def sweep(data: Path) -> Job:
    """Two nets with two seeds."""
    run(data, "", "")  # makes the images
    (data / "sweep.py").write_text(SWEEP_FILE)
    arguments = (f"--config={data}/sweep.py", f"--config.data.dir={data}/images.npz")
    return Job("sweep", lambda out: Command("air_jax.reproduce", (*arguments, f"--workdir={out}")))


def index(data: Path, model: Path, pictures: int) -> Job:
    """An index of random pictures by the net of a run."""
    folder = data / f"pictures{pictures}"
    if not folder.exists():
        write_pictures(folder, pictures)
    arguments = (f"--images={folder}", f"--model={model}", "--workers=1")
    return Job("indexing", lambda out: Command("air_jax.index", (*arguments, f"--out={out}")))


def comparison(data: Path, codes: Path) -> Job:
    """Every learner on the codes of a run."""
    arguments = (f"--codes={codes}", "--validation=8", "--queries=12", "--rounds=1", "--marks=5")
    return Job("comparing", lambda out: Command("air_jax.compare", (*arguments, f"--out={out}")))
