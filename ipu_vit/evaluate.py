"""Exact evaluation: every validation image once, padding masked out."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional

import numpy as np
import poptorch
import torch
from torch import Tensor

from ipu_vit.build import build_model, start_from_weights
from ipu_vit.data.loader import evaluation_loader, open_sources
from ipu_vit.data.samples import NO_LABEL, check_readable
from ipu_vit.data.source import Source
from ipu_vit.device import Device
from ipu_vit.errors import UserError
from ipu_vit.options import evaluation_options
from ipu_vit.parallel import place
from ipu_vit.report import Report, show_unreadable
from ipu_vit.settings import Settings
from ipu_vit.steps import EvaluationStep


@dataclass(frozen=True)
class Score:
    """The result of one evaluation. Accuracies are shares of the images that were counted."""

    top1: float
    top5: float
    images: int
    predictions: np.ndarray  # class of each image, in the order of the source

    def __str__(self) -> str:
        return (
            f"Valid Accuracy: {self.top1:.5f} (top-1 {100 * self.top1:.2f} %, top-5 {100 * self.top5:.2f} %, "
            f"{self.images} images)"
        )


class Evaluator:
    """Scores weights on the validation images, with a model and an executor of its own."""

    def __init__(
        self, settings: Settings, device: Device, source: Source, unreadable_log: Optional[Path] = None
    ) -> None:
        self._settings = settings
        self._source = source
        self._unreadable_log = unreadable_log
        self._options = evaluation_options(settings, device)
        self._model = build_model(settings).eval()
        place(self._model, settings.pipeline)
        self._executor: Any = poptorch.inferenceModel(EvaluationStep(self._model, settings).eval(), self._options)

    def score(self, weights: Dict[str, Tensor], report: Report, host_batches: Optional[int] = None) -> Score:
        """Evaluate these weights, on all images or on those of the first few host batches."""
        self._model.load_state_dict(weights)
        if self._executor.isCompiled():
            self._executor.attachToDevice()  # with the weights that the model now has
        loader = evaluation_loader(self._settings, self._options, self._source, self._unreadable_log)
        total = min(len(loader), host_batches or len(loader))
        best: List[Tensor] = []
        labels: List[Tensor] = []
        try:
            with report.progress("evaluating", total):
                for number, (images, answers) in enumerate(loader):
                    if number == total:
                        break
                    check_readable(answers, self._unreadable_log)
                    best.append(self._executor(images).long())
                    labels.append(answers.clone())  # an asynchronous loader overwrites what it yielded
                    report.advance(number + 1)
        finally:
            loader.terminate()
        self._executor.detachFromDevice()
        return _score(torch.cat(best), torch.cat(labels).long(), len(self._source))


def _score(best: Tensor, labels: Tensor, images: int) -> Score:
    """Score predictions, best class first (N, 5), against labels (N,) of which some are padding."""
    right = best == labels[:, None]
    counted = labels != NO_LABEL
    count = int(counted.sum())
    if not count:
        raise UserError("data.root holds no validation image that can be read, so there is nothing to score")
    return Score(
        top1=float(right[counted, 0].sum()) / count,
        top5=float(right[counted].any(dim=1).sum()) / count,
        images=count,
        predictions=best[:images, 0].numpy(),
    )


def evaluate(settings: Settings, device: Device) -> Score:
    """The `evaluate` command: score the weights that the settings name."""
    report = Report()
    source = open_sources(settings).validation
    model = build_model(settings)
    report.say(start_from_weights(model, settings))
    with tempfile.TemporaryDirectory(prefix="ipu_vit-") as scratch:
        unreadable = Path(scratch) / "unreadable.txt"
        score = Evaluator(settings, device, source, unreadable).score(model.state_dict(), report)
        show_unreadable(report, unreadable)
    report.say(str(score))
    return score
