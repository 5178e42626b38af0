"""From a config to work that can be done: loads the data and checks every key."""

import dataclasses

import ml_collections
import numpy as np
from jax.sharding import Mesh

from air_jax import baselines, datasets, encode, feedback, models, sharding, train
from air_jax.input_pipeline import LOADERS
from air_jax.retrieval import METRICS, PRECISIONS


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
        chosen = feedback.choose_queries(labels, config.queries, config.seed)
        few = feedback.choose_queries(labels[chosen], self.config.report.queries, config.seed)
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
    data = config.data
    for key in ("split_seed", "size", "keep_database_per_class", "keep_queries_per_class"):
        if data[key] < 0:
            raise ValueError(f"data.{key}={data[key]}: expected 0 or more")
    dataset = datasets.load(data.name, data.dir)
    database, queries = datasets.split(dataset, data.split, data.split_seed, data.queries_per_class)
    if data.size:
        dataset = datasets.shrink(dataset, data.size)

    def kept(positions: np.ndarray, count: int) -> np.ndarray:
        if not count:
            return positions
        return datasets.keep_per_class(dataset.labels, positions, count, data.split_seed)

    database = kept(database, data.keep_database_per_class)
    queries = kept(queries, data.keep_queries_per_class)
    return Job(config, dataset, database, queries, sharding.make_mesh())


def check(job: Job) -> None:
    """Raise ValueError, naming the key, if the stages cannot be done as the config says."""
    config, data = job.config, job.config.data
    database_size, devices = len(job.database), job.mesh.size
    if not 0 <= data.train_images <= database_size:
        raise ValueError(
            f"data.train_images={data.train_images}: expected from 0 (all) to the "
            f"{database_size} images of the database"
        )
    if data.loader not in LOADERS:
        raise ValueError(f"data.loader={data.loader!r}: expected one of {', '.join(LOADERS)}")
    models.validate(**config.model, image_shape=job.dataset.images.shape[1:])
    train.validate(config, data.train_images or database_size, devices)
    encode.validate(config.encode.batch, devices)
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
    feedback.validate(config.feedback, database_size)
    if config.report.learner not in config.feedback.learners:
        raise ValueError(
            f"report.learner={config.report.learner!r} is not one of feedback.learners="
            f"{tuple(config.feedback.learners)}: set it to one of them"
        )
    if config.report.queries < 1:
        raise ValueError(f"report.queries={config.report.queries}: expected at least 1")
