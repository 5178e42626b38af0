"""From a config to work that can be done: loads the data and checks every key."""

import dataclasses
import math
import os
from typing import Any

import ml_collections
import numpy as np
from jax.sharding import Mesh

from air_jax.configs import default
from air_jax.data import datasets, loaders, splits
from air_jax.feedback import simulated_user
from air_jax.models import autoencoder, encode
from air_jax.run.work_directory import flatten
from air_jax.runtime import sharding
from air_jax.search import baselines
from air_jax.search.exact_search import METRICS, PRECISIONS
from air_jax.training import loop

LARGEST = 2**32 - 1  # of whole numbers: seeds have no more bits
SHEET_ROWS = 200  # of images in the retrieval sheet: 15,600 pixels of height


@dataclasses.dataclass(frozen=True)
class Job:
    """What the stages work on.

    Attributes:
        config: the run's.
        dataset: whole.
        database: [N] positions in it.
        queries: [Q] positions in it.
        mesh: of all devices.
    """

    config: ml_collections.ConfigDict
    dataset: datasets.Dataset
    database: np.ndarray
    queries: np.ndarray
    mesh: Mesh

    def training_positions(self) -> np.ndarray:
        """The database, or `data.train_images` random ones of it; sorted."""
        count = self.config.data.train_images
        if not count:
            return self.database
        rng = np.random.default_rng(self.config.data.split_seed)
        return np.sort(rng.choice(self.database, count, replace=False))

    def database_images(self) -> np.ndarray:
        return self.dataset.images[self.database]

    def query_images(self) -> np.ndarray:
        return self.dataset.images[self.queries]

    def query_labels(self) -> np.ndarray:
        return self.dataset.labels[self.queries]

    def shown_queries(self) -> np.ndarray:
        """Positions among the queries of those in the figures: some of those with feedback."""
        labels = self.query_labels()
        config = self.config.feedback
        chosen = simulated_user.choose_queries(labels, config.queries, config.seed)
        few = simulated_user.choose_queries(labels[chosen], self.config.report.queries, config.seed)
        return chosen[few]


def prepare(config: ml_collections.ConfigDict) -> Job:
    """Load the data and check every key, before any long work.

    Raises:
        ValueError: a value that cannot work; the message names it and says what was expected.
        FileNotFoundError: the data is not there.
    """
    if "sweep" in config:
        raise ValueError("this config is a sweep over many nets: python -m air_jax.reproduce")
    job = load(config)
    check(job)
    return job


def load(config: ml_collections.ConfigDict) -> Job:
    """Load and split the data, and gather the devices; raises as `prepare` for `config.data`."""
    check_keys(config)
    data = config.data
    for key in ("split_seed", "size", "keep_database_per_class", "keep_queries_per_class"):
        if data[key] < 0:
            raise ValueError(f"data.{key}={data[key]}: expected 0 or more")
    dataset = datasets.load(data.name, data.dir)
    database, queries = splits.split(dataset, data.split, data.split_seed, data.queries_per_class)
    if data.size:
        dataset = datasets.shrink(dataset, data.size)

    def kept(positions: np.ndarray, count: int) -> np.ndarray:
        if not count:
            return positions
        return splits.keep_per_class(dataset.labels, positions, count, data.split_seed)

    database = kept(database, data.keep_database_per_class)
    queries = kept(queries, data.keep_queries_per_class)
    return Job(config, dataset, database, queries, sharding.make_mesh())


def check_keys(config: ml_collections.ConfigDict) -> None:
    """Raise ValueError, naming the key, if keys are not those of `configs/default.py`, or of other
    types. A sweep's own are not looked at."""
    wanted = flatten(default.get_config())
    found = {k: v for k, v in flatten(config).items() if k.partition(".")[0] != "sweep"}
    if unknown := sorted(found.keys() - wanted.keys()):
        raise ValueError(f"{unknown[0]}: there is no such key; configs/default.py has all")
    if missing := sorted(wanted.keys() - found.keys()):
        raise ValueError(f"{missing[0]} is missing; configs/default.py has all keys")
    for key, value in found.items():
        if expected := _expected(wanted[key], value):
            raise ValueError(f"{key}={value!r}: expected {expected}")


