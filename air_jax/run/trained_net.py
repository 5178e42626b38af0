"""The net of a run: made ready to encode after training, and taken out of its work directory."""

from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

import air_jax
from air_jax.configs import default
from air_jax.models import encode, net_file, readout
from air_jax.models.net import Net, architecture_of
from air_jax.models.net_file import KeptNet
from air_jax.run.work_directory import CONFIG_FILE, NET_FILE
from air_jax.runtime import sharding
from air_jax.runtime.checksums import read_checked_json
from air_jax.runtime.command_line import flatten
from air_jax.training import loop
from air_jax.training.checkpoints import CHECKPOINTS, newest_step
from air_jax.training.loop import MODEL_FILE

# What of a run's config makes its net and the shape of its state.
SECTIONS = ("seed", "model.", "train.", "encode.readout", "encode.unit_length")
STATISTICS_OF = 1024  # training images, for batch normalisation
READOUT_OF = 10_000  # training images
MOST_IMAGES = max(STATISTICS_OF, READOUT_OF)  # that `ready` looks at


def encoded_at_once(
    config: ml_collections.ConfigDict, image_shape: tuple[int, int, int], mesh: Mesh
) -> int:
    """Images (S, S, C) in one call of the encoder, by `encode.batch`."""
    width = architecture_of(config.model, image_shape).width
    return encode.batch_size(config.encode.batch, image_shape, width, mesh)


def ready(
    net: Net, config: ml_collections.ConfigDict, images: np.ndarray | jax.Array, mesh: Mesh
) -> Net:
    """A net as training left it, made ready to encode whole images.

    A net that was trained on views gets the statistics of whole images; with
    `encode.readout="whitened"` the read-out is fitted.

    Args:
        net: as `loop.train` leaves it.
        config: the run's.
        images: the training images [N, S, S, C] uint8; the first of them are used. Of one process
            also as `encode.on_devices` gives them.
        mesh: of all devices.
    """
    if config.train.objective != "reconstruction":
        some = images[: min(STATISTICS_OF, len(images)) // mesh.size * mesh.size]
        net = encode.with_statistics_of(net, sharding.put(some, sharding.by_rows(mesh)))
        net = sharding.put(net, sharding.replicated(mesh))
    if config.encode.readout == "plain":
        return net
    _, *sides, channels = images.shape
    batch = encoded_at_once(config, (sides[0], sides[1], channels), mesh)
    codes = encode.encode(net, images[:READOUT_OF], mesh, batch, "fit the read-out")
    fitted = readout.fit_whitened(
        codes, config.encode.readout_dim, config.encode.readout_power, config.encode.unit_length
    )
    return net._replace(readout=sharding.put(fitted, sharding.replicated(mesh)))


def about(
    workdir: Path, config: dict[str, Any], step: int, image_shape: tuple[int, ...]
) -> dict[str, Any]:
    """What is written down beside a net; see `KeptNet`.

    Args:
        workdir: of the run.
        config: its keys and values, flat.
        step: of training.
        image_shape: (S, S, C).
    """
    return {
        "name": workdir.resolve().name,
        "step": step,
        "air_jax": air_jax.__version__,
        "image_shape": list(image_shape),
        "config": {key: value for key, value in config.items() if key.startswith(SECTIONS)},
    }


def of_run(workdir: Path, mesh: Mesh) -> KeptNet:
    """The net of a run, on the devices of a mesh.

    The one that its stage `encode` made ready; before that stage, the newest checkpoint's.

    Raises:
        FileNotFoundError: the folder is no run's, or it has no checkpoint.
        ValueError: a file of the run is damaged, or the checkpoint's net is not ready to encode.
    """
    for name in (CONFIG_FILE, MODEL_FILE):
        if not (workdir / name).is_file():
            raise FileNotFoundError(
                f"{workdir} holds no {name}: expected the work directory of a trained run"
            )
    try:
        kept = read_checked_json(workdir / CONFIG_FILE)["config"]
        shape = read_checked_json(workdir / MODEL_FILE)["image_shape"]
    except KeyError as error:
        raise ValueError(f"{workdir}: {CONFIG_FILE} or {MODEL_FILE} lacks {error}") from error
    flat = {key: value for key, value in kept.items() if key.startswith(SECTIONS)}
    config = default.get_config()
    if unknown := sorted(flat.keys() - flatten(config).keys()):
        raise ValueError(
            f"{workdir / CONFIG_FILE}: {unknown[0]}: this version of air_jax has no such key"
        )
    config.update_from_flattened_dict(flat)
    step = newest_step(workdir / CHECKPOINTS)
    if (workdir / NET_FILE).is_file():
        kept_net = net_file.read(workdir / NET_FILE, mesh)
        if kept_net.about["step"] == step:
            return kept_net
    if step is not None and (
        config.train.objective != "reconstruction" or config.encode.readout != "plain"
    ):
        raise ValueError(
            f"{workdir} holds a net that its stage encode has not made ready (statistics of whole "
            "images, read-out): run air_jax.main with this --workdir until the codes are there"
        )
    net = loop.load_net(config, workdir, mesh, step)
    return net_file.keep(net, about(workdir, flat, step or 0, tuple(shape)))
