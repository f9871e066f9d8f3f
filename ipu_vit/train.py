"""Training, top to bottom: open the run, build the pipeline, loop over host steps, evaluate, save."""

from __future__ import annotations

import math
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Dict, Generator, Iterator, List, Optional, Sequence

import poptorch
import torch

from ipu_vit.averaging import WeightAverage
from ipu_vit.build import build_model, start_from_weights
from ipu_vit.checkpoint import Checkpoint, Checkpoints
from ipu_vit.data.loader import training_loader
from ipu_vit.data.lost_workers import LostWorker, naming_lost_workers
from ipu_vit.data.samples import check_readable
from ipu_vit.data.sources import open_sources
from ipu_vit.device import Device
from ipu_vit.divergence import collapsed_loss_scale, not_finite
from ipu_vit.errors import UserError
from ipu_vit.evaluate import Evaluator
from ipu_vit.layout import changes, check_updates_left, layout_of
from ipu_vit.optim import DTYPES, build_optimizer, set_learning_rate
from ipu_vit.options import training_options
from ipu_vit.parallel import place
from ipu_vit.pictures import draw_predictions
from ipu_vit.report import HostStep, Report, show_plan, show_unreadable
from ipu_vit.run_folder import RunFolder, make_folder, writing
from ipu_vit.schedules import learning_rate
from ipu_vit.scores import Score
from ipu_vit.settings import Settings
from ipu_vit.signals import Terminated, Termination
from ipu_vit.steps import TrainingStep
from ipu_vit.tracking.tracker import Tracker
from ipu_vit.weights.writers import write_weights


def train(settings: Settings, device: Device) -> Optional[Score]:
    """Train from the settings' weights, or continue the run in the output folder.

    Returns the final score, or nothing if SIGTERM has ended the run before.
    Raises UserError when data, weights or the output folder are not usable, or the loss diverges.
    """
    trainer = Trainer(settings, device)
    with closing(trainer.folder), closing(trainer.report), closing(trainer.tracker):
        try:
            with trainer.termination:
                trainer.run()
                return trainer.conclude()
        except (Terminated, LostWorker):
            if not trainer.termination.requested:
                raise
            trainer.report.say(f"ended by SIGTERM; {trainer.kept()}; the same command continues the run")
            return None


