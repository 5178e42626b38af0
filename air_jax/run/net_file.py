"""A trained net in one `.npz` file, without the optimiser's state: what an index carries along."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

import air_jax
from air_jax.configs import default
from air_jax.models.autoencoder import Net
from air_jax.run.work_directory import CONFIG_FILE
from air_jax.runtime import sharding
from air_jax.runtime.atomic_files import read_npz, write_npz
from air_jax.runtime.checksums import read_checked_json
from air_jax.training import loop
from air_jax.training.checkpoints import CHECKPOINTS, newest_step
from air_jax.training.loop import MODEL_FILE

# What of a run's config makes its net and the shape of its state.
SECTIONS = ("seed", "model.", "train.")


class KeptNet(NamedTuple):
    """A net and where it comes from.

    Attributes:
        net: see `autoencoder.Net`.
        about: {"name", "step", "fingerprint", "air_jax", "image_shape", "config"}, as JSON has it.
            The fingerprint is of the parameters, the config of the model, and the pixels' mean and
            deviation.
    """

    net: Net
    about: dict[str, Any]


def of_run(workdir: Path, mesh: Mesh) -> KeptNet:
    """The net of a run's newest checkpoint.

    Raises:
        FileNotFoundError: the folder is no run's, or it has no checkpoint.
        ValueError: a file of it is damaged.
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
    step = newest_step(workdir / CHECKPOINTS)
    net = loop.load_net(_config(flat), workdir, mesh, step)
    about = {
        "name": workdir.resolve().name,
        "step": step,
        "air_jax": air_jax.__version__,
        "image_shape": list(shape),
        "config": flat,
    }
    return KeptNet(net, about | {"fingerprint": fingerprint(net, about)})


def fingerprint(net: Net, about: dict[str, Any]) -> str:
    """SHA-256 of what decides an image's code."""
    model = {key: value for key, value in about["config"].items() if key.startswith("model.")}
    found = hashlib.sha256(json.dumps([model, about["image_shape"]], sort_keys=True).encode())
    for leaf in _leaves(net):
        found.update(f"{leaf.dtype}{leaf.shape}".encode())
        found.update(leaf.tobytes())
    return found.hexdigest()


def write(path: Path, kept: KeptNet) -> None:
    """Write a net whole or not at all."""
    arrays = {f"leaf_{place}": leaf for place, leaf in enumerate(_leaves(kept.net))}
    write_npz(path, about=np.array(json.dumps(kept.about)), **arrays)


def read(path: Path, mesh: Mesh) -> KeptNet:
    """What `write` wrote, on the devices of a mesh.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or of a net that this version makes otherwise.
    """
    held = read_npz(path, ("about", "leaf_0"))
    try:
        about = json.loads(str(held["about"]))
        count = sum(name.startswith("leaf_") for name in held)
        leaves = [held[f"leaf_{place}"] for place in range(count)]
        *parameters, mean, std = leaves
        config = _config(about["config"])
        new = loop.new_net(config, tuple(about["image_shape"]), mean, std, mesh)
        like, structure = jax.tree.flatten((new.params, new.stats))
        if [leaf.shape for leaf in parameters] != [leaf.shape for leaf in like]:
            raise ValueError("its parameters have other shapes than its config says")
        params, stats = jax.tree.unflatten(
            structure, jax.device_put(parameters, sharding.replicated(mesh))
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no net that this version can read: {error}") from error
    net = new._replace(params=params, stats=stats)
    if fingerprint(net, about) != about["fingerprint"]:
        raise ValueError(f"{path} is damaged: its parameters are not those of its fingerprint")
    return KeptNet(net, about)


def _leaves(net: Net) -> list[np.ndarray]:
    leaves = [*jax.tree.leaves((net.params, net.stats)), net.mean, net.std]
    return [np.asarray(leaf) for leaf in leaves]


def _config(flat: dict[str, Any]) -> Any:
    config = default.get_config()
    config.update_from_flattened_dict(flat)
    return config
