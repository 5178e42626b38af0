"""Some images of an index in one picture, for a person to look at."""

import io
from pathlib import Path

from PIL import Image

COLUMNS, ROWS = 10, 6
MOST = COLUMNS * ROWS
CELL, GAP = 72, 4  # pixels


def write(path: Path, thumbnails: list[bytes]) -> None:
    """Lay out at most `MOST` JPEGs in rows, as a PNG of 256 colours; whole or not at all.

    The place of a damaged JPEG stays white.
    """
    rows = -(-len(thumbnails) // COLUMNS)
    step = CELL + GAP
    sheet = Image.new("RGB", (COLUMNS * step + GAP, rows * step + GAP), "white")
    for place, content in enumerate(thumbnails):
        try:
            picture = Image.open(io.BytesIO(content), formats=("JPEG",))
            picture.thumbnail((CELL, CELL))
        except Exception:  # Pillow's decoders raise a dozen kinds on damaged files
            continue
        row, column = divmod(place, COLUMNS)
        left = GAP + column * step + (CELL - picture.width) // 2
        top = GAP + row * step + (CELL - picture.height) // 2
        sheet.paste(picture, (left, top))
    partial = path.with_name(f".{path.name}.partial")
    sheet.quantize(256).save(partial, "PNG", optimize=True)
    partial.replace(path)
