"""PyTorch functions that behave otherwise on the device than on a CPU.

While a model's forward is traced, calls of the functions in `replacements` get the device's
behaviour: losses are reported, GELU takes its tanh form, dropout draws from the device's random
numbers, and what would look at a tensor's data is refused. `substitutes` has what is no function.
"""

from __future__ import annotations

import math
from typing import Any, Callable, Dict, Iterator, Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_flatten

from ipu_vit.emulator import handlers, indices, losses, pooling, promotion
from ipu_vit.emulator.errors import Error
from ipu_vit.emulator.gelu import TanhGelu
from ipu_vit.emulator.log import log_once
from ipu_vit.emulator.random import DeviceRandom
from ipu_vit.emulator.recurrent import check_layer
from ipu_vit.emulator.tape import is_fake, opaque
from ipu_vit.emulator.user_code import current_line


def replacements(random: DeviceRandom) -> Dict[Any, Callable[..., Any]]:
    """What the device does instead of these functions."""
    dropout = opaque(random.dropout)
    table: Dict[Any, Callable[..., Any]] = {
        F.gelu: _tanh_gelu,
        F.dropout: dropout,
        torch.dropout: lambda input, p, train: dropout(input, p, train),
        F.scaled_dot_product_attention: _attention,
        F.one_hot: _one_hot,
        F.rrelu: _rrelu,
        Tensor.__deepcopy__: lambda input, memo: input.detach().clone(),
        Tensor.double: lambda input: input.float(),  # the device has no float64 (rule 6.7)
        Tensor.__iter__: _iterate,
        Tensor.__format__: lambda input, specification: "<unavailable>",
        Tensor.tolist: _refusing(Tensor.tolist, "aten::item is only supported in eager mode", "tolist()"),
        Tensor.numpy: _refusing(Tensor.numpy, "Illegal move to CPU", "numpy()"),
        Tensor.__array__: _refusing(Tensor.__array__, "Illegal move to CPU", "a NumPy function"),
        Tensor.cpu: _refusing(Tensor.cpu, "Illegal move to CPU", "cpu()"),
        Tensor.to: _to,
        Tensor.type_as: _type_as,
        torch.bincount: _bincount,
        Tensor.bincount: _bincount,
        torch.tensor: _tensor,
    }
    return {
        **table,
        **pooling.replacements(),
        **indices.replacements(),
        **promotion.replacements(),
        **losses.replacements(),
    }


def check_call(function: Any, args: Sequence[Any], kwargs: Dict[str, Any]) -> None:
    """Look at a call before it is made: refuse it, or warn of what becomes of it."""
    check_layer(function, args)
    given = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
    if function is not _sent and not all(map(is_fake, given)):
        log_once(
            "Expected an IPU tensor: forward uses one of the host; its values are compiled in here, but PopTorch "
            f'refuses; register it as a buffer, or move it by .to("ipu") ({current_line()})'
        )
    if _autocasts():
        raise Error(
            f"autocast is not supported: convert the model or parts of it by half() and float() ({current_line()})"
        )
    if function is Tensor.register_hook:
        log_once(f"Hooks of the backward pass have no effect on the device ({current_line()})")
    if function in handlers.FACTORIES and kwargs.get("device") is None:
        log_once(
            f"torch.{function.__name__} has no device= in forward: its result is made on the IPU all the same; pass "
            f"device=x.device of some tensor x ({current_line()})"
        )


def _autocasts() -> bool:
    if hasattr(torch, "get_autocast_dtype"):  # from PyTorch 2.4 on, one function answers for every device
        return torch.is_autocast_enabled("cpu")
    return torch.is_autocast_cpu_enabled()


def on_device_types(value: Any, function: Any, name: Optional[str] = None) -> Any:
    """An argument as the device takes it: float32 for float64, and the CPU that emulates it for "ipu"."""
    if value is torch.float64:
        return torch.float32
    if isinstance(value, torch.device) and value.type == "ipu":
        return torch.device("cpu")
    if isinstance(value, str) and value.split(":")[0] == "ipu" and (name == "device" or function is Tensor.to):
        return "cpu"
    return value


