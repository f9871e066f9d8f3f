"""Batches, outputs and static shapes: every rule of section 1 against slices taken by hand."""

from __future__ import annotations

import collections
import copy
import dataclasses
import io
import pickle
from typing import Any, Dict, Iterator, List, NamedTuple, Tuple

import numpy as np
import poptorch
import pytest
import torch
import torch.nn.functional as F
from emulator_models import Layers, data, options
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_models import infer
from torch import Tensor, nn

MODES = poptorch.OutputMode
GROUPS = (poptorch.CommGroupType.Consecutive, poptorch.CommGroupType.Orthogonal)


def training(model: nn.Module, opts: Any = None, lr: float = 0.1) -> Any:
    return poptorch.trainingModel(model, opts or options(), poptorch.optim.SGD(model.parameters(), lr=lr))


def inference(function: Any, opts: Any = None) -> Any:
    model = nn.Module()
    model.forward = function
    return poptorch.inferenceModel(model, opts)


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


@settings(max_examples=150, deadline=None)
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


def test_rule_1_13_inputs_are_made_contiguous_and_detached(log: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("ipu_vit.emulator.log._said", set())
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


# --- structures --------------------------------------------------------------------------------------


class Named(NamedTuple):
    first: Any
    second: Any


@dataclasses.dataclass
class Record(collections.OrderedDict):  # type: ignore[type-arg]
    """A dictionary that is a dataclass too, as the outputs of transformers' models are."""

    logits: Any = None
    hidden: Any = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                self[field.name] = value


class Labelled(dict):  # type: ignore[type-arg]
    """A dictionary that cannot be made from its contents."""

    def __init__(self, label: str, count: int) -> None:
        super().__init__()
        self.label, self.count = label, count


class Pair:
    def __init__(self, left: Any, right: Any) -> None:
        self.left, self.right = left, right


class PairParser(poptorch.ICustomArgParser):  # type: ignore[misc]
    def yieldTensors(self, struct: Pair) -> Iterator[Tensor]:
        yield struct.left
        yield struct.right

    def reconstruct(self, original_structure: Pair, tensor_iterator: Iterator[Any]) -> Pair:
        return Pair(next(tensor_iterator), next(tensor_iterator))


@pytest.fixture
def pairs() -> Iterator[None]:
    poptorch.registerCustomArgParser(Pair, PairParser())
    yield
    poptorch.registerCustomArgParser(Pair, None)


def labelled(x: Tensor) -> Labelled:
    result = Labelled("a", 3)
    result["x"] = x
    return result


def counted(x: Tensor) -> Any:
    result: Any = collections.defaultdict(list)
    result["x"].append(x)
    return result


STRUCTURES: Dict[str, Any] = {
    "tensor": lambda x: x * 2,
    "tuple": lambda x: (x * 2, x),
    "list": lambda x: [x * 2, x],
    "one": lambda x: (x * 2,),
    "dict": lambda x: {"b": x * 2, "a": x, 3: [x]},
    "ordered": lambda x: collections.OrderedDict(b=x, a=x * 2),
    "defaultdict": counted,
    "subclass": labelled,
    "namedtuple": lambda x: Named(x * 2, Named(x, 3)),
    "record": lambda x: Record(logits=x * 2, hidden=(x, x)),
    "several results": lambda x: x.max(1),
    "deep": lambda x: [{"a": (x, Named(x, [x * 2, "q"]))}, None, (), {}, []],
    "constants": lambda x: (1, 2.5, "text", None, True, x, torch.float16, x.shape),
    "no tensor": lambda x: "nothing",
    "twice": lambda x: (x, x),
}


def tensors_in(value: Any) -> List[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for item in value for tensor in tensors_in(item)] if isinstance(value, (list, tuple)) else []


def same(ours: Any, theirs: Any) -> bool:
    """Whether two structures are the same, tensors by shape only."""
    if isinstance(theirs, Tensor):
        return isinstance(ours, Tensor)
    if type(ours) is not type(theirs):
        return False
    if isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, (list, tuple)):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return bool(ours == theirs)


@pytest.mark.parametrize("name", STRUCTURES)
def test_rule_1_15_structures_come_back(name: str) -> None:
    x = torch.arange(12.0).reshape(4, 3)
    forward = STRUCTURES[name]
    found = inference(forward, options(iterations=2))(x)
    halves = [forward(half) for half in x.chunk(2)]
    assert same(found, halves[0])
    for ours, first, second in zip(tensors_in(found), *map(tensors_in, halves)):
        np.testing.assert_array_equal(ours, torch.cat([first, second]))


def test_rule_1_15_dictionaries_keep_what_else_they_have() -> None:
    found = inference(labelled)(X)
    assert (found.label, found.count) == ("a", 3)
    record = inference(lambda x: Record(logits=x))(X)
    assert record.logits is record["logits"] and record.hidden is None and list(record) == ["logits"]
    groups = inference(counted)(X)
    groups["new"].append(1)


