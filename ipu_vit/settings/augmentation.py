"""Settings of what changes training images beyond the crop: on the host by image, on the device by micro batch."""

from __future__ import annotations

from typing import Literal, Optional, Tuple

from pydantic import Field, model_validator

from ipu_vit.settings.section import Section, refuse_others

# The settings that only some policies have.
_OF_POLICIES = {
    "randaugment": {"randaugment_layers", "randaugment_magnitude"},
    "timm_randaugment": {"randaugment_layers", "randaugment_magnitude", "randaugment_deviation"},
}


class AugmentationSettings(Section):
    """What is done to training images after the crop."""

    policy: Optional[Literal["autoaugment", "randaugment", "timm_randaugment"]] = Field(
        None,
        description="AutoAugment's policy for ImageNet, or RandAugment as TensorFlow's models or timm have it; or none",
    )
    randaugment_layers: int = Field(2, gt=0, description="operations that RandAugment applies to an image")
    randaugment_magnitude: float = Field(
        10.0, ge=0, le=30, description="strength of RandAugment's operations; timm's ends at 10"
    )
    randaugment_deviation: float = Field(
        0.0, ge=0, description="standard deviation of that strength (timm_randaugment)"
    )
    colour_jitter: Tuple[float, float, float, float] = Field(
        (0.0, 0.0, 0.0, 0.0), description="range of random changes of brightness, contrast, saturation and hue"
    )
    erasing: float = Field(0.0, ge=0, le=1, description="probability that noise covers a rectangle")
    repeats: int = Field(1, gt=0, description="times that an image comes in a weight update, augmented anew each time")
    mixup: float = Field(0.0, ge=0, description="α of the Beta distribution that mixes pairs of images; 0: no mixup")
    cutmix: float = Field(0.0, ge=0, description="α of the Beta distribution of the area pasted over; 0: no cutmix")
    mix_probability: float = Field(1.0, ge=0, le=1, description="probability that an image is mixed at all")
    cutmix_share: float = Field(0.5, ge=0, le=1, description="share of cutmix where there is mixup too")

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with each other."""
        return self.mixup > 0 or self.cutmix > 0

    @model_validator(mode="after")
    def _mixing_is_on_where_it_is_set(self) -> AugmentationSettings:
        if self.mix_probability != 1 and not self.mixes:
            raise ValueError(
                f"augmentation.mix_probability={self.mix_probability} finds nothing to apply, as augmentation.mixup "
                "and augmentation.cutmix are 0; accepted: 1.0, or one of those above 0"
            )
        if self.cutmix_share != 0.5 and not (self.mixup and self.cutmix):
            raise ValueError(
                f"augmentation.cutmix_share={self.cutmix_share} chooses between mixup and cutmix, but "
                f"augmentation.mixup={self.mixup} and augmentation.cutmix={self.cutmix}; accepted: 0.5, or both above 0"
            )
        return self

    @model_validator(mode="after")
    def _policy_has_them(self) -> AugmentationSettings:
        refuse_others(self, "augmentation", "policy", _OF_POLICIES)
        if self.policy == "timm_randaugment" and self.randaugment_magnitude > 10:
            raise ValueError(
                f"augmentation.randaugment_magnitude={self.randaugment_magnitude} is beyond 10, where "
                "augmentation.policy=timm_randaugment ends; accepted: 0 to 10, or augmentation.policy=randaugment"
            )
        return self

    @model_validator(mode="after")
    def _colours_change_once(self) -> AugmentationSettings:
        ranges = list(self.colour_jitter)
        if not all(value >= 0 for value in ranges) or ranges[-1] > 0.5:
            raise ValueError(
                f"augmentation.colour_jitter={ranges} is not accepted; accepted: four numbers at least 0, the last "
                "(hue) at most 0.5"
            )
        if self.policy is not None and any(ranges):
            raise ValueError(
                f"augmentation.colour_jitter={ranges} does not go with augmentation.policy={self.policy}, which "
                "changes colours itself; accepted: [0, 0, 0, 0], or augmentation.policy=none"
            )
        return self
