"""Image files of strangers to arrays: bounded, one colour space, the right way up.

Nothing here needs JAX: it is what the decoding processes import.
"""

import hashlib
import io
import os
import stat
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
FITS = ("crop", "stretch")
THUMBNAIL_SIDE = 192
# Large photos are decoded at a fraction of their size where JPEG allows; never below this side.
DECODED_SIDE = 4 * THUMBNAIL_SIDE
WHITE = (255, 255, 255, 255)

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
        thumbnail: JPEG.
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


def open_image(source: Path | bytes, limits: Limits) -> Image.Image:
    """An image as 8-bit RGB, oriented as its EXIF says; of an animation, the first frame.

    Transparent parts are laid over white. More than 8 bits are scaled down.

    Raises:
        ValueError: it cannot be read or is too large; the message is a short reason.
    """
    content = read_file(source, limits) if isinstance(source, Path) else source
    if len(content) > limits.bytes:
        raise ValueError(f"it has {len(content):,} bytes; at most {limits.bytes:,}")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > limits.pixels:
                raise ValueError(f"it has {width:,} x {height:,} pixels; at most {limits.pixels:,}")
            picture.draft("RGB", (DECODED_SIDE, DECODED_SIDE))
            picture.load()
            return _as_rgb(ImageOps.exif_transpose(picture))
    except Image.UnidentifiedImageError as error:
        raise ValueError("it is no image of a known format") from error
    except ValueError:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen kinds on damaged files
        raise ValueError(f"it is damaged: {error}") from error


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
    folder: str, path: str, shape: tuple[int, int, int] | None, how: str, limits: Limits
) -> Decoded:
    """All that an index keeps of a file but its code; errors are in the result, never raised."""
    try:
        content = read_file(Path(folder, path), limits)
    except ValueError as error:
        return Decoded(path, error=str(error), lasting=False)
    try:
        width, height = _size(content)
        picture = open_image(content, limits)
        pixels = None if shape is None else fit(picture, shape, how)
        digest = hashlib.sha256(content).hexdigest()
        return Decoded(path, digest, width, height, pixels, thumbnail(picture))
    except ValueError as error:
        return Decoded(path, error=str(error))
    except MemoryError:
        return Decoded(path, error="there is not enough memory to decode it", lasting=False)


def _size(content: bytes) -> tuple[int, int]:
    """Width and height the right way up, before a JPEG is decoded smaller; (0, 0) if damaged."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            turned = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # orientation
            return picture.size[::-1] if turned else picture.size
    except Exception:  # `open_image` says what is wrong with it
        return 0, 0


def _as_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = _as_grey(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        ground = Image.new("RGBA", picture.size, WHITE)
        return Image.alpha_composite(ground, picture).convert("RGB")
    return picture.convert("RGB")


def _as_grey(picture: Image.Image) -> Image.Image:
    """More than 8 bits, or floats, to 8: by the range that the largest value tells of."""
    values = np.asarray(picture).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it holds NaN or infinity")
    largest = float(np.max(values))
    if picture.mode.startswith("I;16") or (picture.mode == "I" and 255 < largest <= 65535):
        values = values / 257
    elif picture.mode == "F" and largest <= 1:
        values = values * 255
    elif largest > 255:
        values = values * (255 / largest)
    return Image.fromarray(np.rint(np.clip(values, 0, 255)).astype(np.uint8))
