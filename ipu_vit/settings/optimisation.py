"""Settings of what is minimised and how: optimizer, learning rate, loss, averaging of weights."""

from __future__ import annotations

from typing import Any, List, Literal, Optional, Tuple

from pydantic import Field, field_validator, model_validator

from ipu_vit.settings.section import Section, refuse_others

_MOMENTS = {"betas", "eps", "first_moment_type", "second_moment_type"}
# The settings that only some optimizers, or curves, have. They are those of PopTorch's classes.
_OF_OPTIMIZERS = {
    "sgd": {"momentum", "nesterov", "velocity_type", "max_grad_norm"},
    "adam": {*_MOMENTS, "max_grad_norm"},
    "adamw": {*_MOMENTS, "max_grad_norm"},
    "lamb": {*_MOMENTS, "bias_correction"},
    "rmsprop": {"momentum", "alpha", "eps", "centered", "first_moment_type", "second_moment_type"},
}
_OF_CURVES = {
    "cosine_times_warmup": {"final"},
    "warmup_then_cosine": {"final"},
    "warmup_then_linear": {"final"},
    "warmup_then_constant": set(),
    "warmup_then_rsqrt": {"timescale"},
    "warmup_then_steps": {"milestones", "step_factor"},
}


class OptimizerSettings(Section):
    """The optimizer, run on the device."""

    name: Literal["sgd", "adam", "adamw", "lamb", "rmsprop"] = Field("sgd", description="kind of optimizer")
    momentum: float = Field(0.9, ge=0, lt=1, description="share of the last update that goes on (sgd, rmsprop)")
    nesterov: bool = Field(False, description="look-ahead momentum (sgd)")
    betas: Tuple[float, float] = Field((0.9, 0.999), description="decay of the two moments (adam, adamw, lamb)")
    alpha: float = Field(0.99, ge=0, lt=1, description="decay of the mean square (rmsprop)")
    eps: float = Field(1e-8, gt=0, description="added to the root of the mean square (all but sgd)")
    centered: bool = Field(False, description="take the variance instead of the mean square (rmsprop)")
    bias_correction: bool = Field(True, description="correct the moments for their start at 0 (lamb)")
    weight_decay: float = Field(
        0.0, ge=0, description="L2 penalty added to the gradient; adamw, lamb: share of the weights taken off by lr"
    )
    no_decay: List[str] = Field(
        ["class_token", "position"],
        description="parameters whose last name is one of these do not decay; norm: those of normalisations",
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="factor on the learning rate of each layer as against the one above it"
    )
    loss_scaling: float = Field(256.0, gt=0, description="factor that keeps float16 gradients representable")
    automatic_loss_scaling: bool = Field(False, description="let the device change that factor as gradients need it")
    accumulator_type: Literal["float16", "float32"] = Field("float16", description="type of the gradient accumulators")
    velocity_type: Literal["float16", "float32"] = Field("float16", description="type of the momentum (sgd)")
    first_moment_type: Literal["float16", "float32"] = Field(
        "float32", description="type of the mean of gradients (adam, adamw, lamb), or of their squares (rmsprop)"
    )
    second_moment_type: Literal["float16", "float32"] = Field(
        "float32", description="type of the mean of squared gradients (adam, adamw, lamb), or of gradients (rmsprop)"
    )
    max_grad_norm: Optional[float] = Field(
        None, gt=0, description="bound on the global norm of gradients (sgd, adam, adamw), or none"
    )

    @field_validator("name", mode="before")
    @classmethod
    def _one_backward_pass(cls, name: Any) -> Any:
        if name in ("sam", "gsam"):
            raise ValueError(
                f"optimizer.name={name} takes two backward passes for each update, and PopTorch compiles one; "
                f"accepted: {', '.join(_OF_OPTIMIZERS)}, for example from weights that were trained with SAM"
            )
        return name

    @model_validator(mode="after")
    def _optimizer_has_them(self) -> OptimizerSettings:
        refuse_others(self, "optimizer", "name", _OF_OPTIMIZERS)
        return self

    @model_validator(mode="after")
    def _betas_are_shares(self) -> OptimizerSettings:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(
                f"optimizer.betas={list(self.betas)} is not accepted; accepted: two numbers at least 0 and below 1"
            )
        return self

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> OptimizerSettings:
        if self.nesterov and not self.momentum:
            raise ValueError(
                "optimizer.nesterov=true looks ahead by optimizer.momentum=0.0; accepted: momentum above 0"
            )
        return self

    @model_validator(mode="after")
    def _bound_is_compiled_in(self) -> OptimizerSettings:
        if self.name == "sgd" and self.max_grad_norm is not None and self.automatic_loss_scaling:
            raise ValueError(
                f"optimizer.automatic_loss_scaling=true cannot go with optimizer.max_grad_norm={self.max_grad_norm} "
                "of sgd: PopART bounds gradients that are still multiplied by the loss scale; accepted: one of the "
                "two, or adam or adamw"
            )
        return self


