"""Files drawn at random, and real ones that were damaged: read, or refused with a reason."""

import io
import struct

import numpy as np
import pytest
from conftest import drawn
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms

from air_jax.data.decoding import FORMATS, Limits, fit, open_image, thumbnail
from air_jax.index.vector_files import read_metadata, read_vectors

LIMITS = Limits(pixels=10**6)
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F")


def written(file_format: str, mode: str) -> bytes | None:
    """A small picture with what cameras and programs add; None if the format has no such mode."""
    picture = Image.fromarray(np.arange(24 * 16 * 3, dtype=np.uint8).reshape(24, 16, 3))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    file = io.BytesIO()
    try:
        grey = picture.convert("L") if mode in ("I", "I;16", "F") else picture
        grey.convert(mode).save(file, file_format, exif=exif, icc_profile=profile)
    except (OSError, ValueError, KeyError):
        return None
    return file.getvalue()


WHOLE = [
    content for kind in FORMATS for mode in MODES if (content := written(kind, mode)) is not None
]


@st.composite
def damaged(draw: st.DrawFn, whole: list[bytes]) -> bytes:
    """A file with some bytes changed, cut out, put in or doubled; or bytes that are none."""
    content = bytearray(draw(st.sampled_from(whole)))
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        length = draw(st.integers(1, 8))
        match draw(st.sampled_from(("change", "number", "cut", "put", "double", "end"))):
            case "change":
                content[at : at + length] = draw(st.binary(min_size=length, max_size=length))
            case "number":
                number = draw(st.sampled_from((0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)))
                order = draw(st.sampled_from("<>"))
                content[at : at + 4] = struct.pack(f"{order}I", number)
            case "cut":
                del content[at : at + length]
            case "put":
                content[at:at] = draw(st.binary(max_size=20))
            case "double":
                content[at:at] = content[at : at + 20 * length]
            case "end":
                del content[max(at, 20) :]
    return bytes(content)


@drawn
@given(damaged(WHOLE) | st.binary(max_size=200))
def test_any_bytes_are_a_picture_or_are_refused(content):
    try:
        opened = open_image(content, LIMITS)
    except ValueError as error:
        assert str(error)
        return
    assert opened.picture.mode == "RGB"
    assert fit(opened.picture, (8, 8, 3)).shape == (8, 8, 3)
    assert thumbnail(opened.picture)


WORDS = st.sampled_from(
    ["path", "Path", "file", "label", "0", "1", "a.png", "ß", "sep=;", "", " ", '"', "\0", "a,b"]
)
CELLS = st.lists(WORDS | st.text(max_size=5), max_size=5)


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    delimiter, end = draw(st.sampled_from(",;\t|")), draw(st.sampled_from(("\n", "\r\n", "\r")))
    lines = draw(st.lists(CELLS.map(delimiter.join), max_size=5))
    text = end.join(lines)
    encoding = draw(st.sampled_from(("utf-8", "utf-8-sig", "utf-16", "latin-1")))
    return text.encode(encoding, "replace")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@drawn
@given(tables() | st.binary(max_size=60), st.integers(0, 5), st.booleans())
def test_any_bytes_are_a_table_or_are_refused(folder, content, count, with_images):
    path = folder / "m.csv"
    path.write_bytes(content)
    try:
        rows = read_metadata(path, count, with_images=with_images)
    except ValueError as error:
        assert str(path) in str(error)
        return
    assert len(rows) == count
    assert len({tuple(row.metadata) for row in rows}) <= 1
    assert all(isinstance(one, str) for row in rows for one in (row.path, *row.metadata.values()))


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


ARRAYS = [
    *(npy(np.ones((3, 2), kind)) for kind in ("<f4", ">f8", "f2", "g", "i4", "c8", "U3", "M8[s]")),
    npy(np.asfortranarray(np.ones((3, 2)))),
    npy(np.ones(3)),
    npy(np.array([{"a": 1}, None])),
    npy(np.ones(3, [("a", "f4"), ("b", "i2")])),
]


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """An `.npy` file whose header says anything."""
    kinds = st.sampled_from(("'<f4'", "'|O'", "'f4,f4'", "[('a','f4')]", "'V9'", "None", "'<f3'"))
    sides = st.lists(st.integers(-2, 3) | st.sampled_from((2**31, 2**62, 2**64)), max_size=3)
    shape = draw(sides.map(tuple).map(repr) | st.sampled_from(("(1,", "3", "[2]", "(True, 2)")))
    header = f"{{'descr': {draw(kinds)}, 'fortran_order': {draw(st.sampled_from('01'))}, "
    header = f"{header}'shape': {shape}}}\n".encode()
    version = draw(st.sampled_from((1, 2, 3, 9)))
    size = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes((version, 0)) + size + header + draw(st.binary(max_size=40))


@drawn
@given(damaged(ARRAYS) | headers() | st.binary(max_size=60))
def test_any_bytes_are_vectors_or_are_refused(folder, content):
    path = folder / "v.npy"
    path.write_bytes(content)
    try:
        codes = read_vectors(path)
    except ValueError as error:
        assert str(path) in str(error)
        return
    assert codes.ndim == 2
    assert np.issubdtype(codes.dtype, np.floating)
    np.asarray(codes, np.float32)
