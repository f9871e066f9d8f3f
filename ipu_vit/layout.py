"""What a run may be continued with on other hardware: how each global batch is spread over IPUs.

None of this changes which images a weight update sees or what is computed from them; only the order
in which float numbers are added up, and which random numbers dropout and rounding meet. So a run that
goes on with another layout is the same within rounding, not to the last bit.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from ipu_vit.errors import UserError
from ipu_vit.settings import Settings

_PROCESSES = "processes"
_LAYOUT = ("ipus", "layers_per_ipu", "replicas", "micro_batch", "device_iterations")

_WORDS = {
    _PROCESSES: "{} processes in place of {}",
    "device_iterations": (
        "pipeline.device_iterations={} in place of {} (updates of one host call share a learning rate)"
    ),
}


def layout_of(settings: Settings, processes: int = 1) -> Dict[str, Any]:
    """The layout of a run, as its checkpoints keep it."""
    return {_PROCESSES: processes, **{name: getattr(settings.pipeline, name) for name in _LAYOUT}}


def is_free(name: str, settings: Settings) -> bool:
    """Whether a setting, `section.key`, may change when a run is continued because it is one of the layout.

    An image is mixed with another of its micro batch, which then is not free.
    """
    mixed = name == "pipeline.micro_batch" and settings.augmentation.mixes
    return name in {f"pipeline.{key}" for key in _LAYOUT} and not mixed


def changes(settings: Settings, before: Optional[Dict[str, Any]], processes: int = 1) -> List[str]:
    """What of the layout differs from a checkpoint's, in words; what it does not tell is taken for unchanged.

    Checkpoints that do not tell the number of processes are of one.
    """
    now, before = layout_of(settings, processes), {_PROCESSES: 1, **(before or {})}
    differing = {name: old for name, old in before.items() if now[name] != old}
    return [
        _WORDS.get(name, f"pipeline.{name}={{}} in place of {{}}").format(now[name], old)
        for name, old in differing.items()
    ]


def check_updates_left(settings: Settings, update: int) -> None:
    """Raise UserError if the updates after `update` are no whole number of host calls."""
    left, step = settings.schedule.updates - update, settings.pipeline.device_iterations
    if left % step:
        fitting = [number for number in range(1, left + 1) if left % number == 0]
        near = sorted(sorted(fitting, key=lambda number: abs(number - step))[:4])
        raise UserError(
            f"pipeline.device_iterations={step} does not divide the {left} updates that are left after the checkpoint "
            f"of update {update}; numbers that do: {', '.join(map(str, near))}"
        )
