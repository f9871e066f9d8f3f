"""Types of a program's own as arguments of a model."""

from __future__ import annotations

from typing import Any, Iterator

import poptorch
import pytest
import torch
from emulator_models import options
from torch import Tensor, nn

from ipu_vit.emulator import arg_parser


class Pair:
    def __init__(self, left: Tensor, right: Tensor, factor: int) -> None:
        self.left, self.right, self.factor = left, right, factor


class NamedPair(Pair):
    pass


class PairParser(poptorch.ICustomArgParser):
    def yieldTensors(self, struct: Pair) -> Iterator[Tensor]:
        yield struct.left
        yield struct.right

    def reconstruct(self, original_structure: Pair, tensor_iterator: Iterator[Tensor]) -> Pair:
        left, right = next(tensor_iterator), next(tensor_iterator)
        return type(original_structure)(left, right, original_structure.factor)


class Swap(nn.Module):
    def forward(self, pair: Pair) -> Pair:
        return type(pair)(pair.right * pair.factor, pair.left - 1, pair.factor)


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arg_parser, "custom_parsers", {})


@pytest.mark.parametrize("kind", [Pair, NamedPair])
def test_models_take_and_return_registered_types(kind: Any) -> None:
    poptorch.registerCustomArgParser(Pair, PairParser())
    executor = poptorch.inferenceModel(Swap(), options(iterations=3))
    left, right = torch.arange(6.0), torch.arange(6.0, 18.0).view(6, 2)
    found = executor(kind(left, right, 2))
    assert type(found) is kind and found.factor == 2
    assert torch.equal(found.left, right * 2) and torch.equal(found.right, left - 1)
    with pytest.raises(poptorch.Error):
        executor(kind(left, right[:3], 2))


def test_the_nearest_base_counts() -> None:
    parser, other = PairParser(), PairParser()
    poptorch.registerCustomArgParser(Pair, parser)
    assert arg_parser.custom_parser_of(NamedPair) is parser
    poptorch.registerCustomArgParser(NamedPair, other)
    assert (arg_parser.custom_parser_of(Pair), arg_parser.custom_parser_of(NamedPair)) == (parser, other)
    poptorch.registerCustomArgParser(NamedPair, None)
    assert (arg_parser.custom_parser_of(Pair), arg_parser.custom_parser_of(NamedPair)) == (parser, None)
    assert arg_parser.custom_parser_of(dict) is None


def test_parsers_are_whole_objects() -> None:
    class Half(poptorch.ICustomArgParser):
        def yieldTensors(self, struct: Any) -> Iterator[Tensor]:
            yield struct

    with pytest.raises(TypeError, match="abstract"):
        Half()
    for kind, parser in ((Pair, PairParser), (Pair, object()), ("Pair", PairParser())):
        with pytest.raises(AssertionError, match="registerCustomArgParser|ICustomArgParser"):
            poptorch.registerCustomArgParser(kind, parser)
