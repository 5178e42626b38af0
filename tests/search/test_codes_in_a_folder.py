"""Codes on disk: what is read is what was written, within the bound that is stated."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from air_jax.search import file_codes
from air_jax.search.file_codes import FileCodes
from air_jax.search.scorers import Near


def random_codes(seed=0, size=300, dimension=8, spread=1.0):
    rng = np.random.default_rng(seed)
    return (spread * rng.normal(size=(size, dimension)) + rng.normal(size=dimension)).astype("f4")


def as_kept(store):
    """Codes as stored, made float64 again."""
    centred = store.stored.astype(np.float64) * store.scale + store.offset
    return centred * store.unit + store.mean


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 10**6),
    st.sampled_from(file_codes.STORAGES),
    st.sampled_from([1e-3, 1.0, 1e3]),
    st.integers(1, 200),
)
def test_no_code_is_farther_from_the_one_given_than_the_stated_error(
    tmp_path_factory, seed, storage, spread, size
):
    codes = random_codes(seed, size, spread=spread)
    store = file_codes.write(tmp_path_factory.mktemp("codes") / "store", codes, storage)
    np.testing.assert_array_equal(store.exact, codes)
    lost = np.linalg.norm(as_kept(store) - codes, axis=1).max()
    # The mean that is taken off and added again is rounded to float32.
    rounding = 1e-5 * np.abs(codes).max()
    assert lost <= store.error + rounding
    assert store.error == 0 if storage == "float32" else lost >= 0.9 * store.error - rounding
    np.testing.assert_allclose(store.mean, codes.mean(axis=0, dtype=float), rtol=1e-5, atol=1e-6)


def test_codes_are_read_in_parts(tmp_path, monkeypatch):
    codes = random_codes(size=1000)
    whole = file_codes.write(tmp_path / "whole", codes, "int8")
    monkeypatch.setattr("air_jax.search.codes.ROWS", 64)
    monkeypatch.setattr(file_codes, "ROWS", 64)
    parts = file_codes.write(tmp_path / "parts", codes, "int8")
    np.testing.assert_array_equal(whole.stored, parts.stored)
    np.testing.assert_array_equal(whole.exact, parts.exact)
    np.testing.assert_allclose(whole.deviation, codes.std(axis=0), rtol=1e-5)


@pytest.mark.parametrize("storage", file_codes.STORAGES)
def test_float64_and_non_contiguous_codes_are_as_good(tmp_path, storage):
    codes = random_codes(size=90)
    plain = file_codes.write(tmp_path / "plain", codes, storage)
    wide = np.zeros((180, 16))
    wide[::2, ::2] = codes
    other = file_codes.write(tmp_path / "other", wide[::2, ::2], storage)
    np.testing.assert_array_equal(plain.stored, other.stored)


def test_a_constant_dimension_is_kept(tmp_path):
    codes = random_codes(size=50)
    codes[:, 3] = 7.0
    store = file_codes.write(tmp_path / "store", codes, "int8")
    assert store.deviation[3] == 1
    np.testing.assert_allclose(as_kept(store)[:, 3], 7.0)


def test_writing_again_replaces_the_folder_and_an_unfinished_one_is_no_hindrance(tmp_path):
    file_codes.write(tmp_path / "store", random_codes(size=50), "int8")
    unfinished = tmp_path / ".store.partial"
    unfinished.mkdir()
    (unfinished / "codes.npy").write_text("half")
    file_codes.write(tmp_path / "store", random_codes(size=60), "float32")
    assert len(FileCodes(tmp_path / "store")) == 60
    assert not (tmp_path / "store" / "scale.npy").exists()
    assert not unfinished.exists()


@pytest.mark.parametrize(
    ("codes", "storage", "message"),
    [
        (random_codes(), "int4", "storage='int4': expected one of float32, float16, int8"),
        (random_codes()[0], "int8", r"shape \[8\]; expected \[N > 0, D > 0\]"),
        (random_codes()[:0], "int8", r"shape \[0, 8\]"),
        (np.where(np.arange(300)[:, None] == 7, np.nan, 1.0), "int8", "first at row 7"),
        (np.where(np.arange(300)[:, None] == 9, np.inf, 1.0), "float32", "first at row 9"),
        (
            np.where(np.arange(300)[:, None] == 8, np.float32(-3e38), random_codes()),
            "int8",
            r"row 8 of the codes holds -3e\+38 in column 0, .* at most 1e\+18 times as far",
        ),
    ],
)
def test_codes_that_cannot_be_kept_are_an_error(tmp_path, codes, storage, message):
    with pytest.raises(ValueError, match=message):
        file_codes.write(tmp_path / "store", codes, storage)
    assert not (tmp_path / "store").exists()


def test_codes_beyond_float16_and_far_from_zero_are_kept_as_float16(tmp_path):
    codes = random_codes(spread=1e5) + np.float32(1e7)
    store = file_codes.write(tmp_path / "store", codes, "float16")
    np.testing.assert_allclose(as_kept(store), codes, atol=1e3)


@pytest.mark.parametrize("storage", file_codes.STORAGES)
def test_folders_of_the_first_format_are_still_searched(tmp_path, storage):
    codes = random_codes()
    new = file_codes.write(tmp_path / "store", codes, storage)
    expected = new.top(Near(np.zeros((1, 8), np.float32)), 9)
    said = json.loads((tmp_path / "store" / "store.json").read_text())
    for key in ("unit", "lost", "longest", "centred"):
        del said[key]
    (tmp_path / "store" / "store.json").write_text(json.dumps(said | {"format": 1}))
    if storage == "float16":  # was kept as it was given
        np.save(tmp_path / "store" / "codes.npy", codes.astype(np.float16))
    old = FileCodes(tmp_path / "store")
    assert old.longest == pytest.approx(new.longest)
    found = old.top(Near(np.zeros((1, 8), np.float32)), 9)
    np.testing.assert_array_equal(found.positions, expected.positions)
    np.testing.assert_array_equal(old.get(np.arange(300)), codes)


def truncate(path):
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def change_header(path, **changes):
    said = json.loads(path.read_text())
    path.write_text(json.dumps(said | changes))


@pytest.mark.parametrize(
    ("harm", "error", "message"),
    [
        (lambda p: (p / "scale.npy").unlink(), FileNotFoundError, "scale.npy is missing"),
        (lambda p: (p / "exact.npy").unlink(), FileNotFoundError, "exact.npy is missing"),
        (lambda p: (p / "store.json").unlink(), FileNotFoundError, "holds no store.json"),
        (lambda p: truncate(p / "codes.npy"), ValueError, "codes.npy cannot be read"),
        (lambda p: truncate(p / "store.json"), ValueError, "store.json is damaged"),
        (
            lambda p: change_header(p / "store.json", format=9),
            ValueError,
            "format 9; expected 1 or 2",
        ),
        (lambda p: change_header(p / "store.json", size=7), ValueError, r"says \[7, 8\] int8"),
        (
            lambda p: change_header(p / "store.json", storage="float16"),
            ValueError,
            "says .*float16",
        ),
    ],
)
def test_a_damaged_store_is_an_error_that_names_the_file(tmp_path, harm, error, message):
    file_codes.write(tmp_path / "store", random_codes(), "int8")
    harm(tmp_path / "store")
    with pytest.raises(error, match=message):
        FileCodes(tmp_path / "store")