class ScheduleSettings(Section):
    """The learning rate of every weight update."""

    lr: float = Field(0.02, gt=0, description="peak learning rate")
    updates: int = Field(20_000, gt=0, description="weight updates of the whole run")
    warmup: int = Field(0, ge=0, description="updates of linear warm-up")
    warmup_start: float = Field(0.0, ge=0, le=1, description="first learning rate as a share of the curve")
    curve: Literal[
        "cosine_times_warmup",
        "warmup_then_cosine",
        "warmup_then_linear",
        "warmup_then_constant",
        "warmup_then_rsqrt",
        "warmup_then_steps",
    ] = Field(
        "cosine_times_warmup",
        description="cosine over all updates times a linear warm-up, or a curve over the updates after the warm-up",
    )
    final: float = Field(0.0, ge=0, le=1, description="where a cosine or a line ends, as a share of lr")
    timescale: float = Field(10_000.0, gt=0, description="updates over which rsqrt falls to 1/√2")
    milestones: List[int] = Field([], description="updates at which steps go down")
    step_factor: float = Field(0.1, gt=0, lt=1, description="factor of each step")
    cooldown: int = Field(0, ge=0, description="updates at the end over which any curve goes to 0 on a line")

    @model_validator(mode="after")
    def _warmup_fits(self) -> ScheduleSettings:
        if self.warmup >= self.updates:
            raise ValueError(
                f"schedule.warmup={self.warmup} must be below schedule.updates={self.updates}; "
                f"accepted: 0 to {self.updates - 1}"
            )
        return self

    @model_validator(mode="after")
    def _cooldown_fits(self) -> ScheduleSettings:
        left = self.updates - self.warmup
        if self.cooldown > left:
            raise ValueError(
                f"schedule.cooldown={self.cooldown} does not fit between schedule.warmup={self.warmup} and "
                f"schedule.updates={self.updates}; accepted: 0 to {left}"
            )
        return self

    @model_validator(mode="after")
    def _curve_has_them(self) -> ScheduleSettings:
        refuse_others(self, "schedule", "curve", _OF_CURVES)
        return self

    @model_validator(mode="after")
    def _milestones_rise(self) -> ScheduleSettings:
        between = [self.warmup - 1, *self.milestones, self.updates]
        if self.curve == "warmup_then_steps" and not self.milestones:
            raise ValueError(
                "schedule.milestones=[] leaves schedule.curve=warmup_then_steps without a step; accepted: "
                "a list of updates"
            )
        if any(later <= earlier for earlier, later in zip(between, between[1:])):
            raise ValueError(
                f"schedule.milestones={self.milestones} must rise; accepted: updates from "
                f"schedule.warmup={self.warmup} to {self.updates - 1}"
            )
        return self


class LossSettings(Section):
    """The training loss."""

    kind: Literal["softmax", "sigmoid"] = Field(
        "softmax", description="cross entropy of one class among all, or of every class by itself"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread evenly over all classes")
    smoothing_rule: Literal["original", "classy_vision"] = Field(
        "original", description="classy_vision adds the share to the target and then divides by 1 + share"
    )

    @property
    def smoothing_share(self) -> float:
        """The share of the target that is spread, by whichever rule."""
        return self.label_smoothing / (1 + self.label_smoothing * (self.smoothing_rule == "classy_vision"))


class AveragingSettings(Section):
    """An exponential moving average of the weights, kept on the host."""

    decay: float = Field(0.0, ge=0, lt=1, description="what an update leaves of the average, 0.9999 say; 0: none kept")
    every: int = Field(100, gt=0, description="updates between copies of the device's weights")
