"""What a sweep found, on disk: `<figure>.json`, its pictures, and `claims.md`."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from air_jax.models.architecture import configuration_name
from air_jax.reproduce import claims, claims_page, sweep
from air_jax.reproduce.claims import Values
from air_jax.reproduce.sweep import Member
from air_jax.run import report
from air_jax.run.jobs import Job
from air_jax.run.work_directory import RETRIEVAL_FILE
from air_jax.runtime.atomic_files import read_npz, write_json

SCHEMA_VERSION = 1
CLAIMS_FILE = "claims.md"
WITH_CLAIMS = ("figure3", "figure4")  # in the order of `claims.md`
# A net learns if its loss is clearly below the mean image's, and uses its code if decoding another
# image's code is clearly worse than decoding its own.
LEARNS_BELOW, USED_ABOVE = 0.9, 1.1

DENOISING = ", denoising"


class Figure(NamedTuple):
    """What a figure is made from, and how.

    Attributes:
        stages: that every member goes through.
        find: (the sweep's job, members, as described) -> what goes into the JSON beside these.
        draw: (what the JSON holds, members, folder) -> names of the pictures drawn.
    """

    stages: tuple[str, ...]
    find: Callable[[Job, list[Member], list[dict[str, Any]]], dict[str, Any]]
    draw: Callable[[dict[str, Any], list[Member], Path], list[str]]


def write(
    figure: Figure, job: Job, members: list[Member], baselines: dict[str, np.ndarray], folder: Path
) -> list[str]:
    """Write what the members that are done show; returns the files' names, the last a page.

    Args:
        figure: which.
        job: the sweep's.
        members: all of them, done or not.
        baselines: average precision [Q] by name, from `sweep.baselines_ap`.
        folder: of the sweep.
    """
    config, labels = job.config, job.query_labels()
    name = config.sweep.figure
    entries = [describe(member) for member in members]
    found = {
        "schema_version": SCHEMA_VERSION,
        "figure": name,
        "sweep": config.sweep.name,
        **report.commit(),
        "environment": report.environment(),
        "dataset": {
            "name": job.dataset.name,
            "split": config.data.split,
            "image_side": job.dataset.images.shape[1],
            "database": len(job.database),
            "training_images": len(job.training_positions()),
            "queries": len(job.queries),
        },
        "width": config.model.width,
        "epochs": config.train.epochs,
        "batch": config.train.batch,
        "dtype": config.train.dtype,
        "baselines": {
            baseline: claims.summary({0: ap}, labels) for baseline, ap in baselines.items()
        },
        "members": entries,
        **figure.find(job, members, entries),
    }
    write_json(folder / f"{name}.json", found)
    pictures = figure.draw(found, members, folder)
    if name in WITH_CLAIMS:
        written = CLAIMS_FILE
        files = [folder / f"{known}.json" for known in WITH_CLAIMS]
        page = claims_page.page([json.loads(f.read_text()) for f in files if f.exists()])
    else:
        written, page = f"{name}.md", claims_page.choices_page(found)
    (folder / written).write_text(page)
    return [f"{name}.json", *pictures, written]


def variant(member: Member) -> str:
    """The paper's name for a member's net, and whether it is trained on corrupted input."""
    model, train = member.job.config.model, member.job.config.train
    name = configuration_name(model.pool, model.skip, model.input_residual)
    return (name or "other") + (DENOISING if train.corruption != "none" else "")


def describe(member: Member) -> dict[str, Any]:
    """A member as the JSON holds it; nulls, with a reason, for what is not there."""
    config = member.job.config
    entry: dict[str, Any] = {
        "name": member.name,
        "net": member.net,
        "seed": member.seed,
        "configuration": variant(member),
        "depth": config.model.depth,
        "learning_rate": config.train.learning_rate,
        "clip_norm": config.train.clip_norm,
    }
    trained, retrieved = member.workdir.result("train"), member.workdir.result("retrieve")
    if trained is None or retrieved is None:
        reason = sweep.error_of(member) or "not done yet"
        return entry | {"map": None, "map_reason": reason}
    losses = {
        key: value
        for key, value in trained.items()
        if "loss" in key or "second" in key or key in ("steps", "parameters")
    }
    losses["learns"] = trained["loss"] < LEARNS_BELOW * trained["constant_loss"]
    losses["code_used"] = trained["code_shuffled_loss"] > USED_ABOVE * trained["loss"]
    return entry | {
        "map": retrieved["retrieval"]["map"],
        "map_ci95": retrieved["retrieval"]["map_ci95"],
        "untrained_map": retrieved["baselines"]["untrained"]["map"],
        **losses,
    }


def first_retrieval(members: Iterable[Member]) -> dict[tuple[str, int], Values]:
    """AP of the first retrieval by configuration and depth, then by seed; of members done."""
    found: dict[tuple[str, int], dict[int, np.ndarray]] = {}
    for member in members:
        if member.workdir.why_redo("retrieve") is None:
            key = variant(member), member.job.config.model.depth
            ap = read_npz(member.workdir / RETRIEVAL_FILE)["ap"]
            found.setdefault(key, {})[member.seed] = ap
    return found
