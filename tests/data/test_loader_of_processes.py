"""The loaders of several processes share the images between them, once, whatever their workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, List

import poptorch
import pytest
import torch
from tiny_runs import CPU, settings_of, tiny_preset

from ipu_vit.data.loader import evaluation_loader, training_loader
from ipu_vit.data.sources import open_sources
from ipu_vit.distributed import Processes
from ipu_vit.options import evaluation_options, training_options

TRAINING = ("pipeline.replicas=4", "pipeline.global_batch=24", "pipeline.device_iterations=2", "schedule.updates=8")


def one_of(size: int, rank: int) -> Processes:
    process = Processes()
    process.size, process.rank = size, rank
    return process


def batches(loader: Any) -> List[List[torch.Tensor]]:
    found = [[tensor.clone() for tensor in batch] for batch in loader]
    loader.terminate()
    return found


@pytest.mark.parametrize("workers", [0, 1])
def test_a_host_batch_is_that_of_one_process(tmp_path: Path, workers: int) -> None:
    """Each process's part has, for each step of each update, the micro batches of its replicas in a row."""
    settings = settings_of(tiny_preset(tmp_path), *TRAINING, f"data.workers={workers}")
    source = open_sources(settings).training

    def loaded(size: int, rank: int) -> List[List[torch.Tensor]]:
        return batches(training_loader(settings, training_options(settings, CPU, one_of(size, rank)), source, 4))

    (whole, *more), parts = loaded(1, 0), [loaded(2, rank) for rank in range(2)]
    assert len(more) + 1 == len(parts[0]) == len(parts[1]) == 2  # host batches of the 4 updates that are left
    for tensor, *own in zip(whole, *(part[0] for part in parts)):
        steps = [part.view(6, 4, *part.shape[1:]) for part in own]
        assert torch.equal(torch.cat(steps, dim=1).flatten(0, 1), tensor)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_image_is_evaluated_by_one_process(tmp_path: Path, size: int, workers: int) -> None:
    settings = settings_of(tiny_preset(tmp_path), f"data.workers={workers}")
    source = open_sources(settings).validation
    labels = []
    for rank in range(size):
        options = evaluation_options(settings, CPU, one_of(size, rank))
        found = batches(evaluation_loader(settings, options, source))
        labels.append(torch.cat([answers for _, answers in found]))
    assert len({len(part) for part in labels}) == 1
    padded = [source.label(index) for index in range(7)] + [-1] * 99
    assert torch.cat(labels).tolist() == padded[: sum(map(len, labels))]


def test_poptorch_itself_would_cut_too() -> None:
    """Which is why it is told not to: left alone, the loader of the second process begins in the middle."""
    options = poptorch.Options()
    options.Distributed.configureProcessId(1, 2)
    (batch,) = next(iter(poptorch.DataLoader(options, torch.utils.data.TensorDataset(torch.arange(8)))))
    assert batch.tolist() == [4]
