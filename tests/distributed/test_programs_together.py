"""PopTorch programs in several processes train as plain PyTorch does on all their data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict

import pytest
import torch
from launching import launch
from torch import nn
from train_together import ACCUMULATION, TOTAL, UPDATES, Model, examples

PROGRAM = str(Path(__file__).with_name("train_together.py"))
Weights = Dict[str, Dict[str, torch.Tensor]]


def saved(folder: Path, processes: int) -> Weights:
    launch(processes, "-m", "ipu_vit.emulator", PROGRAM, str(folder), str(TOTAL // processes))
    found: Weights = torch.load(folder / f"{processes}.pt")
    return found


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Dict[int, Weights]:
    """What 3 processes with a replica each have trained, and one with 3."""
    folder = tmp_path_factory.mktemp("programs")
    return {processes: saved(folder, processes) for processes in (1, 3)}


def plain(optimizer: Any, share: float = 1.0, clip: float = float("inf")) -> Dict[str, torch.Tensor]:
    """The same in float64: the gradient is the mean of all micro batches', times a number."""
    model = Model().double()
    steps = optimizer(model.parameters())
    x, y = (tensor.view(UPDATES, -1, *tensor.shape[1:]) for tensor in examples().tensors)
    for images, labels in zip(x.double(), y):
        steps.zero_grad()
        (nn.functional.cross_entropy(model.layers(images), labels) * share).backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        steps.step()
    return dict(model.state_dict())


def sgd(parameters: Any) -> Any:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, reference",
    [
        ("sgd", lambda: plain(sgd)),
        ("combined", lambda: plain(sgd)),
        ("sum", lambda: plain(sgd, TOTAL * ACCUMULATION)),
        ("adamw", lambda: plain(lambda parameters: torch.optim.AdamW(parameters, 0.01, weight_decay=0.1), clip=0.3)),
    ],
)
def test_processes_train_on_all_data_together(weights: Dict[int, Weights], name: str, reference: Any) -> None:
    for key, expected in reference().items():
        torch.testing.assert_close(weights[3][name][key].double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sgd", "combined", "sum", "adamw", "dropout"])
def test_a_replica_alone_does_what_it_does_among_others(weights: Dict[int, Weights], name: str) -> None:
    """It draws the same random numbers too."""
    for key, expected in weights[1][name].items():
        torch.testing.assert_close(weights[3][name][key], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_dropout_matters_here(weights: Dict[int, Weights]) -> None:
    assert any((tensor - weights[3]["sgd"][key]).abs().max() > 0.01 for key, tensor in weights[3]["dropout"].items())
