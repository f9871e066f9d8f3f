"""Settings of what is minimised and how: optimizer, learning rate, loss."""

from __future__ import annotations

from typing import List, Literal, Optional

from pydantic import Field, model_validator

from ipu_vit.settings.section import Section


class OptimizerSettings(Section):
    """The optimizer, run on the device."""

    name: Literal["sgd"] = Field("sgd", description="kind of optimizer")
    momentum: float = Field(0.9, ge=0, lt=1, description="share of the last update that goes on")
    nesterov: bool = Field(False, description="look-ahead momentum")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty added to the gradient")
    no_decay: List[str] = Field(
        ["class_token", "position"], description="parameters whose last name is one of these do not decay"
    )
    loss_scaling: float = Field(256.0, gt=0, description="static factor that keeps float16 gradients representable")
    accumulator_type: Literal["float16", "float32"] = Field("float16", description="type of the gradient accumulators")
    velocity_type: Literal["float16", "float32"] = Field("float16", description="type of the momentum")
    max_grad_norm: Optional[float] = Field(
        None, gt=0, description="bound on the global norm as PopART applies it, or none"
    )


class ScheduleSettings(Section):
    """The learning rate of every weight update."""

    lr: float = Field(0.02, gt=0, description="peak learning rate")
    updates: int = Field(20_000, gt=0, description="weight updates of the whole run")
    warmup: int = Field(0, ge=0, description="updates of linear warm-up")
    warmup_start: float = Field(0.0, ge=0, le=1, description="first learning rate as a share of the curve")
    curve: Literal["cosine_times_warmup", "warmup_then_cosine"] = Field(
        "cosine_times_warmup",
        description="cosine over all updates times a linear warm-up, or cosine over the updates after the warm-up",
    )

    @model_validator(mode="after")
    def _warmup_fits(self) -> ScheduleSettings:
        if self.warmup >= self.updates:
            raise ValueError(
                f"schedule.warmup={self.warmup} must be below schedule.updates={self.updates}; "
                f"accepted: 0 to {self.updates - 1}"
            )
        return self


class LossSettings(Section):
    """The training loss: cross entropy."""

    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread evenly over all classes")
