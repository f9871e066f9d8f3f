"""PopTorch's own operators: hints that change nothing, matrix products in pieces, slices from computed places."""

from __future__ import annotations

from typing import Any, List

import numpy as np
import poptorch
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from operator_models import gradient, infer
from torch import Tensor

from ipu_vit.emulator import device, left_out

MODES = poptorch.MatMulSerializationMode
# What is no operator but a hint: identities, forward and backward.
HINTS = {
    "nop": poptorch.nop,
    "recomputationCheckpoint": poptorch.recomputationCheckpoint,
    "set_available_memory": lambda x: poptorch.set_available_memory(x, 0.3),
    "set_overlap_for_input": lambda x: poptorch.set_overlap_for_input(x, poptorch.OverlapMode.NoOverlap),
    "set_overlap_for_output": lambda x: poptorch.set_overlap_for_output(x, poptorch.OverlapMode.NoOverlap),
}


def doubles(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


# Hints -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HINTS)
def test_hints_are_identities(name: str) -> None:
    hint, x = HINTS[name], torch.randn(3, 4)
    assert torch.equal(hint(x), x)
    assert torch.equal(infer(lambda x: hint(x) * 2, x), x * 2)
    assert torch.autograd.gradcheck(hint, doubles(2, 3))
    torch.testing.assert_close(gradient(lambda w: hint(w) ** 2, x), 2 * x)


def test_rule_5_17_recomputation_checkpoint_returns_what_it_was_given() -> None:
    x, y = torch.ones(2), torch.zeros(3)
    for given_, expected in (((x, y), (x, y)), (([x, y],), [x, y]), (((x, y),), (x, y)), (([x],), [x])):
        returned = poptorch.recomputationCheckpoint(*given_)
        assert type(returned) is type(expected) and len(returned) == len(expected)
        assert all(torch.equal(a, b) for a, b in zip(returned, expected))


@pytest.mark.parametrize("wrong", [(3,), (None,), (torch.ones(1), 3), ([torch.ones(1)], [torch.ones(1)]), ([[]],)])
def test_rule_5_17_recomputation_checkpoint_takes_tensors(wrong: Any) -> None:
    with pytest.raises(ValueError, match="takes tensors"):
        poptorch.recomputationCheckpoint(*wrong)


def test_rule_9_10_available_memory_is_a_proportion() -> None:
    x = torch.ones(2, 2)
    with pytest.raises(poptorch.Error, match="must be a torch.Tensor, not int"):
        poptorch.set_available_memory(3, 0.5)
    with pytest.raises(poptorch.Error, match="must be a number, not 'half'"):
        poptorch.set_available_memory(x, "half")
    for proportion in (-0.1, 1.5):
        assert poptorch.set_available_memory(x, proportion) is x  # a CPU has no such memory
        with pytest.raises(poptorch.Error, match="between 0 and 1"):
            infer(lambda x, p=proportion: poptorch.set_available_memory(x @ x, p), x)


@pytest.mark.parametrize("function", [poptorch.set_overlap_for_input, poptorch.set_overlap_for_output])
def test_rule_9_11_overlap_keeps_structures_and_tells_the_trace(function: Any) -> None:
    class Noting(device.Context):
        def __init__(self) -> None:
            self.modes: List[Any] = []

        def on_overlap(self, mode: Any) -> None:
            self.modes.append(mode)

    x, y, noting = torch.ones(2), torch.zeros(3), Noting()
    mode = poptorch.OverlapMode.OverlapAccumulationLoop
    with device.context(noting):
        returned = function({"x": x, "rest": [y, (x,)]}, mode)
    assert returned["x"] is x and returned["rest"][0] is y and returned["rest"][1] == (x,)
    assert noting.modes == [mode] * 3


@pytest.mark.parametrize("function", [poptorch.set_overlap_for_input, poptorch.set_overlap_for_output])
def test_rule_9_11_overlap_takes_tensors_and_a_mode(function: Any) -> None:
    with pytest.raises(poptorch.Error, match="takes tensors"):
        function([torch.ones(1), 3], poptorch.OverlapMode.NoOverlap)
    with pytest.raises(AttributeError, match=r"poptorch\.OverlapMode"):
        function(torch.ones(1), "no_overlap")


# Matrix products in pieces -----------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@given(st.sampled_from([1, 2, 3, 6]), st.booleans())
def test_serialized_matmul_is_a_matmul(mode: Any, factor: int, keep_precision: bool) -> None:
    lhs, rhs = torch.randn(2, 6, 6), torch.randn(2, 6, 12)
    assert torch.equal(poptorch.serializedMatMul(lhs, rhs, mode, factor, keep_precision), torch.matmul(lhs, rhs))


@pytest.mark.parametrize("mode", MODES)
def test_serialized_matmul_on_the_device(mode: Any) -> None:
    lhs, rhs = torch.randn(4, 6), torch.randn(6, 2)
    factor = 2
    torch.testing.assert_close(infer(lambda a, b: poptorch.serializedMatMul(a, b, mode, factor), lhs, rhs), lhs @ rhs)
    found = gradient(lambda w, b: poptorch.serializedMatMul(w, b, mode, factor), lhs, rhs)
    torch.testing.assert_close(found, rhs.sum(1).expand(4, 6))
    assert torch.autograd.gradcheck(
        lambda a, b: poptorch.serializedMatMul(a, b, mode, 2), (doubles(2, 4), doubles(4, 2))
    )


@pytest.mark.parametrize(
    "mode, size", [(MODES.InputChannels, 4), (MODES.ReducingDim, 6), (MODES.OutputChannels, 10)], ids=str
)
@pytest.mark.parametrize("factor", [0, -1, 7])
def test_serialized_matmul_is_cut_into_equal_pieces(mode: Any, size: int, factor: int) -> None:
    lhs, rhs = torch.randn(4, 6), torch.randn(6, 10)
    assert poptorch.serializedMatMul(lhs, rhs, mode, factor).shape == (4, 10)  # a CPU cuts nothing
    with pytest.raises(poptorch.Error, match=f"factor {factor} does not divide the size {size}"):
        infer(lambda a, b: poptorch.serializedMatMul(a, b, mode, factor), lhs, rhs)


@pytest.mark.parametrize(
    "wrong", [{"mode": "none"}, {"factor": 2.0}, {"keep_precision": 1}, {"mode": None}], ids=lambda wrong: str(wrong)
)
def test_serialized_matmul_asserts_its_types(wrong: Any) -> None:
    x = torch.ones(2, 2)
    with pytest.raises(AssertionError, match=next(iter(wrong))):
        poptorch.serializedMatMul(x, x, **{"mode": MODES.Disabled, **wrong})


# Slices from computed places ---------------------------------------------------------------------


@st.composite
def slices(draw: Any) -> Any:
    """A shape, a dimension of it, a start anywhere in it, and a size."""
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    dim = draw(st.integers(-len(shape), len(shape) - 1))
    return shape, dim, draw(st.integers(0, shape[dim] - 1)), draw(st.integers(1, shape[dim]))


@given(slices(), st.integers(1, 4), st.sampled_from([torch.int16, torch.int32, torch.int64]))
def test_rule_12_5_dynamic_slices_wrap(where: Any, step: int, kind: torch.dtype) -> None:
    shape, dim, start, size = where
    x = torch.randn(shape)
    found = poptorch.dynamic_slice(x, dim, torch.tensor([start], dtype=kind), size, step)
    places = np.arange(start, start + size, step)
    np.testing.assert_array_equal(found.numpy(), np.take(x.numpy(), places, axis=dim, mode="wrap"))


@given(slices())
def test_rule_12_5_dynamic_updates_wrap(where: Any) -> None:
    shape, dim, start, size = where
    x, src = torch.randn(shape), torch.randn([*shape[: dim % len(shape)], size, *shape[dim % len(shape) + 1 :]])
    before = x.clone()
    found = poptorch.dynamic_update(x, src, dim, torch.tensor(start), size)
    expected = np.moveaxis(x.numpy().copy(), dim, 0)
    for i in range(size):
        expected[(start + i) % shape[dim]] = np.moveaxis(src.numpy(), dim, 0)[i]
    np.testing.assert_array_equal(found.numpy(), np.moveaxis(expected, 0, dim))
    assert torch.equal(x, before)
    # What was put there is found there.
    assert torch.equal(poptorch.dynamic_slice(found, dim, torch.tensor(start), size, 1), src)


def test_dynamic_slices_on_the_device_follow_their_start() -> None:
    x, start = torch.arange(24.0).reshape(2, 3, 4), torch.tensor([[1], [3]])
    found = infer(lambda x, start: poptorch.dynamic_slice(x, 2, start, 2, 1), x, start, micro_batches=2)
    assert torch.equal(found, torch.stack([x[0, :, 1:3], x[1][:, [3, 0]]]))
    src = -torch.ones(2, 3, 2)
    found = infer(lambda x, src, start: poptorch.dynamic_update(x, src, 2, start, 2), x, src, start, micro_batches=2)
    expected = x.clone()
    expected[0, :, 1:3] = -1
    expected[1][:, [3, 0]] = -1
    assert torch.equal(found, expected)


def test_dynamic_slices_keep_half_precision() -> None:
    x = torch.randn(1, 6).half()
    found = infer(lambda x: poptorch.dynamic_slice(x, 1, torch.tensor([2]), 3, 1), x)
    assert found.dtype == torch.float16 and torch.equal(found, x[:, 2:5])
    found = infer(lambda x: poptorch.dynamic_update(x, x[:, :2] * 2, 1, torch.tensor([4]), 2), x)
    assert found.dtype == torch.float16 and torch.equal(found, torch.cat([x[:, :4], x[:, :2] * 2], 1))


def test_dynamic_slices_have_gradients() -> None:
    start = torch.tensor(2)
    assert torch.autograd.gradcheck(lambda x: poptorch.dynamic_slice(x, 1, start, 3, 2), doubles(2, 4))
    assert torch.autograd.gradcheck(
        lambda x, y: poptorch.dynamic_update(x, y, 0, start, 2), (doubles(3, 2), doubles(2, 2))
    )
    weight, scale = torch.randn(5), torch.tensor([1.0, 2.0, 3.0])
    found = gradient(
        lambda w, s, start: poptorch.dynamic_slice(w, 0, start, 3, 1) * s, weight, scale, torch.tensor([4])
    )
    torch.testing.assert_close(found, torch.tensor([2.0, 3.0, 0.0, 0.0, 1.0]))
    found = gradient(lambda w, s: poptorch.dynamic_update(w, s, 0, torch.tensor(1), 3) ** 2, weight, scale)
    torch.testing.assert_close(found, 2 * weight * torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0]))


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"tensor": [1.0]}, "tensor must be a torch.Tensor, not list"),
        ({"dim": "0"}, "dim must be an int, not str"),
        ({"dim": 2}, "there is no dimension 2"),
        ({"start": 1}, "start must be a torch.Tensor, not int"),
        ({"start": torch.ones(1)}, "start must hold one integer"),
        ({"start": torch.ones(2, dtype=torch.int32)}, "start must hold one integer"),
        ({"size": torch.tensor(1)}, "size must be an int, not Tensor"),
        ({"size": 0}, "size must be between 1 and the 4"),
        ({"size": 5}, "size must be between 1 and the 4"),
        ({"step": 1.0}, "step must be an int, not float"),
        ({"step": 0}, "step must be at least 1"),
    ],
    ids=str,
)
def test_dynamic_slice_refuses(change: Any, complaint: str) -> None:
    good = {"tensor": torch.ones(3, 4), "dim": 1, "start": torch.tensor(0), "size": 2, "step": 1}
    with pytest.raises(poptorch.Error, match=complaint):
        poptorch.dynamic_slice(**{**good, **change})


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"input": 1.0}, "input must be a torch.Tensor, not float"),
        ({"src": 1.0}, "src must be a torch.Tensor, not float"),
        ({"src": torch.ones(3, 2).half()}, "input is of type torch.float32, src of torch.float16"),
        ({"src": torch.ones(2)}, r"src has the shape \(2,\), but the places it goes to have \(3, 2\)"),
        ({"size": 3}, r"src has the shape \(3, 2\), but the places it goes to have \(3, 3\)"),
        ({"start": torch.tensor(0.5)}, "start must hold one integer"),
    ],
    ids=str,
)
def test_dynamic_update_refuses(change: Any, complaint: str) -> None:
    good = {"input": torch.ones(3, 4), "src": torch.ones(3, 2), "dim": 1, "start": torch.tensor(0), "size": 2}
    with pytest.raises(poptorch.Error, match=complaint):
        poptorch.dynamic_update(**{**good, **change})


