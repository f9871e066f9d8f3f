"""Oxford's Flowers and Pets, made small and in the documented layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np
import pytest
from pictures import photograph
from scipy.io import savemat

from ipu_vit.data.flowers import open_flowers
from ipu_vit.data.pets import open_pets
from ipu_vit.errors import UserError

FLOWERS = 120
SETS: Dict[str, List[int]] = {
    "trnid": [1, 7, 3, 120],
    "valid": [2, 5],
    "tstid": [number for number in range(1, 120) if number not in (1, 2, 3, 5, 7)],
}


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    """The labels are 1 to 102 and again from 1; the matrices have one row, as the originals."""
    (tmp_path / "jpg").mkdir()
    for number in range(1, FLOWERS + 1):
        photograph(number, 12, 10).save(tmp_path / "jpg" / f"image_{number:05}.jpg")
    savemat(tmp_path / "imagelabels.mat", {"labels": np.arange(FLOWERS, dtype=np.uint8)[None] % 102 + 1})
    savemat(tmp_path / "setid.mat", {name: np.array(numbers, np.uint16)[None] for name, numbers in SETS.items()})
    return tmp_path


PETS = [f"{'Breed' if number % 2 else 'great_breed'}_{number:02}" for number in range(37)]


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    (tmp_path / "annotations").mkdir()
    lines: List[str] = []
    for label, breed in enumerate(PETS, 1):
        for number in (1, 20):
            photograph(label + number, 12, 10).save(tmp_path / "images" / f"{breed}_{number}.jpg")
            lines.append(f"{breed}_{number} {label} {1 + label % 2} 1")
    (tmp_path / "annotations" / "trainval.txt").write_text("\n".join(lines[::2]) + "\n")
    (tmp_path / "annotations" / "test.txt").write_text("\n".join(lines[::-2]) + "\n")
    return tmp_path


def pixels_and_labels(source: Any) -> List[Tuple[bytes, int]]:
    return [(source.load(index).tobytes(), source.label(index)) for index in range(len(source))]


@pytest.mark.parametrize("split, sets", [("train", "trnid"), ("val", "valid"), ("test", "tstid")])
def test_flowers_are_those_of_the_set(flowers: Path, split: str, sets: str) -> None:
    found = open_flowers(flowers, split)
    numbers = sorted(SETS[sets])
    assert [Path(found.name(index)).name for index in range(len(found))] == [f"image_{n:05}.jpg" for n in numbers]
    assert [found.classes[found.label(index)] for index in range(len(found))] == [
        str((n - 1) % 102 + 1) for n in numbers
    ]


def test_flowers_may_be_trained_on_with_the_validation_images(flowers: Path) -> None:
    assert len(open_flowers(flowers, "trainval")) == 6


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_torchvision_reads_the_same_flowers(flowers: Path, split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    (flowers / "flowers-102").mkdir()
    for name in ("jpg", "imagelabels.mat", "setid.mat"):
        (flowers / "flowers-102" / name).symlink_to(flowers / name)
    monkeypatch.setattr(datasets.Flowers102, "_check_integrity", lambda self: True)  # it knows the originals only
    theirs = datasets.Flowers102(flowers, split)
    # torchvision keeps the order of setid.mat.
    expected = sorted((str(path), np.asarray(image).tobytes(), label) for path, (image, label) in
                      zip(theirs._image_files, theirs))  # fmt: skip
    assert [(content, label) for _, content, label in expected] == pixels_and_labels(open_flowers(flowers, split))


def test_pets_have_the_classes_of_their_list(pets: Path) -> None:
    for split in ("train", "test"):
        found = open_pets(pets, split)
        assert list(found.classes) == [breed.replace("_", " ") for breed in PETS]
        assert sorted(found.label(index) for index in range(37)) == list(range(37))
        assert all(found.classes[found.label(i)].replace(" ", "_") in found.name(i) for i in range(37))


@pytest.mark.parametrize("split", ["train", "test"])
def test_torchvision_reads_the_same_pets(pets: Path, split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    (pets / "oxford-iiit-pet").mkdir()
    for name in ("images", "annotations"):
        (pets / "oxford-iiit-pet" / name).symlink_to(pets / name)
    theirs = datasets.OxfordIIITPet(pets, "trainval" if split == "train" else "test")
    assert [(np.asarray(image).tobytes(), label) for image, label in theirs] == pixels_and_labels(
        open_pets(pets, split)
    )


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda root: (root / "setid.mat").unlink(), "setid.mat cannot be read: .*No such file"),
        (lambda root: (root / "setid.mat").write_bytes(b"MATLAB 5.0 MAT-file"), "setid.mat cannot be read: "),
        (lambda root: (root / "imagelabels.mat").write_bytes(b""), "imagelabels.mat cannot be read: "),
        (lambda root: savemat(root / "setid.mat", {"other": 1}), "are not those of Flowers-102"),
        (lambda root: savemat(root / "setid.mat", {"trnid": [0]}), "are not those of Flowers-102"),
        (lambda root: savemat(root / "setid.mat", {"trnid": [121]}), "are not those of Flowers-102"),
        (lambda root: savemat(root / "imagelabels.mat", {"labels": [103] * 120}), "are not those of Flowers-102"),
        (lambda root: (root / "jpg").rename(root / "photos"), "holds no folder jpg; unpack 102flowers.tgz there"),
    ],
)
def test_flowers_that_are_damaged_are_a_sentence(flowers: Path, spoil: Any, message: str) -> None:
    spoil(flowers)
    with pytest.raises(UserError, match=message) as caught:
        open_flowers(flowers, "train")
    assert str(caught.value).startswith(f"data.root={flowers}")


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda root: (root / "annotations/test.txt").unlink(), r"test.txt cannot be read \(No such file"),
        (
            lambda root: (root / "annotations/test.txt").write_text("a_1 1 1 1\n"),
            "has 1 classes; the 37",
        ),
        (
            lambda root: (root / "annotations/test.txt").write_text("a_1\n"),
            "is not a list of images with their",
        ),
        (lambda root: (root / "annotations/test.txt").write_text("a_1 one\n"), "is not a list of images with their"),
        (lambda root: (root / "annotations/test.txt").write_bytes(b"\xff\n"), "is not a list of images with their"),
        (lambda root: (root / "images").rename(root / "photos"), "holds no folder images; unpack images.tar.gz there"),
    ],
)
def test_pets_that_are_damaged_are_a_sentence(pets: Path, spoil: Any, message: str) -> None:
    spoil(pets)
    with pytest.raises(UserError, match=message) as caught:
        open_pets(pets, "test")
    assert str(caught.value).startswith(f"data.root={pets}")
