"""Any config: it runs a tiny job to its end, or is refused before, by the name of its key."""

import math
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import pytest
from conftest import class_images
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from jobs import RUN

from air_jax.configs import default
from air_jax.run import jobs, pipeline
from air_jax.run.work_directory import RESULTS_FILE, STAGES, WorkDir
from air_jax.runtime import sharding
from air_jax.runtime.command_line import flatten
from air_jax.training import loop
from air_jax.training.training_log import CollapseError, NonFiniteError

# What may be meant, by key; the first run of each is a tiny job.
GOOD: dict[str, list[Any]] = {
    "seed": [0, 7, 2**32 - 1],
    "profile": [False],
    "data.name": ["arrays"],
    "data.split": ["paper", "official", "validation"],
    "data.split_seed": [0, 1],
    "data.queries_per_class": [1, 4, 19, 20],
    "data.size": [0, 1, 2, 4, 8, 3],
    "data.keep_database_per_class": [0, 1, 10],
    "data.keep_queries_per_class": [0, 1, 2],
    "data.train_images": [0, 1, 16, 32, 64],
    "data.loader": ["auto", "resident", "host"],
    "model.encoder": ["paper", "conv"],
    "model.widths": [(4,), (4, 8), (2, 2, 2, 2, 2)],
    "model.blocks": [(1,), (1, 2), (0, 1)],
    "model.residual": [True, False],
    "model.depth": [4, 6, 8, 5],
    "model.width": [1, 3, 8, 12],
    "model.kernel": [1, 2, 3, 5, 9],
    "model.code_dim": [1, 16, 64, 300],
    "model.pool": [True, False],
    "model.pools": [1, 2, 3, 4, 10],
    "model.skip": ["none", "symmetric", "asymmetric"],
    "model.skip_into": ["encoder", "both"],
    "model.code": ["dense", "pooled", "conv"],
    "model.norm": ["none", "batch", "group"],
    "model.input_residual": [True, False],
    "train.objective": ["reconstruction", "contrastive", "coding_rate"],
    "train.views": [2, 3, 1],
    "train.view_size": [0, 4, 6, 16],
    "train.view_area": [(0.2, 0.55), (1.0, 1.0), (0.5, 0.2), (0.0, 1.0), (0.5,)],
    "train.optimizer": ["sgd", "adamw"],
    "train.epochs": [1, 2],
    "train.steps_per_batch": [1, 2],
    "train.schedule": ["joint", "greedy"],
    "train.greedy_share": [0.1, 0.5, 0.9],
    "train.batch": [1, 16, 63, 64],
    "train.learning_rate": [1e-30, 0.05, 1, 1e30],
    "train.lr_schedule": ["constant", "cosine"],
    "train.warmup_steps": [0, 1, 10**6],
    "train.momentum": [0.0, 0.9, 0.999999],
    "train.weight_decay": [0.0, 1e-4, 1e30],
    "train.clip_norm": [0.0, 1e-9, 1.0],
    "train.dtype": ["float32", "tf32", "bfloat16"],
    "train.steps_per_call": [0, 1, 2, 1000],
    "train.remat": [True, False],
    "train.corruption": ["none", "mask", "noise"],
    "train.corruption_amount": [0.0, 0.5, 1.0, 1e30],
    "encode.batch": [0, 1, 7, 32, 1000],
    "encode.readout": ["plain", "whitened"],
    "encode.readout_dim": [1, 16, 300],
    "encode.readout_power": [0.0, 0.25, 1.0],
    "encode.unit_length": [True, False],
    "retrieval.metric": ["l2", "standardised", "cosine", "inner_product"],
    "retrieval.precision": ["float32"],
    "retrieval.baselines": [(), ("random", "pixels", "pca", "kmeans", "smt", "untrained")],
    "feedback.learners": [("none",), ("svc", "rocchio"), ("svc", "svc"), ("svc", "svc_pseudo")],
    "feedback.rounds": [1, 2, 12],
    "feedback.marks_per_round": [1, 5, 32, 64],
    "feedback.show": ["best", "uncertain"],
    "feedback.solver": ["smo", "sklearn"],
    "feedback.queries": [0, 1, 3, 1000],
    "feedback.seed": [0, 5],
    "report.queries": [1, 2, 1000],
    "report.learner": ["svc", "none", "rocchio"],
    "log.every_steps": [1, 3, 10**6],
    "log.checkpoint_minutes": [1e-9, 3.0, 1e300],
    "log.checkpoint_steps": [0, 1, 2, 10**6],
    "log.probe_steps": [0, 1, 3],
    "log.tensorboard": [False],
}
# What cannot be meant of most keys.
WRONG = [
    *(None, "", "text", "a\0b", "../nowhere", True, 3.5, math.nan, math.inf, -math.inf),
    *(-1, 0, 1, 10**6, 2**31, 2**32, 2**63, 10**30, 1e300, -1e-300),
    *((), (1,), ("text",), [], {}, {"a": 1}, b"x", 1j),
]
WRONG_KEYS = ("model.depht", "train", "model", "log.extra.deep", "sead", "feedback.learner")


