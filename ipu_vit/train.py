"""Training, top to bottom: open the run, build the pipeline, loop over host steps, evaluate, save."""

from __future__ import annotations

import json
import math
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Dict, Generator, Iterator, List, Optional, Sequence

import poptorch
import torch

from ipu_vit.agreement import check_program, check_state
from ipu_vit.averaging import WeightAverage
from ipu_vit.build import build_model, start_together
from ipu_vit.checkpoint import Checkpoint, share
from ipu_vit.data.loader import training_loader
from ipu_vit.data.lost_workers import LostWorker, naming_lost_workers
from ipu_vit.data.samples import check_readable
from ipu_vit.data.sources import open_sources
from ipu_vit.device import Device
from ipu_vit.distributed import ALONE, LostProcess, Processes
from ipu_vit.divergence import collapsed_loss_scale, not_finite
from ipu_vit.errors import UserError
from ipu_vit.evaluate import Evaluator
from ipu_vit.layout import changes, check_updates_left, layout_of
from ipu_vit.optim import build_optimizer, set_learning_rate
from ipu_vit.options import training_options
from ipu_vit.parallel import place
from ipu_vit.record import Record, Silence
from ipu_vit.report import HostStep, gather_unreadable, show_plan
from ipu_vit.schedules import learning_rate
from ipu_vit.scores import Score
from ipu_vit.settings import Settings
from ipu_vit.signals import Terminated, Termination
from ipu_vit.steps import TrainingStep


def train(settings: Settings, device: Device, processes: Processes = ALONE) -> Optional[Score]:
    """Train from the settings' weights, or continue the run in the output folder.

    Returns the final score, or nothing if SIGTERM has ended the run before.
    Raises UserError when data, weights or the output folder are not usable, the loss diverges, or a
    process is lost.
    """
    check_program(processes, settings, device)
    trainer = Trainer(settings, device, processes)
    with closing(trainer.record):
        try:
            with trainer.termination:
                trainer.run()
                return trainer.conclude()
        except (Terminated, LostWorker):
            if not trainer.termination.heard:
                raise
            trainer.report.say(f"ended by SIGTERM; {trainer.kept()}; the same command continues the run")
            return None
        except processes.lost as error:
            raise LostProcess(
                f"another process has ended; {trainer.kept()}; the same command continues the run"
            ) from error


