"""From a config to work that can be done: loads the data and checks every key."""

import dataclasses

import ml_collections
import numpy as np
from jax.sharding import Mesh

from air_jax.data import datasets, splits
from air_jax.run import config_checks
from air_jax.runtime import sharding


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


def check(job: Job) -> None:
    """Raise ValueError, naming the key, if the stages cannot be done as the config says."""
    config_checks.check_values(job.config)
    config_checks.check_fit(
        job.config,
        job.dataset.images.shape[1:],
        len(job.database),
        len(job.queries),
        job.mesh,
    )
