"""Files of every kind against arrays we know; what is broken gives a reason and no more."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from air_jax.index import decoding
from air_jax.index.decoding import Limits

LIMITS = Limits()
RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (24, 16, 3)).astype(np.uint8)


def file_of(picture, kind="PNG", **how) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **how)
    return file.getvalue()


def opened(picture, kind="PNG", **how) -> np.ndarray:
    return np.asarray(decoding.open_image(file_of(picture, kind, **how), LIMITS))


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 99))


@pytest.mark.parametrize(
    ("kind", "how"), [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True})]
)
def test_lossless_formats_come_out_as_they_were(kind, how):
    np.testing.assert_array_equal(opened(Image.fromarray(COLOURS), kind, **how), COLOURS)


def test_lossy_and_paletted_formats_come_out_nearly_as_they_were():
    smooth = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[:, None], 64, axis=1)
    for kind in ("JPEG", "GIF"):
        found = opened(Image.fromarray(smooth), kind).astype(int)
        assert np.abs(found - smooth[:, :, None]).max() <= 6


def test_a_cmyk_jpeg_has_the_colours_of_pillows_conversion():
    cmyk = Image.new("RGB", (16, 16), (200, 30, 90)).convert("CMYK")
    found = opened(cmyk, "JPEG", quality=95)
    assert np.abs(found.astype(int) - np.array([200, 30, 90])).max() <= 6


def test_sixteen_bits_are_scaled_not_cut_off():
    values = np.linspace(0, 65535, 16 * 24).reshape(24, 16).astype(np.uint16)
    expected = np.rint(values / 257).astype(int)
    for kind in ("PNG", "TIFF"):
        found = opened(Image.fromarray(values), kind).astype(int)
        assert np.abs(found - expected[:, :, None]).max() <= 1


def test_floats_from_zero_to_one_are_scaled_and_nan_is_refused():
    values = np.linspace(0, 1, 24 * 16, dtype=np.float32).reshape(24, 16)
    found = opened(Image.fromarray(values), "TIFF")
    np.testing.assert_array_equal(found[:, :, 0], np.rint(values * 255))
    values[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        opened(Image.fromarray(values), "TIFF")


def test_what_is_transparent_is_white():
    alpha = np.full((24, 16, 1), 255, np.uint8)
    alpha[:12] = 0
    expected = COLOURS.copy()
    expected[:12] = 255
    picture = Image.fromarray(np.concatenate([COLOURS, alpha], axis=2))
    np.testing.assert_array_equal(opened(picture), expected)
    grey = Image.fromarray(np.stack([COLOURS[:, :, 0], alpha[:, :, 0]], axis=2), "LA")
    assert (opened(grey)[:12] == 255).all()
    paletted = Image.fromarray(np.tile(np.arange(16, dtype=np.uint8), (4, 1)), "P")
    paletted.putpalette([value for _ in range(256) for value in (10, 20, 30)])
    found = opened(paletted, transparency=3)
    assert (found[:, 3] == 255).all()
    assert (found[:, 4] == (10, 20, 30)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_as_their_exif_says(orientation):
    # What a viewer has to do to the stored rows: the EXIF standard's table.
    upright = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = opened(Image.fromarray(COLOURS), "PNG", exif=exif)
    np.testing.assert_array_equal(found, upright(COLOURS))


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    found = opened(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (found == (255, 0, 0)).all()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no image"),
        (b"just text", "no image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "no image"),
        (file_of(Image.fromarray(COLOURS))[:-300], "damaged"),
        (file_of(Image.fromarray(COLOURS), "JPEG")[:-200], "damaged"),
        (png_header(30_000, 30_000), "30,000 x 30,000 pixels"),
        (png_header(100, 100), "damaged"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_reason(content, reason):
    with pytest.raises(ValueError, match=reason):
        decoding.open_image(content, LIMITS)


def test_limits_of_bytes_and_pixels_are_kept():
    content = file_of(Image.fromarray(COLOURS))
    decoding.open_image(content, Limits(len(content), 24 * 16))
    with pytest.raises(ValueError, match="bytes"):
        decoding.open_image(content, Limits(len(content) - 1, 24 * 16))
    with pytest.raises(ValueError, match="pixels"):
        decoding.open_image(content, Limits(len(content), 24 * 16 - 1))


def test_a_picture_of_the_nets_size_stays_as_it_is():
    square = Image.fromarray(COLOURS[:16])
    for how in decoding.FITS:
        np.testing.assert_array_equal(decoding.fit(square, (16, 16, 3), how), COLOURS[:16])
    grey = decoding.fit(Image.fromarray(COLOURS[:16, :, 0]).convert("RGB"), (16, 16, 1))
    np.testing.assert_array_equal(grey[:, :, 0], COLOURS[:16, :, 0])


def test_crop_takes_the_middle_and_stretch_all():
    halves = np.zeros((16, 48, 3), np.uint8)
    halves[:, 16:32] = 200
    picture = Image.fromarray(halves)
    assert (decoding.fit(picture, (16, 16, 3), "crop")[:, 2:-2] == 200).all()
    stretched = decoding.fit(picture, (16, 16, 3), "stretch")
    assert (stretched[:, :3] == 0).all()
    assert (stretched[:, -3:] == 0).all()
    with pytest.raises(ValueError, match="fit='pad'"):
        decoding.fit(picture, (16, 16, 3), "pad")


def test_thumbnails_are_small_and_never_larger_than_the_picture():
    for size, expected in (((400, 100), (192, 48)), ((20, 30), (20, 30))):
        exif = Image.Exif()
        exif[0x010E] = "secret"
        content = decoding.thumbnail(Image.new("RGB", size))
        with Image.open(io.BytesIO(content)) as small:
            assert (small.format, small.size) == ("JPEG", expected)
            assert not small.getexif()


def test_a_large_jpeg_is_listed_with_its_own_size_the_right_way_up(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a.jpg").write_bytes(file_of(Image.new("RGB", (3000, 2000)), "JPEG", exif=exif))
    found = decoding.decode_file(str(tmp_path), "a.jpg", (8, 8, 3), "crop", LIMITS)
    assert (found.width, found.height, found.error) == (2000, 3000, None)
    assert found.pixels.shape == (8, 8, 3)
