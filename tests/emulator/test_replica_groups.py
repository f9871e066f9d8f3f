"""Weights that groups of replicas have for themselves, against each group trained alone by plain PyTorch."""

from __future__ import annotations

from typing import Any, List, Tuple

import poptorch
import pytest
import torch
from emulator_models import options
from torch import Tensor, nn

ALL, CONSECUTIVE = poptorch.CommGroupType.All, poptorch.CommGroupType.Consecutive
ORTHOGONAL, EACH = poptorch.CommGroupType.Orthogonal, poptorch.CommGroupType.NoGrouping
ONE, EVERY = poptorch.VariableRetrievalMode.OnePerGroup, poptorch.VariableRetrievalMode.AllReplicas
REPLICAS = 4
# Type and size, and the group of each of four replicas.
GROUPINGS = [
    (EACH, 0, [0, 1, 2, 3]),
    (CONSECUTIVE, 1, [0, 1, 2, 3]),
    (CONSECUTIVE, 2, [0, 0, 1, 1]),
    (ORTHOGONAL, 2, [0, 1, 0, 1]),
    (CONSECUTIVE, 4, [0, 0, 0, 0]),
    (ALL, 0, [0, 0, 0, 0]),
]


class Grouped(nn.Module):
    """A product with a weight that groups have for themselves, and one that all replicas share."""

    def __init__(self, groups: int, shared: bool = True) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(groups)
        self.own = nn.Parameter(torch.randn(groups, 3, 2, generator=generator))
        self.shared = nn.Parameter(torch.randn(2, generator=generator)) if shared else None

    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        out = x @ self.own
        if self.shared is not None:
            out = torch.tanh(out) * self.shared
        return out, poptorch.identity_loss(out.pow(2).mean(), "none")


def inputs(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed))


def grouped_trainer(model: nn.Module, kind: Any, size: int, opts: Any, optimizer: Any, retrieval: Any = ONE) -> Any:
    executor = poptorch.trainingModel(model, opts, optimizer)
    executor.own.replicaGrouping(kind, size, retrieval)
    return executor


