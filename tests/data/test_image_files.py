"""Folders with everything in them that is no plain image file."""

import errno
import os
import subprocess
import sys

import pytest

from air_jax.data import image_files


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


def write(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_rubbish_bins_and_thumbnails_of_storage_devices_are_left_out_and_named(tmp_path):
    bins = ["@eaDir/a.jpg", "sub/@EADIR/b.jpg", "#recycle/c.jpg", "$RECYCLE.BIN/d.jpg"]
    write(tmp_path, "good.jpg", "sub/recycle/good.jpg", *bins)
    found = image_files.walk(tmp_path)
    assert names(found) == ["good.jpg", "sub/recycle/good.jpg"]
    assert sorted(found.excluded) == ["#recycle", "$RECYCLE.BIN", "@eaDir", "sub/@EADIR"]


@pytest.mark.parametrize(
    ("pattern", "left_out"),
    [
        ("private", ["a/private/3.png", "private/1.png", "private/b/2.png"]),
        ("private/", ["a/private/3.png", "private/1.png", "private/b/2.png"]),
        ("/private", ["private/1.png", "private/b/2.png"]),
        ("a/*", ["a/private/3.png"]),
        ("**/private", ["a/private/3.png", "private/1.png", "private/b/2.png"]),
        ("[1-2].PNG", ["private/1.png", "private/b/2.png"]),
        ("CAFE\u0301.png", ["caf\u00e9.png"]),
        ("x", []),
    ],
)
def test_patterns_are_of_names_or_with_a_slash_of_paths(tmp_path, pattern, left_out):
    pictures = ["private/1.png", "private/b/2.png", "a/private/3.png", "caf\u00e9.png"]
    write(tmp_path, *pictures)
    assert names(image_files.walk(tmp_path, [pattern])) == sorted(set(pictures) - set(left_out))


def test_without_patterns_everything_is_listed(tmp_path):
    write(tmp_path, "@eaDir/a.png", "b.png")
    assert names(image_files.walk(tmp_path, [])) == ["@eaDir/a.png", "b.png"]


def test_files_of_an_index_are_no_pictures(tmp_path):
    write(tmp_path, "b.png", "index/catalogue.sqlite", "index/contact_sheet.png", "index/a/c.png")
    found = image_files.walk(tmp_path)
    assert (names(found), found.indexes) == (["b.png"], ["index"])
    write(tmp_path, "catalogue.sqlite", "contact_sheet.png")  # the folder of pictures is one itself
    assert names(image_files.walk(tmp_path)) == ["b.png"]


def test_links_to_folders_and_formats_that_no_decoder_reads_are_named(tmp_path):
    folder = tmp_path / "folder"
    write(tmp_path, "elsewhere/a.png", "folder/b.png", "folder/sub/c.HEIC", "folder/d.nef")
    write(tmp_path, "folder/notes.txt")
    (folder / "album").symlink_to(tmp_path / "elsewhere")
    (folder / "@eaDir").symlink_to(tmp_path / "elsewhere")
    found = image_files.walk(folder)
    assert (names(found), found.links) == (["b.png"], ["album"])
    assert (found.unread, found.others) == (["d.nef", "sub/c.HEIC"], 3)


def test_a_file_is_found_however_its_name_is_written(tmp_path):
    write(tmp_path, "caf\u00e9/Bild 1.JPG", "two/a.png", "two/A.png")
    for path in ("caf\u00e9/Bild 1.JPG", "CAFE\u0301/bild 1.jpg", "caf\u00e9\\Bild 1.JPG"):
        assert image_files.inside(tmp_path, path) == tmp_path / "caf\u00e9/Bild 1.JPG"
    assert image_files.inside(tmp_path, "two/A.png") == tmp_path / "two/A.png"
    assert image_files.inside(tmp_path, "TWO/A.PNG") is None  # it may be either
    assert image_files.inside(tmp_path / "two", "../CAF\u00c9/Bild 1.JPG") is None


def test_what_could_not_be_looked_at_is_told_from_what_is_gone(tmp_path, monkeypatch):
    write(tmp_path, "a.png", "b.png", "stale/c.png")
    (tmp_path / "gone.png").symlink_to("nothing.png")
    stat, scandir = os.stat, os.scandir

    def failing(function):
        def failed(path, *arguments, **named):
            if str(path).endswith(("b.png", "stale")):
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
            return function(path, *arguments, **named)

        return failed

    monkeypatch.setattr(os, "stat", failing(stat))
    monkeypatch.setattr(os, "scandir", failing(scandir))
    found = image_files.walk(tmp_path)
    monkeypatch.undo()
    assert names(found) == ["a.png"]
    assert found.unseen == {"b.png", "stale"}
    assert [path for path, _ in found.unusable] == ["b.png", "gone.png", "stale"]
    assert image_files.is_within("stale/c.png", found.unseen)
    assert not image_files.is_within("gone.png", found.unseen)


def test_a_folder_that_cannot_be_read_is_listed(tmp_path, unprivileged):
    (tmp_path / "closed").mkdir(mode=0)
    program = (
        "import sys, pathlib; from air_jax.data import image_files; "
        "print(image_files.walk(pathlib.Path(sys.argv[1])).unusable)"
    )
    command = [*unprivileged, sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[('closed', 'the folder cannot be read: Permission denied')]\n"


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        image_files.walk(tmp_path / "nothing")
