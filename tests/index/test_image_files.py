"""Folders with everything in them that is no plain image file."""

import os
import subprocess
import sys

import pytest

from air_jax.index import image_files


def names(walk):
    return [file.path for file in walk.files]


def test_images_are_listed_in_order_and_others_counted(tmp_path):
    for name in ("b.PNG", "a.jpeg", "sub/c.tif", "notes.txt", ".hidden.png", ".git/d.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"12345")
    found = image_files.walk(tmp_path)
    assert names(found) == ["a.jpeg", "b.PNG", "sub/c.tif"]
    assert (found.others, found.unusable) == (1, [])
    assert found.files[0].bytes == 5
    assert found.files[0].mtime_ns == (tmp_path / "a.jpeg").stat().st_mtime_ns


@pytest.mark.parametrize(
    "name", [b'it\'s "x".png', b"two\nlines.png", b"<script>alert(1)<.png", b"\xff\xfe.png"]
)
def test_any_name_can_be_listed_and_read_again(tmp_path, name):
    with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
        file.write(b"x")
    (path,) = names(image_files.walk(tmp_path))
    assert os.fsencode(path) == name
    assert image_files.inside(tmp_path, path).read_bytes() == b"x"


def test_links_out_loops_and_pipes_are_listed_as_unusable(tmp_path):
    folder, outside = tmp_path / "folder", tmp_path / "outside.png"
    (folder / "sub").mkdir(parents=True)
    outside.write_bytes(b"secret")
    (folder / "good.png").write_bytes(b"x")
    (folder / "inner.png").symlink_to("good.png")
    (folder / "out.png").symlink_to(outside)
    (folder / "gone.png").symlink_to("nothing.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "sub" / "up").symlink_to("..")
    os.mkfifo(folder / "pipe.png")
    found = image_files.walk(folder)
    assert names(found) == ["good.png", "inner.png"]
    assert [path for path, _ in found.unusable] == ["gone.png", "loop.png", "out.png", "pipe.png"]
    for path, _ in found.unusable:
        assert image_files.inside(folder, path) is None
    for path in ("../outside.png", str(outside), "sub", "", "no\0thing", "nothing.png"):
        assert image_files.inside(folder, path) is None


def test_a_folder_in_it_can_be_left_out(tmp_path):
    for name in ("index/a.png", "b.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert names(image_files.walk(tmp_path, without=tmp_path / "index")) == ["b.png"]


def test_a_folder_that_cannot_be_read_is_listed(tmp_path, unprivileged):
    (tmp_path / "closed").mkdir(mode=0)
    program = (
        "import sys, pathlib; from air_jax.index import image_files; "
        "print(image_files.walk(pathlib.Path(sys.argv[1])).unusable)"
    )
    command = [*unprivileged, sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[('closed', 'the folder cannot be read: Permission denied')]\n"


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        image_files.walk(tmp_path / "nothing")
