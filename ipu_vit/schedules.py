"""The learning rate of each weight update: warm-up, curve, cool-down.

Curves are shares of the peak learning rate. Updates are counted from 0, so that with `warmup_start` 0
the first one moves nothing, as in most sources.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import Callable, Dict

from ipu_vit.settings import ScheduleSettings


def learning_rate(schedule: ScheduleSettings, update: int) -> float:
    """The learning rate of a weight update, counted from 0.

    `cosine_times_warmup` is mmcv 1.x's: a cosine over all updates, multiplied by a line from
    `warmup_start` to 1 during warm-up, so that it never reaches the peak. The others rise on a line
    from `warmup_start` to the peak, and only then follow their curve.
    """
    return schedule.lr * _CURVES[schedule.curve](schedule, update) * _cooldown(schedule, update)


# --- warm-up and cool-down -----------------------------------------------------------------------


def _warmup(schedule: ScheduleSettings, update: int) -> float:
    if update >= schedule.warmup:
        return 1.0
    return 1 - (1 - update / schedule.warmup) * (1 - schedule.warmup_start)


def _cooldown(schedule: ScheduleSettings, update: int) -> float:
    """A line to 0 over the last updates, on top of any curve, as big_vision has it."""
    return min(1.0, (schedule.updates - update) / schedule.cooldown) if schedule.cooldown else 1.0


def _after_warmup(schedule: ScheduleSettings, update: int) -> int:
    return max(0, update - schedule.warmup)


def _progress(schedule: ScheduleSettings, update: int) -> float:
    """How much of the updates after the warm-up is done, from 0 to 1."""
    return _after_warmup(schedule, update) / (schedule.updates - schedule.warmup)


# --- curves --------------------------------------------------------------------------------------


def _cosine_times_warmup(schedule: ScheduleSettings, update: int) -> float:
    return _half_cosine(schedule, update / schedule.updates) * _warmup(schedule, update)


def _warmup_then_cosine(schedule: ScheduleSettings, update: int) -> float:
    """As in PyTorch, transformers, MAE, ClassyVision, vit_jax and big_vision."""
    return _half_cosine(schedule, _progress(schedule, update)) * _warmup(schedule, update)


def _warmup_then_linear(schedule: ScheduleSettings, update: int) -> float:
    """As in transformers, vit_jax (which ends at 1e-5) and big_vision."""
    return (1 - (1 - schedule.final) * _progress(schedule, update)) * _warmup(schedule, update)


def _warmup_then_constant(schedule: ScheduleSettings, update: int) -> float:
    return _warmup(schedule, update)


def _warmup_then_rsqrt(schedule: ScheduleSettings, update: int) -> float:
    """One over the square root of the updates, as big_vision has it (Zhai et al. 2021, arXiv 2106.04560)."""
    return (1 + _after_warmup(schedule, update) / schedule.timescale) ** -0.5 * _warmup(schedule, update)


def _warmup_then_steps(schedule: ScheduleSettings, update: int) -> float:
    """Down by `step_factor` at each milestone, as PyTorch's MultiStepLR."""
    return schedule.step_factor ** bisect_right(schedule.milestones, update) * _warmup(schedule, update)


def _half_cosine(schedule: ScheduleSettings, progress: float) -> float:
    return schedule.final + (1 - schedule.final) * 0.5 * (1 + math.cos(math.pi * progress))


_CURVES: Dict[str, Callable[[ScheduleSettings, int], float]] = {
    "cosine_times_warmup": _cosine_times_warmup,
    "warmup_then_cosine": _warmup_then_cosine,
    "warmup_then_linear": _warmup_then_linear,
    "warmup_then_constant": _warmup_then_constant,
    "warmup_then_rsqrt": _warmup_then_rsqrt,
    "warmup_then_steps": _warmup_then_steps,
}
