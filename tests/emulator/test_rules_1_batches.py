"""Batches, outputs and static shapes: rules 1.1 to 1.14 against slices taken by hand."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List, Tuple

import numpy as np
import poptorch
import pytest
import torch
import torch.nn.functional as F
from emulator_models import Layers, data, inference, options, training
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_models import infer
from torch import Tensor, nn

MODES = poptorch.OutputMode
GROUPS = (poptorch.CommGroupType.Consecutive, poptorch.CommGroupType.Orthogonal)


# --- cutting and gathering ---------------------------------------------------------------------------


class RowsAndCount(nn.Module):
    """Returns rows, and a scalar, that tell which micro batch they come from; has a loss, to be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        loss = poptorch.identity_loss((self.weight * x).sum(), "none")
        return x * 10, x.sum(), loss


@dataclasses.dataclass
class Call:
    """How one call's host batch is cut: device iterations, replicas, input groups of replicas, accumulation."""

    iterations: int
    replicas: int
    group_size: int
    orthogonal: bool
    accumulation: int
    rows: int
    mode: Any
    period: int

    def executor(self) -> Any:
        opts = options(accumulation=self.accumulation, replicas=self.replicas, iterations=self.iterations)
        if self.group_size > 1:
            opts.inputReplicaGrouping(self.group_size, GROUPS[self.orthogonal])
        opts.outputMode(self.mode, self.period if self.mode == MODES.EveryN else None)
        model = RowsAndCount()
        if self.accumulation > 1:
            return training(model, opts, lr=0.0)
        return poptorch.inferenceModel(model, opts)

    @property
    def groups(self) -> int:
        return self.replicas // self.group_size

    def micro_batches(self, x: np.ndarray) -> List[List[np.ndarray]]:
        """What each replica sees, one after the other, by the order of the rules: iteration, step, group."""
        slices = np.split(x, self.iterations * self.accumulation * self.groups)
        turns = [slices[turn : turn + self.groups] for turn in range(0, len(slices), self.groups)]
        group = [r % self.groups if self.orthogonal else r // self.group_size for r in range(self.replicas)]
        return [[turn[group[replica]] for replica in range(self.replicas)] for turn in turns]

    def returned(self, results: List[List[np.ndarray]]) -> List[np.ndarray]:
        """Which of the results, by turn and replica, are returned, in their order."""
        if self.mode == MODES.Sum:
            return [sum(turn[replica] for turn in results) for replica in range(self.replicas)]
        kept = {
            MODES.All: results,
            MODES.Final: results[-1:],
            MODES.EveryN: results[self.period - 1 :: self.period],
        }[self.mode]
        return [result for turn in kept for result in turn]


@st.composite
def calls(draw: Any) -> Call:
    replicas = draw(st.sampled_from([1, 2, 4]))
    iterations = draw(st.integers(1, 4))
    return Call(
        iterations=iterations,
        replicas=replicas,
        group_size=draw(st.sampled_from([size for size in range(1, replicas + 1) if replicas % size == 0])),
        orthogonal=draw(st.booleans()),
        accumulation=draw(st.integers(1, 3)),
        rows=draw(st.integers(1, 3)),
        mode=draw(st.sampled_from([MODES.All, MODES.Final, MODES.EveryN, MODES.Sum])),
        period=draw(st.sampled_from([period for period in range(1, iterations + 1) if iterations % period == 0])),
    )


@settings(max_examples=150)
@given(calls())
def test_rule_1_3_and_1_4_rows_of_every_output_mode(call: Call) -> None:
    # Integers, so that sums are exact.
    x = np.arange(call.iterations * call.groups * call.accumulation * call.rows * 2, dtype=np.float32).reshape(-1, 2)
    rows, sums, losses = call.executor()(torch.from_numpy(x))
    batches = call.micro_batches(x)
    np.testing.assert_array_equal(rows, np.concatenate(call.returned([[10 * b for b in turn] for turn in batches])))
    scalars = call.returned([[b.sum() for b in turn] for turn in batches])
    for scalar in (sums, losses):
        assert scalar.shape == (() if len(scalars) == 1 else (len(scalars),))
        np.testing.assert_array_equal(scalar.reshape(-1), scalars)
    count = {
        MODES.All: call.replicas * call.iterations * call.accumulation,
        MODES.EveryN: call.replicas * call.iterations * call.accumulation // call.period,
        MODES.Final: call.replicas,
        MODES.Sum: call.replicas,
    }[call.mode]
    assert len(rows) == count * call.rows


@pytest.mark.parametrize("how", [{}, {"iterations": 2}, {"accumulation": 2}, {"replicas": 2}])
@pytest.mark.parametrize("start", ["compile", "__call__"])
def test_rule_1_1_batches_divide(how: Dict[str, int], start: str) -> None:
    factor = max(how.values(), default=1)
    x, y = data(3 * factor)
    getattr(training(Layers(), options(**how)), start)(x, y)
    if factor > 1:
        with pytest.raises(AssertionError, match=rf"{3 * factor + 1} rows, which do not divide by {factor}"):
            getattr(training(Layers(), options(**how)), start)(*data(3 * factor + 1))
        # Every tensor is cut, whatever it is for.
        with pytest.raises(AssertionError, match="Input tensor 1 has 3 rows"):
            getattr(inference(lambda x, other: x, options(iterations=2)), start)(x, torch.ones(3))


def test_rule_1_1_shared_inputs_take_fewer_rows() -> None:
    opts = options(replicas=4, iterations=3)
    opts.inputReplicaGrouping(2, GROUPS[0])
    shapes: List[Any] = []
    inference(lambda x: shapes.append(tuple(x.shape)) or x, opts)(torch.ones(12, 5))
    assert shapes == [(2, 5)]
    with pytest.raises(AssertionError, match="divide by 6"):
        inference(lambda x: x, opts)(torch.ones(4, 5))


def test_rule_1_2_a_tensor_without_dimensions_counts_as_one_row() -> None:
    x, scale = torch.ones(2, 3), torch.tensor(2.0)
    assert torch.equal(infer(lambda x, scale: x * scale, x, scale), 2 * x)
    with pytest.raises(AssertionError, match="Input tensor 1 has 1 rows"):
        infer(lambda x, scale: x * scale, x, scale, micro_batches=2)
    per_step = torch.tensor([2.0, 5.0])
    found = infer(lambda x, scale: x * scale, x, per_step, micro_batches=2)
    assert torch.equal(found, x * per_step[:, None])


def test_rule_1_5_the_mean_of_a_loss_needs_no_case_distinction() -> None:
    x, y = data(8)
    for accumulation in (1, 4):
        model = Layers()
        _, loss = training(model, options(accumulation=accumulation), lr=0.0)(x, y)
        assert loss.shape == (() if accumulation == 1 else (4,))
        torch.testing.assert_close(loss.mean(), F.cross_entropy(model.logits(x), y))


@pytest.mark.parametrize("dtype", [torch.int32, torch.float16, torch.float32])
def test_rule_1_6_sums_keep_their_type(dtype: torch.dtype) -> None:
    opts = options(iterations=3)
    opts.outputMode(MODES.Sum)
    found = inference(lambda x: x.sum().to(dtype), opts)(torch.arange(6.0))
    assert found.dtype == dtype and found.item() == 15


class Stages(nn.Module):
    def __init__(self, ipus: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(2, 2) for _ in range(ipus)))
        for ipu, layer in enumerate(self.layers):
            poptorch.BeginBlock(layer, f"stage {ipu}", ipu)

    def forward(self, x: Tensor) -> Any:
        return self.layers(x)


