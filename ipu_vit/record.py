"""What a run leaves behind, and tells while it runs: all of it by process 0."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Dict, Optional, Sequence

from torch import Tensor

from ipu_vit.checkpoint import Checkpoint, Checkpoints
from ipu_vit.data.source import Source
from ipu_vit.device import Device
from ipu_vit.models.image_model import ImageModel
from ipu_vit.optim import DTYPES
from ipu_vit.pictures import draw_predictions
from ipu_vit.report import HostStep, Report, show_unreadable
from ipu_vit.run_folder import RunFolder, make_folder, writing
from ipu_vit.scores import Score
from ipu_vit.settings import Settings
from ipu_vit.tracking.tracker import Tracker
from ipu_vit.weights.writers import write_weights


class Silence:
    """In place of a record, of a process that tells nothing: only names of unreadable images are kept for a while."""

    def __init__(self) -> None:
        self.report = Report.silent()
        self._scratch = tempfile.TemporaryDirectory(prefix="ipu_vit-")
        self.unreadable = Path(self._scratch.name) / "unreadable.txt"

    def latest(self) -> Optional[Checkpoint]:
        """The checkpoint to continue from, if there is one."""
        return None

    def begin(self, device: Device, model: ImageModel, resumed: Optional[Checkpoint]) -> None:
        """Get ready for figures."""

    def host_step(self, step: HostStep) -> None:
        """Tell the figures of a host step."""

    def score(self, update: int, score: Score) -> None:
        """Tell the score after an update."""

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint to continue from."""

    def save_best(self, checkpoint: Checkpoint) -> None:
        """Write the checkpoint with the best validation accuracy so far."""

    def finish(self, update: int, score: Score, validation: Source, weights: Optional[Dict[str, Tensor]]) -> None:
        """Write the result, and what it looks like; the weights too if they are to be exported."""

    def close(self) -> None:
        self._scratch.cleanup()


class Record(Silence):
    """The run's folder with all that comes into it, and the console."""

    def __init__(self, settings: Settings, classes: Sequence[str]) -> None:
        """Raises UserError if the folder is of another run, in use, or cannot be written."""
        self._settings = settings
        self.folder = RunFolder(settings)
        if settings.export is not None:
            make_folder(Path(settings.export).parent, "export")
        self.folder.write_labels(classes)
        self.report = Report(self.folder.log)
        if not self.folder.locked:
            self.report.say("this file system has no locks: see to it that no other run writes to the same output")
        self.unreadable = self.folder.unreadable
        self._checkpoints = Checkpoints(self.folder.checkpoints, settings.checkpoint.keep)
        self._tracker: Optional[Tracker] = None

    def latest(self) -> Optional[Checkpoint]:
        return self._checkpoints.latest(self.report.say)

    def begin(self, device: Device, model: ImageModel, resumed: Optional[Checkpoint]) -> None:
        self._tracker = Tracker(self._settings, self.folder, device, model, resumed)

    @property
    def tracker(self) -> Tracker:
        assert self._tracker is not None
        return self._tracker

    def host_step(self, step: HostStep) -> None:
        self.report.host_step(step)
        self.tracker.host_step(step)

    def score(self, update: int, score: Score) -> None:
        self.report.say(f"After update {update}: {score}")
        self.tracker.score(update, score)

    def save(self, checkpoint: Checkpoint) -> None:
        self._checkpoints.save(checkpoint)
        self.tracker.checkpoint(checkpoint)

    def save_best(self, checkpoint: Checkpoint) -> None:
        self._checkpoints.save_best(checkpoint)

    def finish(self, update: int, score: Score, validation: Source, weights: Optional[Dict[str, Tensor]]) -> None:
        settings, report = self._settings, self.report
        if settings.evaluation.pictures:
            with writing(self.folder.pictures):
                draw_predictions(validation, score.predictions, settings.evaluation.pictures, self.folder.pictures)
            self.tracker.predictions(update, self.folder.pictures.read_bytes())
            report.say(f"predictions drawn in {self.folder.pictures}")
        if settings.export is not None and weights is not None:
            precision, model = DTYPES[settings.export_precision], settings.model
            write_weights("google", weights, settings.export, model.heads, model.norm_epsilon, precision)
            report.say(f"weights written to {settings.export}")
        show_unreadable(report, self.unreadable)
        self.folder.write_result({"update": update, **score.figures()})

    def close(self) -> None:
        if self._tracker is not None:
            self._tracker.close()
        self.report.close()
        self.folder.close()
