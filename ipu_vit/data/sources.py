"""Settings to the images of a run."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ipu_vit.data.folder import ImageFolder, class_folders
from ipu_vit.data.generated import GeneratedImages
from ipu_vit.data.prepare import prepare
from ipu_vit.data.source import Source
from ipu_vit.errors import UserError
from ipu_vit.settings import Settings

# Validation images when they are generated: enough for a few host batches.
_GENERATED_VALIDATION_IMAGES = 1000


class Sources(NamedTuple):
    """The images of a run."""

    training: Source
    validation: Source


def open_sources(settings: Settings) -> Sources:
    """Find the images, writing them first if they are the package's own to write.

    Raises UserError when they are missing or do not have the model's number of classes.
    """
    data = settings.data
    if data.source == "generated":
        size, seed = settings.model.image_size, settings.seed
        training = GeneratedImages(data.generated_images, size, settings.model.classes, seed)
        return Sources(training, open_validation(settings))
    root = _root(settings)
    images = ImageFolder(root / data.train_split, f"data.root={root}")
    _check_classes(settings, len(images.classes), data.train_split)
    return Sources(images, ImageFolder(root / data.validation_split, f"data.root={root}", images.classes))


def open_validation(settings: Settings) -> Source:
    """The validation images alone. Their classes are those of the training images, of which only the folders count.

    Where there are no training images, the classes are those of the validation images. Raises UserError
    as `open_sources` does.
    """
    data = settings.data
    if data.source == "generated":
        size, classes, seed = settings.model.image_size, settings.model.classes, settings.seed
        return GeneratedImages(_GENERATED_VALIDATION_IMAGES, size, classes, seed + 1)
    root = _root(settings)
    setting = f"data.root={root}"
    if (root / data.train_split).is_dir():
        classes_of_training = class_folders(root / data.train_split, setting)
        _check_classes(settings, len(classes_of_training), data.train_split)
        return ImageFolder(root / data.validation_split, setting, classes_of_training)
    images = ImageFolder(root / data.validation_split, setting)
    _check_classes(settings, len(images.classes), data.validation_split)
    return images


def _root(settings: Settings) -> Path:
    data = settings.data
    if not data.root:
        raise UserError(
            "data.root is not set: give the folder that holds the images as "
            f"{data.train_split}/CLASS/*.JPEG and {data.validation_split}/CLASS/*.JPEG, or use data=generated"
        )
    prepare(data)
    return Path(data.root)


def _check_classes(settings: Settings, found: int, split: str) -> None:
    if found != settings.model.classes:
        raise UserError(
            f"model.classes={settings.model.classes} but data.root={settings.data.root} has {found} class folders in "
            f"{split}; set model.classes={found}"
        )