def _is_on_device(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and is_fake(tensor) and getattr(tensor, "constant", None) is None


@opaque
def _tanh_gelu(input: Tensor, approximate: str = "none") -> Tensor:
    # Both forms lower to the same device operator (rule 6.9).
    return F.gelu(input, approximate="tanh") if is_fake(input) else TanhGelu.apply(input)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Optional[Tensor] = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: Optional[float] = None,
) -> Tensor:
    """Attention as PyTorch 2.0 takes it apart when there is no fused kernel."""
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        rows, columns = scores.shape[-2:]
        later = torch.triu(torch.ones(rows, columns, dtype=torch.float32, device=query.device), diagonal=1)
        scores = scores.masked_fill(later > 0, float("-inf"))
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, float("-inf")) if attn_mask.dtype == torch.bool else scores + attn_mask
    return F.dropout(scores.softmax(-1), dropout_p) @ value


def _one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    if num_classes < 1:
        raise Error(f"one_hot needs num_classes: a device cannot look for the largest class ({current_line()})")
    return (tensor.unsqueeze(-1) == torch.arange(num_classes, device=tensor.device)).long()


def _bincount(input: Tensor, weights: Optional[Tensor] = None, minlength: int = 0) -> Tensor:
    if minlength < 1:
        raise Error(f"bincount needs minlength, the number of counts that it makes on a device ({current_line()})")
    found = input.unsqueeze(-1) == torch.arange(minlength, device=input.device)
    return found.sum(0) if weights is None else (found * weights.unsqueeze(-1)).sum(0)


def _tensor(data: Any, *args: Any, **kwargs: Any) -> Any:
    if any(map(_is_on_device, tree_flatten(data)[0])):
        raise Error(
            "aten::item is only supported in eager mode: torch.tensor looks at the values of tensors; use torch.stack "
            f"({current_line()})"
        )
    return NotImplemented


def _rrelu(
    input: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False
) -> Tensor:
    # PyTorch's operator writes its slopes into a tensor that its schema calls an input.
    slopes = torch.empty_like(input).uniform_(lower, upper) if training else (lower + upper) / 2
    result = torch.where(input < 0, input * slopes, input)
    return input.copy_(result) if inplace else result


def _iterate(input: Tensor) -> Iterator[Tensor]:
    return iter(torch.unbind(input))


def _to(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    for value in (*args, kwargs.get("device")):
        if str(value) == "cpu" and isinstance(value, (str, torch.device)) and _is_on_device(input):
            raise Error(
                f'Illegal move to CPU: forward runs on the device; take .to("cpu") out of it ({current_line()})'
            )
    if not _is_on_device(input):
        sent: Tensor = _sent(input, *map(_as_device, args), **{name: _as_device(kwargs[name]) for name in kwargs})
        return sent
    args = tuple(on_device_types(value, Tensor.to) for value in args)
    kwargs = {name: on_device_types(value, Tensor.to, name) for name, value in kwargs.items()}
    result: Tensor = _moved(input, *args, **kwargs)
    return result


@opaque
def _moved(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return input.to(*args, **kwargs)


def _type_as(input: Tensor, other: Tensor) -> Any:
    return NotImplemented if _is_on_device(input) else _sent(input, other)


def _as_device(value: Any) -> Any:
    return torch.device(value) if isinstance(value, str) else value


@opaque
def _sent(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A tensor of the host on the device."""
    return input.to(*args, **{**kwargs, "copy": True})


def _refusing(function: Callable[..., Any], why: str, what: str) -> Callable[..., Any]:
    def call(input: Tensor, *args: Any, **kwargs: Any) -> Any:
        if _is_on_device(input):
            raise Error(f"{why}: forward must not look at a tensor's values, as {what} does ({current_line()})")
        return function(input, *args, **kwargs)

    return call
