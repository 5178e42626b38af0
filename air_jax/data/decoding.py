"""Image files of strangers to arrays: bounded, one colour space, the right way up.

Nothing here needs JAX: it is what the decoding processes import.
"""

import hashlib
import io
import os
import stat
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

from air_jax.data.rgb_conversion import to_rgb

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
FITS = ("crop", "stretch")
THUMBNAIL_SIDE = 192
# Large photos are decoded at a fraction of their size where JPEG allows; never below this side.
DECODED_SIDE = 4 * THUMBNAIL_SIDE
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_DEPTH = 24  # where the first chunk tells the bits of a value
XMP = b"XML:com.adobe.xmp\0\0"  # not compressed
TURNS = {  # by EXIF's orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = [TURNS[orientation] for orientation in (5, 6, 7, 8)]

Image.init()  # `formats` finds only what is loaded
# The bound is ours, given to `open_image`, and looked at before anything is decoded.
Image.MAX_IMAGE_PIXELS = None


class Limits(NamedTuple):
    """What one file may be.

    Attributes:
        bytes: of the file.
        pixels: width times height.
    """

    bytes: int = 500_000_000
    pixels: int = 200_000_000


class Decoded(NamedTuple):
    """A file of a folder, or why it cannot be used.

    Attributes:
        path: relative to the folder, as `os.fsdecode` gives it.
        sha256: of the file's content, in hexadecimal.
        width, height: in pixels, the right way up.
        pixels: [S, S, C] uint8 as the net wants it; None if none was asked for.
        thumbnail: JPEG; empty if none was asked for.
        error: why it cannot be used; None if it can.
        lasting: whether the error stays until the file changes; one of reading it may not.
    """

    path: str
    sha256: str = ""
    width: int = 0
    height: int = 0
    pixels: np.ndarray | None = None
    thumbnail: bytes = b""
    error: str | None = None
    lasting: bool = True


def read_file(path: Path, limits: Limits) -> bytes:
    """The content of a regular file.

    Raises:
        ValueError: it cannot be read, is empty, too large, or no regular file; says which.
    """
    try:
        # A pipe would block for ever, were it opened without O_NONBLOCK.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("it is no regular file")
            if status.st_size == 0:
                raise ValueError("it is empty")
            if status.st_size > limits.bytes:
                raise ValueError(f"it has {status.st_size:,} bytes; at most {limits.bytes:,}")
            return file.read(limits.bytes)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error


class Opened(NamedTuple):
    """An image that was decoded.

    Attributes:
        picture: 8-bit RGB in sRGB, the right way up; smaller than the file's if that is large.
        width, height: of the file's image in pixels, the right way up.
    """

    picture: Image.Image
    width: int
    height: int


def open_image(source: Path | bytes, limits: Limits) -> Opened:
    """Decode an image: in sRGB, oriented as its EXIF says; of an animation, the first frame.

    `data.rgb_conversion` says what becomes of transparency, colour profiles and deeper values.

    Raises:
        ValueError: it cannot be read or is too large; the message is a short reason.
    """
    content = read_file(source, limits) if isinstance(source, Path) else source
    if len(content) > limits.bytes:
        raise ValueError(f"it has {len(content):,} bytes; at most {limits.bytes:,}")
    is_png = content.startswith(PNG_SIGNATURE)
    content = _without_text(content) if is_png else content
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > limits.pixels:
                raise ValueError(f"it has {width:,} x {height:,} pixels; at most {limits.pixels:,}")
            picture.draft("RGB", (DECODED_SIDE, DECODED_SIDE))
            drafted = picture.size != (width, height)
            picture.load()  # turns a TIFF
            turn = _turn(picture)
            if not drafted:
                width, height = picture.size
            if turn in SIDEWAYS:
                width, height = height, width
            rgb = to_rgb(picture, content[PNG_DEPTH] if is_png else None)
            return Opened(rgb if turn is None else rgb.transpose(turn), width, height)
    except Image.UnidentifiedImageError as error:
        raise ValueError("it is no image of a known format") from error
    except ValueError:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen kinds on damaged files
        raise ValueError(f"it is damaged: {error}") from error


def _turn(picture: Image.Image) -> Image.Transpose | None:
    """What sets a picture upright, by its EXIF; None if it stands or its EXIF cannot be read.

    `ImageOps.exif_transpose` also writes the EXIF back, which fails where another tag is odd.
    """
    try:
        return TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow's EXIF parser raises several kinds
        return None


def _without_text(content: bytes) -> bytes:
    """A PNG without what decoding it does not need: its text, and further chunks that are damaged.

    Pillow refuses a file for more than a megabyte of text, or for a bad checksum within it; image
    generators write such text. XMP stays, since it can tell the orientation.
    """
    kept, start = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while start + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, start)
        end = start + 12 + length
        chunk = content[start:end]
        needed = kind[:1].isupper() or end > len(content)  # the standard's mark of critical chunks
        if not needed and (kind != b"iTXt" or chunk[8:].startswith(XMP)):
            whole = struct.pack(">I", zlib.crc32(chunk[4:-4])) == chunk[-4:]
            needed = whole and kind not in (b"tEXt", b"zTXt")
        if needed:
            kept.append(chunk)
        start = end
    kept.append(content[start:])
    return b"".join(kept)


def fit(picture: Image.Image, shape: tuple[int, int, int], how: str = "crop") -> np.ndarray:
    """A picture as a net wants it.

    Args:
        picture: RGB.
        shape: (S, S, C), C being 1 for grey or 3.
        how: "crop" cuts what is beyond the square in the middle, "stretch" squeezes.

    Returns:
        [S, S, C] uint8. A picture of that size comes out as it is.

    Raises:
        ValueError: an unknown `how`.
    """
    if how not in FITS:
        raise ValueError(f"fit={how!r}: expected one of {', '.join(FITS)}")
    height, width, channels = shape
    if channels == 1:
        picture = picture.convert("L")
    method = Image.Resampling.BICUBIC
    if how == "crop":
        picture = ImageOps.fit(picture, (width, height), method)
    else:
        picture = picture.resize((width, height), method, reducing_gap=3.0)
    return np.asarray(picture).reshape(shape)


def thumbnail(picture: Image.Image, side: int = THUMBNAIL_SIDE) -> bytes:
    """A JPEG of at most `side` pixels a side, without the file's metadata; never enlarged."""
    small = picture.copy()
    small.thumbnail((side, side), reducing_gap=2.0)
    small.info.clear()
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return file.getvalue()


def decode_file(
    folder: str,
    path: str,
    shape: tuple[int, int, int] | None,
    how: str,
    limits: Limits,
    with_thumbnail: bool = True,
) -> Decoded:
    """All that an index keeps of a file but its code; errors are in the result, never raised."""
    try:
        content = read_file(Path(folder, path), limits)
    except ValueError as error:
        return Decoded(path, error=str(error), lasting=False)
    try:
        picture, width, height = open_image(content, limits)
        pixels = None if shape is None else fit(picture, shape, how)
        digest = hashlib.sha256(content).hexdigest()
        small = thumbnail(picture) if with_thumbnail else b""
        return Decoded(path, digest, width, height, pixels, small)
    except ValueError as error:
        return Decoded(path, error=str(error))
    except MemoryError:
        return Decoded(path, error="there is not enough memory to decode it", lasting=False)
