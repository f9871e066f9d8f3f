"""The average of weights against its closed form and timm's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch
from torch import Tensor, nn

from ipu_vit.averaging import WeightAverage
from ipu_vit.checkpoint import Checkpoint, Checkpoints

DECAY = 0.9


def trajectory(updates: int) -> List[Dict[str, Tensor]]:
    """Weights on a random walk."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(updates + 1, 5, generator=generator, dtype=torch.float64)
    return [{"weight": weights} for weights in steps.cumsum(0)]


def averaged(weights: List[Dict[str, Tensor]], every: int) -> WeightAverage:
    average = WeightAverage(weights[0], DECAY)
    for update in range(every, len(weights), every):
        average.add(weights[update], update)
    return average


def test_each_update_counts_by_its_age() -> None:
    weights = trajectory(30)
    expected = DECAY**30 * weights[0]["weight"]
    for update in range(1, 31):
        expected = expected + (1 - DECAY) * DECAY ** (30 - update) * weights[update]["weight"]
    torch.testing.assert_close(averaged(weights, 1).weights["weight"].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("every", [2, 5, 30])
def test_looking_seldom_keeps_the_horizon(every: int) -> None:
    """As if the weights had jumped to where they are seen: each sight counts for all updates since the last."""
    weights = trajectory(30)
    jumping = [weights[-(-update // every) * every] for update in range(31)]
    seldom, always = averaged(weights, every), averaged(jumping, 1)
    torch.testing.assert_close(seldom.weights, always.weights, rtol=1e-5, atol=1e-5)
    assert seldom.update == always.update == 30


def test_every_update_is_timms() -> None:
    timm = pytest.importorskip("timm.utils")
    model = nn.Linear(5, 1, bias=False)
    weights = [{"weight": each["weight"].float().view(1, 5)} for each in trajectory(20)]
    model.load_state_dict(weights[0])
    theirs = timm.ModelEmaV2(model, decay=DECAY)
    for each in weights[1:]:
        model.load_state_dict(each)
        theirs.update(model)
    torch.testing.assert_close(averaged(weights, 1).weights, dict(theirs.module.state_dict()), rtol=1e-5, atol=1e-6)


def test_half_weights_are_averaged_in_single() -> None:
    """A step of 1/10,000 of the way is below half's resolution, and would never add up."""
    average = WeightAverage({"weight": torch.ones(1).half()}, 0.9999)
    for update in range(1, 1001):
        average.add({"weight": torch.full((1,), 2.0).half()}, update)
    assert float(average.weights["weight"]) == pytest.approx(2 - 0.9999**1000, rel=1e-4)


def test_weights_it_was_made_of_may_change() -> None:
    weight = torch.ones(3)
    average = WeightAverage({"weight": weight}, DECAY)
    weight.fill_(7.0)
    assert average.weights["weight"].tolist() == [1, 1, 1]


def test_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    weights = trajectory(20)
    whole, first = averaged(weights, 2), averaged(weights[:11], 2)
    checkpoints = Checkpoints(tmp_path, keep=1)
    state: Dict[str, Any] = {"average": first.state_dict()}
    checkpoints.save(Checkpoint(update=10, model={}, optimizer=state, rng_state=[]))
    kept = checkpoints.latest()
    assert kept is not None
    second = WeightAverage(weights[0], DECAY)
    second.load_state_dict(kept.optimizer["average"])
    for update in range(12, 21, 2):
        second.add(weights[update], update)
    assert torch.equal(second.weights["weight"], whole.weights["weight"]) and second.update == 20
