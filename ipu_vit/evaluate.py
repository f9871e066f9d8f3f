"""Exact evaluation: every validation image once, padding masked out."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Optional

import numpy as np
import poptorch
from torch import Tensor

from ipu_vit.agreement import check_program
from ipu_vit.build import build_model, start_together
from ipu_vit.data.loader import evaluation_loader
from ipu_vit.data.lost_workers import naming_lost_workers
from ipu_vit.data.samples import NO_LABEL, check_readable
from ipu_vit.data.source import Source
from ipu_vit.data.sources import open_validation
from ipu_vit.device import Device
from ipu_vit.distributed import ALONE, Processes
from ipu_vit.options import evaluation_options
from ipu_vit.parallel import place
from ipu_vit.report import Report, gather_unreadable, show_unreadable
from ipu_vit.scores import ClassScore, RealLabels, Score, score_of, worst_classes
from ipu_vit.settings import Settings
from ipu_vit.steps import EvaluationStep
from ipu_vit.weights.atomic import replacing

# Of what a class is taken for, so much is in the table; all of it is in the file.
_SHOWN = 3


class Evaluator:
    """Scores weights on the validation images, with a model and an executor of its own."""

    def __init__(
        self,
        settings: Settings,
        device: Device,
        source: Source,
        unreadable_log: Optional[Path] = None,
        processes: Processes = ALONE,
    ) -> None:
        self._settings = settings
        self._source = source
        self._unreadable_log = unreadable_log
        real = settings.evaluation.real_labels
        self._real = RealLabels(real, source, settings.model.classes) if real else None
        self._processes = processes
        self._options = evaluation_options(settings, device, processes)
        self._model = build_model(settings).eval()
        place(self._model, settings.pipeline)
        self._step = EvaluationStep(self._model, settings).eval()
        self._executor: Any = poptorch.inferenceModel(self._step, self._options)

    def score(self, weights: Dict[str, Tensor], report: Report, host_batches: Optional[int] = None) -> Score:
        """Evaluate these weights, on all images or on those of the first few host batches of each process."""
        self._model.load_state_dict(weights)
        if self._executor.isCompiled():
            self._executor.attachToDevice()  # with the weights that the model now has
        with naming_lost_workers(self._settings.data.workers):
            loader = evaluation_loader(self._settings, self._options, self._source, self._unreadable_log)
        total = min(len(loader), host_batches or len(loader))
        found = np.full((len(loader), loader.combinedBatchSize, 1 + self._step.best), NO_LABEL)  # label, then classes
        try:
            with naming_lost_workers(self._settings.data.workers), report.progress("evaluating", total):
                for number, (images, answers) in enumerate(loader):
                    if number == total:
                        break
                    check_readable(answers, self._unreadable_log)
                    found[number, :, 0] = answers.numpy()
                    found[number, :, 1:] = self._executor(images).numpy()
                    report.advance(number + 1)
        finally:
            loader.terminate()
        self._executor.detachFromDevice()
        parts = self._processes.gather(found.tobytes())
        every = np.concatenate([np.frombuffer(part, found.dtype).reshape(-1, found.shape[-1]) for part in parts])
        every = every[: len(self._source)]  # the rest is padding
        return score_of(every[:, 1:], every[:, 0], self._real)


def evaluate(settings: Settings, device: Device, scores: Optional[Path] = None, processes: Processes = ALONE) -> Score:
    """The `evaluate` command: score the weights that the settings name, and write a JSON file of it if asked to."""
    report = Report() if processes.is_first else Report.silent()
    check_program(processes, settings, device)
    with processes.first_goes_ahead():
        source = open_validation(settings)
    model = build_model(settings)
    with tempfile.TemporaryDirectory(prefix="ipu_vit-") as scratch:
        unreadable = Path(scratch) / "unreadable.txt"
        evaluator = Evaluator(settings, device, source, unreadable, processes)
        report.say(start_together(processes, model, settings))
        score = evaluator.score(model.state_dict(), report)
        gather_unreadable(processes, unreadable)
        show_unreadable(report, unreadable)
    worst = worst_classes(score, source.classes, settings.evaluation.worst_classes)
    if worst:
        _show_worst(report, worst)
    report.say(str(score))
    if scores is not None and processes.is_first:
        _write(score, worst, settings, scores)
    return score


def _show_worst(report: Report, worst: List[ClassScore]) -> None:
    rows = [
        [
            f"{100 * entry.accuracy:.1f} %",
            entry.name,
            str(entry.images),
            ", ".join(f"{name} ({number})" for name, number in entry.taken_for[:_SHOWN]),
        ]
        for entry in worst
    ]
    report.table("worst classes", ["accuracy", "class", "images", "taken for"], rows, words=(1, 3))


def _write(score: Score, worst: List[ClassScore], settings: Settings, path: Path) -> None:
    content: Dict[str, Any] = {"weights": settings.weights, **score.figures()}
    if worst:
        content["worst_classes"] = [{**entry._asdict(), "taken_for": dict(entry.taken_for)} for entry in worst]
    with replacing(str(path)) as file:
        file.write(json.dumps(content, indent=2).encode() + b"\n")
