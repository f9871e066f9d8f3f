"""Settings of the images: where they come from, and what is done to them."""

from __future__ import annotations

import re
from typing import Any, Literal, Optional, Tuple

from pydantic import Field, PositiveInt, field_validator, model_validator
from pydantic_core import PydanticCustomError

from ipu_vit.settings.section import Section, refuse_others

Fraction = Tuple[float, float]

SPLIT = re.compile(r"(?P<name>[^\[\]]+)(?P<part>\[(?P<start>\d+%?)?:(?P<end>\d+%?)?\])?")
"""A split, or a part of it from a count or percentage of its images up to another: `train[:98%]`."""

# Data sets without validation images are scored on those for tests, as their papers are.
_SCORED_ON_TEST = ("cifar10", "cifar100", "flowers", "pets")

# The settings that only some crops have.
_OF_CROPS = {
    "random_resized": {"crop_area", "crop_ratio"},
    "inception": {"crop_area", "crop_ratio"},
    "resize_then_crop": {"crop_resize"},
}


class DataSettings(Section):
    """Where images come from and what is done to them."""

    source: Literal["folder", "cifar10", "cifar100", "flowers", "pets", "hugging_face", "generated", "synthetic"] = (
        Field(
            "folder",
            description="class folders of image files or packs of them, a data set as it is distributed, random images "
            "and labels, or random numbers that never leave the device",
        )
    )
    root: Optional[str] = Field(None, description="folder that holds the training and validation splits")
    prepare: Optional[Literal["digits", "glyphs"]] = Field(
        None, description="data set to write to data.root when it is not there"
    )
    train_split: str = Field(
        "train", description="folder of the training images in data.root, or a part of them such as train[:98%]"
    )
    validation_split: str = Field(
        "val", description="the same of the validation images; test for CIFAR, Flowers and Pets if not given"
    )
    generated_images: int = Field(
        1_281_167, gt=0, description="number of training images when data.source=generated or synthetic"
    )
    generated_size: Optional[Tuple[PositiveInt, PositiveInt]] = Field(
        (375, 500),
        description="height and width of generated images, pixels; none: the model's size, and nothing is done to them "
        "on the host",
    )
    mean: Tuple[float, float, float] = Field(
        (127.5, 127.5, 127.5), description="subtracted from each channel (RGB, 0 to 255)"
    )
    std: Tuple[float, float, float] = Field((127.5, 127.5, 127.5), description="each channel is divided by this")
    crop: Literal["random_resized", "inception", "resize_then_crop"] = Field(
        "random_resized",
        description="a random part of the image as torchvision or as TensorFlow draws it, or a random crop of the "
        "resized image",
    )
    crop_resize: Optional[int] = Field(
        None, gt=0, description="height and width before the random crop, pixels (resize_then_crop)"
    )
    crop_area: Fraction = Field((0.08, 1.0), description="share of the image's area that a random crop takes")
    crop_ratio: Fraction = Field((3 / 4, 4 / 3), description="width divided by height of a random crop")
    interpolation: Literal["bilinear", "bicubic"] = Field("bilinear", description="how images are resized")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    evaluation_resize: Optional[int] = Field(
        224,
        gt=0,
        description="shorter side before the centre crop, pixels; none: the whole image becomes the model's square",
    )
    workers: int = Field(0, ge=0, description="processes that decode images")
    skip_unreadable: bool = Field(False, description="evaluation skips unreadable images instead of failing")

    @property
    def is_random(self) -> bool:
        """Whether images are random numbers."""
        return self.source in ("generated", "synthetic")

    @property
    def is_prepared(self) -> bool:
        """Whether images have the model's size from the start, so that nothing is done to them on the host."""
        return self.source == "synthetic" or (self.source == "generated" and self.generated_size is None)

    @model_validator(mode="before")
    @classmethod
    def _scored_on(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("source") in _SCORED_ON_TEST:
            return {"validation_split": "test", **values}
        return values

    @field_validator("train_split", "validation_split")
    @classmethod
    def _is_a_split(cls, value: str) -> str:
        if SPLIT.fullmatch(value) is None:
            raise PydanticCustomError("split", "accepted are a name and a part such as train[:98%] or train[:1000]")
        return value

    @model_validator(mode="after")
    def _crop_has_them(self) -> DataSettings:
        refuse_others(self, "data", "crop", _OF_CROPS)
        if self.crop == "resize_then_crop" and self.crop_resize is None:
            raise ValueError(
                "data.crop=resize_then_crop needs data.crop_resize, which is not set; use for example "
                "data.crop_resize=448"
            )
        return self

    @model_validator(mode="after")
    def _ranges_ascend(self) -> DataSettings:
        low, high = self.crop_area
        if not 0 < low <= high <= 1:
            raise ValueError(f"data.crop_area={list(self.crop_area)} must be two shares with 0 < low <= high <= 1")
        low, high = self.crop_ratio
        if not 0 < low <= high:
            raise ValueError(f"data.crop_ratio={list(self.crop_ratio)} must be two ratios with 0 < low <= high")
        if not all(value > 0 for value in self.std):
            raise ValueError(f"data.std={list(self.std)} must be three numbers above 0")
        return self
