"""Printing: tensors while the device computes, and modules with their blocks."""

from __future__ import annotations

import builtins
import sys
import textwrap
from dataclasses import dataclass
from typing import Any, Callable, Optional

import numpy as np
from torch import Tensor, nn

from ipu_vit.emulator.arguments import require_type
from ipu_vit.emulator.tape import is_fake, opaque

_FLOAT_FORMATS = ("auto", "fixed", "scientific", "none")


def ipu_print_tensor(
    tensor: Tensor,
    title: str = "",
    print_gradient: bool = True,
    summarise_threshold: int = 1000,
    edge_items: int = 3,
    max_line_width: int = 80,
    digits: int = 4,
    float_format: str = "auto",
    separator: str = ", ",
    open_bracket: str = "(",
    close_bracket: str = ")",
) -> Tensor:
    """`poptorch.ipu_print_tensor`: the same tensor, printed at every micro batch; its gradient too when that is known.

    Text goes to stderr. A `summarise_threshold` or `max_line_width` of 0 means no limit.
    """
    require_type(tensor, Tensor, "ipu_print_tensor", "tensor")
    if float_format not in _FLOAT_FORMATS:
        raise KeyError(f"ipu_print_tensor: float_format must be one of {', '.join(_FLOAT_FORMATS)}, not {float_format}")
    form = TensorFormat(
        summarise_threshold, edge_items, max_line_width, digits, float_format, separator, open_bracket, close_bracket
    )
    return _print_tensor(tensor, title, print_gradient, form)


@opaque
def _print_tensor(tensor: Tensor, title: str, print_gradient: bool, form: TensorFormat) -> Tensor:
    _show(tensor, title, form)
    result = tensor.clone()
    if print_gradient and result.requires_grad:
        result.register_hook(lambda gradient: _show(gradient, f"{title}_gradient" if title else "gradient", form))
    return result


def _show(tensor: Tensor, title: str, form: TensorFormat) -> None:
    if not is_fake(tensor):
        builtins.print(form.text(tensor, f"{title}: " if title else ""), file=sys.stderr)


@dataclass(frozen=True)
class TensorFormat:
    """How a tensor is written."""

    summarise_threshold: int
    edge_items: int
    max_line_width: int
    digits: int
    float_format: str
    separator: str
    open_bracket: str
    close_bracket: str

    def text(self, tensor: Tensor, prefix: str) -> str:
        values = tensor.detach().numpy()
        write = self._writer(values.astype(np.int64 if values.dtype == np.bool_ else values.dtype))
        nested = np.array2string(
            values,
            max_line_width=self.max_line_width or sys.maxsize,
            threshold=self.summarise_threshold or sys.maxsize,
            edgeitems=self.edge_items,
            separator=self.separator,
            prefix=prefix,
            formatter={"all": write},
        )
        return prefix + nested.replace("[", self.open_bracket).replace("]", self.close_bracket)

    def _writer(self, values: Any) -> Callable[[Any], str]:
        """What turns one element into text: all of one width, unless that is not wanted."""
        if not np.issubdtype(values.dtype, np.floating):
            return self._aligned(values, lambda value: str(int(value)))
        if self.digits == 0 or self.float_format == "none":
            return lambda value: f"{float(value):.{self.digits or 6}g}"
        finite = np.abs(values[np.isfinite(values) & (values != 0)].astype(np.float64))
        largest = float(finite.max()) if finite.size else 0.0
        # In fixed point, numbers share the digits between the two sides of the point.
        decimals = max(0, self.digits - len(f"{largest:.0f}"))
        scientific = self.float_format == "scientific"
        if self.float_format == "auto" and finite.size:
            scientific = largest >= 10**self.digits or float(finite.min()) < 10.0**-decimals
        pattern = f".{self.digits - 1}e" if scientific else f".{decimals}f"
        return self._aligned(values, lambda value: format(float(value), pattern))

    @staticmethod
    def _aligned(values: Any, write: Callable[[Any], str]) -> Callable[[Any], str]:
        # The longest text belongs to an extreme, or to what is no number.
        odd = values[~np.isfinite(values)][:1].tolist()
        regular = values[np.isfinite(values)]
        extremes = [regular.max(), regular.min()] if regular.size else []
        width = max(len(write(value)) for value in [*extremes, *odd])
        return lambda value: write(value).rjust(width)


def print(m: Any) -> None:
    """`poptorch.print`: print a module with the hooks that run before each part, `BeginBlock`'s among them."""
    builtins.print(_described(m) if isinstance(m, nn.Module) else m)


def _described(module: Optional[nn.Module]) -> str:
    if module is None:
        return "None"
    hooks = "".join(f"{hook!r} " for hook in module._forward_pre_hooks.values())
    own = module.extra_repr()
    children = [f"({name}): {_described(child)}" for name, child in module._modules.items()]
    inside = own if not children and "\n" not in own else _indented([*([own] if own else []), *children])
    return f"{hooks}{module._get_name()}({inside})"


def _indented(lines: Any) -> str:
    return "\n" + textwrap.indent("\n".join(lines), "  ") + "\n"
