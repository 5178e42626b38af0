"""The net of a run makes the codes of that run."""

import pytest

from air_jax.run import trained_net


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
