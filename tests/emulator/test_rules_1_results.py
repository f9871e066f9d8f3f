"""What comes back: structures, types and limits of results, rules 1.15 to 1.17."""

from __future__ import annotations

import collections
import copy
import dataclasses
import io
import pickle
from typing import Any, Dict, Iterator, List, NamedTuple

import numpy as np
import poptorch
import pytest
import torch
from emulator_models import Layers, data, inference, options, training
from operator_models import infer
from torch import Tensor, nn

X = torch.ones(2, 3)


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
