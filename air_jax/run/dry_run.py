"""What a run would do, without doing it: its memory and time, from a few real steps."""

import time
from typing import NamedTuple

import jax

from air_jax.data.loaders import make_loader, resident
from air_jax.models import encode
from air_jax.models.architecture import configuration_name
from air_jax.models.net import count_parameters
from air_jax.run import trained_net
from air_jax.run.jobs import Job
from air_jax.run.work_directory import WorkDir
from air_jax.runtime import sharding
from air_jax.runtime.progress import duration, say
from air_jax.training import loop
from air_jax.training.step import Phase, compile_step

TIMED_STEPS = 2
TIMED_IN_ONE_CALL = 20  # likewise, where the devices do several steps in one call
TIMED_BATCHES = 2  # of encoding


class Measured(NamedTuple):
    """What a few steps of training showed.

    Attributes:
        images_per_second: of training.
        compile_seconds: of the step.
        bytes_on_device: that training takes.
        parameters: of the net.
        steps: that were timed.
    """

    images_per_second: float
    compile_seconds: float
    bytes_on_device: int
    parameters: int
    steps: int


def measure(job: Job) -> Measured:
    """Compile a job's train step and time it, in calls of several steps where training has them."""
    config, mesh = job.config, job.mesh
    images = job.dataset.images[job.training_positions()]
    batch = config.train.batch
    total = loop.count_steps(config.train, len(images))
    per_call = min(loop.steps_per_call(config, images, mesh), TIMED_IN_ONE_CALL)
    statistics = loop.channel_statistics(images)
    net, state = loop.new_net_and_state(config, images.shape[1:], *statistics, mesh, total)
    on_device = resident(config.data.loader, images.nbytes, mesh)
    say("compiling the train step (seconds to a minute)")
    step, compile_seconds = compile_step(
        config,
        net,
        state,
        Phase(0, total, None),
        images.shape[1:],
        mesh,
        per_call,
        len(images) if on_device else 0,
    )
    memory = step.memory_analysis()
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes if memory else 0
    if per_call == 1 and on_device:
        held += images.nbytes  # several steps in one call have the images as an argument
    key = sharding.put(jax.random.key(0), sharding.replicated(mesh))
    calls = 2 if per_call > 1 else 1 + TIMED_STEPS
    timed = (calls - 1) * per_call
    say(f"timing {timed} steps of {batch} images")
    load = make_loader(config.data.loader, images, batch, 0, mesh, steps_per_call=per_call)
    batches = load(0, calls * per_call)
    state, _ = step(state, next(batches), key)
    jax.block_until_ready(state)
    started = time.monotonic()
    for several in batches:
        state, _ = step(state, several, key)
    jax.block_until_ready(state)
    rate = timed * batch / (time.monotonic() - started)
    return Measured(rate, compile_seconds, held, count_parameters(net.params), timed)


def encoding_rate(job: Job) -> float:
    """Images a second that a net of the config encodes, from `TIMED_BATCHES` batches."""
    config, mesh = job.config, job.mesh
    batch = trained_net.encoded_at_once(config, job.dataset.images.shape[1:], mesh)
    images = job.dataset.images[: TIMED_BATCHES * batch]
    say(f"timing the encoder on {len(images):,} images")
    net = loop.new_net(config, images.shape[1:], *loop.channel_statistics(images), mesh)
    encode.encode(net, images[:batch], mesh, batch, label=None)  # compiles
    started = time.monotonic()
    encode.encode(net, images, mesh, batch, label=None)
    return len(images) / (time.monotonic() - started)


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
    if model.encoder == "conv":
        net = f"conv encoder, widths {'-'.join(map(str, model.widths))}"
    else:
        name = configuration_name(model.pool, model.skip, model.input_residual)
        net = f"{name or 'no name in the paper'}: depth {model.depth}, width {model.width}"
    shape = "x".join(map(str, job.dataset.images.shape[1:]))
    reasons = {
        s: job.why_skipped(s) or ("not done yet" if anew else workdir.why_redo(s)) for s in stages
    }
    to_do = [stage for stage, why in reasons.items() if why and not job.why_skipped(stage)]
    training = "no training is to do"
    if "train" in to_do:
        training = (
            f"about {duration(steps * batch / rate)} of training, from {measured.steps} steps at "
            f"{rate:,.0f} images/s; compiling took {measured.compile_seconds:.1f} s"
        )
    lines = {
        "work directory": str(workdir.path),
        "data": f"{job.dataset.name}, {len(job.database):,} images of {shape} in the database, "
        f"{count:,} to train on, {len(job.queries):,} queries ({config.data.split} split)",
        "model": f"{net}, {measured.parameters:,} parameters",
        "devices": f"{job.mesh.size} x {jax.devices()[0].device_kind} ({jax.default_backend()})",
        "training": f"{config.train.objective}, {config.train.epochs} epochs, {steps:,} steps of "
        f"{batch} images, {per_call:,} in a call, {config.train.dtype}",
        "memory": f"{measured.bytes_on_device / 2**20:,.1f} MiB on each device in training",
        "time": training,
        "on top": _on_top(job, to_do),
        "stages": "; ".join(f"{s}: {why or 'done before'}" for s, why in reasons.items()),
    }
    return "\n".join(f"{label:<16}{text}" for label, text in lines.items())


def _on_top(job: Job, to_do: list[str]) -> str:
    """What takes time besides the steps of training, with an estimate where one is cheap."""
    config = job.config
    queries, database = len(job.queries), len(job.database)
    told = {}
    if "train" in to_do:
        told["train"] = f"losses on {queries:,} queries, and by PCA"
    if "encode" in to_do:
        images, rate = database + queries, encoding_rate(job)
        told["encode"] = (
            f"about {duration(2 * images / rate)}, {images:,} images by the trained and by an "
            f"untrained net at {rate:,.0f} images/s"
        )
    if "retrieve" in to_do:
        told["retrieve"] = ", ".join(["the codes", *config.retrieval.baselines])
    if "feedback" in to_do:
        asked = min(config.feedback.queries or queries, queries)
        told["feedback"] = (
            f"{config.feedback.rounds} rounds of {asked:,} queries by "
            f"{', '.join(config.feedback.learners)}"
        )
    if "report" in to_do:
        told["report"] = "figures"
    text = "; ".join(f"{stage}: {what}" for stage, what in told.items())
    return f"{text} (only what has a time here was timed)" if told else "nothing"
