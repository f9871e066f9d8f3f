"""Small folders of photographs to test with."""

from __future__ import annotations

from pathlib import Path

import pytest
from pictures import photograph


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Three classes with 4, 3 and 2 JPEGs of different shapes."""
    for label, name in enumerate(["ant", "bee", "cat"]):
        folder = tmp_path / "photographs" / name
        folder.mkdir(parents=True)
        for number in range(4 - label):
            seed = 10 * label + number
            photograph(seed, 40 + seed, 60 - seed).save(folder / f"{number}.JPEG")
    return tmp_path / "photographs"
