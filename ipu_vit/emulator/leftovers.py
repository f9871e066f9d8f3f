"""What a trace must not leave behind: tensors without values, in the user's modules or anywhere else.

A forward that makes a mask or a table once, and keeps it for the next call, keeps one of the trace's tensors.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Tuple, Union

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_flatten

from ipu_vit.emulator.errors import Error
from ipu_vit.emulator.tape import is_fake

Container = Union[Dict[Any, Any], List[Any]]


class TraceMode(FakeTensorMode):
    """Makes a trace's tensors; Error for who uses one when the trace is over (`trace_mode`)."""

    is_over = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.is_over:
            raise Error(
                f"{func}: this tensor was made while forward was traced for a device, and has no values here: forward "
                "has kept it, for example in a cache; make it anew in every call, or register it as a buffer"
            )
        return super().__torch_dispatch__(func, types, args, {} if kwargs is None else kwargs)


@contextmanager
def trace_mode() -> Iterator[TraceMode]:
    """The mode of one trace."""
    mode = TraceMode(allow_non_fake_inputs=True)
    try:
        yield mode
    finally:
        mode.is_over = True


@contextmanager
def cleared_away(model: nn.Module) -> Iterator[None]:
    """Put back what the attributes of a model's modules were, where they hold a trace's tensors afterwards."""
    attributes = [vars(module) for module in model.modules()]
    inside = [value for each in attributes for value in each.values() if isinstance(value, (dict, list))]
    before: List[Tuple[Container, Container]] = [(container, container.copy()) for container in (*attributes, *inside)]
    try:
        yield
    finally:
        for container, old in before:
            _put_back(container, old)


def _put_back(container: Container, old: Container) -> None:
    if isinstance(container, list) or isinstance(old, list):
        if _holds_fakes(container):
            container[:] = old  # type: ignore[index,assignment]
        return
    for name in [name for name, value in container.items() if value is not old.get(name) and _holds_fakes(value)]:
        if name in old:
            container[name] = old[name]
        else:
            del container[name]


def _holds_fakes(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) and is_fake(leaf) for leaf in tree_flatten(value)[0])
