"""Blocks as marks on modules; what they mean for a program is tested with the strategies."""

from __future__ import annotations

import copy
import pickle
from typing import Any, List

import poptorch
import pytest
import torch
from torch import Tensor, nn


class Shared(nn.Module):
    """Calls one layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(self.first(x)))
        return out


def blocks_of(model: nn.Module) -> List[List[str]]:
    options = poptorch.Options()
    options.setExecutionStrategy(poptorch.PipelinedExecution(poptorch.AutoStage.AutoIncrement))
    options.deviceIterations(4)
    executor = poptorch.inferenceModel(model, options)
    executor.compile(torch.ones(4, 2))
    return [stage.blocks for stage in executor.program.stages]


def test_models_with_blocks_can_be_pickled_and_copied() -> None:
    model = Shared()
    poptorch.BeginBlock(model.first, "a", 0)
    poptorch.BeginBlock(model.second, "b", 1)
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert blocks_of(twin) == [["a"], ["b"]]
        with pytest.raises(poptorch.Error, match="already been assigned"):
            poptorch.BeginBlock(twin.first, "c", 0)
        poptorch.removeBlocks(twin)
        assert blocks_of(twin) == [[]]
    assert blocks_of(model) == [["a"], ["b"]]


def test_unnamed_blocks_keep_the_number_they_get() -> None:
    model = Shared()
    poptorch.BeginBlock(model.first, ipu_id=0)
    poptorch.BeginBlock(model.second, ipu_id=1)
    assert blocks_of(model) == [["0"], ["1"]]


def test_removing_blocks_leaves_other_hooks() -> None:
    model, seen = Shared(), []  # type: ignore[var-annotated]
    model.first.register_forward_pre_hook(lambda module, inputs: seen.append(module))
    poptorch.BeginBlock(model.first, "a", 0)
    poptorch.removeBlocks(model)
    model(torch.ones(2))
    assert seen == [model.first] * 2
    with pytest.raises(AssertionError, match="takes a module, not list"):
        poptorch.removeBlocks([model])


@pytest.mark.parametrize("marked", [nn.ReLU(), torch.relu])
def test_rule_5_1_anything_callable_can_begin_a_block(marked: Any) -> None:
    begun = poptorch.BeginBlock(marked, "a", 0)
    assert (begun is marked) is isinstance(marked, nn.Module)
    assert torch.equal(begun(torch.tensor([-1.0, 1.0])), torch.tensor([0.0, 1.0]))
    with pytest.raises(poptorch.Error, match="takes a module or another callable, not int"):
        poptorch.BeginBlock(3)
