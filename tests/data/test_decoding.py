"""Files of every kind against arrays we know; what is broken gives a reason and no more."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from air_jax.data import decoding
from air_jax.data.decoding import Limits

LIMITS = Limits()
RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (24, 16, 3)).astype(np.uint8)


def file_of(picture, kind="PNG", **how) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **how)
    return file.getvalue()


def opened(picture, kind="PNG", **how) -> np.ndarray:
    return np.asarray(decoding.open_image(file_of(picture, kind, **how), LIMITS).picture)


def chunk(name: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + check


def png(width, height, *chunks, depth=8, colour=2, rows=b"\0" * 99) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    middle = b"".join(chunks) + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + middle + chunk(b"IEND", b"")


def png_of(values, depth, colour, *chunks) -> bytes:
    """A PNG of rows of bytes [H, bytes]."""
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    width = values.shape[1] * 8 // depth // (3 if colour == 2 else 1)
    return png(width, len(values), *chunks, depth=depth, colour=colour, rows=rows)


def grey_tiff(values, photometric=1) -> bytes:
    """An uncompressed grey TIFF of integers [H, W] of any size and sign."""
    kinds = {"u": 1, "i": 2, "f": 3}
    entries = [
        *((256, values.shape[1]), (257, values.shape[0]), (258, 8 * values.itemsize), (259, 1)),
        *((262, photometric), (273, 134), (277, 1), (278, values.shape[0])),
        *((279, values.nbytes), (339, kinds[values.dtype.kind])),
    ]
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    head = b"II" + struct.pack("<HIH", 42, 8, len(entries)) + fields + struct.pack("<I", 0)
    return head + values.tobytes()


def pixels_of(content: bytes) -> np.ndarray:
    return np.asarray(decoding.open_image(content, LIMITS).picture)


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


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_width_and_height_are_those_of_the_upright_picture(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decoding.open_image(file_of(Image.new("RGB", (60, 40)), kind, exif=exif), LIMITS)
    expected = (60, 40) if orientation < 5 else (40, 60)
    assert (found.width, found.height) == found.picture.size == expected


@pytest.mark.parametrize(
    "odd",
    [
        struct.pack("<HHII", 0x11A, 10, 1, 38) + b"\0" * 4 + struct.pack("<ii", -1, 0),
        struct.pack("<HHII", 0x128, 4, 1, 70000) + b"\0" * 4,
        struct.pack("<HHI", 0x103, 2, 4) + b"abc\0" + b"\0" * 4,
    ],
    ids=["fraction by zero", "number too large for its tag", "text for a number"],
)
def test_a_turned_jpeg_with_an_odd_exif_tag_is_turned(odd):
    turned = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    exif = b"Exif\0\0II" + struct.pack("<HIH", 42, 8, 2) + turned + odd
    found = opened(Image.fromarray(np.full((8, 16, 3), 90, np.uint8)), "JPEG", exif=exif)
    assert found.shape == (16, 8, 3)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt"])
def test_a_png_with_megabytes_of_text_is_read(kind):
    compressed = zlib.compress(b"x" * 2_000_000)
    text = b"workflow\0\0" + (b"" if kind == b"zTXt" else b"\1\0\0\0") + compressed
    if kind == b"iTXt":
        text = b"workflow\0\1\0\0\0" + compressed
    values = COLOURS.reshape(24, -1)
    np.testing.assert_array_equal(pixels_of(png_of(values, 8, 2, chunk(kind, text))), COLOURS)


def test_a_png_with_a_damaged_text_is_read_and_one_with_damaged_pixels_is_refused():
    whole = png_of(COLOURS.reshape(24, -1), 8, 2, chunk(b"tEXt", b"a\0b"))
    np.testing.assert_array_equal(pixels_of(whole.replace(b"tEXta\0b", b"tEXta\0c")), COLOURS)
    at = whole.index(b"IDAT") + 20
    with pytest.raises(ValueError, match="damaged"):
        pixels_of(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])


def test_a_png_keeps_the_orientation_that_its_xmp_tells():
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'
    content = png_of(COLOURS.reshape(24, -1), 8, 2, chunk(b"iTXt", xmp))
    np.testing.assert_array_equal(pixels_of(content), np.rot90(COLOURS, -1))


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_the_grey_that_a_png_declares_transparent_is_white(depth):
    most = 2**depth - 1
    values = np.arange(64).reshape(8, 8) * 37 % (most + 1)
    if depth == 16:
        packed = values.astype(">u2").view(np.uint8)
    else:
        bits = np.unpackbits(values.astype(np.uint8)[..., None], axis=2)[:, :, -depth:]
        packed = np.packbits(bits.reshape(8, -1), axis=1)
    clear = int(values[0, 1])
    content = png_of(packed, depth, 0, chunk(b"tRNS", struct.pack(">H", clear)))
    expected = np.where(values == clear, 255, np.rint(values * 255 / most))
    np.testing.assert_array_equal(pixels_of(content)[:, :, 0], expected)


def test_the_colour_that_a_png_of_16_bits_declares_transparent_is_white():
    values = COLOURS.astype(">u2") * 257
    clear = chunk(b"tRNS", struct.pack(">3H", *values[0, 0].tolist()))
    found = pixels_of(png_of(values.view(np.uint8).reshape(24, -1), 16, 2, clear))
    expected = COLOURS.copy()
    expected[np.all(COLOURS[0, 0] == COLOURS, axis=2)] = 255
    np.testing.assert_array_equal(found, expected)


def test_a_bmp_whose_alpha_is_all_zeros_is_opaque_and_another_is_not():
    def bmp(alpha):
        rows = np.dstack([COLOURS[::-1, :, ::-1], np.full((24, 16), alpha, np.uint8)])
        rows[0, 0, 3] = 0
        masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
        head = struct.pack("<IiiHHIIiiII", 108, 16, 24, 1, 32, 3, rows.nbytes, 0, 0, 0, 0)
        content = (head + masks + b"BGRs").ljust(108, b"\0") + rows.tobytes()
        return b"BM" + struct.pack("<IHHI", 14 + len(content), 0, 0, 122) + content

    np.testing.assert_array_equal(pixels_of(bmp(0)), COLOURS)
    expected = COLOURS.copy()
    expected[-1, 0] = 255
    np.testing.assert_array_equal(pixels_of(bmp(255)), expected)


# Pillow reads "min is white" of unsigned values of 8 and 16 bits only; the others are refused.
@pytest.mark.parametrize(
    ("dtype", "white", "photometric"),
    [
        *((dtype, 2 ** (8 * int(dtype[-1])) - 1, 1) for dtype in ("<u1", "<i1", "<u2", "<i2")),
        *(("<u4", 2**32 - 1, 1), ("<u4", 65535, 1), ("<i4", 2**32 - 1, 1)),
        *(("<u2", 4095, 1), ("<u2", 1023, 1), ("<u1", 255, 0), ("<u2", 65535, 0), ("<u2", 4095, 0)),
    ],
)
def test_grey_tiffs_of_any_type_keep_their_range(dtype, white, photometric):
    grey = np.linspace(0, 1, 24 * 16).reshape(24, 16)
    values = np.rint(grey * white)
    if dtype[1] == "i":
        values -= (white + 1) // 2
    found = pixels_of(grey_tiff(values.astype(dtype), photometric))[:, :, 0].astype(int)
    expected = np.rint(255 * (grey if photometric else 1 - grey))
    assert np.abs(found - expected).max() <= 1


def test_floats_beyond_0_to_255_are_scaled_by_their_ends():
    values = np.linspace(-1, 0, 24 * 16, dtype=np.float32).reshape(24, 16)
    found = opened(Image.fromarray(values), "TIFF")[:, :, 0].astype(int)
    assert np.abs(found - np.rint((values + 1) * 255)).max() <= 1
    assert (opened(Image.fromarray(np.full((8, 8), -5, np.float32)), "TIFF") == 0).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_colours_are_those_of_the_files_profile(kind):
    # XYZ of D50 from linear RGB in the space of Lindbloom's ProPhoto, which has gamma 1.8.
    matrix = [(0.79767, 0.28803, 0), (0.13519, 0.71188, 0), (0.03134, 0.00009, 0.82491)]
    profile = rgb_profile(matrix, 1.8)
    there = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    plain = Image.fromarray(np.repeat(np.uint8([[[200, 60, 40]], [[90, 120, 160]]]), 16, axis=1))
    plain = plain.resize((16, 16), Image.Resampling.NEAREST)
    elsewhere = ImageCms.profileToProfile(plain, ImageCms.createProfile("sRGB"), there)
    assert np.abs(np.asarray(elsewhere).astype(int) - np.asarray(plain)).max() > 30
    how = {"JPEG": {"quality": 98, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    found = opened(elsewhere, kind, icc_profile=profile, **how).astype(int)
    assert np.abs(found - np.asarray(plain)).max() <= 6


def test_a_profile_that_is_damaged_or_of_another_kind_is_ignored():
    matrix = [(0.6, 0.3, 0.02), (0.2, 0.63, 0.06), (0.15, 0.06, 0.74)]
    for profile in (b"no profile", rgb_profile(matrix, 2.2)):
        grey = opened(Image.fromarray(COLOURS[:, :, 0]), icc_profile=profile)
        np.testing.assert_array_equal(grey[:, :, 0], COLOURS[:, :, 0])
    np.testing.assert_array_equal(opened(Image.fromarray(COLOURS), icc_profile=b"none"), COLOURS)


def rgb_profile(matrix, gamma) -> bytes:
    """An ICC profile of three primaries' XYZ and one gamma."""

    def fixed(*values):
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    curve = b"curv" + b"\0" * 4 + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = b"desc" + b"\0" * 4 + struct.pack(">I", 2) + b"p\0" + b"\0" * 80
    tags = [(b"desc", text), (b"cprt", b"text\0\0\0\0none")]
    points = [(0.9642, 1, 0.8249), *matrix]
    names = (b"wtpt", b"rXYZ", b"gXYZ", b"bXYZ")
    tags += [(n, b"XYZ \0\0\0\0" + fixed(*p)) for n, p in zip(names, points, strict=True)]
    tags += [(name, curve) for name in (b"rTRC", b"gTRC", b"bTRC")]
    table, data, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, content in tags:
        data += b"\0" * (-len(data) % 4)
        table += name + struct.pack(">II", start + len(data), len(content))
        data += content
    head = struct.pack(">I", start + len(data)) + b"lcms" + struct.pack(">I", 0x02400000)
    head += b"mntrRGB XYZ " + struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acspAPPL" + b"\0" * 24
    return (head + fixed(0.9642, 1, 0.8249)).ljust(128, b"\0") + table + data


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
        (png(30_000, 30_000), "30,000 x 30,000 pixels"),
        (png(100, 100), "damaged"),
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
