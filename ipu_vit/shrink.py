"""Shrinking a run: the same path through the same code, in seconds and without images or weights.

What a run is made of stays: the kind of model and its parts, the stages of the pipeline, replicas,
accumulation, number formats, optimizer, the shape of the schedule, loss, mixing, averaging, checkpoints.
Sizes become about as small as the rules of the settings let them. Nothing heavy is imported.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import Any, Container, Dict

from ipu_vit.batching import least_accumulation
from ipu_vit.settings import Settings
from ipu_vit.settings.model import pixels_per_feature

UPDATES = 4
"""Weight updates of a shrunk run: a warm-up, something between, and an end."""


def shrunk(settings: Settings, kept: Container[str]) -> Dict[str, Any]:
    """What changes, by dotted names, when a run is shrunk; names in `kept` do not, and others adapt to them."""
    run = _Shrinking(settings, kept)
    _shrink_layers(run)
    _shrink_model(run)
    _shrink_batches(run)
    _shrink_data(run)
    _shrink_schedule(run)
    _shrink_rest(run)
    return run.small


class _Shrinking:
    """Settings as far as they have been shrunk; setting one that is to be kept does nothing."""

    def __init__(self, settings: Settings, kept: Container[str]) -> None:
        self.small: Dict[str, Any] = {}
        self._settings, self._kept = settings, kept

    def __getitem__(self, name: str) -> Any:
        return self.small[name] if name in self.small else reduce(getattr, name.split("."), self._settings)

    def __setitem__(self, name: str, value: Any) -> None:
        if name not in self._kept:
            self.small[name] = value

    def keeps(self, name: str) -> bool:
        return name in self._kept


def _shrink_layers(run: _Shrinking) -> None:
    """One layer on each IPU that has any, so that every stage remains."""
    if not run.keeps("model.depth"):
        run["pipeline.layers_per_ipu"] = [min(layers, 1) for layers in run["pipeline.layers_per_ipu"]]
        run["model.depth"] = sum(run["pipeline.layers_per_ipu"])


def _shrink_model(run: _Shrinking) -> None:
    run["model.heads"] = min(run["model.heads"], 2)
    run["model.width"] = 16 * run["model.heads"]
    run["model.mlp_width"] = 2 * run["model.width"]
    if run["model.kind"] == "mixer":
        run["model.tokens_mlp_width"] = 8
    if run["model.kind"] == "hybrid":
        run["model.resnet_depths"] = [1] * len(run["model.resnet_depths"])
        run["model.resnet_width"] = 32
    if run["model.representation"] is not None:
        run["model.representation"] = run["model.width"]
    run["model.patch_size"] = 1 if run["model.kind"] == "hybrid" else 4
    run["model.image_size"] = 2 * run["model.patch_size"] * pixels_per_feature(run["model.resnet_depths"])


def _shrink_batches(run: _Shrinking) -> None:
    """The fewest micro batches that fill the pipeline; two images each, so that they can be mixed."""
    run["pipeline.replicas"] = min(run["pipeline.replicas"], 2)
    run["pipeline.micro_batch"] = min(run["pipeline.micro_batch"], 2)
    run["pipeline.device_iterations"] = math.gcd(run["pipeline.device_iterations"], 2)
    accumulation = least_accumulation(len(run["pipeline.layers_per_ipu"]))
    run["pipeline.global_batch"] = run["pipeline.micro_batch"] * run["pipeline.replicas"] * accumulation
    run["pipeline.executable_cache"] = None


def _shrink_data(run: _Shrinking) -> None:
    run["data.source"] = "generated"
    if run["data.source"] == "generated":
        run["data.root"] = run["data.prepare"] = None
        run["data.generated_size"] = (3 * run["model.image_size"] // 2, 2 * run["model.image_size"])
        run["data.generated_images"] = 2 * run["pipeline.global_batch"]
        run["model.classes"] = min(run["model.classes"], 10)
    if run["data.crop_resize"] is not None:
        run["data.crop_resize"] = run["model.image_size"] + 1
    if run["data.evaluation_resize"] is not None:
        run["data.evaluation_resize"] = run["model.image_size"]
    run["data.workers"] = 0


def _shrink_schedule(run: _Shrinking) -> None:
    """The same shape over fewer updates: what there was of warm-up, milestones and cool-down is still there."""
    before, step = run["schedule.updates"], run["pipeline.device_iterations"]
    run["schedule.updates"] = max(step, min(before, UPDATES) // step * step)
    updates = run["schedule.updates"]

    def scaled(number: int) -> int:
        return max(1, round(number * updates / before)) if number else 0

    run["schedule.warmup"] = min(scaled(run["schedule.warmup"]), updates - 1)
    run["schedule.cooldown"] = min(scaled(run["schedule.cooldown"]), updates - run["schedule.warmup"])
    if run["schedule.curve"] == "warmup_then_steps":
        first, last = run["schedule.warmup"], updates - 1
        run["schedule.milestones"] = sorted({min(max(scaled(m), first), last) for m in run["schedule.milestones"]})
    if run["schedule.curve"] == "warmup_then_rsqrt":
        run["schedule.timescale"] = run["schedule.timescale"] * updates / before


def _shrink_rest(run: _Shrinking) -> None:
    run["averaging.every"] = 1
    run["evaluation.every"] = 0
    run["evaluation.micro_batch"] = 64  # of 8 × 8 pixels
    run["checkpoint.every"] = max(1, run["schedule.updates"] // 2)
    run["rehearse"] = "never"
    run["weights"] = run["export"] = None
    run["output"] = f"runs/{run['name']}_shrunk"
    run["name"] = f"{run['name']}_shrunk"
