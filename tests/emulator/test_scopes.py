"""Contexts and marks that change no number."""

from __future__ import annotations

from typing import Any

import poptorch
import pytest
import torch
from operator_models import infer
from torch import Tensor, nn


def test_contexts_change_no_number() -> None:
    first, second = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(x: Tensor) -> Tensor:
        with poptorch.MultiConv().availableMemoryProportions(0.3), poptorch.NameScope("convolutions"):
            with poptorch.Attribute(__outline={"layer": "convolution"}):
                return first(x) + second(x)

    with torch.no_grad():
        x = torch.randn(2, 3, 5, 5)
        assert torch.equal(forward(x), first(x) + second(x))
        torch.testing.assert_close(infer(forward, x), first(x) + second(x))


def test_multi_convolutions_are_set_up_in_a_chain() -> None:
    scope = poptorch.MultiConv()
    assert (
        scope.availableMemoryProportions([0.2, 0.3])
        .partialsTypes(torch.half)
        .partialsTypes([torch.float, torch.float16])
        .enableConvDithering((True, False))
        .enableConvDithering(None)
        .planType(poptorch.MultiConvPlanType.Serial)
        .planType(None)
        .perConvReservedTiles(50)
        .cycleBackOff(0.1)
        is scope
    )


@pytest.mark.parametrize(
    "setting, value, error",
    [
        ("availableMemoryProportions", 1, AssertionError),
        ("availableMemoryProportions", [0.1, "0.2"], AssertionError),
        ("availableMemoryProportions", [], AssertionError),
        ("partialsTypes", torch.int32, ValueError),
        ("partialsTypes", [torch.half, "half"], ValueError),
        ("partialsTypes", None, ValueError),
        ("enableConvDithering", 1, ValueError),
        ("enableConvDithering", [True, 0], ValueError),
        ("planType", 0, AssertionError),
        ("perConvReservedTiles", 1.0, AssertionError),
        ("cycleBackOff", 1, AssertionError),
    ],
)
def test_multi_convolutions_check_their_settings(setting: str, value: Any, error: Any) -> None:
    with pytest.raises(error) as raised:
        getattr(poptorch.MultiConv(), setting)(value)
    assert repr(value) in str(raised.value)


def test_name_scopes_have_names() -> None:
    assert poptorch.NameScope("outer").name == "outer"
    with pytest.raises(AssertionError, match="must be a string, not 3"):
        poptorch.NameScope(3)


@pytest.mark.parametrize(
    "attributes, error",
    [({"a": "b"}, AttributeError), ({"a": {1: "b"}}, poptorch.Error), ({"a": {"b": 1}}, poptorch.Error)],
)
def test_attributes_are_dictionaries_of_strings(attributes: Any, error: Any) -> None:
    with pytest.raises(error, match="Attribute"):
        with poptorch.Attribute(**attributes):
            pass


@pytest.mark.parametrize("context", [poptorch.NameScope("a"), poptorch.Attribute(a={}), poptorch.MultiConv()])
def test_contexts_hide_no_error(context: Any) -> None:
    with pytest.raises(ZeroDivisionError):
        with context as entered:
            assert entered is None
            raise ZeroDivisionError


def test_profiling_records_nothing_and_changes_nothing() -> None:
    channel = poptorch.profiling.Channel("application")
    thing = [3, 1, 2]
    assert channel.instrument(thing, "sort", "append") is thing
    with channel.tracepoint("sorting") as entered:
        thing.sort()
    assert entered is None and thing == [1, 2, 3]


def test_operators_are_found_in_their_module_too() -> None:
    for name in poptorch.ops.__all__:
        assert getattr(poptorch, name) is getattr(poptorch.ops, name)