def _expected(like: Any, value: Any) -> str | None:
    """What was expected of a key with this default, in words, if a value is not that."""
    if isinstance(like, list):
        good = isinstance(value, list) and all(isinstance(one, str) for one in value)
        return None if good else "names in a tuple"
    if isinstance(like, bool):
        return None if isinstance(value, bool) else "True or False"
    if isinstance(like, str):
        good = isinstance(value, str) and "\0" not in value
        return None if good else "text"
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(like, float):
        return None if number and math.isfinite(value) else "a finite number"
    good = number and isinstance(value, int) and abs(value) <= LARGEST
    return None if good else f"a whole number, {LARGEST:,} at most"


def check(job: Job) -> None:
    """Raise ValueError, naming the key, if the stages cannot be done as the config says."""
    config, data = job.config, job.config.data
    database_size, devices = len(job.database), job.mesh.size
    if not 0 <= data.train_images <= database_size:
        raise ValueError(
            f"data.train_images={data.train_images}: expected from 0 (all) to the "
            f"{database_size} images of the database"
        )
    loaders.check_kind(data.loader)
    autoencoder.validate(**config.model, image_shape=job.dataset.images.shape[1:])
    loop.validate(config, data.train_images or database_size, devices)
    if (per_call := config.train.steps_per_call) > 1:
        images = job.dataset.images[job.training_positions()]
        loaders.check_calls(data.loader, images, job.mesh, per_call)
    encode.validate(config.encode.batch, devices)
    _check_memory(job)
    if config.retrieval.metric not in METRICS:
        raise ValueError(
            f"retrieval.metric={config.retrieval.metric!r}: expected one of {', '.join(METRICS)}"
        )
    if config.retrieval.precision not in PRECISIONS:
        raise ValueError(
            f"retrieval.precision={config.retrieval.precision!r}: expected one of "
            f"{', '.join(PRECISIONS)}"
        )
    baselines.validate(config.retrieval.baselines, job.dataset.images.shape[1])
    simulated_user.validate(config.feedback, database_size)
    if config.report.learner not in config.feedback.learners:
        raise ValueError(
            f"report.learner={config.report.learner!r} is not one of feedback.learners="
            f"{tuple(config.feedback.learners)}: set it to one of them"
        )
    if config.report.queries < 1:
        raise ValueError(f"report.queries={config.report.queries}: expected at least 1")
    rows = min(config.report.queries, len(job.queries)) * (config.feedback.rounds + 1)
    if rows > SHEET_ROWS:
        raise ValueError(
            f"report.queries={config.report.queries} with feedback.rounds={config.feedback.rounds}:"
            f" the sheet would have {rows:,} rows of images; expected {SHEET_ROWS} at most"
        )


def _check_memory(job: Job) -> None:
    """Refuse what cannot fit however it is computed: a typing error, most likely.

    What it really takes is what `--dry-run` says.
    """
    model, shape = job.config.model, job.dataset.images.shape[1:]
    # Parameters, their gradients and momentum; the first maps of a batch. All float32.
    needed = {
        f"model.width={model.width}, model.kernel={model.kernel}, model.code_dim={model.code_dim}, "
        f"model.depth={model.depth}": 12 * autoencoder.least_parameters(**model, image_shape=shape),
        f"encode.batch={job.config.encode.batch}": 4
        * (job.config.encode.batch // job.mesh.size * math.prod(shape[:2]) * model.width),
    }
    stats = job.mesh.local_devices[0].memory_stats() or {}
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = stats.get("bytes_limit", physical)
    for said, size in needed.items():
        if size > limit:
            raise ValueError(
                f"{said}: takes {size / 2**30:,.1f} GiB at least, and a device has "
                f"{limit / 2**30:,.1f} GiB"
            )
