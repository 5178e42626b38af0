"""What a run would do, without doing it: its memory and time, from a few real steps."""

import time
from typing import NamedTuple

import jax

from air_jax.data.loaders import resident
from air_jax.models.architecture import configuration_name
from air_jax.models.net import count_parameters
from air_jax.run.jobs import Job
from air_jax.run.work_directory import WorkDir
from air_jax.runtime import sharding
from air_jax.runtime.progress import duration
from air_jax.training import loop
from air_jax.training.optimizer import make_optimizer
from air_jax.training.step import Phase, compile_step, initial_state

TIMED_STEPS = 2


class Measured(NamedTuple):
    """What a few steps of training showed.

    Attributes:
        images_per_second: of training.
        compile_seconds: of the step.
        bytes_on_device: that training takes.
        parameters: of the net.
    """

    images_per_second: float
    compile_seconds: float
    bytes_on_device: int
    parameters: int


def measure(job: Job) -> Measured:
    """Compile a job's train step and time it."""
    config, mesh = job.config, job.mesh
    images = job.dataset.images[job.training_positions()]
    batch = config.train.batch
    steps = loop.count_steps(config.train, len(images))
    net = loop.new_net(config, images.shape[1:], *loop.channel_statistics(images), mesh)
    state = initial_state(net, make_optimizer(config.train, steps), mesh)
    whole = Phase(0, steps, None)
    step, compile_seconds = compile_step(config, net, state, whole, images.shape[1:], mesh)
    memory = step.memory_analysis()
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes if memory else 0
    held += images.nbytes if resident(config.data.loader, images.nbytes, mesh) else 0
    pixels = sharding.put(images[:batch], sharding.by_rows(mesh))
    key = sharding.put(jax.random.key(0), sharding.replicated(mesh))
    state, _ = step(state, pixels, key)
    jax.block_until_ready(state)
    started = time.monotonic()
    for _ in range(TIMED_STEPS):
        state, _ = step(state, pixels, key)
    jax.block_until_ready(state)
    rate = TIMED_STEPS * batch / (time.monotonic() - started)
    return Measured(rate, compile_seconds, held, count_parameters(net.params))


def describe(job: Job, workdir: WorkDir, stages: list[str], anew: bool) -> str:
    """The plan of a run in lines for a terminal.

    Args:
        job: what would be done.
        workdir: where.
        stages: those asked for.
        anew: whether what is in `workdir` would be set aside.
    """
    config = job.config
    measured = measure(job)
    rate = measured.images_per_second
    positions = job.training_positions()
    count, batch = len(positions), config.train.batch
    per_call = loop.steps_per_call(config, job.dataset.images[positions], job.mesh)
    steps = loop.count_steps(config.train, count)
    model = config.model
    name = configuration_name(model.pool, model.skip, model.input_residual)
    shape = "x".join(map(str, job.dataset.images.shape[1:]))
    reasons = {s: "not done yet" if anew else workdir.why_redo(s) for s in stages}
    lines = {
        "work directory": str(workdir.path),
        "data": f"{job.dataset.name}, {len(job.database):,} images of {shape} in the database, "
        f"{count:,} to train on, {len(job.queries):,} queries ({config.data.split} split)",
        "model": f"{name or 'no name in the paper'}: depth {model.depth}, width {model.width}, "
        f"{measured.parameters:,} parameters",
        "devices": f"{job.mesh.size} x {jax.devices()[0].device_kind} ({jax.default_backend()})",
        "training": f"{config.train.epochs} epochs, {steps:,} steps of {batch} images, "
        f"{per_call:,} in a call, "
        f"{config.train.dtype}",
        "memory": f"{measured.bytes_on_device / 2**20:,.1f} MiB on each device in training",
        "time": f"about {duration(steps * batch / rate)} of training, from {TIMED_STEPS} steps at "
        f"{rate:,.0f} images/s; compiling took {measured.compile_seconds:.1f} s; evaluation comes "
        "on top",
        "stages": "; ".join(f"{s}: {why or 'done before'}" for s, why in reasons.items()),
    }
    return "\n".join(f"{label:<16}{text}" for label, text in lines.items())
