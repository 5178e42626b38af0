"""The last stage: `results.json`, `per_query.npz`, the figures, and the table on the terminal."""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from air_jax.feedback import simulated_user
from air_jax.models.architecture import configuration_name
from air_jax.run import figures
from air_jax.run.jobs import Job
from air_jax.run.work_directory import (
    FEEDBACK_FOLDER,
    FIGURES_FOLDER,
    PER_QUERY_FILE,
    RECONSTRUCTIONS_FILE,
    RESULTS_FILE,
    RETRIEVAL_FILE,
    STAGES,
    WorkDir,
    config_hash,
)
from air_jax.runtime import distributed
from air_jax.runtime.atomic_files import read_npz, write_json, write_npz
from air_jax.search import metrics
from air_jax.training.loop import PROBES_FILE
from air_jax.training.training_log import METRICS_FILE, read_metrics

SCHEMA_VERSION = 1
_PACKAGES = (
    "air_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "scikit-learn",
)


def write(job: Job, workdir: WorkDir) -> list[str]:
    """Write the report of the stages that are done; returns the files it left."""
    # An earlier report may have had more to show.
    shutil.rmtree(workdir / FIGURES_FOLDER, ignore_errors=True)
    (workdir / PER_QUERY_FILE).unlink(missing_ok=True)
    found = {stage: workdir.result(stage) for stage in STAGES[:-1]}
    write_json(workdir / RESULTS_FILE, _results(job, workdir, found))
    left = [RESULTS_FILE]
    if found["retrieve"]:
        write_npz(workdir / PER_QUERY_FILE, **_per_query(job, workdir, found))
        left.append(PER_QUERY_FILE)
    for name, draw in _drawings(job, workdir, found).items():
        path = f"{FIGURES_FOLDER}/{name}.png"
        draw(workdir / path)
        left.append(path)
    return left


def _results(job: Job, workdir: WorkDir, found: dict[str, Any]) -> dict[str, Any]:
    """`results.json`: nulls, with a reason beside, for what was skipped or has no meaning."""
    config = job.config
    model = config.model
    trained = dict(found["train"] or {})
    parameters = trained.pop("parameters", None)
    retrieved = found["retrieve"] or {"retrieval": None, "baselines": None}
    results = {
        "schema_version": SCHEMA_VERSION,
        "config": json.loads(config.to_json_best_effort()),
        "config_hash": config_hash(config),
        **commit(),
        "seed": config.seed,
        "split_seed": config.data.split_seed,
        "environment": environment(),
        "dataset": {
            "name": job.dataset.name,
            "database": len(job.database),
            "queries": len(job.queries),
            "split": config.data.split,
        },
        "model": {
            "encoder": model.encoder,
            **_of_encoder(model),
            "parameters": parameters,
            "code_dim": (found["encode"] or {}).get("dimensions", model.code_dim),
        },
        "train": trained or None,
        "encode": found["encode"],
        "retrieval": retrieved["retrieval"],
        "baselines": retrieved["baselines"],
        "feedback": found["feedback"],
    }
    if config.data.split == "official" and not config.data.train_images:
        results |= {"split_seed": None, "split_seed_reason": "the official split is not drawn"}
    if results["model"].get("name", "") is None:
        results["model"]["name_reason"] = "none of the paper's configurations"
    if parameters is None:
        results["model"]["parameters_reason"] = f"stage train: {workdir.why_redo('train')}"
    for section, stage in (
        ("train", "train"),
        ("encode", "encode"),
        ("retrieval", "retrieve"),
        ("baselines", "retrieve"),
        ("feedback", "feedback"),
    ):
        if results[section] is None:
            why = job.why_skipped(stage) or workdir.why_redo(stage)
            results[f"{section}_reason"] = f"stage {stage}: {why}"
    return results


def _of_encoder(model: ml_collections.ConfigDict) -> dict[str, Any]:
    """The keys of `config.model` that make the encoder, with the paper's name for them."""
    if model.encoder == "conv":
        return {key: list(model[key]) for key in ("widths", "blocks")} | {
            "residual": model.residual
        }
    name = configuration_name(model.pool, model.skip, model.input_residual)
    return {"name": name, **{key: model[key] for key in ("depth", "width", "pool", "skip")}}


