"""Damaged files are named; a file is read for its checksum again only when it has changed."""

import hashlib
import json
import os

import pytest

from air_jax.runtime import checksums
from air_jax.runtime.checksums import damage, read_checked_json, sha256_of, write_checksums


@pytest.fixture
def folder(tmp_path):
    """A folder with two files and their checksums."""
    (tmp_path / "inner").mkdir()
    (tmp_path / "a.bin").write_bytes(b"one")
    (tmp_path / "inner/b.bin").write_bytes(b"two")
    write_checksums(tmp_path, [tmp_path / "a.bin", tmp_path / "inner/b.bin"])
    return tmp_path


def test_whole_files_have_no_damage_and_changed_or_missing_ones_are_named(folder):
    assert damage(folder) is None
    (folder / "inner/b.bin").write_bytes(b"longer")
    assert damage(folder) == "inner/b.bin is damaged: its checksum is not the recorded one"
    assert damage(folder, within="a") is None
    (folder / "a.bin").unlink()
    assert damage(folder, within="a") == "a.bin is missing"


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_damaged_checksums_are_named_and_missing_ones_are_not_missed(folder, text):
    (folder / "checksums.json").write_text(text)
    assert damage(folder).startswith("checksums.json")
    (folder / "checksums.json").unlink()
    assert damage(folder) is None


def test_a_checksum_is_that_of_the_content_whatever_was_read_before(tmp_path):
    path = tmp_path / "a.bin"
    for time, content in enumerate((b"one", b"longer", b"two")):
        path.write_bytes(content)
        os.utime(path, ns=(0, time))
        assert sha256_of(path) == hashlib.sha256(content).hexdigest()
    (tmp_path / "b.bin").write_bytes(b"new")
    os.utime(tmp_path / "b.bin", ns=(0, 2))
    (tmp_path / "b.bin").replace(path)  # another inode, size and time as before
    assert sha256_of(path) == hashlib.sha256(b"new").hexdigest()


def test_checked_json_is_refused_when_changed_and_taken_without_a_checksum(tmp_path):
    path = tmp_path / "value.json"
    checksums.write_checked_json(path, {"a": 1})
    assert read_checked_json(path) == {"a": 1}
    path.write_text(path.read_text().replace("1", "2", 1))
    with pytest.raises(ValueError, match=r"value.json is damaged"):
        read_checked_json(path)
    path.write_text(json.dumps({"a": 3}))
    assert read_checked_json(path) == {"a": 3}
    with pytest.raises(FileNotFoundError):
        read_checked_json(tmp_path / "nothing.json")
