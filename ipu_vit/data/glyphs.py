"""Letters and digits drawn from fonts: images to pre-train on before the handwritten digits.

The fonts come with matplotlib, so nothing is downloaded. A printed character is much neater than
a handwritten one; each is therefore drawn with a stroke of random thickness, bent, slanted and
scaled, and then seen as coarsely as the UCI digits are, half of them in just their 8 × 8 pixels
of 17 shades.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from ipu_vit.data.digits import JPEG_QUALITY, enlarge
from ipu_vit.data.whole_folder import whole_folder

CLASSES: Dict[str, str] = {
    **{f"digit_{character}": character for character in string.digits},
    **{f"lower_{character}": character for character in string.ascii_lowercase},
    **{f"upper_{character}": character for character in string.ascii_uppercase},
}
"""Folder name and character; some file systems take `a` and `A` for the same name."""

SYMBOL_FONTS = ("cmex10", "cmsy10", "LastResortHE-Regular")
"""These have something else where the letters ought to be."""

CANVAS = 96
CAPITAL = 52
"""Height of a capital H on the canvas: the rest is room for descenders and for bending."""

GRID = 3
"""The canvas is bent by moving the corners of GRID × GRID cells."""


def write_glyphs(root: Path, *, training: int = 300, validation: int = 10, seed: int = 0) -> None:
    """Write `root/train/<class>/NNNN.jpg` and `root/val/...`, that many images of each of 62 classes."""
    from rich.progress import track

    fonts = letter_fonts()
    with whole_folder(root) as folder:
        for number, (name, character) in enumerate(track(CLASSES.items(), "Drawing glyphs", total=len(CLASSES))):
            drawn = _drawn(character, fonts)
            for split in ("train", "val"):
                (folder / split / name).mkdir(parents=True)
            for variant in range(training + validation):
                rng = np.random.default_rng((seed, number, variant))
                image = handwritten_like(drawn[variant % len(drawn)], rng)
                split = "train" if variant < training else "val"
                image.save(folder / split / name / f"{variant:04}.jpg", quality=JPEG_QUALITY)


def letter_fonts() -> List[ImageFont.FreeTypeFont]:
    """matplotlib's fonts that have all letters and digits, at the size where an H is CAPITAL high."""
    from matplotlib import get_data_path
    from matplotlib.ft2font import FT2Font

    fonts = []
    for path in sorted(Path(get_data_path(), "fonts", "ttf").glob("*.ttf")):
        has = FT2Font(str(path)).get_charmap()
        if path.stem not in SYMBOL_FONTS and all(ord(character) in has for character in CLASSES.values()):
            _, top, _, bottom = ImageFont.truetype(str(path), 100).getbbox("H")
            fonts.append(ImageFont.truetype(str(path), round(100 * CAPITAL / (bottom - top))))
    return fonts


def handwritten_like(drawn: Image.Image, rng: np.random.Generator) -> Image.Image:
    """One of endlessly many versions of a drawn character, 32 × 32 RGB."""
    side = 8 if rng.random() < 0.5 else int(rng.integers(9, 17))
    bent = _bend(_restroke(drawn, rng), rng)
    coarse = np.asarray(bent.resize((side, side), Image.Resampling.BOX)) / 255
    coarse = np.minimum(1, coarse / coarse.max() * rng.uniform(0.9, 1.3))  # averaging pales thin strokes
    return enlarge(np.rint(coarse * 16) / 16)


def _drawn(character: str, fonts: List[ImageFont.FreeTypeFont]) -> List[Image.Image]:
    """The character in every font, white on black in the middle of the canvas."""
    images = []
    for font in fonts:
        image = Image.new("L", (CANVAS, CANVAS))
        left, top, right, bottom = font.getbbox(character)
        corner = ((CANVAS - left - right) / 2, (CANVAS - top - bottom) / 2)
        ImageDraw.Draw(image).text(corner, character, fill=255, font=font)
        images.append(image)
    return images


def _restroke(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Thicken or thin the stroke, unless that would fill the character or wear it away."""
    thicken = rng.random() < 0.7
    size = int(rng.choice([3, 5, 7])) if thicken else 3
    result = image.filter(ImageFilter.MaxFilter(size) if thicken else ImageFilter.MinFilter(size))
    growth = np.asarray(result).sum() / np.asarray(image).sum()
    return result if 0.5 < growth < 1.8 else image


def _bend(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Rotate, slant, scale, put into perspective and warp, all by moving the corners of a grid."""
    at = np.linspace(-1, 1, GRID + 1)
    corners = np.stack(np.meshgrid(at, at), axis=-1)  # row, column, (x, y); the canvas is −1 to 1
    angle = np.radians(rng.uniform(-15, 15))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    slant = np.array([[1, rng.uniform(-0.3, 0.3)], [0, 1]])
    # The part of the canvas that fills the picture: like the digits, capitals are nearly as high
    # as it and often narrow, and small letters stay small. Nothing is cut off.
    left, top, right, bottom = image.getbbox() or (0, 0, CANVAS, CANVAS)
    ink = np.array([right - left, bottom - top]) / CANVAS
    scale = np.diag(np.maximum(rng.uniform([0.62, 0.53], [1, 0.6]), ink))
    moved = corners @ (rotation @ slant @ scale).T
    moved *= 1 + corners @ rng.uniform(-0.12, 0.12, size=(2, 1))  # perspective: one side is nearer
    moved += rng.normal(0, 0.03, size=moved.shape) + rng.uniform(-0.03, 0.03, size=2)
    points = (moved + 1) / 2 * CANVAS
    return image.transform(image.size, Image.Transform.MESH, list(_mesh(points)), Image.Resampling.BILINEAR)


def _mesh(points: np.ndarray) -> Iterator[Tuple[Tuple[int, ...], Tuple[float, ...]]]:
    """Each cell of the canvas with the four corners its pixels come from, counter-clockwise from the upper left."""
    edge = np.linspace(0, CANVAS, GRID + 1).astype(int).tolist()
    for row in range(GRID):
        for column in range(GRID):
            cell = (edge[column], edge[row], edge[column + 1], edge[row + 1])
            square = points[row : row + 2, column : column + 2].reshape(4, 2)
            yield cell, tuple(square[[0, 2, 3, 1]].ravel().tolist())
