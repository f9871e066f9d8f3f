"""Prepared data sets are complete or absent, and written once."""

from __future__ import annotations

from pathlib import Path
from typing import Iterable, List, Tuple

import numpy as np
import pytest
from PIL import Image

from ipu_vit.data import digits, prepare
from ipu_vit.data.decode import decode
from ipu_vit.data.folder import ImageFolder
from ipu_vit.data.glyphs import CLASSES, write_glyphs
from ipu_vit.data.whole_folder import whole_folder
from ipu_vit.errors import UserError
from ipu_vit.settings import DataSettings

SIZES = (178, 182, 177, 183, 181, 182, 181, 179, 174, 180)
"""Images of each digit, as the data set's description states."""


@pytest.fixture(scope="module")
def digit_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "digits"
    digits.write_digits(root)
    return root


def stems(folder: Path) -> List[str]:
    return [path.stem for path in folder.glob("*.jpg")]


def test_the_digits_are_split_once_and_evenly(digit_files: Path) -> None:
    training = ImageFolder(digit_files / "train", "data.root")
    validation = ImageFolder(digit_files / "val", "data.root", training.classes)
    assert training.classes == [str(digit) for digit in range(10)]
    assert len(training) + len(validation) == 1797 and len(validation) >= 300
    numbers = []
    for digit, size in enumerate(SIZES):
        kept, held_out = (stems(digit_files / split / str(digit)) for split in ("train", "val"))
        assert len(kept) + len(held_out) == size
        assert abs(len(held_out) - size / 5) < 1
        numbers += kept + held_out
    assert sorted(numbers) == [f"{number:04}" for number in range(1797)]


def test_the_digits_are_those_of_scikit_learn(digit_files: Path) -> None:
    from sklearn.datasets import load_digits

    data = load_digits()
    for split in ("train", "val"):
        for path in sorted((digit_files / split).glob("*/*.jpg"))[::7]:
            image = decode(path)
            assert image.shape == (32, 32, 3)
            original = data.images[int(path.stem)] * 255 / 16
            blocks = image.mean(axis=-1).reshape(8, 4, 8, 4).mean(axis=(1, 3))
            assert np.corrcoef(blocks.ravel(), original.ravel())[0, 1] > 0.97
            assert data.target[int(path.stem)] == int(path.parent.name)


def settings(root: Path) -> DataSettings:
    return DataSettings(root=str(root), prepare="digits")


def test_preparing_again_touches_nothing(tmp_path: Path) -> None:
    root = tmp_path / "digits"
    root.mkdir()  # an empty folder counts as none
    prepare.prepare(settings(root))
    victim = root / "train/0/0010.jpg"
    victim.write_bytes(b"edited by hand")
    prepare.prepare(settings(root))
    assert victim.read_bytes() == b"edited by hand"


def test_an_interrupted_preparation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "digits"
    drawn: List[int] = []

    def interrupted(brightness: np.ndarray) -> Image.Image:
        if len(drawn) == 100:
            raise KeyboardInterrupt
        drawn.append(1)
        return Image.new("RGB", (32, 32))

    with monkeypatch.context() as patch:
        patch.setattr(digits, "enlarge", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare.prepare(settings(root))
    assert len(drawn) == 100 and list(tmp_path.iterdir()) == []
    prepare.prepare(settings(root))
    assert len(list(root.glob("*/*/*.jpg"))) == 1797


def test_the_first_of_two_that_prepare_at_once_wins(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "set") as slow:
        (slow / "slow").touch()
        with whole_folder(tmp_path / "set") as fast:
            (fast / "fast").touch()
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["fast"]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_preparing_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"data\.prepare=digits cannot write data\.root=.*file/digits"):
        prepare.prepare(settings(tmp_path / "file" / "digits"))


def test_preparing_needs_a_root() -> None:
    with pytest.raises(UserError, match=r"data\.prepare=digits needs data\.root"):
        prepare.prepare(DataSettings(prepare="digits"))


def test_nothing_is_prepared_unasked(tmp_path: Path) -> None:
    prepare.prepare(DataSettings(root=str(tmp_path / "none")))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(root: Path) -> None:
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")

    monkeypatch.setitem(prepare.PREPARERS, "digits", without)
    with pytest.raises(UserError, match=r"data\.prepare=digits needs sklearn, which is not installed"):
        prepare.prepare(settings(tmp_path / "digits"))


@pytest.fixture(scope="module")
def glyph_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "glyphs"
    write_glyphs(root, training=24, validation=1)
    return root


def test_glyphs_have_62_classes_on_every_file_system(glyph_files: Path) -> None:
    training = ImageFolder(glyph_files / "train", "data.root")
    validation = ImageFolder(glyph_files / "val", "data.root", training.classes)
    assert len({name.casefold() for name in training.classes}) == 62 == len(set(CLASSES.values()))
    assert np.bincount(training.labels).tolist() == [24] * 62
    assert np.bincount(validation.labels).tolist() == [1] * 62


def test_no_glyph_is_blank_or_full_and_no_two_are_equal(glyph_files: Path) -> None:
    images = [decode(path) for path in sorted(glyph_files.glob("*/*/*.jpg"))]
    assert all(image.shape == (32, 32, 3) and image.max() > 150 and image.std() > 30 for image in images)
    assert len({image.tobytes() for image in images}) == 62 * 25


def test_glyphs_follow_from_the_seed(glyph_files: Path, tmp_path: Path) -> None:
    write_glyphs(tmp_path / "same", training=2, validation=0)
    write_glyphs(tmp_path / "other", training=2, validation=0, seed=1)
    for path in (tmp_path / "same").glob("train/*/*.jpg"):
        name = path.relative_to(tmp_path / "same")
        assert path.read_bytes() == (glyph_files / name).read_bytes() != (tmp_path / "other" / name).read_bytes()


def test_glyphs_resemble_handwritten_digits(glyph_files: Path, digit_files: Path) -> None:
    """Chance is 10 %; the nearest few of the printed digits name far more of the handwritten ones."""
    from sklearn.neighbors import KNeighborsClassifier

    def pixels_and_digits(paths: Iterable[Path]) -> Tuple[np.ndarray, List[str]]:
        ordered = sorted(paths)
        return np.stack([decode(path).ravel() for path in ordered]), [path.parent.name[-1] for path in ordered]

    nearest = KNeighborsClassifier(5).fit(*pixels_and_digits(glyph_files.glob("train/digit_*/*.jpg")))
    assert nearest.score(*pixels_and_digits(digit_files.glob("val/*/*.jpg"))) > 0.3
