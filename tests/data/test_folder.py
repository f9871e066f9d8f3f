"""Which files become images of which class."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from ipu_vit.data.folder import ImageFolder
from ipu_vit.data.image_files import PackedPaths
from ipu_vit.errors import UserError

SETTING = "data.root=/data"


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def test_order_labels_and_suffixes(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.PNG", "b/10.jpg", "B/x.tiff", "a/1.JPEG")
    touch(tmp_path, "a/notes.txt", "a/.hidden.jpg", ".cache/1.jpg", "list.txt")
    folder = ImageFolder(tmp_path, SETTING)
    assert folder.classes == ["B", "a", "b"]
    assert list(folder.paths) == ["B/x.tiff", "a/1.JPEG", "b/10.jpg", "b/2.PNG"]
    assert folder.labels.tolist() == [0, 1, 2, 2] == [folder.label(index) for index in range(len(folder))]
    assert folder.name(3) == str(tmp_path / "b" / "2.PNG")


def test_loads_the_images_that_it_lists(photographs: Path) -> None:
    folder = ImageFolder(photographs, SETTING)
    assert [folder.load(index).shape[:2] for index in range(len(folder))] == [
        (60 - seed, 40 + seed) for seed in (0, 1, 2, 3, 10, 11, 12, 20, 21)
    ]


def test_file_names_of_any_bytes(tmp_path: Path) -> None:
    touch(tmp_path, "a/ü 1.jpg", "a/\udcff.jpg")
    folder = ImageFolder(tmp_path, SETTING)
    assert all(Path(folder.name(index)).exists() for index in range(2))


def test_packed_paths_are_little_more_than_their_text() -> None:
    names = [b"n01440764/n01440764_%d.JPEG" % number for number in range(10_000)]
    packed = PackedPaths(names)
    assert [path.encode() for path in packed] == names
    assert len(pickle.dumps(packed)) < sum(map(len, names)) + 8 * len(names) + 1000


@pytest.mark.parametrize(
    "files, message",
    [
        ([], "holds no class folders"),
        (["1.jpg"], "holds no class folders"),
        (["a/1.jpg", "b/notes.txt"], "b holds no image files"),
    ],
)
def test_folders_without_images_are_named(tmp_path: Path, files: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        ImageFolder(touch(tmp_path, *files), SETTING)
    assert SETTING in str(caught.value) and str(tmp_path) in str(caught.value) and "expected" in str(caught.value)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.root=/data: .*gone cannot be read \(No such file"):
        ImageFolder(tmp_path / "gone", SETTING)


def test_validation_takes_the_training_classes(tmp_path: Path) -> None:
    validation = ImageFolder(touch(tmp_path, "c/1.jpg", "a/1.jpg"), SETTING, classes=["a", "b", "c"])
    assert validation.classes == ["a", "b", "c"]
    assert validation.labels.tolist() == [0, 2]


def test_validation_may_not_have_classes_of_its_own(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{name}/1.jpg" for name in "abxyzw"))
    with pytest.raises(UserError, match="w, x, y and 1 more, which the training images do not have"):
        ImageFolder(tmp_path, SETTING, classes=["a", "b"])
