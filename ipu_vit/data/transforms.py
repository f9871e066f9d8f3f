"""Settings to what is done to an image on the host."""

from __future__ import annotations

from typing import Callable, Optional

import numpy as np

from ipu_vit.data.augment import Change, EvaluationTransform, TrainingTransform
from ipu_vit.data.autoaugment import AutoAugment
from ipu_vit.data.crops import Crop, InceptionCrop, RandomResizedCrop, ResizeThenCrop
from ipu_vit.data.erasing import RandomErasing
from ipu_vit.data.jitter import ColourJitter
from ipu_vit.data.picture import Picture
from ipu_vit.data.randaugment import RandAugment, TimmRandAugment
from ipu_vit.data.resize import RESAMPLING, channels_first
from ipu_vit.settings import Settings


def training_transform(settings: Settings) -> Callable[[Picture, np.random.Generator], np.ndarray]:
    """What the settings name, or nothing where images are prepared."""
    data, erasing = settings.data, settings.augmentation.erasing
    if data.is_prepared:
        return _as_it_is
    return TrainingTransform(
        settings.model.image_size,
        _crop(settings),
        data.interpolation,
        data.flip,
        _change(settings),
        RandomErasing(erasing, data.mean, data.std) if erasing else None,
    )


def evaluation_transform(settings: Settings) -> Callable[[np.ndarray], np.ndarray]:
    """What the settings name, or nothing where images are prepared."""
    data = settings.data
    if data.is_prepared:
        return channels_first
    return EvaluationTransform(data.evaluation_resize, settings.model.image_size, data.interpolation)


def _crop(settings: Settings) -> Crop:
    data = settings.data
    if data.crop_resize is not None:
        return ResizeThenCrop(data.crop_resize, settings.model.image_size)
    if data.crop == "inception":
        return InceptionCrop(data.crop_area, data.crop_ratio)
    return RandomResizedCrop(data.crop_area, data.crop_ratio)


def _change(settings: Settings) -> Optional[Change]:
    given = settings.augmentation
    layers, magnitude = given.randaugment_layers, given.randaugment_magnitude
    if given.policy == "autoaugment":
        return AutoAugment()
    if given.policy == "randaugment":
        return RandAugment(layers, magnitude)
    if given.policy == "timm_randaugment":
        red, green, blue = map(round, settings.data.mean)
        resampling = RESAMPLING[settings.data.interpolation]
        return TimmRandAugment(layers, magnitude, given.randaugment_deviation, (red, green, blue), resampling)
    return ColourJitter(*given.colour_jitter) if any(given.colour_jitter) else None


def _as_it_is(picture: Picture, rng: np.random.Generator) -> np.ndarray:
    return channels_first(picture.pixels())
