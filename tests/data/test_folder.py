"""A folder of pictures as a data set: what is read of it, its classes, and its queries."""

import os
from collections import Counter

import numpy as np
import pytest
from conftest import write_odd_pictures, write_pictures
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from air_jax.data import datasets, folder, splits


def test_pictures_of_odd_kinds_are_read_and_broken_ones_are_named(tmp_path, capsys):
    usable = write_odd_pictures(tmp_path)
    images, paths = folder.read(str(tmp_path), 8)
    assert (images.shape, images.dtype) == ((len(usable), 8, 8, 3), np.uint8)
    assert paths == sorted(usable, key=os.fsencode)
    said = capsys.readouterr().out
    assert f"folder: {len(usable)} pictures, 2 broken, 1 of other kinds" in said
    assert "1 of formats that no decoder here reads" in said
    assert "1 links to folders" in said
    assert "broken: 'b/broken.png': it is no image of a known format" in said
    assert "broken: 'b/empty.jpg': it is empty" in said


def test_pixels_are_those_of_the_middle_square_the_right_way_up(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")  # of the side asked for: as it is
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, 16:32] = 200  # the middle
    Image.fromarray(wide).save(tmp_path / "b.png")
    turned = Image.fromarray(np.repeat(np.arange(16, dtype=np.uint8) * 15, 16).reshape(16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "c.jpg", exif=exif, quality=100)
    Image.new("LA", (9, 9), (0, 0)).save(tmp_path / "d.png")  # all transparent
    images, _ = folder.read(str(tmp_path), 8)
    np.testing.assert_array_equal(images[0], pixels)
    assert images[1][:, 2:6].min() >= 190
    upright = ImageOps.exif_transpose(Image.open(tmp_path / "c.jpg"))
    expected = np.asarray(upright.convert("RGB").resize((8, 8), Image.Resampling.BOX), int)
    assert np.abs(images[2] - expected).max() < 12
    assert (images[3] == images[3][0, 0]).all()


def test_classes_are_the_folders_of_the_first_level(tmp_path):
    for path in ("b/1.png", "b/deep/er/2.png", "ä b/1.png", "ä b/2.png", "loose.png", "one/1.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(tmp_path / path)
    (tmp_path / "empty").mkdir()
    loaded = datasets.load("folder", str(tmp_path), 8)
    assert loaded.class_names == ("b", "one", "ä b", folder.LOOSE)
    assert loaded.labels.tolist() == [0, 0, 3, 1, 2, 2]  # in order of path
    assert loaded.labels.dtype == np.int32
    queried = Counter(loaded.labels[loaded.official_queries].tolist())
    assert queried == {0: 1, 2: 1}  # neither the single picture nor the loose one


@pytest.mark.parametrize(
    ("paths", "reason"),
    [
        (["1.png", "2.png"], "0 sub-folders hold pictures"),
        (["a/1.png", "a/2.png", "3.png"], "1 sub-folders hold pictures"),
        (["a/1.png", "b/2.png", "c/3.png", "4.png", "5.png"], "3 sub-folders holds a single"),
    ],
)
def test_folders_that_tell_nothing_are_no_labels_and_the_reason_is_said(capsys, paths, reason):
    assert folder.label(paths) is None
    assert f"no labels: {'each of the ' if 'single' in reason else ''}{reason}" in (
        capsys.readouterr().out
    )


@given(st.lists(st.integers(1, 40), min_size=2, max_size=6), st.integers(0, 3))
def test_queries_are_a_tenth_of_each_class_and_leave_it_something_to_find(counts, loose):
    paths = [f"{name}/{n}.png" for name, count in enumerate(counts) for n in range(count)]
    paths += [f"{n}.png" for n in range(loose)]
    found = folder.label(paths)
    queries = folder.draw_queries(len(paths), found)
    np.testing.assert_array_equal(queries, folder.draw_queries(len(paths), found))
    assert 0 < queries.sum() < len(paths)
    if found is None:
        assert queries.sum() == max(1, len(paths) // 10)
        return
    drawn = np.bincount(found.labels[queries], minlength=len(found.class_names))
    expected = [0 if count == 1 else max(1, count // 10) for count in counts]
    assert drawn.tolist() == expected + [0] * (loose > 0)
    data = datasets.Dataset("folder", np.zeros((len(paths), 1)), *found, queries)
    database, chosen = splits.split(data, "official")
    assert sorted([*database, *chosen]) == list(range(len(paths)))


def test_of_many_pictures_a_hundred_of_each_class_are_queries():
    assert folder.draw_queries(5000, None).sum() == folder.MOST_QUERIES


def test_without_labels_only_the_official_split_can_be_made(tmp_path):
    write_pictures(tmp_path / "only", 12)
    loaded = datasets.load("folder", str(tmp_path), 8)
    assert loaded.labels is None
    assert loaded.class_names == ()
    database, queries = splits.split(loaded, "official")
    assert (len(database), len(queries)) == (11, 1)
    for method in ("paper", "validation"):
        with pytest.raises(ValueError, match=f"data.split='{method}' draws .* has no labels"):
            splits.split(loaded, method)


def test_a_folder_that_gained_labels_or_a_pixel_is_another_data_set(tmp_path):
    write_pictures(tmp_path / "in", 12)
    found = [datasets.load("folder", str(tmp_path / "in"), 8)]
    found.append(datasets.load("folder", str(tmp_path), 8))
    Image.new("RGB", (9, 9)).save(tmp_path / "in/0/000.png")
    found.append(datasets.load("folder", str(tmp_path), 8))
    assert len({data.fingerprint() for data in found}) == 3


def test_what_cannot_be_used_is_an_error_that_says_why(tmp_path):
    def load(path, size=8):
        return datasets.load("folder", str(path), size)

    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"needs data\.dir=FOLDER"):
        datasets.load("folder", "", 8)
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match="no picture can be read in it; 0 files are broken, 0 are"):
        load(tmp_path)
    (tmp_path / "b/notes.txt").write_text("no picture")
    (tmp_path / "b/broken.jpg").write_text("no picture")
    with pytest.raises(ValueError, match="1 files are broken, 1 are of other kinds"):
        load(tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        load(tmp_path / "b/notes.txt")
    Image.new("RGB", (9, 9)).save(tmp_path / "b/1.png")
    with pytest.raises(ValueError, match="there is 1 picture that can be read; expected 2"):
        load(tmp_path)
    with pytest.raises(ValueError, match="data.size=0: .* needs the side"):
        load(tmp_path, 0)
    with pytest.raises(ValueError, match=r"data.size=1000000: .* 2 pictures .* GiB"):
        load(tmp_path, 10**6)
