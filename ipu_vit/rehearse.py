"""A rehearsal: everything a run does, once, where nobody could train.

Without IPUs a full-size model takes minutes for a single weight update. So the settings, the data
and the weights are checked, the layers placed, the pipeline compiled; then one complete weight
update, a small evaluation and a checkpoint's way to the disk and back are carried out with the very
code that runs on the hardware. The verdict says what was checked, what was missing, and what only
hardware can tell.
"""

from __future__ import annotations

import math
import resource
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, List, Tuple

import poptorch
import torch

from ipu_vit.agreement import check_program
from ipu_vit.build import build_model, start_together
from ipu_vit.checkpoint import Checkpoint, Checkpoints, read_checkpoint
from ipu_vit.data.loader import training_loader
from ipu_vit.data.samples import check_readable
from ipu_vit.data.sources import Sources, open_sources
from ipu_vit.device import Device
from ipu_vit.distributed import ALONE, Processes
from ipu_vit.divergence import not_finite
from ipu_vit.errors import UserError
from ipu_vit.evaluate import Evaluator
from ipu_vit.models.image_model import ImageModel
from ipu_vit.optim import build_optimizer
from ipu_vit.options import training_options
from ipu_vit.parallel import place
from ipu_vit.report import Report, show_plan
from ipu_vit.schedules import learning_rate
from ipu_vit.settings import Settings
from ipu_vit.steps import TrainingStep


@dataclass
class Verdict:
    """What a rehearsal found out."""

    checked: List[str] = field(default_factory=list)
    missing: List[str] = field(default_factory=list)
    open: List[str] = field(default_factory=list)

    def show(self, report: Report) -> None:
        report.say("")
        for title, lines in (("checked", self.checked), ("missing", self.missing), ("only IPUs can tell", self.open)):
            if lines:
                report.say(f"{title}:")
                for line in lines:
                    report.say(f"  {line}")


def rehearse(settings: Settings, device: Device, processes: Processes = ALONE) -> Verdict:
    """Carry out one weight update, an evaluation and a save; raises UserError for what would stop a run."""
    check_program(processes, settings, device)
    report, verdict = Report() if processes.is_first else Report.silent(), Verdict()
    started = time.perf_counter()
    report.say(
        f"Rehearsal of {settings.name} on {device.kind} ({device.reason}): one weight update, nothing is trained; "
        "rehearse=never trains here"
    )
    verdict.checked.append("settings: every value, and that layers, batches and image sizes fit together")
    with processes.first_goes_ahead():
        settings, sources = _find_data(settings, verdict)
    model = build_model(settings).train()
    _find_weights(model, settings, verdict, processes)
    for line in verdict.missing:
        report.say(f"! {line}")
    show_plan(report, settings, model, len(sources.training), processes)

    place(model, settings.pipeline)
    optimizer = build_optimizer(model, settings.optimizer, learning_rate(settings.schedule, settings.schedule.warmup))
    step = TrainingStep(model, settings).train()
    executor: Any = poptorch.trainingModel(step, training_options(settings, device, processes), optimizer)
    _one_update(settings, device, sources, executor, report, verdict, processes)
    checkpoint = Checkpoint(
        settings.pipeline.device_iterations,
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        optimizer.state_dict(),
        list(executor.rng_state),
    )
    executor.detachFromDevice()
    lost = not_finite(checkpoint.model)
    if lost is not None:
        raise UserError(
            f"{lost} is no longer finite after the first update; try a value below "
            f"optimizer.loss_scaling={settings.optimizer.loss_scaling}"
        )
    _few_images(Evaluator(settings, device, sources.validation, None, processes), checkpoint, report, verdict)
    if processes.is_first:
        _save_and_reload(checkpoint, verdict)

    verdict.open = [
        "whether each IPU's memory holds its stage with these available_memory_proportion values",
        "images/s, and the time PopART takes to compile",
        "the accuracy that the whole run reaches",
    ]
    verdict.show(report)
    report.say(
        f"The rehearsal of {settings.name} has passed in {(time.perf_counter() - started) / 60:.1f} minutes, with "
        f"{_peak_memory() / 2**30:.1f} GiB of memory at most."
    )
    return verdict