def _per_query(job: Job, workdir: WorkDir, found: dict[str, Any]) -> dict[str, np.ndarray]:
    """Every query's figures, so that any two runs can be compared in pairs."""
    arrays = {"query_index": job.queries, "query_label": job.query_labels()}
    retrieved = read_npz(workdir / RETRIEVAL_FILE)
    arrays |= {f"retrieval/{key}": retrieved[key] for key in retrieved if key != "top"}
    for learner in found["feedback"] or {}:
        simulation = read_npz(workdir / FEEDBACK_FOLDER / f"{learner}.npz")
        arrays["feedback/query"] = simulation["query"]
        for key in ("ap", "residual_ap", "baseline_residual_ap", "residual_precision"):
            arrays[f"feedback/{learner}/{key}"] = simulation[key]
    return arrays


def _drawings(
    job: Job, workdir: WorkDir, found: dict[str, Any]
) -> dict[str, Callable[[Path], None]]:
    """The figures that the finished stages allow: name -> function that draws it to a path."""
    drawings: dict[str, Callable[[Path], None]] = {}
    if found["train"]:
        lines = read_metrics(workdir / METRICS_FILE)
        drawings["loss"] = partial(figures.loss_curve, lines=lines, losses=found["train"])
        if job.config.train.objective == "reconstruction":
            pairs = read_npz(workdir / RECONSTRUCTIONS_FILE)
            drawings["reconstructions"] = partial(
                figures.reconstructions,
                images=pairs["image"],
                reconstructed=pairs["reconstruction"],
            )
        else:
            probes = read_metrics(workdir / PROBES_FILE)
            drawings["spread"] = partial(figures.spread_curves, lines=lines, probes=probes)
    learners = found["feedback"] or {}
    if learners:
        drawings["map_over_rounds"] = partial(
            figures.map_over_rounds,
            learners=learners,
            gains={learner: _gains(job, workdir, learner) for learner in learners},
        )
    if found["train"]:
        drawings["time"] = partial(figures.time_of_stages, stages=_times(workdir, found))
    if found["retrieve"]:
        drawings["retrieval"] = partial(_draw_sheet, job=job, workdir=workdir, learners=learners)
    return drawings


