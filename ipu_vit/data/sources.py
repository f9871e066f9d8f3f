"""Settings to the images of a run."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Callable, Dict, NamedTuple, Optional, Sequence, Tuple

from ipu_vit.data import cifar, flowers, pets
from ipu_vit.data.folder import ImageFolder, class_folders
from ipu_vit.data.generated import GeneratedImages
from ipu_vit.data.hugging_face import HuggingFaceImages
from ipu_vit.data.packed import Contents, PackedImages, is_pack
from ipu_vit.data.part import name_of, part_of
from ipu_vit.data.prepare import prepare
from ipu_vit.data.source import Source
from ipu_vit.errors import UserError
from ipu_vit.settings import DataSettings, Settings

# Validation images when they are generated: enough for a few host batches.
_GENERATED_VALIDATION_IMAGES = 1000


class Distributed(NamedTuple):
    """A data set that is read from the files it is distributed in."""

    open: Callable[[Path, str], Source]
    splits: Tuple[str, ...]
    """Names that are accepted; none: any."""
    files: str
    """What `data.root` has to hold, for messages."""


DISTRIBUTED: Dict[str, Distributed] = {
    "cifar10": Distributed(
        partial(cifar.open_cifar, classes=10), ("train", "test"), "cifar-10-python.tar.gz or cifar-10-binary.tar.gz"
    ),
    "cifar100": Distributed(
        partial(cifar.open_cifar, classes=100), ("train", "test"), "cifar-100-python.tar.gz or cifar-100-binary.tar.gz"
    ),
    "flowers": Distributed(flowers.open_flowers, tuple(flowers.SPLITS), "jpg/, imagelabels.mat and setid.mat"),
    "pets": Distributed(pets.open_pets, tuple(pets.SPLITS), "images/ and annotations/"),
    "hugging_face": Distributed(HuggingFaceImages, (), "the splits of a saved data set, or Parquet files"),
}


class Sources(NamedTuple):
    """The images of a run."""

    training: Source
    validation: Source


def open_sources(settings: Settings) -> Sources:
    """Find the images, writing them first if they are the package's own to write.

    Raises UserError when they are missing or do not have the model's number of classes.
    """
    data = settings.data
    if data.is_random:
        return Sources(_generated(settings, data.generated_images, settings.seed), open_validation(settings))
    _find_root(data)
    images = open_split(data, "data.train_split", data.train_split)
    _check_classes(settings, len(images.classes), data.train_split)
    return Sources(images, open_split(data, "data.validation_split", data.validation_split, images.classes))


def open_validation(settings: Settings) -> Source:
    """The validation images alone. Their classes are those of the training images, of which only the folders count.

    Where there are no training images, the classes are those of the validation images. Raises UserError
    as `open_sources` does.
    """
    data = settings.data
    if data.is_random:
        return _generated(settings, _GENERATED_VALIDATION_IMAGES, settings.seed + 1)
    _find_root(data)
    classes_of_training = _classes_of_training(data)
    if classes_of_training is not None:
        _check_classes(settings, len(classes_of_training), data.train_split)
    images = open_split(data, "data.validation_split", data.validation_split, classes_of_training)
    _check_classes(settings, len(images.classes), data.validation_split)
    return images


def open_split(data: DataSettings, setting: str, split: str, classes: Optional[Sequence[str]] = None) -> Source:
    """The images of a split, which the user chose by `setting`; of the given classes if they are folders.

    Raises UserError when they are missing or damaged.
    """
    root, name = Path(str(data.root)), name_of(split)
    if data.source == "folder":
        kind = PackedImages if is_pack(root / name) else ImageFolder
        source: Source = kind(root / name, f"data.root={root}", classes)
    else:
        known = DISTRIBUTED[data.source]
        if known.splits and name not in known.splits:
            raise UserError(f"{setting}={split} is no split of {data.source}; accepted are {', '.join(known.splits)}")
        source = known.open(root, name)
    part = part_of(source, split)
    if len(part) == 0:
        raise UserError(f"{setting}={split} is empty: the split has {len(source)} images")
    return part


def _generated(settings: Settings, count: int, seed: int) -> Source:
    side, classes = settings.model.image_size, settings.model.classes
    size = None if settings.data.is_prepared else settings.data.generated_size
    return GeneratedImages(count, size or (side, side), classes, seed, planar=size is None)


def _classes_of_training(data: DataSettings) -> Optional[Sequence[str]]:
    """The classes that the training images give, if they are folders and there are any."""
    folder, setting = Path(str(data.root)) / name_of(data.train_split), f"data.root={data.root}"
    if data.source != "folder" or not folder.is_dir():
        return None
    return Contents.read(folder, setting).classes if is_pack(folder) else class_folders(folder, setting)


def _find_root(data: DataSettings) -> None:
    """Check that there is `data.root`, after writing it if it is the package's own to write."""
    if not data.root:
        files = f"{data.train_split}/CLASS/*.JPEG and {data.validation_split}/CLASS/*.JPEG"
        if data.source != "folder":
            files = DISTRIBUTED[data.source].files
        raise UserError(
            f"data.root is not set: give the folder that holds the images as {files}, or use data=generated"
        )
    prepare(data)


def _check_classes(settings: Settings, found: int, split: str) -> None:
    if found != settings.model.classes:
        kind = "class folders" if settings.data.source == "folder" else "classes"
        raise UserError(
            f"model.classes={settings.model.classes} but data.root={settings.data.root} has {found} {kind} in "
            f"{split}; set model.classes={found}"
        )
