"""Settings of what changes training images beyond the crop: on the host by image, on the device by micro batch."""

from __future__ import annotations

from typing import Literal, Optional, Tuple

from pydantic import Field

from ipu_vit.settings.section import Section


class AugmentationSettings(Section):
    """What is done to training images after the crop."""

    policy: Optional[Literal["autoaugment", "randaugment", "timm_randaugment"]] = Field(
        None,
        description="AutoAugment's policy for ImageNet, or RandAugment as TensorFlow's models or timm have it; or none",
    )
    randaugment_layers: int = Field(2, gt=0, description="operations that RandAugment applies to an image")
    randaugment_magnitude: float = Field(10.0, ge=0, description="strength of RandAugment's operations")
    randaugment_deviation: float = Field(
        0.0, ge=0, description="standard deviation of that strength (timm_randaugment)"
    )
    colour_jitter: Tuple[float, float, float, float] = Field(
        (0.0, 0.0, 0.0, 0.0), description="range of random changes of brightness, contrast, saturation and hue"
    )
    erasing: float = Field(0.0, ge=0, le=1, description="probability that a rectangle is replaced by noise")
    repeats: int = Field(1, gt=0, description="times that an image comes in a row, augmented anew each time")
    mixup: float = Field(0.0, ge=0, description="α of the Beta distribution that mixes pairs of images; 0: no mixup")
    cutmix: float = Field(0.0, ge=0, description="α of the Beta distribution of the area pasted over; 0: no cutmix")
    mix_probability: float = Field(1.0, ge=0, le=1, description="probability that an image is mixed at all")
    cutmix_share: float = Field(0.5, ge=0, le=1, description="share of cutmix where there is mixup too")
