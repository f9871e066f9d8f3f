"""Settings to data loaders: which images, which transform, how many processes.

PopTorch's loader shuffles nothing here, and cuts nothing into parts of processes: the samples know their
own order and process (`ipu_vit.data.samples`), so every item is the next image that this process has.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any, Optional

import poptorch
from torch.utils.data import Dataset

from ipu_vit.data.mixing import build_mixing
from ipu_vit.data.samples import EvaluationSamples, Sample, TrainingSamples, worker_init
from ipu_vit.data.source import Source
from ipu_vit.data.transforms import evaluation_transform, training_transform
from ipu_vit.settings import Settings


def training_loader(
    settings: Settings, options: Any, source: Source, first_update: int, unreadable_log: Optional[Path] = None
) -> Any:
    """This process's part of host batches, from a weight update on to the end of the run.

    Batches are (uint8 images, labels), and mixing if it is on. The options tell which process this is.
    """
    pipeline, distributed = settings.pipeline, options.Distributed
    samples = TrainingSamples(
        source,
        training_transform(settings),
        image_size=settings.model.image_size,
        seed=settings.seed,
        global_batch=pipeline.global_batch,
        first_update=first_update,
        last_update=settings.schedule.updates,
        process=distributed.processId,
        processes=distributed.numProcesses,
        turn=options.replication_factor * pipeline.micro_batch,
        repeats=settings.augmentation.repeats,
        mixing=build_mixing(settings.augmentation, settings.model.image_size),
        unreadable_log=unreadable_log,
    )
    per_call = pipeline.batch_plan().host_batch // distributed.numProcesses // pipeline.micro_batch
    return _loader(options, samples, pipeline.micro_batch, per_call, settings)


def evaluation_loader(settings: Settings, options: Any, source: Source, unreadable_log: Optional[Path] = None) -> Any:
    """This process's part of host batches that hold every image once and end in padding with label −1."""
    micro_batch, distributed = settings.evaluation.micro_batch, options.Distributed
    per_call = options.device_iterations * options.replication_factor
    samples = EvaluationSamples(
        source,
        evaluation_transform(settings),
        image_size=settings.model.image_size,
        pad_to=micro_batch * per_call,
        process=distributed.processId,
        processes=distributed.numProcesses,
        skip_unreadable=settings.data.skip_unreadable,
        unreadable_log=unreadable_log,
    )
    return _loader(options, samples, micro_batch, per_call, settings)


def _loader(options: Any, samples: Dataset[Sample], micro_batch: int, per_call: int, settings: Settings) -> Any:
    """PopTorch's loader: in this process without workers, else ahead of it in others.

    `per_call` micro batches are handed over in a call of the device.
    """
    workers = min(settings.data.workers, _cores())  # more of them take memory and give nothing
    if workers == 0:
        return poptorch.DataLoader(options, samples, batch_size=micro_batch, auto_distributed_partitioning=False)
    most = _shared_memory() // (3 * workers) // (3 * settings.model.image_size**2 * micro_batch)
    return poptorch.DataLoader(
        options,
        samples,
        batch_size=micro_batch,
        num_workers=workers,
        mode=poptorch.DataLoaderMode.AsyncRebatched,
        auto_distributed_partitioning=False,
        rebatched_worker_size=micro_batch * max(1, min(PIECE, per_call, most)),
        worker_init_fn=worker_init,
        async_options={"early_preload": True, "load_indefinitely": False},
    )


PIECE = 4
"""Micro batches that a worker hands over at once: a piece costs something whatever its size. Three fit in its share."""


def _shared_memory() -> int:
    """Bytes that are free for pieces on their way; containers often have 64 MiB only."""
    try:
        return shutil.disk_usage("/dev/shm").free
    except OSError:  # macOS has no such limit
        return sys.maxsize


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
