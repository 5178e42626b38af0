"""Damaged files are named; a file is read for its checksum again only when it has changed."""

import hashlib
import importlib.util
import json
import linecache
import os
import sys

import pytest

from air_jax.runtime import checksums
from air_jax.runtime.checksums import (
    damage,
    hash_of_code,
    read_checked_json,
    sha256_of,
    write_checksums,
)


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


CODE = '''
from functools import partial

RATE = 2

def helper(x):
    return x * RATE

def make(scale):
    def scaled(x):
        return helper(x) * scale
    return scaled

def one(x, *, C):
    """Says something."""
    return helper(x) + C  # why

learner = partial(one, C=1)
fixed = make(3)
short = lambda x: x + 1
'''


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("Says something", "Says it better", set()),
        ("  # why", "", set()),
        ("def one(x, *", "def one(x: float, *", set()),
        ("+ C", "- C", {"learner"}),
        ("RATE = 2", "RATE = 3", {"learner", "fixed"}),
        ("x * RATE", "x / RATE", {"learner", "fixed"}),
        ("make(3)", "make(4)", {"fixed"}),
        ("x: x + 1", "x: x + 2", {"short"}),
    ],
)
def test_the_hash_of_code_changes_with_what_it_does_and_not_with_what_is_said_of_it(
    tmp_path, monkeypatch, old, new, changed
):
    def hashes(text):
        """Of the functions in a module of this text, loaded anew as in another process."""
        (tmp_path / "edited.py").write_text(text)
        linecache.clearcache()
        spec = importlib.util.spec_from_file_location("edited", tmp_path / "edited.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "edited", module)
        exec(compile(text, tmp_path / "edited.py", "exec"), vars(module))
        return {name: hash_of_code(getattr(module, name)) for name in ("learner", "fixed", "short")}

    assert old in CODE
    before, after = hashes(CODE), hashes(CODE.replace(old, new))
    assert {name for name in before if before[name] != after[name]} == changed