@pytest.mark.parametrize("pipelined", [True, False])
@pytest.mark.parametrize("ipus", [1, 2])
@pytest.mark.parametrize("anchored", [True, False])
def test_rule_1_7_every_n_does_not_go_with_a_pipeline(pipelined: bool, ipus: int, anchored: bool) -> None:
    opts = options(iterations=4)
    opts.setExecutionStrategy(poptorch.PipelinedExecution() if pipelined else poptorch.ShardedExecution())
    if anchored:
        opts.anchorTensor("x", "linear:0", MODES.EveryN, 2)
    else:
        opts.outputMode(MODES.EveryN, 2)
    executor = poptorch.inferenceModel(Stages(ipus), opts)
    if pipelined and ipus > 1:
        with pytest.raises(poptorch.Error, match="EveryN does not go with PipelinedExecution"):
            executor.compile(torch.ones(4, 2))
    else:
        assert len(executor(torch.ones(4, 2))) == (4 if anchored else 2)


def test_rule_1_8_default_modes() -> None:
    x, y = data(4)
    opts = poptorch.Options()
    opts.deviceIterations(4)
    model = Layers()
    assert poptorch.inferenceModel(model, opts)(x, y)[0].shape == (4, 3)
    assert training(model, opts)(x, y)[0].shape == (1, 3)


def test_rule_1_8_every_n_needs_a_period_and_modes_are_no_numbers() -> None:
    opts = poptorch.Options()
    for period in (None, 0, -1):
        with pytest.raises(AssertionError, match="output_return_period"):
            opts.outputMode(MODES.EveryN, period)
    for mode in (1, "All", None):
        with pytest.raises(AssertionError, match=r"poptorch\.OutputMode"):
            opts.outputMode(mode)


def test_rule_1_9_final_shows_the_last_micro_batch_only() -> None:
    opts = options(accumulation=2, iterations=3)
    opts.outputMode(MODES.Final)
    model = Layers()
    x, y = data(12)
    logits, loss = training(model, opts, lr=0.0)(x, y)
    expected = model.logits(x)
    torch.testing.assert_close(logits, expected[-2:])
    torch.testing.assert_close(loss, F.cross_entropy(expected[-2:], y[-2:]))


# --- what the first call fixes -----------------------------------------------------------------------


