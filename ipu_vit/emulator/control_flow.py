"""Loops and branches on the device. PopTorch has both for inference only (rule 12.4)."""

from __future__ import annotations

from typing import Any, Callable, List, Tuple

import torch
from torch import Tensor

from ipu_vit.emulator import trace
from ipu_vit.emulator.arguments import require, require_type
from ipu_vit.emulator.kinds import Kinds, kinds_of, placeholders
from ipu_vit.emulator.pieces import Piece, record_apart
from ipu_vit.emulator.tape import is_fake, opaque


def for_loop(count: int, body: Callable[..., Any], inputs: List[Tensor]) -> List[Tensor]:
    """`poptorch.for_loop`: feed the body its own results, `count` times. Its Python runs once on a device."""
    _check_inputs("for_loop", "inputs", inputs)
    require_type(count, int, "for_loop", "count")
    require(count >= 0, f"for_loop: count must not be negative, unlike {count}")
    # Copies: what the body writes into stays inside.
    values = [tensor.clone() for tensor in inputs]

    def checked(*values: Tensor) -> List[Tensor]:
        outputs = _as_list("for_loop", body(*values))
        _check_alike("for_loop", "the body's inputs", kinds_of(values), "its outputs", kinds_of(outputs))
        return outputs

    tracer = trace.active()
    if tracer is None:
        for _ in range(count):
            values = checked(*values)
        return values
    require(not tracer.training, "poptorch.for_loop is for inference only: it has no gradient")
    piece, captured, kinds = record_apart(tracer.recorder, checked, values)
    return _for_loop(count, piece, values, captured, kinds)


@opaque
def _for_loop(count: int, piece: Piece, values: List[Tensor], captured: List[Tensor], kinds: Kinds) -> List[Tensor]:
    if any(map(is_fake, (*values, *captured))):
        return placeholders(kinds)
    for _ in range(count):
        values = piece.run([*values, *captured])
    return values


def cond(
    condition: Tensor,
    then_body: Callable[..., Any],
    then_inps: List[Tensor],
    else_body: Callable[..., Any],
    else_inps: List[Tensor],
) -> List[Tensor]:
    """`poptorch.cond`: one of two computations, chosen by a tensor. The Python of both runs once on a device."""
    _check_inputs("cond", "then_inps", then_inps)
    _check_inputs("cond", "else_inps", else_inps)
    tracer = trace.active()
    if tracer is None:
        return _as_list("cond", then_body(*then_inps) if condition else else_body(*else_inps))
    require(not tracer.training, "poptorch.cond is for inference only: it has no gradient")
    require_type(condition, Tensor, "cond", "condition")
    require(
        condition.dtype == torch.bool and condition.numel() == 1,
        f"cond: condition must hold one bool, not {condition.numel()} of type {condition.dtype}",
    )
    then_piece, then_given, kinds = _branch(tracer, then_body, then_inps)
    else_piece, else_given, others = _branch(tracer, else_body, else_inps)
    _check_alike("cond", "the outputs of then_body", kinds, "those of else_body", others)
    return _cond(condition, then_piece, then_given, else_piece, else_given, kinds)


def _branch(tracer: trace.Tracer, body: Callable[..., Any], inputs: List[Tensor]) -> Tuple[Piece, List[Tensor], Kinds]:
    copies = [tensor.clone() for tensor in inputs]
    piece, captured, kinds = record_apart(tracer.recorder, lambda *values: _as_list("cond", body(*values)), copies)
    return piece, copies + captured, kinds


@opaque
def _cond(
    condition: Tensor,
    then_piece: Piece,
    then_given: List[Tensor],
    else_piece: Piece,
    else_given: List[Tensor],
    kinds: Kinds,
) -> List[Tensor]:
    if is_fake(condition):
        return placeholders(kinds)
    return then_piece.run(then_given) if condition else else_piece.run(else_given)


def _check_inputs(operator: str, name: str, inputs: Any) -> None:
    if not isinstance(inputs, list):
        raise ValueError(f"{operator}: {name} must be a list of tensors, not {type(inputs).__name__}")
    for position, item in enumerate(inputs):
        if not isinstance(item, Tensor):
            raise ValueError(f"{operator}: item {position} of {name} must be a tensor, not {type(item).__name__}")


def _as_list(operator: str, outputs: Any) -> List[Tensor]:
    results = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
    for item in results:
        require(isinstance(item, Tensor), f"{operator}: a body must return tensors, not {item!r}")
    return results


def _check_alike(operator: str, what: str, kinds: Kinds, others: str, other_kinds: Kinds) -> None:
    require(
        kinds == other_kinds,
        f"{operator}: {what} and {others} must be equally many and of the same shapes and types, unlike {kinds} and "
        f"{other_kinds}",
    )
