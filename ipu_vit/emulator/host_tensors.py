"""Parameters and buffers of a wrapped module, which copy themselves back from the device when touched.

After a training call the host's weights are stale. PopTorch changes the class of the module's
tensors while it is wrapped, so that looking at one first fetches them all (rules 8.1, 8.2).
"""

from __future__ import annotations

import copy
import weakref
from typing import Any, Callable, Dict, Optional, Union

import torch
from torch import Tensor, nn

from ipu_vit.emulator.enums import CommGroupType, VariableRetrievalMode
from ipu_vit.emulator.replica_groups import ReplicaGrouping

_WATCHER = "_poptorch_watcher"
_GROUPING = "_poptorch_grouping"


class _Watched:
    """What watched parameters and buffers share."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in (*args, *(kwargs or {}).values()):
            for item in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(item, _Watched):
                    item.refresh()
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    def refresh(self) -> None:
        watcher = self.__dict__.get(_WATCHER)
        callback = None if watcher is None else watcher()
        if callback is not None:
            callback()

    def replicaGrouping(
        self, comm_group_type: CommGroupType, shards: int, variable_retrieval_mode: VariableRetrievalMode
    ) -> None:
        """Give groups of replicas values of their own; the first dimension then counts the groups."""
        self.__dict__[_GROUPING] = ReplicaGrouping(comm_group_type, shards, variable_retrieval_mode)

    def __deepcopy__(self, memo: Dict[int, Any]) -> Tensor:
        self.refresh()
        with torch._C.DisableTorchFunctionSubclass():
            copied: Tensor = copy.deepcopy(_as_plain(self), memo)  # type: ignore[arg-type]
        memo[id(self)] = copied
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        self.refresh()
        with torch._C.DisableTorchFunctionSubclass():
            return _as_plain(self).__reduce_ex__(protocol)  # type: ignore[arg-type]


class PoptorchParameter(_Watched, nn.Parameter):  # type: ignore[misc]
    """A parameter of a wrapped module."""


class PoptorchBuffer(_Watched, Tensor):  # type: ignore[misc]
    """A buffer of a wrapped module."""


def watch(tensor: Tensor, callback: Optional[Callable[[], None]]) -> None:
    """Call back before anything looks at this tensor; None only marks it as wrapped."""
    if type(tensor) is nn.Parameter:
        tensor.__class__ = PoptorchParameter
    elif type(tensor) is Tensor:
        tensor.__class__ = PoptorchBuffer
    if callback is not None and isinstance(tensor, _Watched):
        tensor.__dict__[_WATCHER] = weakref.WeakMethod(callback)  # type: ignore[arg-type]


def unwatch(tensor: Tensor) -> None:
    """Make it a plain parameter or tensor again."""
    if isinstance(tensor, _Watched):
        tensor.__dict__.pop(_WATCHER, None)
        tensor.__dict__.pop(_GROUPING, None)
        tensor.__class__ = nn.Parameter if isinstance(tensor, nn.Parameter) else Tensor  # type: ignore[assignment]


def grouping_of(tensor: Tensor) -> Optional[ReplicaGrouping]:
    """What `replicaGrouping` was told for a tensor."""
    grouping: Optional[ReplicaGrouping] = tensor.__dict__.get(_GROUPING)
    return grouping


def _as_plain(tensor: Union[nn.Parameter, Tensor]) -> Tensor:
    """A plain parameter or tensor with the same data."""
    data = tensor.detach()
    return nn.Parameter(data, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data