class Trainer:
    """One run: the model on its device, and how far it has come."""

    def __init__(self, settings: Settings, device: Device) -> None:
        self.settings = settings
        self.plan = settings.pipeline.batch_plan()
        self.sources = open_sources(settings)
        self.model = build_model(settings).train()
        loaded = start_from_weights(self.model, settings)
        self.folder = RunFolder(settings)
        if settings.export is not None:
            make_folder(Path(settings.export).parent, "export")
        self.folder.write_labels(self.sources.training.classes)
        self.report = Report(self.folder.log)
        shrunk = ", shrunk to a tiny model, generated images and a few updates," if settings.shrink else ""
        self.report.say(f"{settings.name}{shrunk} on {device.kind} ({device.reason}), output in {self.folder.path}")
        self.report.say(loaded)
        if not self.folder.locked:
            self.report.say("this file system has no locks: see to it that no other run writes to the same output")
        show_plan(self.report, settings, self.model, len(self.sources.training))

        place(self.model, settings.pipeline)
        self.options = training_options(settings, device)
        self.optimizer = build_optimizer(self.model, settings.optimizer, learning_rate(settings.schedule, 0))
        self.checkpoints = Checkpoints(self.folder.checkpoints, settings.checkpoint.keep)
        self.resumed = self.checkpoints.latest(self.report.say)
        self.termination = Termination()
        self.update = 0
        self.best_accuracy: Optional[float] = None
        decay = settings.averaging.decay
        self.other_layout: List[str] = []
        self.average = WeightAverage(self.model.state_dict(), decay) if decay else None
        if self.resumed is not None:
            self._take_over(self.resumed)
        self.tracker = Tracker(settings, self.folder, device, self.model, self.resumed)
        step = TrainingStep(self.model, settings).train()
        self.executor: Any = poptorch.trainingModel(step, self.options, self.optimizer)
        self.evaluator = Evaluator(settings, device, self.sources.validation, self.folder.unreadable)

    def _take_over(self, checkpoint: Checkpoint) -> None:
        self.update, self.best_accuracy = checkpoint.update, checkpoint.best_accuracy
        self.model.load_state_dict(checkpoint.model)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        if self.average is not None and checkpoint.average is not None:
            self.average.load_state_dict(checkpoint.average)
        updates = self.settings.schedule.updates
        self.report.say(
            f"continuing after update {self.update} of {updates}"
            if self.update < updates
            else f"all {updates} updates are done already; fresh=true trains anew"
        )
        check_updates_left(self.settings, self.update)
        self.other_layout = changes(self.settings, checkpoint.layout)
        if self.other_layout:
            # Random states are of one layout. Another seed, for the numbers of the beginning not to come again.
            self.options.randomSeed((self.settings.seed + self.update) % 2**31)
            self.report.say(f"with {', '.join(self.other_layout)}: the same run within rounding, not to the last bit")

    # The loop ---------------------------------------------------------------------------------

    def run(self) -> None:
        """All weight updates that are left; SIGTERM ends it after a host step, all saved."""
        updates = self.settings.schedule.updates
        with self.termination.deferred(), closing(self.host_steps()) as steps, self.report.progress(
            "training", updates, self.update
        ):
            for step in steps:
                self.report.host_step(step)
                self.tracker.host_step(step)
                if self.average is not None and self._is_due(self.settings.averaging.every):
                    self.executor.copyWeightsToHost()
                    self.average.add(self.model.state_dict(), self.update)
                if self._is_due(self.settings.evaluation.every) and self.update < updates:
                    self.evaluate()
                if self._is_due(self.settings.checkpoint.every):
                    self.save()
                if self.termination.requested:
                    break
            if self.executor.isCompiled() and self.update not in self.checkpoints.updates():
                self.save()

    def host_steps(self) -> Generator[HostStep, None, None]:
        """Run host batches until the schedule ends, yielding the figures of each."""
        schedule, plan = self.settings.schedule, self.plan
        if self.update == schedule.updates:
            return
        with naming_lost_workers(self.settings.data.workers):
            loader = training_loader(
                self.settings, self.options, self.sources.training, self.update, self.folder.unreadable
            )
        try:
            started = time.perf_counter()
            for batch in self._batches(loader):
                check_readable(batch[1], self.folder.unreadable)
                if not self.executor.isCompiled():
                    self._compile(batch)
                lr = learning_rate(schedule, self.update)
                set_learning_rate(self.optimizer, lr)
                self.executor.setOptimizer(self.optimizer)
                called = time.perf_counter()
                loss, accuracy = (float(value.float().mean()) for value in self.executor(*batch))
                seconds = time.perf_counter() - started
                self._check_loss(loss)
                self.update += plan.device_iterations
                yield HostStep(
                    epoch=self.update * plan.global_batch / len(self.sources.training),
                    update=self.update,
                    updates=schedule.updates,
                    lr=lr,
                    loss=loss,
                    accuracy=accuracy,
                    images_per_second=plan.host_batch / seconds,
                    seconds=seconds,
                    waiting=(called - started) / seconds,
                )
                started = time.perf_counter()
        finally:
            loader.terminate()

    def _batches(self, loader: Any) -> Iterator[Any]:
        """What a loader yields; none any more once SIGTERM has come to its workers too, as schedulers send it."""
        try:
            with naming_lost_workers(self.settings.data.workers):
                yield from loader
        except LostWorker:
            if not self.termination.requested:
                raise

    def _compile(self, batch: Sequence[torch.Tensor]) -> None:
        started = time.perf_counter()
        self.report.say("compiling")
        self.executor.compile(*batch)
        if self.resumed is not None and not self.other_layout:
            self.executor.rng_state = self.resumed.rng_state
        self.report.say(f"compiled in {time.perf_counter() - started:.1f} s")

    def _is_due(self, every: int) -> bool:
        """Whether the last host step went past a multiple of `every` updates."""
        return every > 0 and self.update % every < self.plan.device_iterations

    # Evaluating and saving --------------------------------------------------------------------

    def evaluate(self) -> Score:
        """Score the weights on the device, keeping the checkpoint if they are the best so far."""
        checkpoint = self.checkpoint()
        if self.executor.isCompiled():
            self.executor.detachFromDevice()
        score = self.evaluator.score(self.final_weights(checkpoint), self.report)
        if self.executor.isCompiled():
            self.executor.attachToDevice()
        self.report.say(f"After update {self.update}: {score}")
        self.tracker.score(self.update, score)
        if self.best_accuracy is None or score.top1 > self.best_accuracy:
            self.best_accuracy = score.top1
            self.checkpoints.save_best(checkpoint)
        return score

    def save(self) -> None:
        """Write a checkpoint to continue from."""
        checkpoint = self.checkpoint()
        self.checkpoints.save(checkpoint)
        self.tracker.checkpoint(checkpoint)

    def checkpoint(self) -> Checkpoint:
        """The state of the run as of now; raises UserError if it has diverged."""
        if not self.executor.isCompiled():
            assert self.resumed is not None  # a run that has nothing left to do
            return self.resumed
        self.executor.copyWeightsToHost()
        model = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        lost = not_finite(model)
        if lost is not None:
            raise UserError(self._diverged(f"{lost} is no longer finite after update {self.update}"))
        optimizer = self.optimizer.state_dict()
        scale = collapsed_loss_scale(optimizer, self.settings.optimizer.loss_scaling)
        if scale is not None:
            raise UserError(
                self._diverged(f"the automatic loss scale has fallen to {scale:.2g} after update {self.update}")
            )
        return Checkpoint(
            update=self.update,
            model=model,
            optimizer=optimizer,
            rng_state=list(self.executor.rng_state),
            best_accuracy=self.best_accuracy,
            average=None if self.average is None else self.average.state_dict(),
            layout=layout_of(self.settings),
        )

    def final_weights(self, checkpoint: Checkpoint) -> Dict[str, torch.Tensor]:
        """The weights that count in the end: the average, if there is one."""
        return checkpoint.model if checkpoint.average is None else checkpoint.average["weights"]

    def _check_loss(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise UserError(self._diverged(f"the loss of update {self.update + 1} is {loss}"))

    def kept(self) -> str:
        """The checkpoint that the run can go on from, in words."""
        saved = self.checkpoints.updates()
        return f"the checkpoint of update {saved[-1]} is kept" if saved else "no checkpoint had been saved"

    def _diverged(self, what: str) -> str:
        optimizer, schedule = self.settings.optimizer, self.settings.schedule
        return (
            f"Training has diverged: {what}; {self.kept()}; try a value below schedule.lr={schedule.lr} or "
            f"optimizer.loss_scaling={optimizer.loss_scaling}"
        )

    def conclude(self) -> Score:
        """The final score, the picture, and what is left to tell."""
        score = self.evaluate()
        settings, report = self.settings, self.report
        if settings.evaluation.pictures:
            with writing(self.folder.pictures):
                draw_predictions(
                    self.sources.validation, score.predictions, settings.evaluation.pictures, self.folder.pictures
                )
            self.tracker.predictions(self.update, self.folder.pictures.read_bytes())
            report.say(f"predictions drawn in {self.folder.pictures}")
        if settings.export is not None:
            precision = DTYPES[settings.export_precision]
            weights, model = self.final_weights(self.checkpoint()), settings.model
            write_weights("google", weights, settings.export, model.heads, model.norm_epsilon, precision)
            report.say(f"weights written to {settings.export}")
        show_unreadable(report, self.folder.unreadable)
        self.folder.write_result({"update": self.update, **score.figures()})
        return score
