"""Settings of the images: where they come from, and what is done to them."""

from __future__ import annotations

from typing import Literal, Optional, Tuple

from pydantic import Field, model_validator

from ipu_vit.settings.section import Section, refuse_others

Fraction = Tuple[float, float]

# The settings that only some crops have.
_OF_CROPS = {
    "random_resized": {"crop_area", "crop_ratio"},
    "inception": {"crop_area", "crop_ratio"},
    "resize_then_crop": {"crop_resize"},
}


class DataSettings(Section):
    """Where images come from and what is done to them."""

    source: Literal["folder", "generated"] = Field(
        "folder", description="class folders of image files, or random images and labels"
    )
    root: Optional[str] = Field(None, description="folder that holds the training and validation splits")
    prepare: Optional[Literal["digits", "glyphs"]] = Field(
        None, description="data set to write to data.root when it is not there"
    )
    train_split: str = Field("train", description="folder of the training images in data.root")
    validation_split: str = Field("val", description="folder of the validation images in data.root")
    generated_images: int = Field(1_281_167, gt=0, description="number of training images when data.source=generated")
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