def parts_of(x: Tensor, accumulation: int, iterations: int) -> List[List[List[Tensor]]]:
    """Micro batches by device iteration and replica, read off an executor that returns its input."""

    class Echo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(REPLICAS, 1))

        def forward(self, x: Tensor) -> Tuple[Tensor, Tensor]:
            return x, poptorch.identity_loss((x[:, :1] * self.weight).mean(), "none")

    # Which replica sees which micro batch shows in the gradients of a weight that each has for itself.
    model = Echo()
    opts = options(replicas=REPLICAS, accumulation=accumulation)
    executor = poptorch.trainingModel(model, opts, torch.optim.SGD(model.parameters(), lr=1.0))
    executor.weight.replicaGrouping(EACH, 0, ONE)
    count = REPLICAS * accumulation
    replica_of = []
    for position in range(count):
        mark = torch.zeros(count, 1)
        mark[position] = 1
        executor.load_state_dict({"weight": torch.ones(REPLICAS, 1)})
        executor(mark)
        replica_of.append(int((model.weight.detach() != 1).flatten().nonzero()))
    sizes = x.split(len(x) // (iterations * count))
    parts: List[List[List[Tensor]]] = [[[] for _ in range(REPLICAS)] for _ in range(iterations)]
    for position, part in enumerate(sizes):
        parts[position // count][replica_of[position % count]].append(part)
    return parts


@pytest.mark.parametrize("kind, size, groups", GROUPINGS)
def test_groups_train_as_if_each_were_alone(kind: Any, size: int, groups: List[int]) -> None:
    """Weight, momentum and decay of a group are those of plain training on its replicas' micro batches."""
    accumulation, iterations, count = 2, 2, max(groups) + 1
    model = Grouped(count, shared=False)
    opts = options(replicas=REPLICAS, accumulation=accumulation, iterations=iterations)
    hyper = {"lr": 0.3, "momentum": 0.9, "weight_decay": 0.01}
    executor = grouped_trainer(model, kind, size, opts, poptorch.optim.SGD(model.parameters(), **hyper))
    twins = [nn.Parameter(value.clone().double()) for value in model.own.detach()]
    optimizers = [torch.optim.SGD([twin], **hyper) for twin in twins]
    for call in range(2):
        x = inputs(2 * REPLICAS * accumulation * iterations, call)
        executor(x)
        for parts in parts_of(x, accumulation, iterations):
            for group, (twin, optimizer) in enumerate(zip(twins, optimizers)):
                mine = [part for replica in range(REPLICAS) if groups[replica] == group for part in parts[replica]]
                optimizer.zero_grad()
                (sum((part.double() @ twin).pow(2).mean() for part in mine) / len(mine)).backward()  # type: ignore[union-attr]
                optimizer.step()
    torch.testing.assert_close(model.own.detach().double(), torch.stack([twin.detach() for twin in twins]))


@pytest.mark.parametrize("kind, size, groups", GROUPINGS)
def test_gradients_of_shared_weights_come_from_all_replicas(kind: Any, size: int, groups: List[int]) -> None:
    model = Grouped(max(groups) + 1)
    opts = options(replicas=REPLICAS)
    executor = grouped_trainer(model, kind, size, opts, torch.optim.SGD(model.parameters(), lr=0.5))
    own, shared = (nn.Parameter(value.detach().clone().double()) for value in (model.own, model.shared))
    x = inputs(3 * REPLICAS)
    outputs, losses = executor(x)
    plain = torch.cat([torch.tanh(part.double() @ own[group]) * shared for part, group in zip(x.split(3), groups)])
    torch.testing.assert_close(outputs.double(), plain.detach())
    torch.testing.assert_close(losses.double(), plain.detach().pow(2).view(REPLICAS, -1).mean(1))
    plain.pow(2).mean().backward()
    assert own.grad is not None and shared.grad is not None
    # The mean over one group's replicas is that over all, times the number of groups.
    torch.testing.assert_close(model.own.detach().double(), own.detach() - 0.5 * own.grad * (max(groups) + 1))
    torch.testing.assert_close(model.shared.detach().double(), shared.detach() - 0.5 * shared.grad)


def test_inference_gives_each_replica_its_own() -> None:
    model = Grouped(2)
    executor = poptorch.inferenceModel(model, options(replicas=REPLICAS))
    executor.own.replicaGrouping(ORTHOGONAL, 2, ONE)
    assert model.shared is not None
    x = inputs(REPLICAS)
    outputs, _ = executor(x)
    expected = [torch.tanh(row @ model.own[group]) * model.shared for row, group in zip(x, [0, 1, 0, 1])]
    torch.testing.assert_close(outputs, torch.stack(expected))


def test_a_grouping_is_its_executors_alone() -> None:
    """Another executor of the same module sees the whole weight."""
    model = Grouped(1)
    first = poptorch.inferenceModel(model, options(replicas=2))
    first.own.replicaGrouping(ALL, 0, ONE)
    x = inputs(2)
    outputs, _ = first(x)
    whole, _ = poptorch.inferenceModel(model, options(replicas=2))(x)
    assert outputs.shape == (2, 2) and whole.shape == (2, 1, 2)
    with pytest.raises(AttributeError, match="replicaGrouping"):
        model.own.replicaGrouping(ALL, 0, ONE)


def test_values_of_groups_travel_between_host_and_device() -> None:
    model = Grouped(2)
    executor = grouped_trainer(
        model, CONSECUTIVE, 2, options(replicas=REPLICAS), torch.optim.SGD(model.parameters(), lr=0.0)
    )
    executor(inputs(REPLICAS))
    before = model.own.detach().clone()
    executor.copyWeightsToHost()
    assert torch.equal(model.own.detach(), before)
    state = {**model.state_dict(), "own": torch.stack([before[1], before[0]])}
    executor.load_state_dict(state)
    executor.copyWeightsToHost()
    assert torch.equal(model.own.detach(), state["own"])


@pytest.mark.parametrize("make", [poptorch.optim.SGD, poptorch.optim.Adam])
def test_the_state_of_groups_can_be_saved_and_loaded(make: Any) -> None:
    """Training on from a saved state equals training on without a stop."""
    hyper = {"momentum": 0.9} if make is poptorch.optim.SGD else {}
    straight, first, second = Grouped(2), Grouped(2), Grouped(2)

    def trainer(model: nn.Module) -> Tuple[Any, Any]:
        optimizer = make(model.parameters(), lr=0.1, **hyper)
        return grouped_trainer(model, ORTHOGONAL, 2, options(replicas=REPLICAS), optimizer), optimizer

    straight_executor, _ = trainer(straight)
    executor, optimizer = trainer(first)
    for call in range(2):
        straight_executor(inputs(8, call))
        executor(inputs(8, call))
    state = optimizer.state_dict()
    shapes = {name: tuple(value.shape) for name, value in state["ipu_state"].items()}
    assert shapes["Accl1___own"] == (2, 3, 2) and shapes["Accl1___shared"] == (2,)
    assert not torch.equal(*state["ipu_state"]["Accl1___own"])
    second.load_state_dict(first.state_dict())
    executor, optimizer = trainer(second)
    optimizer.load_state_dict(state)
    for call in range(2, 4):
        straight_executor(inputs(8, call))
        executor(inputs(8, call))
    executor.copyWeightsToHost()
    straight_executor.copyWeightsToHost()
    for name, value in straight.state_dict().items():
        assert torch.equal(second.state_dict()[name], value)


def test_a_state_of_other_groups_does_not_load() -> None:
    model = Grouped(2)
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    executor = grouped_trainer(model, ORTHOGONAL, 2, options(replicas=REPLICAS), optimizer)
    executor(inputs(4))
    state = optimizer.state_dict()
    for name, value in (("Accl1___own", torch.zeros(4, 3, 2)), ("Accl1___other", torch.zeros(2))):
        wrong = {**state, "ipu_state": {**state["ipu_state"], name: value}}
        with pytest.raises(RuntimeError, match=f"{name} .*fits no parameter"):
            optimizer.load_state_dict(wrong)


def test_halves_of_groups_are_rounded_independently() -> None:
    """Two groups with the same weights and data round at random, each for itself."""
    model = Grouped(2, shared=False)
    with torch.no_grad():
        model.own.copy_(torch.ones_like(model.own))
    model.half()
    opts = options(replicas=2)
    opts.Precision.enableStochasticRounding(True)
    executor = grouped_trainer(model, EACH, 0, opts, poptorch.optim.SGD(model.parameters(), lr=1e-4))
    executor(torch.ones(2, 3).half())
    assert not torch.equal(model.own[0], model.own[1])


@pytest.mark.parametrize(
    "kind, size, retrieval, match",
    [
        (CONSECUTIVE, 3, ONE, "Groups of 3 replicas do not divide"),
        (ORTHOGONAL, 0, ONE, "Groups of 0 replicas"),
        (EACH, 0, ONE, "for 4 groups .* must be 4"),
        (CONSECUTIVE, 2, EVERY, "AllReplicas brings back 4 values"),
        (1, 2, ONE, "takes a poptorch.CommGroupType"),
        (CONSECUTIVE, 2, 0, "VariableRetrievalMode"),
    ],
)
def test_groupings_that_do_not_fit(kind: Any, size: int, retrieval: Any, match: str) -> None:
    executor = poptorch.inferenceModel(Grouped(2), options(replicas=REPLICAS))
    executor.own.replicaGrouping(kind, size, retrieval)
    with pytest.raises(poptorch.Error, match=match):
        executor.compile(inputs(REPLICAS))


def test_every_replica_may_be_asked_for_when_each_is_a_group() -> None:
    model = Grouped(REPLICAS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    grouped_trainer(model, EACH, 0, options(replicas=REPLICAS), optimizer, EVERY)(inputs(REPLICAS))
    assert len({tuple(value.flatten().tolist()) for value in model.own}) == REPLICAS


@pytest.mark.parametrize("clips", [True, False])
def test_what_depends_on_all_weights_is_left_out(clips: bool) -> None:
    model = Grouped(2).half()
    opts = options(replicas=REPLICAS)
    opts.Training.setAutomaticLossScaling(not clips)
    values = {"max_grad_norm": 1.0} if clips else {}
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.1, **values)
    with pytest.raises(poptorch.Error, match="max_grad_norm or automatic loss scaling"):
        grouped_trainer(model, CONSECUTIVE, 2, opts, optimizer).compile(inputs(REPLICAS).half())
