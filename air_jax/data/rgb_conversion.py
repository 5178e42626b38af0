"""What a file means by its values: any picture that Pillow decoded becomes 8-bit RGB in sRGB.

Pillow gives the values as the file has them. The file's colour profile, the colour that it declares
transparent, and the sign and range of grey values deeper than 8 bits are applied here.
"""

import io
from typing import Any

import numpy as np
from PIL import Image, ImageCms

WHITE = (255, 255, 255, 255)
PHOTOMETRIC, BITS, SAMPLE_FORMAT, MAX_SAMPLE = 262, 258, 339, 281  # TIFF's tags
MIN_IS_WHITE = 0  # TIFF's PhotometricInterpretation
SIGNED = 2  # TIFF's SampleFormat
DEPTHS = (8, 10, 12, 14, 16, 32)  # bits that cameras and scanners use of a deeper grey value
SRGB = ImageCms.createProfile("sRGB")


def to_rgb(picture: Image.Image, png_depth: int | None = None) -> Image.Image:
    """A decoded picture as 8-bit RGB in sRGB; transparent parts are laid over white.

    Args:
        picture: as Pillow loaded it.
        png_depth: bits of a value in the PNG that it is from; None for other formats.

    Raises:
        ValueError: it holds NaN or infinity.
    """
    profile, file_format = picture.info.get("icc_profile"), picture.format
    alpha = None if png_depth is None else _declared_alpha(picture, png_depth)
    if alpha is not None:
        del picture.info["transparency"]
    if picture.mode.startswith("I"):
        picture = _deep_grey(picture, png_depth)
    elif picture.mode == "F":
        picture = _float_grey(picture)
    elif picture.mode == "L" and _tag(picture, SAMPLE_FORMAT) == SIGNED:
        picture = Image.fromarray(np.asarray(picture) ^ 0x80)
    elif alpha is None and picture.has_transparency_data:
        picture = picture.convert("RGBA")
        alpha = picture.getchannel("A")
        # Programs that write no transparency into a BMP leave zeros in its fourth channel.
        if file_format == "BMP" and alpha.getextrema() == (0, 0):
            alpha = None
    picture = _in_srgb(picture, profile) if profile else picture.convert("RGB")
    if alpha is None:
        return picture
    picture.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", picture.size, WHITE), picture).convert("RGB")


def _declared_alpha(picture: Image.Image, depth: int) -> Image.Image | None:
    """The mask of the colour that a PNG without alpha declares transparent; None without one.

    The file tells the colour in its own depth. Pillow widens 1, 2 and 4 bits to 8 and cuts 16 bits
    of RGB to the upper 8.
    """
    declared = picture.info.get("transparency")
    if declared is None or picture.mode not in ("1", "L", "I", "I;16", "RGB"):
        return None
    values = np.asarray(picture)
    if isinstance(declared, tuple):
        colour = np.array(declared) >> (8 if depth == 16 else 0)
        transparent = (values == colour).all(axis=2)
    else:
        widened = declared if depth >= 8 else declared * 255 // (2**depth - 1)
        transparent = (values * 255 if values.dtype == bool else values) == widened
    return Image.fromarray(np.where(transparent, 0, 255).astype(np.uint8))


def _in_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    """RGB of sRGB, from the colour space of an ICC profile; one that does not fit is ignored."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return picture.convert("RGB")
        if picture.mode not in ("RGB", "L", "CMYK"):
            picture = picture.convert("RGB")
        converted = ImageCms.profileToProfile(picture, source, SRGB, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        converted = None
    return converted or picture.convert("RGB")


def _deep_grey(picture: Image.Image, png_depth: int | None) -> Image.Image:
    """Whole grey values of 16 or 32 bits to 8.

    White is the largest value of the type in a PNG and where values have a sign. In other files it
    is what the file says, or the largest value of the fewest bits that hold all values.
    """
    values = np.asarray(picture)
    bits = _tag(picture, BITS) or 16
    if _tag(picture, SAMPLE_FORMAT) == SIGNED:
        values = values.astype(np.int64) + 2 ** (bits - 1)
        white = 2**bits - 1
    else:
        values = (values.view(np.uint32) if bits == 32 else values).astype(np.int64)
        largest = int(np.max(values))
        fewest = next(depth for depth in DEPTHS if largest < 2**depth)
        white = 2**16 - 1 if png_depth else _tag(picture, MAX_SAMPLE) or 2**fewest - 1
    grey = np.clip(values / white, 0, 1)
    if _tag(picture, PHOTOMETRIC) == MIN_IS_WHITE:
        grey = 1 - grey
    return Image.fromarray(np.rint(grey * 255).astype(np.uint8))


def _float_grey(picture: Image.Image) -> Image.Image:
    """Grey floats to 8 bits: from 0 to 1 or 255 by these ends, others by their least and most."""
    values = np.asarray(picture).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it holds NaN or infinity")
    low, high = float(np.min(values)), float(np.max(values))
    if low >= 0 and high <= 255:
        grey = values if high > 1 else values * 255
    else:
        grey = (values - low) * (255 / (high - low or 1))
    if _tag(picture, PHOTOMETRIC) == MIN_IS_WHITE:
        grey = 255 - grey
    return Image.fromarray(np.rint(grey).astype(np.uint8))


def _tag(picture: Image.Image, number: int) -> Any:
    """A tag of a TIFF, the first of its values; None if there is none."""
    value = getattr(picture, "tag_v2", {}).get(number)
    return value[0] if isinstance(value, tuple) else value
