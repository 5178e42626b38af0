"""A net kept in a file is the same net when it is read again."""

import json

import jax
import numpy as np
import pytest
from conftest import class_images

from air_jax.models import encode, net_file
from air_jax.runtime.atomic_files import read_npz, write_npz
from air_jax.runtime.command_line import flatten
from air_jax.training import loop

IMAGES, _ = class_images(6)


@pytest.fixture
def kept(small_config, mesh):
    small_config.model.norm = "batch"
    net = loop.new_net(small_config, (8, 8, 3), *loop.channel_statistics(IMAGES), mesh)
    flat = {k: v for k, v in flatten(small_config).items() if k.startswith(("model.", "train."))}
    return net_file.keep(net, {"name": "tiny", "image_shape": [8, 8, 3], "config": flat})


def codes(net, mesh):
    return encode.encode(net, IMAGES, mesh, 6, label=None)


def test_a_net_read_again_makes_the_same_codes(kept, mesh, tmp_path):
    net_file.write(tmp_path / "net.npz", kept)
    held = read_npz(tmp_path / "net.npz")
    assert held["encoder.convs.0.conv.kernel"].shape == (3, 3, 3, 8)
    assert held["encoder.convs.0.norm.var"].shape == (8,)
    again = net_file.read(tmp_path / "net.npz", mesh)
    assert again.about == kept.about
    made = [codes(one.net, mesh) for one in (kept, again)]
    np.testing.assert_array_equal(*made)
    assert np.ptp(made[0]) > 0


def test_a_file_whose_arrays_are_numbered_is_read_as_well(kept, mesh, tmp_path):
    """As 0.1 wrote it."""
    leaves = {f"leaf_{i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(kept.net))}
    write_npz(tmp_path / "net.npz", about=np.array(json.dumps(kept.about)), **leaves)
    again = net_file.read(tmp_path / "net.npz", mesh)
    np.testing.assert_array_equal(codes(again.net, mesh), codes(kept.net, mesh))


def test_the_fingerprint_changes_with_a_parameter_and_a_changed_file_is_refused(
    kept, mesh, tmp_path
):
    path = tmp_path / "net.npz"
    net_file.write(path, kept)
    held = read_npz(path)
    held["encoder.convs.0.conv.kernel"] += 1
    write_npz(path, **held)
    with pytest.raises(ValueError, match="net.npz is damaged"):
        net_file.read(path, mesh)


def test_what_is_no_net_is_an_error_that_names_it(kept, mesh, tmp_path):
    path = tmp_path / "net.npz"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="net.npz"):
        net_file.read(path, mesh)
    net_file.write(path, kept)
    held = read_npz(path)
    without = {name: array for name, array in held.items() if name != "decoder.expand.bias"}
    write_npz(path, **without)
    with pytest.raises(ValueError, match="net.npz holds no net.*decoder.expand.bias"):
        net_file.read(path, mesh)
    about = json.loads(str(held["about"]))
    about["config"]["model.width"] = 5
    write_npz(path, **held | {"about": np.array(json.dumps(about))})
    with pytest.raises(ValueError, match="net.npz holds no net"):
        net_file.read(path, mesh)
