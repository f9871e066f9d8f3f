"""Settings become what they say, and what contradicts is refused in one sentence."""

from __future__ import annotations

from typing import List

import numpy as np
import pytest
from pictures import photograph
from PIL import Image
from tiny_runs import complaint

from ipu_vit.config import load_settings
from ipu_vit.data.augment import EvaluationTransform, TrainingTransform
from ipu_vit.data.autoaugment import AutoAugment
from ipu_vit.data.crops import InceptionCrop, RandomResizedCrop, ResizeThenCrop
from ipu_vit.data.erasing import RandomErasing
from ipu_vit.data.jitter import ColourJitter
from ipu_vit.data.picture import Pixels
from ipu_vit.data.randaugment import RandAugment, TimmRandAugment
from ipu_vit.data.resize import channels_first
from ipu_vit.data.transforms import evaluation_transform, training_transform
from ipu_vit.settings import Settings

PRESET = "vit_b16_ft_4xb544"


def settings(*overrides: str) -> Settings:
    return load_settings(PRESET, overrides)


def training(*overrides: str) -> TrainingTransform:
    transform = training_transform(settings(*overrides))
    assert isinstance(transform, TrainingTransform)
    return transform


def test_crops() -> None:
    assert training().crop == RandomResizedCrop((0.08, 1.0), (3 / 4, 4 / 3))
    assert training("data.crop=inception", "data.crop_area=[0.05,1]").crop == InceptionCrop((0.05, 1), (3 / 4, 4 / 3))
    assert training("data.crop=resize_then_crop", "data.crop_resize=256").crop == ResizeThenCrop(256, 224)


def test_nothing_but_crop_and_flip_unless_asked_for() -> None:
    assert training("data.interpolation=bicubic", "data.flip=0.25") == TrainingTransform(
        224, RandomResizedCrop(), "bicubic", 0.25, None, None
    )


def test_policies() -> None:
    assert training("augmentation.policy=autoaugment").change == AutoAugment()
    randaugment = ["augmentation.randaugment_layers=3", "augmentation.randaugment_magnitude=9"]
    assert training("augmentation.policy=randaugment", *randaugment).change == RandAugment(3, 9.0)
    timm = ["augmentation.policy=timm_randaugment", "augmentation.randaugment_deviation=0.5", *randaugment]
    mean = "data.mean=[123.675,116.28,103.53]"
    assert training(*timm, mean, "data.interpolation=bicubic").change == TimmRandAugment(
        3, 9.0, 0.5, (124, 116, 104), Image.Resampling.BICUBIC
    )


def test_jitter_and_erasing() -> None:
    jittered = training("augmentation.colour_jitter=[0.4,0.3,0.2,0.1]", "augmentation.erasing=0.25")
    assert jittered.change == ColourJitter(brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1)
    assert jittered.erase == RandomErasing(0.25, (127.5, 127.5, 127.5), (127.5, 127.5, 127.5))


def test_evaluation() -> None:
    assert evaluation_transform(settings("data.evaluation_resize=256")) == EvaluationTransform(256, 224)
    assert evaluation_transform(settings("data.evaluation_resize=none")) == EvaluationTransform(None, 224)


def test_generated_images_are_changed_as_others() -> None:
    changes = ["augmentation.policy=randaugment", "data.evaluation_resize=256"]
    theirs, ours = settings(*changes), settings("data=generated", *changes)
    assert training_transform(ours) == training_transform(theirs)
    assert evaluation_transform(ours) == evaluation_transform(theirs)


@pytest.mark.parametrize("source", [["data=generated", "data.generated_size=none"], ["data=synthetic"]])
def test_images_that_are_prepared_stay_as_they_are(source: List[str]) -> None:
    image, prepared = np.asarray(photograph(0, 32, 32)), settings(*source, "augmentation.policy=randaugment")
    for result in (
        training_transform(prepared)(Pixels(image), np.random.default_rng(0)),
        evaluation_transform(prepared)(image),
    ):
        np.testing.assert_array_equal(result, channels_first(image))


@pytest.mark.parametrize(
    "overrides, sentence",
    [
        (["data.crop=resize_then_crop"],
         "data.crop=resize_then_crop needs data.crop_resize, which is not set; use for example data.crop_resize=448"),
        (["data.crop_resize=256"],
         "data.crop_resize=256 is a setting of resize_then_crop, which data.crop=random_resized has not; "
         "accepted: none"),
        (["data.crop=resize_then_crop", "data.crop_resize=448", "data.crop_area=[0.05, 1]"],
         "data.crop_area=[0.05, 1.0] is a setting of random_resized and inception, which "
         "data.crop=resize_then_crop has not; accepted: [0.08, 1.0]"),
        (["data.crop=resize_then_crop", "data.crop_resize=200"],
         "data.crop_resize=200 is too small to crop model.image_size=224 from; accepted: 224 or more"),
        (["augmentation.policy=randaugment", "augmentation.randaugment_deviation=0.5"],
         "augmentation.randaugment_deviation=0.5 is a setting of timm_randaugment, which "
         "augmentation.policy=randaugment has not; accepted: 0.0"),
        (["augmentation.randaugment_layers=3"],
         "augmentation.randaugment_layers=3 is a setting of randaugment and timm_randaugment, which "
         "augmentation.policy=none has not; accepted: 2"),
        (["augmentation.policy=timm_randaugment", "augmentation.randaugment_magnitude=15"],
         "augmentation.randaugment_magnitude=15.0 is beyond 10, where augmentation.policy=timm_randaugment ends; "
         "accepted: 0 to 10, or augmentation.policy=randaugment"),
        (["augmentation.colour_jitter=[0.4,0.4,0.4,0.6]"],
         "augmentation.colour_jitter=[0.4, 0.4, 0.4, 0.6] is not accepted; accepted: four numbers at least 0, the last "
         "(hue) at most 0.5"),
        (["augmentation.colour_jitter=[0.4,-0.1,0,0]"],
         "augmentation.colour_jitter=[0.4, -0.1, 0.0, 0.0] is not accepted; accepted: four numbers at least "
         "0, the last (hue) at most 0.5"),
        (["augmentation.policy=autoaugment", "augmentation.colour_jitter=[0.4,0,0,0]"],
         "augmentation.colour_jitter=[0.4, 0.0, 0.0, 0.0] does not go with augmentation.policy=autoaugment, "
         "which changes colours itself; accepted: [0, 0, 0, 0], or augmentation.policy=none"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(overrides: List[str], sentence: str) -> None:
    assert complaint(PRESET, *overrides) == sentence
