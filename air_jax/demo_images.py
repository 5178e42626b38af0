"""Writes images to try the page on: scikit-learn's digits and drawn shapes, as PNG files.

python -m air_jax.demo_images FOLDER
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from air_jax.data import datasets
from air_jax.runtime import command_line
from air_jax.runtime.arguments import Arguments
from air_jax.runtime.progress import say

SHAPES = ("circle", "square", "triangle", "ring", "cross")
EACH = 80
SIDE = 96


def draw(shape: str, rng: np.random.Generator) -> Image.Image:
    """A bright shape somewhere on a dark ground, in random size and colours."""
    ground = tuple(int(value) for value in rng.integers(0, 70, 3))
    colour = tuple(int(value) for value in rng.integers(140, 256, 3))
    picture = Image.new("RGB", (SIDE, SIDE), ground)
    pen = ImageDraw.Draw(picture)
    radius = int(rng.integers(SIDE // 5, SIDE // 3))
    x, y = (int(value) for value in rng.integers(radius, SIDE - radius, 2))
    box = (x - radius, y - radius, x + radius, y + radius)
    match shape:
        case "circle":
            pen.ellipse(box, fill=colour)
        case "square":
            pen.rectangle(box, fill=colour)
        case "triangle":
            pen.regular_polygon((x, y, radius), 3, int(rng.integers(0, 120)), fill=colour)
        case "ring":
            pen.ellipse(box, outline=colour, width=radius // 3)
        case "cross":
            pen.rectangle((x - radius, y - radius // 4, x + radius, y + radius // 4), fill=colour)
            pen.rectangle((x - radius // 4, y - radius, x + radius // 4, y + radius), fill=colour)
    return picture


def write(folder: Path) -> None:
    """Folders `digits/` and `shapes/` with a folder for each kind in them; the same every time."""
    say(f"writing digits and shapes to {folder}")
    digits = datasets.load("digits")
    assert digits.labels is not None, "digits have labels"
    for number, (pixels, label) in enumerate(zip(digits.images, digits.labels, strict=True)):
        path = folder / "digits" / digits.class_names[label] / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            Image.fromarray(pixels.squeeze()).save(path)
    rng = np.random.default_rng(0)
    for shape in SHAPES:
        for number in range(EACH):
            picture = draw(shape, rng)
            path = folder / "shapes" / shape / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                picture.save(path)


def main(arguments: list[str] | None = None) -> int:
    """Write the images where the command line says; returns the exit status."""
    parser = Arguments("air_jax.demo_images", __doc__)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where the images go")
    folder = parser.parse_args(arguments).folder
    return command_line.guard(lambda: write(folder), folder)


if __name__ == "__main__":
    sys.exit(main())
