"""Data sets and their splits, and what is said when they are not what they have to be."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import class_images
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from air_jax.data import datasets, splits


def dataset(labels, queries=None):
    labels = np.asarray(labels, np.int32)
    names = tuple(f"class {i}" for i in range(labels.max() + 1))
    images = np.zeros((len(labels), 8, 8, 3), np.uint8)
    return datasets.Dataset("test", images, labels, names, queries)


def test_digits_are_scikit_learns_enlarged_with_all_distances_kept():
    digits, raw = datasets.load("digits"), load_digits()
    assert digits.images.shape == (1797, 32, 32, 3)
    assert digits.images.dtype == np.uint8
    np.testing.assert_array_equal(digits.labels, raw.target)
    ours = digits.images.reshape(1797, -1)[:50].astype(float)
    theirs = raw.data[:50]
    distances = [np.linalg.norm(x[:, None] - x[None], axis=-1) for x in (ours, theirs)]
    scale = 255 / 16 * np.sqrt(48)
    np.testing.assert_allclose(distances[0], distances[1] * scale, rtol=0.02, atol=1e-9)


def test_digits_need_no_tensorflow():
    code = (
        "import sys; from air_jax.data import datasets, loaders; datasets.load('digits');"
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@given(
    st.lists(st.integers(3, 12), min_size=1, max_size=6),
    st.integers(1, 2),
    st.integers(0, 2**31),
)
def test_paper_split_takes_so_many_of_each_class_and_loses_nothing(counts, queries, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    labels = np.random.default_rng(seed).permutation(labels)
    database, chosen = splits.split(dataset(labels), "paper", seed, queries)
    assert sorted([*database, *chosen]) == list(range(len(labels)))
    assert (np.bincount(labels[chosen], minlength=len(counts)) == queries).all()


def test_paper_split_depends_on_its_seed_alone():
    data = dataset(np.arange(200) % 4)
    first, again, other = (splits.split(data, "paper", seed, 10)[1] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_paper_split_refuses_a_class_with_too_few_images():
    with pytest.raises(ValueError, match=r"'class 1' has 100 images.*takes 100 of each"):
        splits.split(dataset([0] * 150 + [1] * 100), "paper")


def test_official_split_is_the_data_sets_own():
    data = dataset([0, 1, 0, 1], np.array([False, True, True, False]))
    database, queries = splits.split(data, "official")
    assert (database.tolist(), queries.tolist()) == ([0, 3], [1, 2])


def test_official_split_of_a_set_without_one_is_an_error():
    with pytest.raises(ValueError, match="no test part of its own"):
        splits.split(dataset([0, 1]), "official")


def test_a_query_without_relevant_images_is_an_error():
    data = dataset([0, 0, 1], np.array([True, False, True]))
    with pytest.raises(ValueError, match="class 1.*no image of that class in the database"):
        splits.split(data, "official")


@pytest.mark.parametrize("method", ["random", ""])
def test_unknown_split_is_an_error_that_names_it(method):
    with pytest.raises(ValueError, match=f"data.split='{method}'"):
        splits.split(dataset([0, 1]), method)


def test_unknown_data_set_is_an_error_that_names_the_known():
    with pytest.raises(ValueError, match="data.name='mnist'.*cifar100, digits, arrays"):
        datasets.load("mnist")


def save(tmp_path: Path, **arrays) -> str:
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    return str(path)


def test_arrays_are_read_and_their_labels_numbered(tmp_path):
    images, labels = class_images(20)
    queries = np.arange(20) < 8
    loaded = datasets.load(
        "arrays", save(tmp_path, image=images, label=labels * 10 + 5, query=queries)
    )
    np.testing.assert_array_equal(loaded.images, images)
    np.testing.assert_array_equal(loaded.labels, labels)
    assert loaded.class_names == ("5", "15", "25", "35")
    np.testing.assert_array_equal(loaded.official_queries, queries)


def test_arrays_of_floats_and_without_channels_become_uint8(tmp_path):
    images = np.linspace(0, 1, 2 * 8 * 8).reshape(2, 8, 8)
    loaded = datasets.load("arrays", save(tmp_path, image=images, label=np.array([0, 1])))
    assert loaded.images.shape == (2, 8, 8, 1)
    assert (loaded.images.min(), loaded.images.max()) == (0, 255)


IMAGES, LABELS = class_images(8)
WITH_NAN = np.full((8, 8, 8, 3), 0.5)
WITH_NAN[3, 1, 2, 0] = np.nan


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": IMAGES}, "no array named 'label'; found image"),
        ({"image": IMAGES, "label": LABELS[:5]}, "8 images but 5 labels"),
        ({"image": IMAGES[:0], "label": LABELS[:0]}, "holds no images"),
        ({"image": IMAGES, "label": LABELS / 2}, "label is float64"),
        ({"image": IMAGES[0, 0], "label": LABELS}, r"shape \[8, 3\]; expected \[N, S, S, C\]"),
        ({"image": IMAGES[..., [0, 1]], "label": LABELS}, "one or three channels"),
        ({"image": IMAGES[:, :0], "label": LABELS}, r"shape \[8, 0, 8, 3\]"),
        ({"image": IMAGES.astype(int), "label": LABELS}, "image is int64; expected uint8"),
        ({"image": IMAGES * 1.0, "label": LABELS}, r"span \[0, .*expected \[0, 1\]"),
        ({"image": WITH_NAN, "label": LABELS}, r"1 pixels are NaN.*image\[3, 1, 2, 0\]"),
        ({"image": IMAGES, "label": LABELS, "query": LABELS}, "query is int32"),
    ],
)
def test_arrays_that_cannot_be_used_are_an_error_that_says_why(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message):
        datasets.load("arrays", save(tmp_path, **arrays))


@pytest.mark.parametrize("kept", [0.9, 0.5, 0.0])
def test_a_truncated_npz_is_an_error_that_names_the_file(tmp_path, kept):
    path = Path(save(tmp_path, image=IMAGES, label=LABELS))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ValueError, match=f"{path} cannot be read"):
        datasets.load("arrays", str(path))


def test_a_flipped_byte_in_an_npz_is_an_error_that_names_the_file(tmp_path):
    path = Path(save(tmp_path, image=IMAGES, label=LABELS))
    content = bytearray(path.read_bytes())
    content[500] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} cannot be read"):
        datasets.load("arrays", str(path))


def test_pickles_in_an_npz_are_not_loaded(tmp_path):
    path = save(tmp_path, image=np.array([{}], dtype=object), label=LABELS)
    with pytest.raises(ValueError, match="cannot be read"):
        datasets.load("arrays", path)


def test_missing_files_and_folders_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("AIR_JAX_CACHE", str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError, match="no such file"):
        datasets.load("arrays", str(tmp_path / "nothing.npz"))
    with pytest.raises(ValueError, match=r"data.dir=FILE\.npz"):
        datasets.load("arrays")
    with pytest.raises(FileNotFoundError, match=f"data.dir={tmp_path}/nothing"):
        datasets.load("cifar100", str(tmp_path / "nothing"))


def test_cifar100_that_is_not_there_says_where_it_looked_and_the_ways_on(tmp_path, monkeypatch):
    monkeypatch.setenv("AIR_JAX_CACHE", str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError) as error:
        datasets.load("cifar100", str(tmp_path))
    for part in (str(tmp_path / "cache"), f"from {tmp_path}", "Two ways on", "--config.data.dir"):
        assert part in str(error.value)


def test_a_damaged_cache_of_cifar100_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("AIR_JAX_CACHE", str(tmp_path))
    (tmp_path / "cifar100-3.0.2.npz").write_bytes(b"PK not really")
    with pytest.raises(ValueError, match=r"cifar100-3\.0\.2\.npz"):
        datasets.load("cifar100")


def test_cifar100_is_whole(cifar100):
    assert cifar100.images.shape == (60_000, 32, 32, 3)
    database, queries = splits.split(cifar100, "official")
    assert (np.bincount(cifar100.labels[database]) == 500).all()
    assert (np.bincount(cifar100.labels[queries]) == 100).all()
    assert cifar100.class_names[0] == "apple"
    database, queries = splits.split(cifar100, "paper")
    assert (len(database), len(queries)) == (50_000, 10_000)


def test_fingerprint_changes_with_any_pixel_and_label():
    data = dataset([0, 1, 0, 1])
    images = data.images.copy()
    images[1, 2, 3, 0] = 1
    variants = [
        data,
        datasets.Dataset("test", images, data.labels, data.class_names),
        dataset([0, 1, 1, 0]),
        dataset([0, 1, 0, 1], np.array([True, False, False, False])),
    ]
    assert len({v.fingerprint() for v in variants}) == len(variants)
    assert dataset([0, 1, 0, 1]).fingerprint() == data.fingerprint()


def test_shrunk_images_are_means_of_blocks():
    images, labels = class_images(8, size=8)
    dataset = datasets.Dataset("x", images, labels, tuple("abcd"))
    small = datasets.shrink(dataset, 4)
    assert small.images.shape == (8, 4, 4, 3)
    expected = np.round(images[3, 2:4, 6:8].mean(axis=(0, 1)))
    np.testing.assert_array_equal(small.images[3, 1, 3], expected)
    assert small.fingerprint() != dataset.fingerprint()


def test_a_size_that_does_not_divide_is_an_error():
    images, labels = class_images(8, size=8)
    with pytest.raises(ValueError, match="data.size=3: expected a divisor of .* 8"):
        datasets.shrink(datasets.Dataset("x", images, labels, tuple("abcd")), 3)


def test_as_many_of_each_class_are_kept_as_asked_for():
    labels = np.array([0] * 10 + [1] * 3 + [2] * 10)
    positions = np.arange(1, 23)
    kept = splits.keep_per_class(labels, positions, 5, seed=1)
    assert np.bincount(labels[kept]).tolist() == [5, 3, 5]
    assert set(kept) <= set(positions)
    assert (np.diff(kept) > 0).all()
    assert (kept == splits.keep_per_class(labels, positions, 5, seed=1)).all()
    assert (kept != splits.keep_per_class(labels, positions, 5, seed=2)).any()


def test_validation_queries_are_drawn_from_the_official_database():
    images, labels = class_images(80)
    official = np.arange(80) >= 60
    dataset = datasets.Dataset("x", images, labels, tuple("abcd"), official)
    database, queries = splits.split(dataset, "validation", queries_per_class=3)
    assert np.bincount(labels[queries]).tolist() == [3, 3, 3, 3]
    assert not official[np.concatenate([database, queries])].any()
    assert sorted([*database, *queries]) == list(range(60))