def test_rule_1_15_weights_and_buffers_come_back_as_the_micro_batch_left_them() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x: Tensor) -> Any:
            self.count.add_(1)
            return (
                self.weight,
                self.weight[None, :],
                self.count,
                poptorch.identity_loss((self.weight * x).sum(), "none"),
            )

    opts = options(iterations=3, accumulation=2)
    # Each iteration takes one, the gradient, off the weight.
    weight, view, count, _ = training(Counts(), opts, lr=1.0)(torch.ones(6))
    assert weight.tolist() == [0.0, 0.0] * 2 + [-1.0, -1.0] * 2 + [-2.0, -2.0] * 2
    assert torch.equal(view, weight.reshape(6, 2)) and count.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert poptorch.inferenceModel(Counts(), options(iterations=3))(torch.ones(3))[2].tolist() == [1.0, 2.0, 3.0]


def test_rule_1_15_registered_types_go_in_and_out(pairs: None) -> None:
    x, y = torch.arange(4.0), torch.ones(4, 2)

    def forward(pair: Pair, deep: Any) -> Any:
        return Pair(pair.left * 2, [pair.right, 3]), {"deep": Pair(deep[0].left, "constant")}

    pair, rest = inference(forward, options(iterations=2))(Pair(x, y), [Pair(x, y)])
    assert isinstance(pair, Pair) and torch.equal(pair.left, x * 2)
    assert torch.equal(pair.right[0], y) and pair.right[1] == 3
    assert torch.equal(rest["deep"].left, x) and rest["deep"].right == "constant"


@dataclasses.dataclass
class Unregistered:
    tensor: Any
    number: int = 3


@pytest.mark.parametrize("hide", [Unregistered, lambda x: {x}, lambda x: [Unregistered(x)], lambda x: Pair(1, x)])
def test_rule_1_15_tensors_must_be_found_in_a_result(hide: Any) -> None:
    with pytest.raises(poptorch.Error, match=r"tensors inside a (Unregistered|set|Pair).*registerCustomArgParser"):
        inference(lambda x: hide(x + 1))(X)
    assert inference(lambda x: (x, Unregistered(None)))(X)[1] == Unregistered(None)


# --- types -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype, inside, back",
    [
        (torch.int64, torch.int64, torch.int32),
        (torch.float64, torch.float32, torch.float32),
        (torch.float32, torch.float32, torch.float32),
        (torch.float16, torch.float16, torch.float16),
        (torch.int32, torch.int32, torch.int32),
        (torch.int16, torch.int16, torch.int16),
        (torch.int8, torch.int8, torch.int8),
        (torch.uint8, torch.uint8, torch.uint8),
        (torch.bool, torch.bool, torch.bool),
    ],
    ids=str,
)
def test_rule_1_16_types_in_and_out(dtype: torch.dtype, inside: torch.dtype, back: torch.dtype) -> None:
    x = torch.tensor([[0, 1, 3], [1, 0, 100]]).to(dtype)
    same_rows, seen = infer(lambda x: (x, x.dtype), x)
    assert seen == inside and same_rows.dtype == back
    assert torch.equal(same_rows, x.to(back))


@pytest.mark.parametrize(
    "make, back",
    [
        (lambda x: x.argmax(1), torch.int32),
        (lambda x: torch.arange(2, device=x.device), torch.int32),
        (lambda x: x.double(), torch.float32),
        (lambda x: x.to(torch.float64) / 3, torch.float32),
        (lambda x: x * torch.from_numpy(np.full(3, 1 / 3)), torch.float32),
        (lambda x: x > 1, torch.bool),
    ],
)
def test_rule_1_16_results_are_demoted(make: Any, back: torch.dtype) -> None:
    x = torch.tensor([[0.0, 1.0, 2.0], [5.0, 4.0, 3.0]])
    found = infer(make, x)
    assert found.dtype == back
    torch.testing.assert_close(found, make(x).to(back))


def test_rule_1_16_large_integers_wrap_on_the_way_in() -> None:
    x = torch.tensor([2**31 + 5, -1, 2**31 - 1])
    assert infer(lambda x: x, x).tolist() == [5 - 2**31, -1, 2**31 - 1]


def test_rule_1_17_results_cannot_be_differentiated() -> None:
    x, y = data(4)
    executor = training(Layers())
    logits, loss = executor(x, y)
    for result in (loss, logits, infer(lambda x: {"deep": [x.sum()]}, x)["deep"][0]):
        for call in (lambda result=result: result.backward(), lambda result=result: result.backward(torch.ones(()))):
            with pytest.raises(poptorch.Error, match="backward\\(\\) cannot be called"):
                call()
    # Otherwise they are tensors like others.
    assert type(loss) is Tensor and not loss.requires_grad
    weight = torch.ones((), requires_grad=True)
    (loss * weight).backward()
    assert torch.equal(weight.grad, loss)


def test_rule_1_17_results_can_be_saved_and_copied() -> None:
    found, file = infer(lambda x: x * 2, X), io.BytesIO()
    torch.save({"found": found}, file)
    file.seek(0)
    for copied in (
        torch.load(file, weights_only=True)["found"],
        copy.deepcopy(found),
        pickle.loads(pickle.dumps(found)),
    ):
        assert torch.equal(copied, 2 * X)
