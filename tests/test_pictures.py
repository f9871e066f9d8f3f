"""The picture of predictions, read back pixel by pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

import numpy as np
import pytest
from PIL import Image

from ipu_vit.data.decode import UnreadableImage
from ipu_vit.pictures import draw_predictions


class Coloured:
    """Image i is a square of one colour, of class 0; number 1 cannot be read."""

    classes: Sequence[str] = ("$50 or $60", "_^{", "c")

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def load(self, index: int) -> np.ndarray:
        if index == 1:
            raise UnreadableImage("one", "broken")
        return np.full((8, 8, 3), (20, 30 + 40 * index, 200), np.uint8)

    def label(self, index: int) -> int:
        return 0

    def name(self, index: int) -> str:
        return str(index)


def area(pixels: np.ndarray, colour: Sequence[int]) -> int:
    return int((np.abs(pixels.astype(int) - colour).max(axis=-1) <= 2).sum())


@pytest.mark.parametrize("count, wanted", [(1, 12), (5, 12), (5, 3)])
def test_images_are_shown_and_mistakes_are_red(tmp_path: Path, count: int, wanted: int) -> None:
    path = tmp_path / "predictions.png"
    red = []
    for prediction in (0, 2):
        draw_predictions(Coloured(count), np.full(count, prediction), wanted, path)
        pixels = np.array(Image.open(path).convert("RGB"))
        shown = [index for index in range(count) if area(pixels, (20, 30 + 40 * index, 200)) > 1000]
        assert shown == [index for index in ([0, 2, 4] if wanted == 3 else range(count)) if index != 1]
        red.append(area(pixels, (255, 0, 0)))
    assert red[0] == 0 < red[1]