def with_changes(base: dict[str, Any], changes: dict[str, Any]) -> ml_collections.ConfigDict:
    """A config as a person's own file may make it: any value under any key."""
    config = ml_collections.ConfigDict(type_safe=False)
    for key, value in (base | changes).items():
        *sections, name = key.split(".")
        inner = config
        for section in sections:
            if not isinstance(inner.get(section), ml_collections.ConfigDict):
                inner[section] = ml_collections.ConfigDict(type_safe=False)
            inner = inner[section]
        inner[name] = value
    return config


def one_device(patch: pytest.MonkeyPatch) -> None:
    mesh = sharding.make_mesh(jax.devices()[:1])
    patch.setattr(sharding, "make_mesh", lambda *_: mesh)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> dict[str, Any]:
    """By key a config that works."""
    path = tmp_path_factory.mktemp("data") / "images.npz"
    images, labels = class_images(80)
    np.savez(path, image=images, label=labels, query=np.arange(80) % 5 == 0)
    values = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in flatten(default.get_config()).items()
    }
    return values | RUN | {"data.dir": str(path), "train.epochs": 1, "feedback.rounds": 1}


def check_refusal(error: Exception, changes: dict[str, Any]) -> None:
    """It has to name one of the keys that were changed."""
    named = [key for key in changes if key.split(".")[-1] in str(error)]
    assert named or ("data.dir" in changes and "../nowhere" in str(error)), (error, changes)


def refused(base: dict[str, Any], changes: dict[str, Any], without: str | None = None) -> bool:
    """Whether a config is refused; fails if by anything but a message that names a key."""
    config = with_changes({k: v for k, v in base.items() if k != without}, changes)
    try:
        jobs.prepare(config)
    except (ValueError, FileNotFoundError) as error:
        check_refusal(error, changes | ({} if without is None else {without: None}))
        return True
    return False


def some(values: dict[str, list[Any]], most: int) -> st.SearchStrategy[dict[str, Any]]:
    """A few keys with one of their values each."""
    chosen = st.lists(st.sampled_from(sorted(values)), min_size=1, max_size=most, unique=True)
    return chosen.flatmap(
        lambda keys: st.fixed_dictionaries({key: st.sampled_from(values[key]) for key in keys})
    )


ANY = {key: [*GOOD.get(key, []), *WRONG] for key in flatten(default.get_config())}
ANY |= dict.fromkeys(WRONG_KEYS, WRONG)
QUIETLY = {
    "deadline": None,
    "database": None,
    "derandomize": True,
    "suppress_health_check": list(HealthCheck),
}


def prepare_any(base, count):
    tried = {"refused": 0, "prepared": 0}

    @settings(max_examples=count, **QUIETLY)
    @given(some(ANY, 3), st.sampled_from([None] * 9 + sorted(flatten(default.get_config()))))
    def prepare(changes, without):
        without = None if without in changes else without
        tried["refused" if refused(base, changes, without) else "prepared"] += 1

    with pytest.MonkeyPatch.context() as patch:
        one_device(patch)
        prepare()
    return tried


def run_any(base, folder: Path, count):
    tried = {"refused": 0, "run": 0, "stopped as not finite": 0}

    @settings(max_examples=count, **QUIETLY)
    @given(some(GOOD, 5))
    def run(changes):
        config = with_changes(base, changes)
        try:
            job = jobs.prepare(config)
        except ValueError as error:
            check_refusal(error, changes)
            tried["refused"] += 1
            return
        assume(loop.count_steps(config.train, len(job.training_positions())) <= 200)
        workdir = WorkDir(folder / str(sum(tried.values())), config, job.dataset.fingerprint())
        try:
            with workdir.opened():
                for stage in STAGES:
                    pipeline.do_stage(stage, job, workdir)
        except (NonFiniteError, CollapseError) as error:
            assert "train.learning_rate" in str(error)
            tried["stopped as not finite"] += 1
        else:
            assert (workdir / RESULTS_FILE).exists()
            tried["run"] += 1

    with pytest.MonkeyPatch.context() as patch:
        one_device(patch)
        run()
    return tried


def test_the_base_of_these_tests_works(base):
    assert not refused(base, {})
    assert ANY.keys() - {*WRONG_KEYS} == flatten(default.get_config()).keys()


def test_a_config_is_prepared_or_refused_by_name(base):
    tried = prepare_any(base, 150)
    assert tried["refused"] > 30
    assert tried["prepared"] > 3


def test_a_config_that_is_prepared_runs_to_its_end(base, tmp_path):
    assert run_any(base, tmp_path, 3)["run"]


@pytest.mark.long
def test_many_configs_are_prepared_or_refused_by_name(base):
    tried = prepare_any(base, 3000)
    print(tried)
    assert tried["refused"] > 500


@pytest.mark.long
def test_many_configs_that_are_prepared_run_to_their_end(base, tmp_path):
    tried = run_any(base, tmp_path, 60)
    print(tried)
    assert tried["run"] > 20
