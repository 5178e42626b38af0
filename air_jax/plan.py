"""From a config to work that can be done: loads the data, checks everything, estimates."""

import dataclasses
import time

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from air_jax import datasets, encode, feedback, models, sharding, train
from air_jax.input_pipeline import LOADERS
from air_jax.models import count_parameters
from air_jax.progress import duration
from air_jax.workdir import STAGES, WorkDir

BASELINES = ("random", "pixels", "pca", "untrained")
TIMED_STEPS = 2


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
    mesh = sharding.make_mesh()
    dataset = datasets.load(config.data.name, config.data.dir)
    data = config.data
    database, queries = datasets.split(dataset, data.split, data.split_seed, data.queries_per_class)
    if not 0 <= data.train_images <= len(database):
        raise ValueError(
            f"data.train_images={data.train_images}: expected from 0 (all) to the "
            f"{len(database)} images of the database"
        )
    if data.loader not in LOADERS:
        raise ValueError(f"data.loader={data.loader!r}: expected one of {', '.join(LOADERS)}")
    models.validate(**config.model, image_shape=dataset.images.shape[1:])
    train.validate(config, data.train_images or len(database), mesh.size)
    encode.validate(config.encode.batch, mesh.size)
    for name in config.retrieval.baselines:
        if name not in BASELINES:
            raise ValueError(f"retrieval.baselines: {name!r} is not one of {', '.join(BASELINES)}")
    feedback.validate(config.feedback, len(database))
    if config.report.queries < 1:
        raise ValueError(f"report.queries={config.report.queries}: expected at least 1")
    return Job(config, dataset, database, queries, mesh)


def describe(job: Job, workdir: WorkDir) -> str:
    """What a run would do, its memory, and its time: the train step is compiled and timed."""
    config, mesh = job.config, job.mesh
    images = job.dataset.images[job.training_positions()]
    batch = config.train.batch
    steps = len(images) // batch * config.train.epochs
    net = train.new_net(config, images.shape[1:], *train.channel_statistics(images), mesh)
    optimizer = train.make_optimizer(config.train, steps)
    state = train.initial_state(net, optimizer, mesh)
    step, compile_seconds = train.compile_step(
        config, net, optimizer, state, images.shape[1:], mesh
    )
    memory = step.memory_analysis()
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    pixels = jax.device_put(images[:batch], sharding.by_rows(mesh))
    key = jax.device_put(jax.random.key(0), sharding.replicated(mesh))
    state, _ = step(state, pixels, key)
    jax.block_until_ready(state)
    started = time.monotonic()
    for _ in range(TIMED_STEPS):
        state, _ = step(state, pixels, key)
    jax.block_until_ready(state)
    rate = TIMED_STEPS * batch / (time.monotonic() - started)
    model = config.model
    name = models.configuration_name(model.pool, model.skip, model.input_residual)
    shape = "x".join(map(str, images.shape[1:]))
    stages = (f"{stage}: {workdir.why_redo(stage) or 'done'}" for stage in STAGES)
    lines = {
        "work directory": str(workdir.path),
        "data": f"{job.dataset.name}, {len(job.database):,} images of {shape} in the database, "
        f"{len(images):,} to train on, {len(job.queries):,} queries ({config.data.split} split)",
        "model": f"{name or 'no name in the paper'}: depth {model.depth}, width {model.width}, "
        f"{count_parameters(net.params):,} parameters",
        "devices": f"{mesh.size} x {jax.devices()[0].device_kind} ({jax.default_backend()})",
        "training": f"{config.train.epochs} epochs, {steps:,} steps of {batch} images, "
        f"{config.train.dtype}",
        "memory": f"{held / 2**20:,.0f} MiB on each device for a train step",
        "time": f"about {duration(steps * batch / rate)} of training, from {TIMED_STEPS} steps at "
        f"{rate:,.0f} images/s; compiling took {compile_seconds:.1f} s; evaluation comes on top",
        "stages": "; ".join(stages),
    }
    return "\n".join(f"{label:<16}{text}" for label, text in lines.items())
