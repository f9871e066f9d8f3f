"""Which images a run has, from its settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ipu_vit.data.folder import ImageFolder
from ipu_vit.data.sources import open_sources, open_validation
from ipu_vit.errors import UserError
from ipu_vit.settings import Settings


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def settings(root: Path, classes: int, **data: Any) -> Settings:
    return Settings(data={"root": str(root), **data}, model={"classes": classes})


def test_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    """ImageNet-V2's layout; as text, 10 would come before 2."""
    touch(tmp_path, *(f"v2/{number}/{number}.jpeg" for number in range(12)))
    source = open_validation(settings(tmp_path, 12, validation_split="v2"))
    assert list(source.classes) == [str(number) for number in range(12)]
    assert [source.label(index) for index in range(12)] == list(range(12))
    assert [Path(source.name(index)).stem for index in range(12)] == list(source.classes)
    assert open_validation(settings(tmp_path / "v2", 12, validation_split=".")).classes == source.classes


def test_numbers_stand_for_named_classes(tmp_path: Path) -> None:
    touch(tmp_path, "train/n3/1.jpg", "train/n1/1.jpg", "train/n2/1.jpg", "val/2/a.jpg", "val/0/b.jpg")
    source = open_validation(settings(tmp_path, 3))
    assert list(source.classes) == ["n1", "n2", "n3"]
    assert [(Path(source.name(index)).name, source.label(index)) for index in range(2)] == [("b.jpg", 0), ("a.jpg", 2)]
    touch(tmp_path, "val/3/c.jpg")
    with pytest.raises(UserError, match="holds 3, which the training images do not have"):
        open_validation(settings(tmp_path, 3))


def test_numbers_that_are_names_stay_names(tmp_path: Path) -> None:
    touch(tmp_path, "1/a.jpg", "2/a.jpg")
    assert ImageFolder(tmp_path, "data.root=/", classes=["1", "2"]).labels.tolist() == [0, 1]
    with pytest.raises(UserError, match="holds 1, which the training images do not have"):
        ImageFolder(tmp_path, "data.root=/", classes=["0", "2"])


def test_both_ways_agree_where_there_are_training_images(tmp_path: Path) -> None:
    touch(tmp_path, *(f"train/{name}/1.jpg" for name in "dcba"), "val/d/1.jpg", "val/a/1.jpg")
    alone, both = open_validation(settings(tmp_path, 4)), open_sources(settings(tmp_path, 4)).validation
    assert alone.classes == both.classes == ["a", "b", "c", "d"]
    assert [alone.label(index) for index in range(2)] == [both.label(index) for index in range(2)] == [0, 3]


def test_training_images_are_not_needed_to_evaluate_but_to_train(tmp_path: Path) -> None:
    touch(tmp_path, "val/a/1.jpg", "val/b/1.jpg")
    assert len(open_validation(settings(tmp_path, 2))) == 2
    with pytest.raises(UserError, match="train cannot be read"):
        open_sources(settings(tmp_path, 2))


@pytest.mark.parametrize("split", ["train", "val"])
def test_another_number_of_classes_is_a_sentence(tmp_path: Path, split: str) -> None:
    touch(tmp_path, f"{split}/a/1.jpg", "val/a/1.jpg")
    with pytest.raises(
        UserError, match=f"^model.classes=5 but data.root={tmp_path} has 1 class folders in {split}; set"
    ):
        open_validation(settings(tmp_path, 5))
