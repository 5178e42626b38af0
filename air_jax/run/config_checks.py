"""Every check of a config: its keys and types, its values, and whether they fit data and devices.

What cannot work is refused here, before any long work, by a `ValueError` that names the key, what
it is, and what was expected.
"""

import importlib.util
import math
import os
from collections.abc import Callable
from typing import Any

import ml_collections
from jax.sharding import Mesh

from air_jax.baselines import baseline_codes
from air_jax.configs import default
from air_jax.data import loaders
from air_jax.feedback import svm
from air_jax.feedback.engine import SHOW
from air_jax.feedback.learners import LEARNERS
from air_jax.models.architecture import Architecture
from air_jax.models.conv_net import ConvArchitecture
from air_jax.models.net import DTYPES, ENCODERS, architecture_of
from air_jax.models.readout import READOUTS
from air_jax.runtime.arguments import near_key
from air_jax.runtime.command_line import flatten
from air_jax.search.distances import METRICS, PRECISIONS
from air_jax.training import loop, objectives, optimizer

LARGEST = 2**32 - 1  # of whole numbers: seeds have no more bits
MOST_STEPS = 2**31 - 1  # they are counted in an int32
SHEET_ROWS = 200  # of images in the retrieval sheet: 15,600 pixels of height

CHOICES = {
    "data.loader": loaders.LOADERS,
    "model.encoder": ENCODERS,
    "train.objective": objectives.OBJECTIVES,
    "train.optimizer": optimizer.OPTIMIZERS,
    "train.schedule": loop.SCHEDULES,
    "train.lr_schedule": optimizer.LR_SCHEDULES,
    "train.dtype": tuple(DTYPES),
    "train.corruption": objectives.CORRUPTIONS,
    "encode.readout": READOUTS,
    "retrieval.metric": METRICS,
    "retrieval.precision": PRECISIONS,
    "feedback.show": SHOW,
    "feedback.solver": svm.SOLVERS,
}
# Keys, what their values have to be, and the same in words.
RANGES: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (
        (
            *("train.epochs", "train.batch", "train.steps_per_batch"),
            *("feedback.rounds", "feedback.marks_per_round", "report.queries"),
            *("log.every_steps", "encode.readout_dim"),
        ),
        lambda value: value >= 1,
        "at least 1",
    ),
    (
        (
            *("seed", "data.split_seed", "data.size", "data.keep_database_per_class"),
            *("data.keep_queries_per_class", "train.warmup_steps", "train.weight_decay"),
            *("train.clip_norm", "train.steps_per_call", "train.corruption_amount"),
            *("feedback.queries", "feedback.seed", "log.probe_steps", "train.view_size"),
            "log.checkpoint_steps",
        ),
        lambda value: value >= 0,
        "0 or more",
    ),
    (
        ("train.learning_rate", "log.checkpoint_minutes"),
        lambda value: 0 < value < math.inf,
        "a positive number",
    ),
    (("train.views",), lambda value: value >= 2, "at least 2: views of an image are compared"),
    (("encode.readout_power",), lambda value: 0 <= value <= 1, "from 0 to 1"),
    (("train.momentum",), lambda value: 0 <= value < 1, "from 0 to below 1"),
    (
        ("train.greedy_share",),
        lambda value: 0 < value < 1,
        "above 0 and below 1; the other steps fine-tune the whole net",
    ),
)


def check_keys(config: ml_collections.ConfigDict) -> None:
    """Refuse keys that are not those of `configs/default.py`, and values of other types.

    The keys of a sweep are not looked at.
    """
    wanted = flatten(default.get_config())
    found = {k: v for k, v in flatten(config).items() if k.partition(".")[0] != "sweep"}
    if unknown := sorted(found.keys() - wanted.keys()):
        raise ValueError(f"{unknown[0]}: there is no such key{near_key(unknown[0], wanted)}")
    if missing := sorted(wanted.keys() - found.keys()):
        raise ValueError(f"{missing[0]} is missing; configs/default.py has all keys")
    for key, value in found.items():
        if expected := _expected(wanted[key], value):
            raise ValueError(f"{key}={value!r}: expected {expected}")