def _times(workdir: WorkDir, found: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Seconds of each stage that is done, by what they went to."""
    train, encode, retrieve = found["train"] or {}, found["encode"] or {}, found["retrieve"]
    parts = {
        "train": {
            "steps": train.get("seconds"),
            "compiling": train.get("compile_seconds"),
            "probes": train.get("probe_seconds"),
            "checkpoints": train.get("saving_seconds"),
        },
        "encode": {"codes": encode.get("seconds")},
        "retrieve": {"ranking": retrieve["retrieval"]["seconds"] if retrieve else None},
        "feedback": {
            learner: sum(played["seconds"] for played in simulated["rounds"])
            for learner, simulated in (found["feedback"] or {}).items()
        },
    }
    times = {}
    for stage, of_stage in parts.items():
        if (whole := workdir.seconds(stage)) is not None:
            known = {name: seconds for name, seconds in of_stage.items() if seconds}
            times[stage] = known | {"else": max(0.0, whole - sum(known.values()))}
    return times


def _gains(job: Job, workdir: WorkDir, learner: str) -> list[dict[str, Any]]:
    """By round: residual AP minus the first retrieval's on the same images, with its interval."""
    played = read_npz(workdir / FEEDBACK_FOLDER / f"{learner}.npz")
    labels = job.query_labels()[played["query"]]
    differences = (played["residual_ap"] - played["baseline_residual_ap"]).T
    return [
        {"mean": metrics.mean(of_round), "ci95": metrics.bootstrap_interval(of_round, labels)}
        for of_round in differences
    ]


def _draw_sheet(path: Path, job: Job, workdir: WorkDir, learners: dict[str, Any]) -> None:
    """Of the learner asked for; without its feedback only the first retrieval."""
    learner, count = job.config.report.learner, job.config.report.queries
    if learner in learners:
        played = read_npz(workdir / FEEDBACK_FOLDER / f"{learner}.npz")
        places = _shown(job, played, count)
        shown, top = played["query"][places], played["top"][places]
        title = f"First images before and after feedback ({learner}) of queries where they change"
    else:
        shown = job.some_queries(count, job.config.feedback.seed)
        top = read_npz(workdir / RETRIEVAL_FILE)["top"][shown][:, None]
        title = "First images by Euclidean distance"
    labels = job.labels()
    queries = job.queries[shown]
    positions = job.database[top]
    figures.retrieval_sheet(
        path,
        job.dataset.images[queries],
        [job.dataset.class_names[label] for label in labels[queries]],
        [[job.dataset.images[row] for row in rounds] for rounds in positions],
        [
            [labels[row] == labels[query] for row in rounds]
            for query, rounds in zip(queries, positions, strict=True)
        ],
        f"{title}; relevant ones framed",
    )


def _shown(job: Job, played: dict[str, np.ndarray], count: int) -> np.ndarray:
    """Places among the queries with feedback: random ones whose first images change in relevance.

    As many of each class as can be; others where too few change.
    """
    labels = job.query_labels()[played["query"]]
    relevant = job.database_labels()[played["top"]] == labels[:, None, None]
    before, after = (relevant[:, number].sum(axis=1) for number in (0, -1))
    changes = np.flatnonzero(before != after)
    others = np.setdiff1d(np.arange(len(labels)), changes)
    seed = job.config.feedback.seed
    chosen = changes[simulated_user.choose_queries(labels[changes], count, seed)]
    if len(chosen) < min(count, len(labels)):
        rest = count - len(chosen)
        more = others[simulated_user.choose_queries(labels[others], rest, seed)]
        chosen = np.concatenate([chosen, more])
    return np.sort(chosen)


def environment() -> dict[str, Any]:
    """Versions, devices and flags that figures depend on."""
    devices = jax.devices()
    installed = {str(d.metadata["Name"]).lower(): d.version for d in metadata.distributions()}
    return {
        "python": platform.python_version(),
        "packages": {name: installed[name] for name in _PACKAGES if name in installed},
        "system": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        "backend": jax.default_backend(),
        "device": devices[0].device_kind,
        "devices": len(devices),
        "processes": distributed.processes(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def commit() -> dict[str, Any]:
    """`{"commit": ...}` of the code that runs, with "-dirty" if it was changed since."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "commit_reason": "not run from a git checkout"}
    return {"commit": described.stdout.strip()}


def table(results: dict[str, Any]) -> str:
    """The main figures of `results.json` for a terminal."""
    lines = []
    dataset, model, training = (results[key] for key in ("dataset", "model", "train"))
    lines.append(
        f"{dataset['name']}: {dataset['queries']:,} queries in {dataset['database']:,} images "
        f"({dataset['split']} split)"
    )
    if training:
        lines.append(f"{_named(model)}: {_told(training)}")
    if results["retrieval"]:
        maps = {"codes": results["retrieval"]} | results["baselines"]
        lines += ["", f"{'first retrieval':<16}{'mAP':>8}   95 % interval"]
        lines += [
            f"{name:<16}{_number(entry['map']):>8}   {_interval(entry.get('map_ci95'))}".rstrip()
            for name, entry in maps.items()
        ]
    else:
        lines.append(f"no first retrieval ({results['retrieval_reason']})")
    if results["feedback"]:
        rounds = range(len(next(iter(results["feedback"].values()))["rounds"]))
        lines += ["", f"{'full mAP':<16}" + "".join(f"{f'round {n}':>10}" for n in rounds)]
        for key, heading in (("map", None), ("residual_map", "residual mAP")):
            lines += [heading] if heading else []
            for learner, entry in results["feedback"].items():
                values = (_number(r[key]) for r in entry["rounds"])
                lines.append(f"{learner:<16}" + "".join(f"{v:>10}" for v in values))
    return "\n".join(lines)


def _named(model: dict[str, Any]) -> str:
    if model["encoder"] == "conv":
        return f"conv encoder, widths {'-'.join(map(str, model['widths']))}"
    return f"{model['name'] or 'net'} depth {model['depth']} width {model['width']}"


def _told(training: dict[str, Any]) -> str:
    """Losses of a training that reconstructs, and its speed."""
    precision = training.get("precision", training["dtype"])  # older records have the key alone
    rate = f"{training['images_per_second']:,.0f} images/s in {precision}"
    if training["loss"] is None:
        return f"{training['objective']}, {training['views_per_second']:,.0f} views/s, {rate}"
    return (
        f"loss {_number(training['loss'])} (mean image {_number(training['constant_loss'])}, "
        f"PCA {_number(training['pca_loss'])}, other codes "
        f"{_number(training['code_shuffled_loss'])}), {rate}"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _interval(interval: list[float] | None) -> str:
    return "" if interval is None else "{:.4f} - {:.4f}".format(*interval)
