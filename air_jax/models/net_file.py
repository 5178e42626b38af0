"""A trained net in one `.npz` file, without the optimiser's state: what an index carries along."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from air_jax.models.encode import encode_batch
from air_jax.models.net import Net, architecture_of, parameter_names, untrained_net
from air_jax.models.readout import Readout
from air_jax.runtime import sharding
from air_jax.runtime.atomic_files import read_npz, write_npz


class KeptNet(NamedTuple):
    """A net and where it comes from.

    Attributes:
        net: see `net.Net`.
        about: {"name", "step", "fingerprint", "air_jax", "image_shape", "config"}, as JSON has it.
            `config` holds the keys of the run that make the net (`run.trained_net.SECTIONS`).
    """

    net: Net
    about: dict[str, Any]

    @property
    def dimension(self) -> int:
        """D of the codes [N, D] that it gives."""
        image = jax.ShapeDtypeStruct((1, *self.about["image_shape"]), jnp.uint8)
        return jax.eval_shape(encode_batch, self.net, image).shape[1]


def keep(net: Net, about: dict[str, Any]) -> KeptNet:
    """A net with what is known about it, its fingerprint added."""
    return KeptNet(net, about | {"fingerprint": _fingerprint(net, about)})


def _fingerprint(net: Net, about: dict[str, Any]) -> str:
    """SHA-256 of what decides an image's code: `model.*`, the parameters, the pixels' mean and std,
    the read-out."""
    model = {key: value for key, value in about["config"].items() if key.startswith("model.")}
    if net.readout is not None:
        model["encode.unit_length"] = net.readout.unit_length
    found = hashlib.sha256(json.dumps([model, about["image_shape"]], sort_keys=True).encode())
    for leaf in map(np.asarray, jax.tree.leaves(net)):
        found.update(f"{leaf.dtype}{leaf.shape}".encode())
        found.update(leaf.tobytes())
    return found.hexdigest()


def write(path: Path, kept: KeptNet) -> None:
    """Write a net whole or not at all, each array under its parameter's dotted name."""
    arrays = dict(zip(_names(kept.net), map(np.asarray, jax.tree.leaves(kept.net)), strict=True))
    write_npz(path, about=np.array(json.dumps(kept.about)), **arrays)


def read(path: Path, mesh: Mesh) -> KeptNet:
    """What `write` wrote, on the devices of a mesh.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or of a net that this version makes otherwise.
    """
    held = read_npz(path, ("about",))
    try:
        about = json.loads(str(held["about"]))
        new = _untrained(about)
        if "readout.mean" in held:
            mean, projection = (jnp.asarray(held[f"readout.{n}"]) for n in ("mean", "projection"))
            readout = Readout(mean, projection, bool(about["config"]["encode.unit_length"]))
            new = new._replace(readout=readout)
        names = _names(new)
        if "leaf_0" in held:  # files of earlier states of 0.1.0 number the arrays
            names = [f"leaf_{place}" for place in range(len(names))]
        leaves = [held[name] for name in names]
        like, structure = jax.tree.flatten(new)
        if [leaf.shape for leaf in leaves] != [leaf.shape for leaf in like]:
            raise ValueError("its parameters have other shapes than its config says")
        net = jax.tree.unflatten(structure, sharding.put(leaves, sharding.replicated(mesh)))
        whole = _fingerprint(net, about) == about["fingerprint"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no net that this version can read: {error}") from error
    if not whole:
        raise ValueError(f"{path} is damaged: its parameters are not those of its fingerprint")
    return KeptNet(net, about)


def _names(net: Net) -> list[str]:
    """A name for each leaf of a net, in their order."""
    names = [*parameter_names(net.params), *parameter_names(net.stats), "mean", "std"]
    return names if net.readout is None else [*names, "readout.mean", "readout.projection"]


def _untrained(about: dict[str, Any]) -> Net:
    """A net of the architecture that is written down, its leaves only shapes and dtypes."""
    config, shape = about["config"], tuple(about["image_shape"])
    model = {key[6:]: value for key, value in config.items() if key.startswith("model.")}
    architecture = architecture_of(model, shape)

    def make() -> Net:
        channel = jnp.zeros(shape[2])
        return untrained_net(
            architecture,
            channel,
            channel,
            objective=config.get("train.objective", "reconstruction"),
            dtype=config.get("train.dtype", "float32"),
            remat=config.get("train.remat", False),
            rngs=nnx.Rngs(0),
        )

    net: Net = jax.eval_shape(make)
    return net
