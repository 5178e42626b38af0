"""The net of a run, taken out of its work directory."""

from pathlib import Path

from jax.sharding import Mesh

import air_jax
from air_jax.configs import default
from air_jax.models import net_file
from air_jax.models.net_file import KeptNet
from air_jax.run.work_directory import CONFIG_FILE
from air_jax.runtime.checksums import read_checked_json
from air_jax.runtime.command_line import flatten
from air_jax.training import loop
from air_jax.training.checkpoints import CHECKPOINTS, newest_step
from air_jax.training.loop import MODEL_FILE

# What of a run's config makes its net and the shape of its state.
SECTIONS = ("seed", "model.", "train.")


def of_run(workdir: Path, mesh: Mesh) -> KeptNet:
    """The net of a run's newest checkpoint, on the devices of a mesh.

    Raises:
        FileNotFoundError: the folder is no run's, or it has no checkpoint.
        ValueError: a file of the run is damaged.
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
    about = {
        "name": workdir.resolve().name,
        "step": step,
        "air_jax": air_jax.__version__,
        "image_shape": list(shape),
        "config": flat,
    }
    return net_file.keep(loop.load_net(config, workdir, mesh, step), about)
