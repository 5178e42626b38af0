"""Files are whole or not there; damaged ones are named."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from air_jax.runtime.atomic_files import read_npz, write_json, write_npz


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["value.json"]


def test_arrays_come_back_and_folders_are_made(tmp_path):
    path = tmp_path / "deep" / "x.npz"
    write_npz(path, x=np.arange(3))
    assert read_npz(path, ("x",))["x"].tolist() == [0, 1, 2]
    assert [p.name for p in path.parent.iterdir()] == ["x.npz"]


def test_a_missing_array_is_named(tmp_path):
    write_npz(tmp_path / "x.npz", x=np.arange(3))
    with pytest.raises(ValueError, match="no array named 'y'; found x"):
        read_npz(tmp_path / "x.npz", ("y",))


def test_a_single_array_is_no_npz(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(3))
    with pytest.raises(ValueError, match="x.npy cannot be read as an .npz file"):
        read_npz(tmp_path / "x.npy")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@given(position=st.floats(0, 0.999), flip=st.integers(1, 255))
def test_a_changed_byte_is_an_error_that_names_the_file_or_changes_nothing(
    save, position, flip, tmp_path_factory
):
    path = tmp_path_factory.mktemp("npz") / "x.npz"
    values = np.random.default_rng(0).integers(0, 9, 200)
    save(path, x=values)
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= flip
    path.write_bytes(content)
    try:
        arrays = read_npz(path, ("x",))
    except ValueError as error:
        assert str(path) in str(error)
    else:
        np.testing.assert_array_equal(arrays["x"], values)
