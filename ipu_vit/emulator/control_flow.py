"""Loops and branches on the device. PopTorch has both for inference only (rule 12.4)."""

from __future__ import annotations

from typing import Any, Callable, List

import torch
from torch import Tensor

from ipu_vit.emulator import device
from ipu_vit.emulator.arguments import require, require_type


def for_loop(count: int, body: Callable[..., Any], inputs: List[Tensor]) -> List[Tensor]:
    """`poptorch.for_loop`: feed the body its own results, `count` times."""
    _check_inputs("for_loop", "inputs", inputs)
    require_type(count, int, "for_loop", "count")
    require(count >= 0, f"for_loop: count must not be negative, unlike {count}")
    _check_inference("for_loop")
    # Copies: what the body writes into stays inside.
    values = [tensor.clone() for tensor in inputs]
    for _ in range(count):
        outputs = _as_list("for_loop", body(*values))
        _check_alike("for_loop", "the body's inputs", values, "its outputs", outputs)
        values = outputs
    return values


def cond(
    condition: Tensor,
    then_body: Callable[..., Any],
    then_inps: List[Tensor],
    else_body: Callable[..., Any],
    else_inps: List[Tensor],
) -> List[Tensor]:
    """`poptorch.cond`: one of two computations, chosen by a tensor.

    Once traced, both are computed, and the condition picks the results.
    """
    _check_inputs("cond", "then_inps", then_inps)
    _check_inputs("cond", "else_inps", else_inps)
    if device.active() is None:
        return _as_list("cond", then_body(*then_inps) if condition else else_body(*else_inps))
    _check_inference("cond")
    require_type(condition, Tensor, "cond", "condition")
    require(
        condition.dtype == torch.bool and condition.numel() == 1,
        f"cond: condition must hold one bool, not {condition.numel()} of type {condition.dtype}",
    )
    chosen = _as_list("cond", then_body(*(tensor.clone() for tensor in then_inps)))
    other = _as_list("cond", else_body(*(tensor.clone() for tensor in else_inps)))
    _check_alike("cond", "the outputs of then_body", chosen, "those of else_body", other)
    scalar = condition.reshape(())
    return [torch.where(scalar, *pair) for pair in zip(chosen, other)]


def _check_inputs(operator: str, name: str, inputs: Any) -> None:
    if not isinstance(inputs, list):
        raise ValueError(f"{operator}: {name} must be a list of tensors, not {type(inputs).__name__}")
    for position, item in enumerate(inputs):
        if not isinstance(item, Tensor):
            raise ValueError(f"{operator}: item {position} of {name} must be a tensor, not {type(item).__name__}")


def _check_inference(operator: str) -> None:
    context = device.active()
    require(context is None or not context.training, f"poptorch.{operator} is for inference only: it has no gradient")


def _as_list(operator: str, outputs: Any) -> List[Tensor]:
    results = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
    for item in results:
        require(isinstance(item, Tensor), f"{operator}: a body must return tensors, not {item!r}")
    return results


def _check_alike(operator: str, what: str, first: List[Tensor], others: str, second: List[Tensor]) -> None:
    kinds = [[(tuple(tensor.shape), tensor.dtype) for tensor in tensors] for tensors in (first, second)]
    require(
        kinds[0] == kinds[1],
        f"{operator}: {what} and {others} must be equally many and of the same shapes and types, unlike {kinds[0]} "
        f"and {kinds[1]}",
    )
