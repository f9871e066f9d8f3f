"""What a module becomes while an executor trains it (rules 8.1, 8.2).

After a training call the host's weights are stale. PopTorch changes the classes of the module, its
parameters and its buffers while they are wrapped, so that looking at one of them first fetches them
all. Copies and files of them are of the module's own classes.
"""

from __future__ import annotations

import copy
import weakref
from typing import Any, Callable, Dict, Optional, Union

import torch
from torch import Tensor, nn

from ipu_vit.emulator.errors import Error

_WATCHER = "_poptorch_watcher"


# Tensors ----------------------------------------------------------------------------------------


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

    def __repr__(self) -> str:
        return repr(_as_plain(self))  # type: ignore[arg-type]

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


def watch(tensor: Tensor, callback: Callable[[], None]) -> None:
    """Call back before anything looks at this tensor."""
    if type(tensor) is nn.Parameter:
        tensor.__class__ = PoptorchParameter
    elif type(tensor) is Tensor:
        tensor.__class__ = PoptorchBuffer
    if isinstance(tensor, _Watched):
        tensor.__dict__[_WATCHER] = weakref.WeakMethod(callback)  # type: ignore[arg-type]


def unwatch(tensor: Tensor) -> None:
    """Make it a plain parameter or tensor again."""
    if isinstance(tensor, _Watched):
        tensor.__dict__.pop(_WATCHER, None)
        tensor.__class__ = nn.Parameter if isinstance(tensor, nn.Parameter) else Tensor  # type: ignore[assignment]


def is_watched(tensor: Tensor) -> bool:
    """Whether anything that looks at this tensor calls back first."""
    return isinstance(tensor, _Watched) and _WATCHER in tensor.__dict__


def lend(memory: Tensor, host: Tensor) -> None:
    """Let a host tensor be this memory and free its own, unless a view, an array or another process sees that too."""
    if host.is_shared():
        return
    own = host.untyped_storage()._weak_ref()
    layout = host.storage_offset(), host.shape, host.stride()
    host.data = memory.detach()
    if not torch.UntypedStorage._expired(own):  # somebody else keeps it
        host.data = host.new_empty(0).set_(torch.UntypedStorage._new_with_weak_ptr(own), *layout)
    torch.UntypedStorage._free_weak_ref(own)


def require_plain(name: str, buffer: Tensor) -> None:
    """Raise Error for a buffer of a class of its own (rule 8.7)."""
    if type(buffer) not in (Tensor, PoptorchBuffer):
        raise Error(f"Buffer {name} is of type {type(buffer).__name__}: buffers must be plain tensors")


def _as_plain(tensor: Union[nn.Parameter, Tensor]) -> Tensor:
    """A plain parameter or tensor with the same data."""
    data = tensor.detach()
    return nn.Parameter(data, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data


# Modules ----------------------------------------------------------------------------------------


class WrappedModule:
    """What a module can do beside its own while an executor trains it."""

    #: the executor, which the module does not keep alive
    _poptorch_executor: Callable[[], Any]

    def copyWeightsToHostIfNeeded(self) -> bool:
        """Copy the weights back if a run has changed them since; tells whether it did."""
        executor = self._poptorch_executor()
        return executor is not None and bool(executor.copyWeightsToHostIfNeeded())

    def destroy(self) -> None:
        """Destroy the executor."""
        executor = self._poptorch_executor()
        if executor is not None:
            executor.destroy()

    def __reduce_ex__(self, protocol: Any) -> Any:
        own = _own_class(self)
        plain = own.__new__(own)
        plain.__dict__ = self.__dict__
        # The way of protocol 1: those of later protocols are only for objects of exactly the class they name.
        return plain.__reduce_ex__(1)


def require_unwrapped(module: nn.Module) -> None:
    """Raise RuntimeError for a module that is wrapped for training, whether its executor lives or not."""
    if isinstance(module, WrappedModule):
        raise RuntimeError("This model is already wrapped for training: call its destroy() before wrapping it again")


def wrap_module(module: nn.Module, executor: Any) -> None:
    """Change the class of a module that an executor trains."""
    own = type(module)
    body = {"_poptorch_executor": staticmethod(weakref.ref(executor)), "__module__": own.__module__}
    module.__class__ = type(f"Poptorch{own.__name__}", (WrappedModule, own), body)


def unwrap_module(module: nn.Module) -> None:
    """Give a module its own class back."""
    if isinstance(module, WrappedModule):
        module.__class__ = _own_class(module)


def trainer_of(module: nn.Module) -> Optional[Any]:
    """The executor that trains this module, if there is one."""
    return module._poptorch_executor() if isinstance(module, WrappedModule) else None


def _own_class(module: Any) -> Any:
    return type(module).__mro__[2]  # after the wrapped class itself and WrappedModule
