"""Which images a run has, from its settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ipu_vit.data.folder import ImageFolder
from ipu_vit.data.generated import GeneratedImages
from ipu_vit.data.pack import Storing, pack
from ipu_vit.data.packed import PackedImages
from ipu_vit.data.sources import DISTRIBUTED, open_sources, open_validation
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


def pack_split(root: Path, split: str) -> None:
    pack(ImageFolder(root / split, "data.root"), root / "packs" / split, Storing())


def test_packs_are_found_where_folders_would_be(tmp_path: Path) -> None:
    touch(tmp_path, *(f"train/{name}/1.jpg" for name in "dcba"), "val/d/1.jpg", "val/a/1.jpg")
    pack_split(tmp_path, "train")
    pack_split(tmp_path, "val")
    given = settings(tmp_path / "packs", 4)
    for source in (open_validation(given), open_sources(given).validation):
        assert isinstance(source, PackedImages)
        assert source.classes == ["a", "b", "c", "d"] and [source.label(index) for index in range(2)] == [0, 3]
    assert len(open_sources(given).training) == 4
    touch(tmp_path / "packs", "v2/3/1.jpg", "v2/1/1.jpg")
    numbered = open_validation(settings(tmp_path / "packs", 4, validation_split="v2"))
    assert [numbered.label(index) for index in range(2)] == [1, 3]
    assert len(open_validation(settings(tmp_path / "packs" / "val", 2, validation_split="."))) == 2


def test_numbered_packs_are_positions_too(tmp_path: Path) -> None:
    touch(tmp_path, "train/n3/1.jpg", "train/n1/1.jpg", "train/n2/1.jpg", "val/2/a.jpg", "val/0/b.jpg")
    pack_split(tmp_path, "train")
    pack_split(tmp_path, "val")
    source = open_validation(settings(tmp_path / "packs", 3))
    assert [(Path(source.name(index)).name, source.label(index)) for index in range(2)] == [("b.jpg", 0), ("a.jpg", 2)]


def test_an_unfinished_pack_is_a_sentence(tmp_path: Path) -> None:
    touch(tmp_path, "train/unfinished.json", "val/a/1.jpg")
    with pytest.raises(UserError, match="train is a pack that is not finished"):
        open_sources(settings(tmp_path, 1))


def test_a_split_is_held_out_of_the_training_images(tmp_path: Path) -> None:
    touch(tmp_path, *(f"train/{name}/{number}.jpg" for name in "ab" for number in range(10)))
    both = open_sources(settings(tmp_path, 2, train_split="train[:75%]", validation_split="train[75%:]"))
    names = [{source.name(index) for index in range(len(source))} for source in both]
    assert [len(each) for each in names] == [15, 5] and len(names[0] | names[1]) == 20
    with pytest.raises(UserError, match=r"data.validation_split=train\[100%:\] is empty: the split has 20 images"):
        open_validation(settings(tmp_path, 2, train_split="train", validation_split="train[100%:]"))


@pytest.mark.parametrize("source", ["cifar10", "cifar100", "flowers", "pets"])
def test_data_sets_are_scored_on_their_tests(source: str) -> None:
    data = Settings(data={"source": source, "root": "/"}).data
    assert data.validation_split == "test" and data.validation_split in DISTRIBUTED[source].splits
    assert Settings(data={"source": source, "validation_split": "train[98%:]"}).data.validation_split == "train[98%:]"


@pytest.mark.parametrize("source", list(DISTRIBUTED))
def test_data_sets_without_a_root_are_a_sentence(source: str) -> None:
    with pytest.raises(UserError, match="^data.root is not set: give the folder that holds the images as ") as caught:
        open_sources(Settings(data={"source": source}))
    assert DISTRIBUTED[source].files in str(caught.value)


@pytest.mark.parametrize("source", ["cifar10", "cifar100", "flowers", "pets"])
def test_other_splits_are_a_sentence(tmp_path: Path, source: str) -> None:
    with pytest.raises(UserError, match=f"^data.train_split=other is no split of {source}; accepted are train, "):
        open_sources(Settings(data={"source": source, "root": str(tmp_path), "train_split": "other"}))


def test_the_classes_of_a_data_set_are_those_of_the_model(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-bin").mkdir()
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        (tmp_path / "cifar-10-batches-bin" / f"{name}.bin").write_bytes(bytes(3073))
    (tmp_path / "cifar-10-batches-bin" / "batches.meta.txt").write_text(" ".join("abcdefghij"))
    data = {"source": "cifar10", "root": str(tmp_path)}
    both = open_sources(Settings(data=data, model={"classes": 10}))
    assert [len(source) for source in both] == [5, 1]
    with pytest.raises(UserError, match="has 10 classes in train; set model.classes=10"):
        open_sources(Settings(data=data, model={"classes": 100}))
    with pytest.raises(UserError, match="has 10 classes in test; set model.classes=10"):
        open_validation(Settings(data=data, model={"classes": 100}))


def test_synthetic_images_are_generated_ones_for_the_host() -> None:
    both = open_sources(Settings(data={"source": "synthetic"}))
    assert all(isinstance(source, GeneratedImages) for source in both)
    assert both.training.load(0).shape == both.validation.load(0).shape == (224, 224, 3)


@pytest.mark.parametrize("size, shape", [((30, 40), (30, 40, 3)), (None, (224, 224, 3))])
def test_generated_images_have_the_size_asked_for(size: Any, shape: Any) -> None:
    both = open_sources(Settings(data={"source": "generated", "generated_size": size}))
    assert both.training.load(0).shape == both.validation.load(0).shape == shape