def combine(x: Tensor, others: Any = None, scale: Any = 1.0, *rest: Any, **named: Any) -> Tensor:
    for other in (*(others or ()), *rest, *named.values()):
        x = x if other is None else x + other
    return x if scale is None else x * scale


X = torch.ones(2, 3)
FIRST: Tuple[Tuple[Any, ...], Dict[str, Any]] = ((X, [X, X], 2.0, X), {"name": X})


@pytest.mark.parametrize(
    "args, kwargs",
    [
        ((X[:1], [X, X], 2.0, X), {"name": X}),
        ((X.half(), [X, X], 2.0, X), {"name": X}),
        ((X.double(), [X, X], 2.0, X), {"name": X}),
        ((X, [X, X[:, :1]], 2.0, X), {"name": X}),
        ((X, [X, X.int()], 2.0, X), {"name": X}),
        ((X, (X, X), 2.0, X), {"name": X}),
        ((X, [X], 2.0, X), {"name": X}),
        ((X, [X, X, X], 2.0, X), {"name": X}),
        ((X, [X, 1.0], 2.0, X), {"name": X}),
        ((X, [X, None], 2.0, X), {"name": X}),
        ((X, [X, X], 3.0, X), {"name": X}),
        ((X, [X, X], 2, X), {"name": X}),
        ((X, [X, X], None, X), {"name": X}),
        ((X, [X, X], X, X), {"name": X}),
        ((X, [X, X], 2.0, X, X), {"name": X}),
        ((X, [X, X], 2.0), {"name": X}),
        ((X, [X, X], 2.0, X), {}),
        ((X, [X, X], 2.0, X), {"other": X}),
        ((X, [X, X], 2.0, X), {"name": X, "other": X}),
        ((), {}),
    ],
)
def test_rule_1_10_what_was_compiled_stays(args: Any, kwargs: Any) -> None:
    executor = inference(combine)
    first = executor(*FIRST[0], **FIRST[1])
    with pytest.raises(poptorch.Error, match="compiled"):
        executor(*args, **kwargs)
    assert torch.equal(executor(*FIRST[0], **FIRST[1]), first)  # the program has not suffered
    executor.destroy()
    if args:
        executor(*args, **kwargs)


def test_rule_1_10_an_incomplete_batch_cannot_be_run() -> None:
    executor = training(Layers())
    x, y = data(4)
    executor(x, y)
    with pytest.raises(poptorch.Error, match=r"shape \(3, 6\).*compiled for a tensor of shape \(4, 6\)"):
        executor(x[:3], y[:3])


def test_rule_1_11_what_is_no_tensor_is_compiled_in() -> None:
    seen: List[Any] = []

    def forward(x: Tensor, count: int, name: Any, sizes: Any, *, flag: bool = False) -> Tensor:
        seen.append((count, name, sizes, flag))
        return x * count + sum(sizes) + (100 if flag else 0)

    executor = inference(forward, options(iterations=2))
    x = torch.arange(4.0)
    for _ in range(2):
        assert torch.equal(executor(x, 3, None, (1, 2), flag=True), 3 * x + 103)
    executor(x, name=None, sizes=(1, 2), count=3, flag=True)  # the same arguments, by name
    assert seen == [(3, None, (1, 2), True)]
    for change in ({"count": 4}, {"name": "a"}, {"sizes": (1, 3)}, {"sizes": [1, 2]}, {"flag": False}):
        with pytest.raises(poptorch.Error, match="compiled"):
            executor(**{"x": x, "count": 3, "name": None, "sizes": (1, 2), "flag": True, **change})


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0)])
def test_rule_1_12_no_zero_sized_tensors(shape: Any) -> None:
    with pytest.raises(poptorch.Error, match="zero-sized"):
        inference(lambda x: x)(torch.ones(shape))
    with pytest.raises(poptorch.Error, match=r"zero-sized tensor of shape \(2, 0\).*test_rules_1_batches.py:\d+"):
        inference(lambda x: x[:, 3:])(torch.ones(2, 3))


def test_rule_1_13_inputs_are_made_contiguous_and_detached(log: Any) -> None:
    x = torch.arange(6.0).reshape(3, 2)
    executor = inference(lambda x: (x * 2, x.is_contiguous(), x.requires_grad))
    for _ in range(2):
        doubled, contiguous, requires_grad = executor(x.t())
        assert torch.equal(doubled, 2 * x.t()) and contiguous and not requires_grad
    assert [record.levelname for record in log.records] == ["WARNING"] and "not contiguous" in log.text
    log.clear()
    inference(lambda x: x)(torch.ones(2, requires_grad=True))
    assert [record.levelname for record in log.records] == ["WARNING"] and "detached" in log.text


@pytest.mark.parametrize("accumulation", [2, 8])
def test_rule_1_14_inference_does_not_accumulate(accumulation: int) -> None:
    with pytest.raises(poptorch.Error, match=f"gradientAccumulation to 1, not {accumulation}"):
        poptorch.inferenceModel(Layers(), options(accumulation=accumulation))
