"""Blocks: marking which part of a model runs where.

A block does nothing by itself; while a trace is on, entering one tells it that the operators from
here on belong to that block (rules 5.1 to 5.4, 5.13).
"""

from __future__ import annotations

import functools
from typing import Any, Callable, Optional, TypeVar

from torch import nn

from ipu_vit.emulator import trace
from ipu_vit.emulator.errors import Error

Layer = TypeVar("Layer")


def _begin(user_id: Optional[str], ipu_id: Optional[int]) -> Optional[str]:
    """Begin a block while a trace is on; returns its name, for unnamed ones the number they got."""
    tracer = trace.active()
    if tracer is None:
        return user_id
    if user_id is None:
        user_id = str(tracer.unnamed_blocks)
        tracer.unnamed_blocks += 1
    if ipu_id is not None and not (isinstance(ipu_id, int) and ipu_id >= 0):
        raise Error(f"Block {user_id!r} has ipu_id={ipu_id!r}: the model's own IPUs are counted 0, 1, ...")
    tracer.begin_block(user_id, ipu_id)
    return user_id


class Block(nn.Module):
    """`poptorch.Block`: a context whose operators form a block; none is active after it."""

    @staticmethod
    def useAutoId() -> None:
        """Number unnamed blocks from 0 again."""
        tracer = trace.active()
        if tracer is not None:
            tracer.unnamed_blocks = 0

    @staticmethod
    def start(user_id: Optional[str] = None, ipu_id: Optional[int] = None) -> None:
        """Begin a block here."""
        _begin(user_id, ipu_id)

    def __init__(self, user_id: Optional[str] = None, ipu_id: Optional[int] = None) -> None:
        super().__init__()
        self._user_id = user_id
        self._ipu_id = ipu_id

    def __enter__(self) -> None:
        _begin(self._user_id, self._ipu_id)

    def __exit__(self, type: Any, value: Any, traceback: Any) -> None:
        tracer = trace.active()
        if tracer is not None:
            tracer.end_block()


class LegacyBeginBlockFn(nn.Module):
    """A callable that is no module, wrapped so that calling it begins a block."""

    def __init__(self, layer_to_call: Callable[..., Any], user_id: Optional[str] = None, ipu_id: Optional[int] = None):
        super().__init__()
        self._layer_to_call = layer_to_call
        self._user_id = user_id
        self._ipu_id = ipu_id

    def __call__(self, *input: Any, **kwargs: Any) -> Any:
        self._user_id = _begin(self._user_id, self._ipu_id)
        return self._layer_to_call(*input, **kwargs)


class _BlockHook:
    """What `BeginBlock` has a module call before its forward; models that have one can be pickled."""

    def __init__(self, user_id: Optional[str], ipu_id: Optional[int]) -> None:
        self._user_id = user_id
        self._ipu_id = ipu_id

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        self._user_id = _begin(self._user_id, self._ipu_id)

    def __repr__(self) -> str:
        return f"BeginBlock(user_id={self._user_id}, ipu_id={self._ipu_id})"


def BeginBlock(layer_to_call: Layer, user_id: Optional[str] = None, ipu_id: Optional[int] = None) -> Any:
    """`poptorch.BeginBlock`: from this layer on, until the next block, operators belong to a new block."""
    if not callable(layer_to_call):
        raise Error(f"BeginBlock takes a module or another callable, not {type(layer_to_call).__name__}")
    if not isinstance(layer_to_call, nn.Module):
        return LegacyBeginBlockFn(layer_to_call, user_id, ipu_id)
    if any(isinstance(hook, _BlockHook) for hook in layer_to_call._forward_pre_hooks.values()):
        raise Error("This module has already been assigned to a block: call removeBlocks() first")
    layer_to_call.register_forward_pre_hook(_BlockHook(user_id, ipu_id))
    return layer_to_call


def removeBlocks(module: nn.Module) -> None:
    """`poptorch.removeBlocks`: take BeginBlock's marks off a module and everything in it."""
    assert isinstance(module, nn.Module), f"removeBlocks takes a module, not {type(module).__name__}"
    for child in module.modules():
        for key, hook in list(child._forward_pre_hooks.items()):
            if isinstance(hook, _BlockHook):
                del child._forward_pre_hooks[key]


def BlockFunction(user_id: Optional[str] = None, ipu_id: Optional[int] = None) -> Callable[..., Any]:
    """`poptorch.BlockFunction`: a decorator that makes a function's operators a block."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with Block(user_id, ipu_id):
                return function(*args, **kwargs)

        return run

    return decorate