def _expected(like: Any, value: Any) -> str | None:
    """What was expected of a key with this default, in words, if a value is not that."""
    if isinstance(like, list):
        kind, words = (str, "names") if isinstance(like[0], str) else (int | float, "numbers")
        if isinstance(like[0], int):
            kind, words = int, "whole numbers"
        good = isinstance(value, list) and all(
            isinstance(one, kind) and not isinstance(one, bool) for one in value
        )
        return None if good else f"{words} in a tuple"
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


def check_values(config: ml_collections.ConfigDict) -> None:
    """Refuse values that can never work, whatever the data and the devices.

    `data.name`, `data.dir` and `data.split` are looked at when the data is loaded.
    """
    values = flatten(config)
    for key, known in CHOICES.items():
        if values[key] not in known:
            raise ValueError(f"{key}={values[key]!r}: expected one of {', '.join(known)}")
    for keys, fits, words in RANGES:
        for key in keys:
            if not fits(values[key]):
                raise ValueError(f"{key}={values[key]}: expected {words}")
    for key, known in (
        ("retrieval.baselines", baseline_codes.NAMES),
        ("feedback.learners", LEARNERS),
    ):
        for name in values[key]:
            if name not in known:
                raise ValueError(f"{key}: {name!r} is not one of {', '.join(known)}")
    if not config.feedback.learners:
        raise ValueError(f"feedback.learners is empty; expected some of {', '.join(LEARNERS)}")
    if config.report.learner not in config.feedback.learners:
        raise ValueError(
            f"report.learner={config.report.learner!r} is not one of feedback.learners="
            f"{tuple(config.feedback.learners)}: set it to one of them"
        )
    if values["data.loader"] == "tfdata" and importlib.util.find_spec("tensorflow") is None:
        raise ValueError("data.loader='tfdata' needs TensorFlow: pip install 'air_jax[tfds]'")
    if values["log.tensorboard"] and importlib.util.find_spec("tensorboardX") is None:
        raise ValueError(
            "log.tensorboard=True needs tensorboardX: pip install 'air_jax[tensorboard]'"
        )
    _check_objective(config)
    train = config.train
    if (train.corruption == "none") != (train.corruption_amount == 0):
        raise ValueError(
            f"train.corruption={train.corruption!r} with "
            f"train.corruption_amount={train.corruption_amount}: expected both or neither"
        )
    if train.corruption == "mask" and train.corruption_amount >= 1:
        raise ValueError(
            f"train.corruption_amount={train.corruption_amount}: with corruption 'mask' it is "
            "the masked share of the image, below 1"
        )


def _check_objective(config: ml_collections.ConfigDict) -> None:
    """Refuse encoders, schedules and views that an objective makes no sense with."""
    train, model = config.train, config.model
    told = f"train.objective={train.objective!r}"
    area = tuple(train.view_area)
    if len(area) != 2 or not 0 < area[0] <= area[1] <= 1:
        raise ValueError(
            f"train.view_area={area}: expected the smallest and the largest share of an image that "
            "a view shows, above 0 and 1 at most"
        )
    if train.objective == "reconstruction":
        if model.encoder == "conv":
            raise ValueError(
                f"{told} with model.encoder='conv': the decoder mirrors the paper's encoder only; "
                "expected model.encoder='paper', or another objective"
            )
        return
    for key, found, wanted, why in (
        ("train.schedule", train.schedule, "joint", "greedy training reconstructs layer by layer"),
        ("train.corruption", train.corruption, "none", "views are the corruption"),
        ("model.input_residual", model.input_residual, False, "there is no decoder"),
    ):
        if found != wanted:
            raise ValueError(f"{key}={found!r} with {told}: {why}; expected {wanted!r}")
    if model.encoder == "conv":
        return
    for key, found, wanted in (
        ("model.skip", model.skip != "symmetric", "'none' or 'asymmetric'"),
        ("model.skip_into", model.skip_into != "both", "'encoder'"),
    ):
        if not found:
            raise ValueError(
                f"{key}={model[key.partition('.')[2]]!r} with {told}: there is no decoder for the "
                f"shortcuts to lead to; expected {wanted}"
            )
    if train.view_size and model.code != "pooled":
        raise ValueError(
            f"train.view_size={train.view_size} with model.code={model.code!r}: such a code is "
            "made from maps of one size, the images'; expected train.view_size=0 (views as large "
            "as the images) or model.code='pooled'"
        )


