"""Settings of the model."""

from __future__ import annotations

from typing import List, Literal, Optional

from pydantic import Field, model_validator

from ipu_vit.settings.section import Section


class ModelSettings(Section):
    """Kind and sizes of the model; docs/models.md has those of the literature by name."""

    image_size: int = Field(224, gt=0, description="height and width of the input, pixels")
    kind: Literal["vit", "hybrid", "mixer"] = Field(
        "vit", description="Vision Transformer, one on a ResNet's features, or MLP-Mixer"
    )
    patch_size: int = Field(16, gt=0, description="height and width of a patch, in pixels; of hybrids: in features")
    width: int = Field(768, gt=0, description="size of a token")
    depth: int = Field(12, gt=0, description="number of encoder layers")
    heads: int = Field(12, gt=0, description="attention heads per layer; a Mixer has none")
    mlp_width: int = Field(3072, gt=0, description="hidden size of the MLP in each layer")
    tokens_mlp_width: Optional[int] = Field(
        None, gt=0, description="hidden size of the MLP across tokens in each layer of a Mixer"
    )
    resnet_depths: Optional[List[int]] = Field(
        None, description="units in each stage of a hybrid's ResNet; an empty list: its stem alone"
    )
    resnet_width: int = Field(64, gt=0, description="channels of a hybrid's ResNet after its stem; a multiple of 32")
    representation: Optional[int] = Field(
        None, gt=0, description="width of a tanh layer before the head ('pre_logits'), or none"
    )
    class_token: bool = Field(True, description="whether a learnt token goes before the patches")
    pooling: Literal["class", "mean"] = Field(
        "class", description="what the head sees: the class token, or the mean of the patches"
    )
    pool_norm: Literal["before", "after"] = Field("before", description="last norm before or after taking the mean")
    fixed_positions: bool = Field(
        False, description="whether positions are sines and cosines of rows and columns instead of learnt"
    )
    classes: int = Field(1000, gt=0, description="number of classes")
    head_bias: float = Field(0.0, description="first bias of every class; below 0 for a sigmoid loss of many classes")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout after embedding, attention and MLP")
    attention_dropout: float = Field(0.0, ge=0, lt=1, description="dropout on attention weights")
    drop_path: float = Field(
        0.0, ge=0, lt=1, description="stochastic depth: rate in the last layer, rising evenly from 0 in the first"
    )
    norm_epsilon: float = Field(1e-6, gt=0, description="epsilon of every layer norm")

    @property
    def pools_as_weights_tell(self) -> bool:
        """Whether other libraries, which have nothing but the weights, would pool as this model does."""
        return self.kind == "mixer" or self.pooling == "class"

    @model_validator(mode="after")
    def _kind_has_what_it_needs(self) -> ModelSettings:
        for key, kind, example in (("tokens_mlp_width", "mixer", "384"), ("resnet_depths", "hybrid", "'[3, 4, 9]'")):
            value = getattr(self, key)
            if self.kind == kind and value is None:
                raise ValueError(
                    f"model.kind={kind} needs model.{key}, which is not set; use for example model.{key}={example}"
                )
            if self.kind != kind and value is not None:
                raise ValueError(f"model.{key}={value} does not go with model.kind={self.kind}; use model.{key}=none")
        if any(depth < 1 for depth in self.resnet_depths or []):
            raise ValueError(
                f"model.resnet_depths={self.resnet_depths} has a stage without units; use 1 or more for each"
            )
        if self.resnet_width % 32:
            raise ValueError(
                f"model.resnet_width={self.resnet_width} does not divide by the 32 groups of its norms; "
                f"nearest widths that do: {_multiples_near(self.resnet_width, 32)}"
            )
        return self

    @model_validator(mode="after")
    def _pooling_fits(self) -> ModelSettings:
        if self.kind == "mixer":
            self._refuse_for_mixers()
        elif self.pooling == "class" and not self.class_token:
            raise ValueError(
                "model.pooling=class needs the class token that model.class_token=false leaves out; "
                "use model.pooling=mean or model.class_token=true"
            )
        return self

    def _refuse_for_mixers(self) -> None:
        """A Mixer has neither attention nor a class token; what asks for them must not be ignored in silence."""
        only = {
            "class_token": False,
            "pooling": "mean",
            "pool_norm": "before",
            "fixed_positions": False,
            "representation": None,
            "dropout": 0.0,
            "attention_dropout": 0.0,
        }
        wrong = {key: value for key, value in only.items() if getattr(self, key) != value}
        if wrong:
            given = " ".join(f"model.{key}={_as_typed(getattr(self, key))}" for key in wrong)
            fitting = " ".join(f"model.{key}={_as_typed(value)}" for key, value in wrong.items())
            raise ValueError(f"model.kind=mixer does not go with {given}; use {fitting}")

    @model_validator(mode="after")
    def _positions_have_four_parts(self) -> ModelSettings:
        if self.fixed_positions and self.width % 4:
            raise ValueError(
                f"model.width={self.width} does not divide by the 4 parts of model.fixed_positions=true; "
                f"nearest widths that do: {_multiples_near(self.width, 4)}"
            )
        return self

    @model_validator(mode="after")
    def _sizes_divide(self) -> ModelSettings:
        pixels = self.patch_size * pixels_per_feature(self.resnet_depths)
        if self.image_size % pixels:
            divisor = f"model.patch_size={self.patch_size}"
            if self.kind == "hybrid":
                divisor += f" times the {pixels // self.patch_size} pixels of a ResNet's feature"
            raise ValueError(
                f"model.image_size={self.image_size} does not divide by {divisor}; "
                f"nearest sizes that do: {_multiples_near(self.image_size, pixels)}"
            )
        if self.kind != "mixer" and self.width % self.heads:
            fitting = [heads for heads in range(1, self.width + 1) if self.width % heads == 0]
            near = sorted(sorted(fitting, key=lambda heads: abs(heads - self.heads))[:3])
            raise ValueError(
                f"model.width={self.width} does not divide by model.heads={self.heads}; "
                f"numbers of heads that do: {', '.join(map(str, near))}"
            )
        return self


def pixels_per_feature(resnet_depths: Optional[List[int]]) -> int:
    """Height and width in pixels of what a patch counts: each stage of a ResNet after the first halves."""
    if resnet_depths is None:
        return 1
    return 4 * 2 ** max(len(resnet_depths) - 1, 0)


def _multiples_near(value: int, step: int) -> str:
    """The multiples of `step` on either side of a value, in words; 0 is none."""
    lower = value // step * step
    return " and ".join(str(multiple) for multiple in (lower, lower + step) if multiple)


def _as_typed(value: object) -> str:
    """A value as an override has it."""
    return "none" if value is None else str(value).lower()