class Trainer:
    """One run: the model on its device, and how far it has come."""

    def __init__(self, settings: Settings, device: Device, processes: Processes = ALONE) -> None:
        self.settings = settings
        self.processes = processes
        self.plan = settings.pipeline.batch_plan()
        with processes.first_goes_ahead():
            self.sources = open_sources(settings)
        self.model = build_model(settings).train()
        loaded = start_together(processes, self.model, settings)
        self.record = Record(settings, self.sources.training.classes) if processes.is_first else Silence()
        self.report = self.record.report
        shrunk = ", shrunk to a tiny model, generated images and a few updates," if settings.shrink else ""
        output = Path(settings.output).absolute()
        self.report.say(f"{settings.name}{shrunk} on {device.kind} ({device.reason}), output in {output}")
        self.report.say(loaded)
        show_plan(self.report, settings, self.model, len(self.sources.training), processes)

        place(self.model, settings.pipeline)
        self.options = training_options(settings, device, processes)
        self.optimizer = build_optimizer(self.model, settings.optimizer, learning_rate(settings.schedule, 0))
        self.termination = Termination(processes)
        self.update = 0
        self.saved: Optional[int] = None  # the update of the last checkpoint
        self.best_accuracy: Optional[float] = None
        decay = settings.averaging.decay
        self.other_layout: List[str] = []
        self.average = WeightAverage(self.model.state_dict(), decay) if decay else None
        self.resumed = share(self.record.latest(), processes)
        if self.resumed is not None:
            self._take_over(self.resumed)
        self.record.begin(device, self.model, self.resumed)
        step = TrainingStep(self.model, settings).train()
        self.executor: Any = poptorch.trainingModel(step, self.options, self.optimizer)
        self.evaluator = Evaluator(settings, device, self.sources.validation, self.record.unreadable, processes)

    def _take_over(self, checkpoint: Checkpoint) -> None:
        self.update = self.saved = checkpoint.update
        self.best_accuracy = checkpoint.best_accuracy
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
        self.other_layout = changes(self.settings, checkpoint.layout, self.processes.size)
        if self.other_layout:
            # Random states are of one layout. Another seed, for the numbers of the beginning not to come again.
            self.options.randomSeed((self.settings.seed + self.update) % 2**31)
            self.report.say(f"with {', '.join(self.other_layout)}: the same run within rounding, not to the last bit")
        check_state(self.processes, self.model.state_dict())

    # The loop ---------------------------------------------------------------------------------

    def run(self) -> None:
        """All weight updates that are left; SIGTERM ends it after a host step, all saved."""
        updates = self.settings.schedule.updates
        with self.termination.deferred(), closing(self.host_steps()) as steps, self.report.progress(
            "training", updates, self.update
        ):
            for step in steps:
                self.record.host_step(step)
                if self.average is not None and self._is_due(self.settings.averaging.every):
                    self.executor.copyWeightsToHost()
                    self.average.add(self.model.state_dict(), self.update)
                if self._is_due(self.settings.evaluation.every) and self.update < updates:
                    self.evaluate()
                if self._is_due(self.settings.checkpoint.every):
                    self.save()
            if self.executor.isCompiled() and self.saved != self.update:
                self.save()
            gather_unreadable(self.processes, self.record.unreadable)

    def host_steps(self) -> Generator[HostStep, None, None]:
        """Run host batches until the schedule ends, yielding the figures of each."""
        schedule, plan = self.settings.schedule, self.plan
        if self.update == schedule.updates:
            return
        with naming_lost_workers(self.settings.data.workers):
            loader = training_loader(
                self.settings, self.options, self.sources.training, self.update, self.record.unreadable
            )
        try:
            batches = self._batches(loader)
            while self.update < schedule.updates:
                started = time.perf_counter()
                batch = next(batches, None)
                if batch is not None:
                    check_readable(batch[1], self.record.unreadable)
                # From here on to the figures nobody may be missing, for devices add up gradients by themselves.
                if self.termination.agreed(batch is None) or batch is None:
                    return
                if not self.executor.isCompiled():
                    self._compile(batch)
                lr = learning_rate(schedule, self.update)
                set_learning_rate(self.optimizer, lr)
                self.executor.setOptimizer(self.optimizer)
                called = time.perf_counter()
                loss, accuracy = (float(value.float().mean()) for value in self.executor(*batch))
                now = time.perf_counter()
                totals = self.processes.sum(loss, accuracy, now - started, called - started)
                loss, accuracy, seconds, waiting = (total / self.processes.size for total in totals)
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
                    waiting=waiting / seconds,
                )
        finally:
            loader.terminate()

    def _batches(self, loader: Any) -> Iterator[Any]:
        """What a loader yields; none any more once SIGTERM has come to its workers too, as schedulers send it."""
        try:
            with naming_lost_workers(self.settings.data.workers):
                yield from loader
        except LostWorker:
            if not self.termination.heard:
                raise

    def _compile(self, batch: Sequence[torch.Tensor]) -> None:
        started = time.perf_counter()
        self.report.say("compiling")
        self.executor.compile(*batch)
        if self.resumed is not None and not self.other_layout:
            states, share = self.resumed.rng_state, len(self.resumed.rng_state) // self.processes.size
            self.executor.rng_state = states[self.processes.rank * share :][:share]
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
        self.record.score(self.update, score)
        if self.best_accuracy is None or score.top1 > self.best_accuracy:
            self.best_accuracy = score.top1
            self.record.save_best(checkpoint)
        return score

    def save(self) -> None:
        """Write a checkpoint to continue from."""
        self.record.save(self.checkpoint())
        self.saved = self.update

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
            rng_state=self._random_states(),
            best_accuracy=self.best_accuracy,
            average=None if self.average is None else self.average.state_dict(),
            layout=layout_of(self.settings, self.processes.size),
        )

    def _random_states(self) -> List[int]:
        """Those of all processes' devices, one after the other."""
        states = self.processes.gather(json.dumps(list(self.executor.rng_state)).encode())
        return [number for state in states for number in json.loads(state)]

    def final_weights(self, checkpoint: Checkpoint) -> Dict[str, torch.Tensor]:
        """The weights that count in the end: the average, if there is one."""
        return checkpoint.model if checkpoint.average is None else checkpoint.average["weights"]

    def _check_loss(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise UserError(self._diverged(f"the loss of update {self.update + 1} is {loss}"))

    def kept(self) -> str:
        """The checkpoint that the run can go on from, in words."""
        return (
            "no checkpoint had been saved" if self.saved is None else f"the checkpoint of update {self.saved} is kept"
        )

    def _diverged(self, what: str) -> str:
        optimizer, schedule = self.settings.optimizer, self.settings.schedule
        return (
            f"Training has diverged: {what}; {self.kept()}; try a value below schedule.lr={schedule.lr} or "
            f"optimizer.loss_scaling={optimizer.loss_scaling}"
        )

    def conclude(self) -> Score:
        """The final score, and what is left to tell."""
        score = self.evaluate()
        gather_unreadable(self.processes, self.record.unreadable)
        weights = None if self.settings.export is None else self.final_weights(self.checkpoint())
        self.record.finish(self.update, score, self.sources.validation, weights)
        return score
