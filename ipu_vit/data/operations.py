"""What policies do to an image: the operations of AutoAugment (Cubuk et al. 2018) and RandAugment, with Pillow.

All take and give an RGB image and leave its size. Images are never changed in place.
"""

from __future__ import annotations

from typing import Callable, Dict, NamedTuple, Sequence, Tuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

Colour = Tuple[int, int, int]

GREY: Colour = (128, 128, 128)


class Canvas(NamedTuple):
    """What an operation may need besides the image and its strength."""

    rng: np.random.Generator
    fill: Colour = GREY
    """What comes into sight beyond the image's edge."""
    resampling: Image.Resampling = Image.Resampling.NEAREST
    """How values between pixels are read."""


class Operation(NamedTuple):
    """A step of a policy, whose strength goes from 0 to 1, and beyond where the policy allows it."""

    apply: Callable[[Image.Image, float, Canvas], Image.Image]
    signed: bool = False
    """Whether the opposite strength is as likely."""

    def draw(self, image: Image.Image, strength: float, canvas: Canvas) -> Image.Image:
        opposite = self.signed and canvas.rng.random() < 0.5
        return self.apply(image, -strength if opposite else strength, canvas)


def rotate(image: Image.Image, degrees: float, canvas: Canvas) -> Image.Image:
    return image.rotate(degrees, canvas.resampling, fillcolor=canvas.fill)


def shear_x(image: Image.Image, factor: float, canvas: Canvas) -> Image.Image:
    return _affine(image, (1, factor, 0, 0, 1, 0), canvas)


def shear_y(image: Image.Image, factor: float, canvas: Canvas) -> Image.Image:
    return _affine(image, (1, 0, 0, factor, 1, 0), canvas)


def translate_x(image: Image.Image, pixels: float, canvas: Canvas) -> Image.Image:
    return _affine(image, (1, 0, pixels, 0, 1, 0), canvas)


def translate_y(image: Image.Image, pixels: float, canvas: Canvas) -> Image.Image:
    return _affine(image, (1, 0, 0, 0, 1, pixels), canvas)


def _affine(image: Image.Image, matrix: Sequence[float], canvas: Canvas) -> Image.Image:
    """The pixel at (x, y) comes from (ax + by + c, dx + ey + f)."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, canvas.resampling, fillcolor=canvas.fill)


def colour(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Color(image).enhance(factor)


def contrast(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(factor)


def brightness(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(factor)


def sharpness(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Sharpness(image).enhance(factor)


def posterize(image: Image.Image, bits: int) -> Image.Image:
    """Keep that many of the upper bits, from 0 (which leaves black) to 8."""
    mask = 256 - 2 ** (8 - bits)
    return _looked_up(image, [value & mask for value in range(256)])


def solarize_add(image: Image.Image, addition: int) -> Image.Image:
    """Add to what is darker than 128."""
    return _looked_up(image, [min(value + addition, 255) if value < 128 else value for value in range(256)])


def _looked_up(image: Image.Image, table: Sequence[int]) -> Image.Image:
    return image.point([*table] * 3)


def cutout(image: Image.Image, reach: int, canvas: Canvas) -> Image.Image:
    """Fill a square of twice `reach` about a pixel drawn anywhere, as far as it lies within the image."""
    x, y = (int(canvas.rng.integers(side)) for side in image.size)
    left, top = max(0, x - reach), max(0, y - reach)
    covered = image.copy()
    covered.paste(canvas.fill, (left, top, min(x + reach, image.width), min(y + reach, image.height)))
    return covered


ALIKE: Dict[str, Operation] = {
    "AutoContrast": Operation(lambda image, strength, canvas: ImageOps.autocontrast(image)),
    "Equalize": Operation(lambda image, strength, canvas: ImageOps.equalize(image)),
    "Invert": Operation(lambda image, strength, canvas: ImageOps.invert(image)),
    "Rotate": Operation(lambda image, strength, canvas: rotate(image, 30 * strength, canvas), signed=True),
    "ShearX": Operation(lambda image, strength, canvas: shear_x(image, 0.3 * strength, canvas), signed=True),
    "ShearY": Operation(lambda image, strength, canvas: shear_y(image, 0.3 * strength, canvas), signed=True),
}
"""Operations that all policies have alike."""

LESS_OR_MORE: Dict[str, Operation] = {
    "Color": Operation(lambda image, strength, canvas: colour(image, 1 + 0.9 * strength), signed=True),
    "Contrast": Operation(lambda image, strength, canvas: contrast(image, 1 + 0.9 * strength), signed=True),
    "Brightness": Operation(lambda image, strength, canvas: brightness(image, 1 + 0.9 * strength), signed=True),
    "Sharpness": Operation(lambda image, strength, canvas: sharpness(image, 1 + 0.9 * strength), signed=True),
}
"""Operations that take away or add, the more the stronger."""
