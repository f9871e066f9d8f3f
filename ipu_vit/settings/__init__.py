"""The settings of a run: what may be set, its type, its default and its meaning.

Reading presets and overrides is `ipu_vit.config`'s work; this package only says what a complete,
consistent set of settings is. Every class is frozen, refuses unknown keys, and states its
cross-field rules where the fields are.
"""

from __future__ import annotations

from ipu_vit.settings.augmentation import AugmentationSettings
from ipu_vit.settings.data import DataSettings
from ipu_vit.settings.model import ModelSettings
from ipu_vit.settings.optimisation import AveragingSettings, LossSettings, OptimizerSettings, ScheduleSettings
from ipu_vit.settings.pipeline import PipelineSettings
from ipu_vit.settings.run import CheckpointSettings, EvaluationSettings, Settings
from ipu_vit.settings.section import Section, accepted_values
from ipu_vit.settings.tracking import TrackingSettings

__all__ = [
    "AugmentationSettings",
    "AveragingSettings",
    "CheckpointSettings",
    "DataSettings",
    "EvaluationSettings",
    "LossSettings",
    "ModelSettings",
    "OptimizerSettings",
    "PipelineSettings",
    "ScheduleSettings",
    "Section",
    "Settings",
    "TrackingSettings",
    "accepted_values",
]