def _find_data(settings: Settings, verdict: Verdict) -> Tuple[Settings, Sources]:
    """The settings' images, or generated ones if the settings leave them open."""
    if not settings.data.root and not settings.data.is_random:
        verdict.missing.append("data: data.root is not set, so the images are generated and the loss means nothing")
        settings = settings.model_copy(update={"data": settings.data.model_copy(update={"source": "generated"})})
        return settings, open_sources(settings)
    sources = open_sources(settings)
    verdict.checked.append(
        f"data: {len(sources.training):,} training and {len(sources.validation):,} validation images found in "
        f"{settings.data.root or 'the generator'}, those of one update read"
    )
    return settings, sources


def _find_weights(model: ImageModel, settings: Settings, verdict: Verdict, processes: Processes) -> None:
    if settings.weights == "":
        verdict.missing.append("weights: not set, so the model starts from random initial values")
    else:
        verdict.checked.append(start_together(processes, model, settings).replace("\n", "; "))


def _one_update(
    settings: Settings,
    device: Device,
    sources: Sources,
    executor: Any,
    report: Report,
    verdict: Verdict,
    processes: Processes,
) -> None:
    plan = settings.pipeline.batch_plan()
    loader = training_loader(settings, executor.options, sources.training, 0)
    batch = [tensor.clone() for tensor in next(iter(loader))]
    loader.terminate()
    check_readable(batch[1], None)
    processes.any(False)  # whoever cannot go on says so here, before devices wait for each other
    started = time.perf_counter()
    executor.compile(*batch)
    verdict.checked.append(
        f"pipeline: traced and compiled in {time.perf_counter() - started:.1f} s, "
        f"{len(settings.pipeline.layers_per_ipu)} stages, accumulation {plan.accumulation}"
    )
    micro_batches = plan.accumulation * plan.replicas * plan.device_iterations // processes.size
    started = time.perf_counter()

    def show(done: int, total: int) -> None:
        rate = done * plan.micro_batch * processes.size / (time.perf_counter() - started)
        report.advance(done, f"{rate:.1f} images/s")
        if not report.console.is_terminal and (done == total or done % max(1, total // 8) == 0):
            report.say(f"  micro batch {done} of {total}, {rate:.2f} images/s")

    report.say(f"one weight update of {plan.host_batch} images")
    with report.progress("updating", micro_batches), device.micro_batch_progress(show):
        losses = executor(*batch)[0].float()
    loss = processes.sum(float(losses.mean()))[0] / processes.size
    if not math.isfinite(loss):
        raise UserError(
            f"The loss of the first update is {loss}; try a value below optimizer.loss_scaling="
            f"{settings.optimizer.loss_scaling}"
        )
    verdict.checked.append(
        f"training: one update of {plan.host_batch} images in {time.perf_counter() - started:.0f} s, loss {loss:.4f}"
    )


def _few_images(evaluator: Evaluator, checkpoint: Checkpoint, report: Report, verdict: Verdict) -> None:
    score = evaluator.score(checkpoint.model, report, host_batches=1)
    verdict.checked.append(f"evaluation: {score.images} images scored")


def _save_and_reload(checkpoint: Checkpoint, verdict: Verdict) -> None:
    with tempfile.TemporaryDirectory(prefix="ipu_vit-") as scratch:
        path = Checkpoints(Path(scratch) / "checkpoints", keep=1).save(checkpoint)
        size = path.stat().st_size
        back = read_checkpoint(path)
    same = (
        back.update == checkpoint.update
        and back.rng_state == checkpoint.rng_state
        and all(torch.equal(back.model[name], tensor) for name, tensor in checkpoint.model.items())
        and all(
            torch.equal(back.optimizer["ipu_state"][name], tensor)
            for name, tensor in checkpoint.optimizer["ipu_state"].items()
        )
    )
    if not same:
        raise RuntimeError("a checkpoint came back from the disk changed")
    verdict.checked.append(f"checkpoint: {size / 2**20:.0f} MiB saved and read back, equal to the last bit")


def _peak_memory() -> int:
    """Bytes that this process has held at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
