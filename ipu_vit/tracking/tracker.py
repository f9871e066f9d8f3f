"""The figures of a run on their way: from the loop to everything that takes them.

`train/…` comes with every host step, `validation/…` with every evaluation, `health/…` with every
checkpoint. A run that continues goes on where its checkpoint was, everywhere.
"""

from __future__ import annotations

from typing import Dict, List, Optional

from torch import Tensor

from ipu_vit.checkpoint import Checkpoint
from ipu_vit.device import Device
from ipu_vit.models.image_model import ImageModel
from ipu_vit.report import PIPELINE_COLUMNS, HostStep, pipeline_rows
from ipu_vit.run_folder import RunFolder
from ipu_vit.scores import Score
from ipu_vit.settings import Settings
from ipu_vit.tracking.about import write_about
from ipu_vit.tracking.events import EventFile
from ipu_vit.tracking.files import PREFIX, CsvFile, FiguresFile, is_scored
from ipu_vit.tracking.norms import health
from ipu_vit.tracking.sink import Sink
from ipu_vit.tracking.wandb_run import WandbRun


class Tracker:
    """Tells TensorBoard, the figures of the run's page, and whoever `tracking` names."""

    def __init__(
        self, settings: Settings, folder: RunFolder, device: Device, model: ImageModel, resumed: Optional[Checkpoint]
    ) -> None:
        """Raises UserError if the folder cannot be written, or what `tracking` names is not installed."""
        update = resumed.update if resumed else 0
        self._optimizer = settings.optimizer
        self._weights: Optional[Dict[str, Tensor]] = resumed.model if resumed else None
        # A finished run that is started again only repeats its last score.
        self._finished = update == settings.schedule.updates and is_scored(folder.path, update)
        self._sinks: List[Sink] = [] if settings.tracking.wandb is None else [WandbRun(settings, folder.path)]
        self._sinks += [EventFile(folder.path / "tensorboard", update), FiguresFile(folder.path, update)]
        if settings.tracking.csv:
            self._sinks.append(CsvFile(folder.path, update))
        columns, *rows = pipeline = [PIPELINE_COLUMNS, *pipeline_rows(model, settings.pipeline.layers_per_ipu)]
        if not self._finished:
            write_about(folder.path, device, pipeline)
        if not update:
            for sink in self._sinks:
                sink.text("pipeline", _markdown([columns, ["---"] * len(columns), *rows]))

    def host_step(self, step: HostStep) -> None:
        """The figures of one host call."""
        self._tell(step.update, {PREFIX + name: value for name, value in step.figures().items()})

    def score(self, update: int, score: Score) -> None:
        """The accuracies after that update."""
        names = ("top1", "top5", "real")
        self._tell(update, {f"validation/{name}": value for name, value in score.figures().items() if name in names})

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """The norms that the weights and the optimizer's state tell."""
        self._tell(checkpoint.update, health(checkpoint, self._weights, self._optimizer))
        self._weights = checkpoint.model

    def predictions(self, update: int, png: bytes) -> None:
        """A picture of validation images with their predictions."""
        if not self._finished:
            for sink in self._sinks:
                sink.picture(update, "predictions", png)

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()

    def _tell(self, update: int, values: Dict[str, float]) -> None:
        if not self._finished:
            for sink in self._sinks:
                sink.figures(update, values)


def _markdown(rows: List[List[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
