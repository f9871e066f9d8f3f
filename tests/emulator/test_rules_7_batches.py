"""The kinds of batches that come from another process, and those that cannot (rule 7.8)."""

from __future__ import annotations

import collections
from typing import Any, Dict, List

import poptorch
import pytest
import torch
from loader_datasets import Counting, Images, Named, Pair, Pairs, Scaled, ScaledParser, Stored, make_options

from ipu_vit.emulator.arg_parser import custom_parsers

SYNC, ASYNC, REBATCHED = poptorch.DataLoaderMode
Accessor = poptorch.AsynchronousDataAccessor
Strategy = poptorch.SharingStrategy


def test_rule_7_8_tuples(make: Any) -> None:
    loader = make(poptorch.DataLoader, make_options(), Images(6), batch_size=2, mode=ASYNC)
    for step, batch in enumerate(loader):
        expected = torch.utils.data.default_collate([Images(6)[2 * step], Images(6)[2 * step + 1]])
        assert type(batch) is type(expected)
        for tensor, other in zip(batch, expected):
            assert tensor.dtype == other.dtype and torch.equal(tensor, other)


def test_rule_7_8_named_tuples(make: Any) -> None:
    loader = make(poptorch.DataLoader, make_options(), Pairs(4), batch_size=2, mode=ASYNC)
    pairs = [Pair(pair.left.tolist(), pair.right.tolist()) for pair in loader]
    assert pairs == [Pair([0, 1], [[0.0], [0.5]]), Pair([2, 3], [[1.0], [1.5]])]


def test_rule_7_8_dictionaries(make: Any) -> None:
    loader = make(poptorch.DataLoader, make_options(), Named(4), batch_size=2, mode=REBATCHED)
    batches: List[Dict[str, Any]] = [{key: value.clone() for key, value in batch.items()} for batch in loader]
    assert [list(batch) for batch in batches] == [["image", "label"]] * 2
    assert batches[1]["image"].dtype == torch.float16
    assert batches[1]["image"].tolist() == [[2, 2], [3, 3]]
    assert batches[1]["label"].tolist() == [True, False]


def test_rule_7_8_dictionaries_of_other_kinds_and_orders(make: Any) -> None:
    one, two = torch.tensor([1]), torch.tensor([2])
    (ordered,) = make(Accessor, Stored([collections.OrderedDict(b=one, a=two)]))
    assert type(ordered) is collections.OrderedDict and [(key, ordered[key].item()) for key in ordered] == [
        ("b", 1),
        ("a", 2),
    ]
    (by_default,) = make(Accessor, Stored([collections.defaultdict(int, a=one)]))
    assert type(by_default) is collections.defaultdict and by_default == {"a": one} and by_default["b"] == 0
    found = [
        (batch["a"].item(), batch["b"].item())
        for batch in make(Accessor, Stored([dict(a=one, b=two), dict(b=one, a=two)]))
    ]
    assert found == [(1, 2), (2, 1)]


def test_rule_7_8_every_data_type(make: Any) -> None:
    values = torch.tensor([[0, 1, 5], [7, 0, 100]])
    integers = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
    others = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]
    tensors = tuple(values.to(kind) for kind in integers + others)
    (found,) = make(Accessor, Stored([tensors]))
    for tensor, other in zip(found, tensors):
        assert tensor.dtype == other.dtype and torch.equal(tensor, other)


def test_rule_7_8_every_shape_and_stride(make: Any) -> None:
    values = torch.arange(6.0).view(2, 3)
    tensors = (
        values.t(),
        values[:, 1],
        values[:1].expand(4, 3),
        values[0, 0],
        values[:0],
        torch.ones(2).requires_grad_(),
    )
    (found,) = make(Accessor, Stored([tensors]))
    for tensor, other in zip(found, tensors):
        assert torch.equal(tensor, other) and not tensor.requires_grad


def test_rule_7_8_registered_types(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(custom_parsers, Scaled, None)  # to be restored
    poptorch.registerCustomArgParser(Scaled, ScaledParser())
    batches = [Scaled(torch.tensor([index]), 16) for index in range(3)]
    for strategy in (Strategy.ForkServer, Strategy.Fork):
        accessor = make(Accessor, Stored(batches), sharing_strategy=strategy)
        assert [(batch.values.item(), batch.scale) for batch in accessor] == [(0, 16), (1, 16), (2, 16)]


@pytest.mark.parametrize(
    "first, sentence",
    [
        (3, "not int"),
        ([torch.zeros(1), [torch.zeros(1)]], r"part 1 of a batch is a list of 1 \(.*nothing may be nested"),
        ({"label": 3}, r"part 'label' of a batch is a int \(labels must be tensors"),
        ((torch.zeros(1), "name"), "part 1 of a batch is a str"),
        ((), "at least one tensor"),
        (Scaled(torch.zeros(1), 1), "registered with registerCustomArgParser, not Scaled"),
    ],
)
def test_rule_7_8_other_datasets_are_refused_when_the_loader_is_made(first: Any, sentence: str) -> None:
    with pytest.raises(poptorch.Error, match=sentence):
        Accessor(Stored([first]))


@pytest.mark.parametrize(
    "first, later, sentence",
    [
        (torch.zeros(2), torch.zeros(3), "must all have the first one's data types and shapes"),
        (torch.zeros(2), torch.zeros(2).half(), "must all have the first one's data types and shapes"),
        ({"a": torch.zeros(2)}, {"b": torch.zeros(2)}, r"was a dict of \['a'\]; a later one is a dict of \['b'\]"),
        (torch.zeros(2), [torch.zeros(2)], "was a tensor; a later one is a list of 1"),
        ([torch.zeros(2)], [torch.zeros(2)] * 2, "was a list of 1; a later one is a list of 2"),
        (torch.zeros(2), None, "not NoneType"),
    ],
)
def test_rule_7_8_the_first_item_fixes_the_rest(make: Any, first: Any, later: Any, sentence: str) -> None:
    iterator = iter(make(Accessor, Stored([first, later])))
    next(iterator)
    with pytest.raises(AssertionError, match=sentence):
        next(iterator)


def test_rule_7_8_rebatching_needs_a_first_dimension_of_one_size(make: Any) -> None:
    with pytest.raises(poptorch.Error, match="without"):
        Accessor(Stored([torch.tensor(1)]), rebatched_size=2)
    accessor = make(Accessor, Stored([(torch.zeros(2), torch.zeros(3))]), rebatched_size=2)
    with pytest.raises(AssertionError, match="differ in their number of items"):
        next(iter(accessor))


def test_rule_7_8_an_empty_dataset_is_refused_when_the_loader_is_made() -> None:
    with pytest.raises(poptorch.Error, match="is empty"):
        Accessor(Counting(0))
    for size, mode in ((0, REBATCHED), (3, ASYNC)):  # 3 items are not one batch of 4
        with pytest.raises(poptorch.Error, match="is empty"):
            poptorch.DataLoader(make_options(), Counting(size), batch_size=4, mode=mode)