# What is left out --------------------------------------------------------------------------------


def custom(x: Tensor, attributes: Any = None) -> Any:
    return poptorch.custom_op((x,), "Cube", "com.acme", 1, example_outputs=(x, x[:1]), attributes=attributes)


def test_custom_operators_are_left_out_of_the_device() -> None:
    x = torch.ones(2, 2)
    first, second = custom(x, {"alpha": [1.0, 2.0], "name": "a"})
    assert torch.equal(first, torch.zeros(2, 2)) and torch.equal(second, torch.zeros(1, 2))
    with pytest.raises(poptorch.Error, match="custom_op cannot be emulated: .*C\\+\\+"):
        infer(custom, x)


@pytest.mark.parametrize("attributes", [{1: 2}, {"a": None}, {"a": [1, 2.0]}, {"ä": 1}, {"a": "ä"}, {"a": ("b", "ä")}])
def test_custom_operators_check_their_attributes(attributes: Any) -> None:
    with pytest.raises(ValueError, match="custom_op"):
        custom(torch.ones(2, 2), attributes)


@pytest.mark.parametrize("name", left_out.LEFT_OUT)
def test_what_is_left_out_says_why(name: str) -> None:
    assert name.startswith("poptorch.")
    with pytest.raises(poptorch.Error) as raised:
        left_out.refuse(name)
    assert str(raised.value) == f"{name} cannot be emulated: {left_out.LEFT_OUT[name]}"
