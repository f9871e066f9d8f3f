"""Settings of the model."""

from __future__ import annotations

from typing import Optional

from pydantic import Field, model_validator

from ipu_vit.settings.section import Section


class ModelSettings(Section):
    """Sizes of the Vision Transformer (Dosovitskiy et al. 2020, table 1)."""

    image_size: int = Field(224, gt=0, description="height and width of the input, pixels")
    patch_size: int = Field(16, gt=0, description="height and width of a patch, pixels")
    width: int = Field(768, gt=0, description="size of a token")
    depth: int = Field(12, gt=0, description="number of encoder layers")
    heads: int = Field(12, gt=0, description="attention heads per layer")
    mlp_width: int = Field(3072, gt=0, description="hidden size of the MLP in each layer")
    representation: Optional[int] = Field(
        None, gt=0, description="width of a tanh layer before the head ('pre_logits'), or none"
    )
    classes: int = Field(1000, gt=0, description="number of classes")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout after embedding, attention and MLP")
    attention_dropout: float = Field(0.0, ge=0, lt=1, description="dropout on attention weights")
    norm_epsilon: float = Field(1e-6, gt=0, description="epsilon of every layer norm")

    @model_validator(mode="after")
    def _sizes_divide(self) -> ModelSettings:
        if self.image_size % self.patch_size:
            lower = self.image_size // self.patch_size * self.patch_size
            near = [size for size in (lower, lower + self.patch_size) if size]
            raise ValueError(
                f"model.image_size={self.image_size} does not divide by model.patch_size={self.patch_size}; "
                f"nearest sizes that do: {' and '.join(map(str, near))}"
            )
        if self.width % self.heads:
            fitting = [heads for heads in range(1, self.width + 1) if self.width % heads == 0]
            near = sorted(sorted(fitting, key=lambda heads: abs(heads - self.heads))[:3])
            raise ValueError(
                f"model.width={self.width} does not divide by model.heads={self.heads}; "
                f"numbers of heads that do: {', '.join(map(str, near))}"
            )
        return self
