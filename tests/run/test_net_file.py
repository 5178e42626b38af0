"""A net kept in a file makes the codes of the run it comes from."""

import json

import numpy as np
import pytest

from air_jax.models import encode
from air_jax.run import net_file
from air_jax.runtime.atomic_files import read_npz, write_npz

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3)).astype(np.uint8)


def test_a_net_read_again_makes_the_same_codes(trained_run, mesh, tmp_path):
    kept = net_file.of_run(trained_run, mesh)
    net_file.write(tmp_path / "net.npz", kept)
    again = net_file.read(tmp_path / "net.npz", mesh)
    assert again.about == kept.about
    assert kept.about["name"] == "tiny"
    codes = [encode.encode(one.net, IMAGES, mesh, 6, label=None) for one in (kept, again)]
    np.testing.assert_array_equal(*codes)
    assert np.ptp(codes[0]) > 0


def test_the_fingerprint_changes_with_a_parameter_and_a_changed_file_is_refused(
    trained_run, mesh, tmp_path
):
    kept = net_file.of_run(trained_run, mesh)
    path = tmp_path / "net.npz"
    net_file.write(path, kept)
    held = read_npz(path)
    held["leaf_0"] = held["leaf_0"] + 1
    write_npz(path, **held)
    with pytest.raises(ValueError, match="net.npz"):
        net_file.read(path, mesh)


def test_what_is_no_net_is_an_error_that_names_it(trained_run, mesh, tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json"):
        net_file.of_run(tmp_path, mesh)
    path = tmp_path / "net.npz"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="net.npz"):
        net_file.read(path, mesh)
    net_file.write(path, net_file.of_run(trained_run, mesh))
    held = read_npz(path)
    about = json.loads(str(held["about"]))
    about["config"]["model.width"] = 5
    write_npz(path, **held | {"about": np.array(json.dumps(about))})
    with pytest.raises(ValueError, match="net.npz holds no net"):
        net_file.read(path, mesh)
