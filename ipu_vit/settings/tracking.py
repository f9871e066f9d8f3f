"""Settings of where the figures of a run go, besides its log and its TensorBoard files."""

from __future__ import annotations

from typing import Optional

from pydantic import Field

from ipu_vit.settings.section import Section


class TrackingSettings(Section):
    """Who else is told how a run is going."""

    csv: bool = Field(False, description="write steps.csv, a row for each host step")
    wandb: Optional[str] = Field(None, min_length=1, description="project of Weights & Biases to show the run in")
