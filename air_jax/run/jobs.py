"""From a config to work that can be done: loads the data and checks every key."""

import dataclasses

import ml_collections
import numpy as np
from jax.sharding import Mesh

from air_jax.data import datasets, splits
from air_jax.feedback import simulated_user
from air_jax.models.net import architecture_of
from air_jax.run import config_checks
from air_jax.runtime import sharding

# Stages that judge rankings by the classes of images.
NEED_LABELS = ("retrieve", "feedback")


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

    @property
    def labelled(self) -> bool:
        return self.dataset.labels is not None

    def why_skipped(self, stage: str) -> str | None:
        """Why a stage is no part of this run, in words; None if it is part of it."""
        return "skipped: no labels" if stage in NEED_LABELS and not self.labelled else None

    def labels(self) -> np.ndarray:
        """Labels [N] of the whole data set, of a job that is `labelled`."""
        assert self.dataset.labels is not None, "ask `labelled` first"
        return self.dataset.labels

    def database_labels(self) -> np.ndarray:
        return self.labels()[self.database]

    def query_labels(self) -> np.ndarray:
        return self.labels()[self.queries]

    def some_queries(self, count: int, seed: int) -> np.ndarray:
        """Places of random queries, as many of each class as can be; sorted."""
        groups = self.query_labels() if self.labelled else np.zeros(len(self.queries), np.int32)
        return simulated_user.choose_queries(groups, count, seed)


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
    """Load and split the data, and gather the devices.

    Raises: as `prepare`, but for values that do not fit the data or the devices.
    """
    config_checks.check_keys(config)
    config_checks.check_values(config)
    data = config.data
    if data.name == "folder" and data.size:  # decoding a large folder takes minutes
        architecture_of(config.model, (data.size, data.size, 3))
    dataset = datasets.load(data.name, data.dir, data.size)
    database, queries = splits.split(dataset, data.split, data.split_seed, data.queries_per_class)

    def kept(positions: np.ndarray, key: str) -> np.ndarray:
        count = data[key]
        if not count:
            return positions
        if dataset.labels is None:
            raise ValueError(f"data.{key}={count}: {dataset.name} has no labels; expected 0")
        return splits.keep_per_class(dataset.labels, positions, count, data.split_seed)

    database = kept(database, "keep_database_per_class")
    queries = kept(queries, "keep_queries_per_class")
    return Job(config, dataset, database, queries, sharding.make_mesh())


def check(job: Job) -> None:
    """Raise ValueError, naming the key, if the stages cannot be done as the config says."""
    config_checks.check_values(job.config)
    config_checks.check_fit(
        job.config,
        job.dataset.images.shape[1:],
        len(job.database),
        len(job.queries),
        job.mesh,
        job.labelled,
    )