def check_fit(
    config: ml_collections.ConfigDict,
    image_shape: tuple[int, int, int],
    database: int,
    queries: int,
    mesh: Mesh,
    labelled: bool = True,
) -> None:
    """Refuse what cannot be done with the data and the devices.

    Args:
        config: with values that `check_values` lets pass.
        image_shape: (S, S, C).
        database: images in the database.
        queries: how many there are.
        mesh: of all devices.
        labelled: whether the images have labels; without them nothing is ranked.
    """
    train_images = config.data.train_images
    if not 0 <= train_images <= database:
        raise ValueError(
            f"data.train_images={train_images}: expected from 0 (all) to the {database} images of "
            "the database"
        )
    architecture = architecture_of(config.model, image_shape)
    if size := config.train.view_size:
        architecture_of(config.model, (size, size, image_shape[2]))
    _check_training(config, train_images or database, mesh)
    batch = config.encode.batch
    if batch < 0 or batch % mesh.size:
        raise ValueError(
            f"encode.batch={batch}: expected a multiple of the {mesh.size} devices, or 0"
        )
    _check_memory(config, architecture, mesh)
    if not labelled:
        return
    for name in config.retrieval.baselines:
        try:
            baseline_codes.check_side(name, image_shape[0])
        except ValueError as error:
            raise ValueError(f"retrieval.baselines: {error}; leave it out") from None
    rounds, marks = config.feedback.rounds, config.feedback.marks_per_round
    if rounds * marks > database:
        raise ValueError(
            f"feedback.rounds={rounds} times feedback.marks_per_round={marks} are more images than "
            f"the {database} of the database (data.queries_per_class and "
            "data.keep_database_per_class say of how many)"
        )
    rows = min(config.report.queries, queries) * (rounds + 1)
    if rows > SHEET_ROWS:
        raise ValueError(
            f"report.queries={config.report.queries} with feedback.rounds={rounds}:"
            f" the sheet would have {rows:,} rows of images; expected {SHEET_ROWS} at most"
        )


def _check_training(config: ml_collections.ConfigDict, images: int, mesh: Mesh) -> None:
    """Refuse batches and steps that so many training images and devices do not give."""
    train = config.train
    if train.batch % mesh.size:
        raise ValueError(
            f"train.batch={train.batch} does not divide over {mesh.size} devices; "
            f"the nearest that does is {max(1, round(train.batch / mesh.size)) * mesh.size}"
        )
    if train.batch > images:
        raise ValueError(
            f"train.batch={train.batch} is larger than the training set of {images} "
            "images (data.queries_per_class, data.keep_database_per_class and data.train_images "
            "say of how many)"
        )
    total = loop.count_steps(train, images)
    if total > MOST_STEPS:
        raise ValueError(
            f"train.epochs={train.epochs}, train.steps_per_batch={train.steps_per_batch}: "
            f"{total:,} steps; expected {MOST_STEPS:,} at most"
        )
    pairs, steps = config.model.depth // 2 + 1, int(total * train.greedy_share)
    if train.schedule == "greedy" and steps < pairs:
        raise ValueError(
            f"train.schedule='greedy': {steps} steps (train.greedy_share={train.greedy_share} of "
            f"all) are too few for the {pairs} pairs of layers, one step each at least"
        )


def _check_memory(
    config: ml_collections.ConfigDict, architecture: Architecture | ConvArchitecture, mesh: Mesh
) -> None:
    """Refuse what cannot fit however it is computed: a typing error, most likely.

    `--dry-run` says what training really takes.
    """
    model, pixels = config.model, math.prod(architecture.image_shape[:2])
    # Parameters, their gradients and momentum; the first maps of a batch. All float32.
    needed = {
        (
            f"model.widths={tuple(model.widths)}, model.kernel={model.kernel}"
            if model.encoder == "conv"
            else f"model.width={model.width}, model.kernel={model.kernel}, "
            f"model.code_dim={model.code_dim}, model.depth={model.depth}"
        ): 12 * architecture.least_parameters(),
        f"encode.batch={config.encode.batch}": 4
        * (config.encode.batch // mesh.size * pixels * architecture.width),
    }
    stats = mesh.local_devices[0].memory_stats() or {}
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = stats.get("bytes_limit", physical)
    for said, size in needed.items():
        if size > limit:
            raise ValueError(
                f"{said}: takes {size / 2**30:,.1f} GiB at least, and a device has "
                f"{limit / 2**30:,.1f} GiB"
            )
