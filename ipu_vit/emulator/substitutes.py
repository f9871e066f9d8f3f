"""What stands in, while a model is traced, for parts of PyTorch that are not functions of tensors.

A `TorchFunctionMode` sees calls of functions. It does not see custom autograd functions, checkpoints,
compilers, or what fake tensors say about themselves in Python; for as long as a trace lasts, these
parts of PyTorch are exchanged for others.
"""

from __future__ import annotations

import functools
import inspect
from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Iterator

import torch
import torch.utils.checkpoint
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import Function, FunctionCtx
from torch.nn import TransformerDecoder
from torch.utils.hooks import BackwardHook

from ipu_vit.emulator.errors import Error
from ipu_vit.emulator.log import log_once
from ipu_vit.emulator.user_code import current_line

_DEVICE = torch.device("ipu:0")


@contextmanager
def substitutes(is_program: Callable[[], bool]) -> Iterator[None]:
    """Exchange them; where `is_program` says no, PyTorch itself is asking, or another thread, and gets the original."""
    import torch._dynamo.eval_frame as compiler  # takes a second, unless fake tensors have imported it already

    with ExitStack() as stack:
        for owner, name, ours in (
            (FakeTensor, "device", lambda original, tensor: _DEVICE),
            (FakeTensor, "__repr__", lambda original, tensor, **_: "<unavailable>"),
            (Function, "apply", _apply),
            # Either is what torch.utils.checkpoint runs functions by, depending on PyTorch's version.
            (torch.utils.checkpoint, "_checkpoint_without_reentrant", _call_directly),
            (torch.utils.checkpoint, "_checkpoint_without_reentrant_generator", _prepare_nothing),
            (BackwardHook, "setup_input_hook", _no_backward_hook),
            (BackwardHook, "setup_output_hook", _no_backward_hook),
            (TransformerDecoder, "forward", _without_looking_at_masks),
            (compiler, "set_eval_frame", _refuse_compiling),
            (compiler, "_maybe_set_eval_frame", _refuse_compiling),
        ):
            if hasattr(owner, name):
                stack.enter_context(_exchanged(owner, name, ours, is_program))
        yield


@contextmanager
def _exchanged(owner: Any, name: str, ours: Callable[..., Any], is_program: Callable[[], bool]) -> Iterator[None]:
    """Put `ours` in the place of a function, a class method or a property; it is given the original's function too."""
    own = vars(owner).get(name)
    kind, function = lambda function: function, getattr(owner, name)
    if isinstance(own, property):
        kind, function = property, own.fget
    elif isinstance(own, classmethod):
        kind, function = classmethod, own.__func__

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return ours(function, *args, **kwargs) if is_program() else function(*args, **kwargs)

    setattr(owner, name, kind(call))
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


def _apply(original: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
    """A custom autograd function as PopTorch takes it: its forward, differentiated like any other code."""
    if function is torch.utils.checkpoint.CheckpointFunction:
        called, _, *arguments = args
        return called(*arguments)
    log_once(
        f"The backward of {function.__name__} is ignored: gradients are those of what its forward does "
        f"({current_line()})"
    )
    ctx: Any = FunctionCtx()
    ctx.needs_input_grad = tuple(isinstance(arg, torch.Tensor) and arg.requires_grad for arg in args)
    if function.setup_context is Function.setup_context:
        return function.forward(ctx, *args, **kwargs)
    output = function.forward(*args, **kwargs)
    function.setup_context(ctx, args, output)
    return output


def _call_directly(original: Any, function: Callable[..., Any], preserve: bool, *args: Any, **kwargs: Any) -> Any:
    """A checkpointed function: what is kept for the backward pass and what is recomputed, the device decides."""
    return function(*args, **kwargs)


def _prepare_nothing(original: Any, *args: Any, **kwargs: Any) -> Iterator[None]:
    """What surrounds the call of a checkpointed function."""
    yield


def _no_backward_hook(original: Any, hook: Any, tensors: Any) -> Any:
    log_once(f"Hooks of the backward pass have no effect on the device ({current_line()})")
    return tensors


def _without_looking_at_masks(original: Any, *args: Any, **kwargs: Any) -> Any:
    """A decoder; PyTorch's later than the SDK's look whether the mask is causal, which changes no number."""
    signature = inspect.signature(original)
    call = signature.bind(*args, **kwargs)
    if "tgt_is_causal" in signature.parameters and call.arguments.get("tgt_is_causal") is None:
        call.arguments["tgt_is_causal"] = False
    return original(*call.args, **call.kwargs)


def _refuse_compiling(original: Callable[[Any], Any], callback: Any) -> Any:
    if callable(callback):
        raise Error(
            f"torch.compile is not supported: wrap the model, or call the function, as it was ({current_line()})"
        )
    return original(callback)
