"""The net of a run makes the codes of that run."""

import numpy as np
import pytest
from conftest import class_images
from program import results, run

from air_jax.models import encode, net_file
from air_jax.run import trained_net

VIEWS = {
    **{"model.encoder": "conv", "model.widths": (4, 8), "model.blocks": (1, 1)},
    **{"train.objective": "coding_rate", "train.optimizer": "adamw", "train.views": 2},
    **{"train.learning_rate": 0.01, "train.view_size": 4, "log.probe_steps": 5},
    **{"encode.readout": "whitened", "encode.readout_dim": 6},
}


@pytest.fixture(scope="module")
def by_views(tmp_path_factory):
    """The work directory of a run that learns by comparing views, and its images' file."""
    folder = tmp_path_factory.mktemp("views")
    pixels, labels = class_images(80)
    np.savez(folder / "images.npz", image=pixels, label=labels)
    flags = [f"--config.{key}={value}" for key, value in VIEWS.items()]
    done = run(folder / "run", folder / "images.npz", *flags)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_the_net_of_a_run_is_that_of_its_newest_checkpoint(trained_run, mesh):
    kept = trained_net.of_run(trained_run, mesh)
    assert kept.about["name"] == "tiny"
    assert kept.about["step"] == max(
        int(path.name) for path in (trained_run / "checkpoints").glob("[0-9]*")
    )
    assert kept.about["config"]["model.depth"] == kept.net.depth == 4


def test_a_folder_that_is_no_run_is_an_error_that_says_what_it_lacks(mesh, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config.json"):
        trained_net.of_run(tmp_path, mesh)


def test_the_net_of_a_run_gives_the_codes_of_the_run(by_views, mesh):
    kept = trained_net.of_run(by_views, mesh)
    codes = np.load(by_views / "codes.npz")
    images = np.load(by_views.parent / "images.npz")["image"]
    again = encode.encode(kept.net, images[codes["database_index"]], mesh, 32)
    np.testing.assert_allclose(again, codes["database"], atol=1e-4)
    assert again.shape[1] == 6
    np.testing.assert_allclose(np.linalg.norm(again, axis=1), 1, rtol=1e-4)


def test_a_kept_net_has_the_read_out_it_was_written_with(by_views, mesh, tmp_path):
    kept = trained_net.of_run(by_views, mesh)
    net_file.write(tmp_path / "net.npz", kept)
    again = net_file.read(tmp_path / "net.npz", mesh)
    assert again.about == kept.about
    np.testing.assert_array_equal(again.net.readout.projection, kept.net.readout.projection)
    longer = kept.net._replace(
        readout=type(kept.net.readout)(
            kept.net.readout.mean, kept.net.readout.projection, unit_length=False
        )
    )
    assert net_file.keep(longer, {**kept.about}).about["fingerprint"] != kept.about["fingerprint"]


def test_results_of_a_run_by_views_say_what_has_no_meaning(by_views):
    found = results(by_views)
    assert found["model"]["widths"] == [4, 8]
    assert found["model"]["code_dim"] == 6
    assert found["train"]["objective"] == "coding_rate"
    assert found["train"]["loss"] is None
    assert found["train"]["loss_reason"] == "coding_rate does not reconstruct"
    assert found["train"]["probe_seconds"] > 0
    assert found["retrieval"]["map"] > found["baselines"]["random"]["map"]
    assert (by_views / "figures" / "spread.png").exists()
    assert not (by_views / "figures" / "reconstructions.png").exists()


def test_a_net_that_was_not_made_ready_is_refused(by_views, mesh, tmp_path):
    for name in ("config.json", "model.json", "checkpoints"):
        (tmp_path / name).symlink_to(by_views / name)
    with pytest.raises(ValueError, match="its stage encode has not made ready"):
        trained_net.of_run(tmp_path, mesh)
