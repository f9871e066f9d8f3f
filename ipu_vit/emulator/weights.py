"""Weights on the host and on the device (section 8).

The device has tensors of its own. They take the places of the module's parameters and buffers for
the time of a trace or run, and are copied from and to the module when PopTorch would.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Tuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

# Where a module keeps a tensor: the dictionary, and the key in it.
Place = Tuple[Dict[str, Any], str]


class DeviceWeights:
    """The device's copies of a module's parameters and buffers, by their names in the module."""

    def __init__(self, model: nn.Module) -> None:
        self._places: Dict[str, List[Place]] = {}
        self._host: Dict[str, Tensor] = {}
        self.trained: List[str] = []
        self.device: Dict[str, Tensor] = {}
        self.host_is_stale = False
        self._find(model)

    def _find(self, model: nn.Module) -> None:
        names: Dict[int, str] = {}
        for prefix, module in model.named_modules():
            for tensors, trainable in ((module._parameters, True), (module._buffers, False)):
                for key, tensor in tensors.items():
                    if tensor is None:
                        continue
                    # A tensor shared by two modules is one weight on the device too.
                    name = names.setdefault(id(tensor), f"{prefix}.{key}" if prefix else key)
                    if name not in self._host:
                        self._host[name] = tensor
                        if trainable and tensor.requires_grad:
                            self.trained.append(name)
                    self._places.setdefault(name, []).append((tensors, key))

    def names_by_address(self) -> Dict[int, str]:
        """Names by the host tensors' storage addresses (rule 4.16)."""
        return {tensor.data_ptr(): name for name, tensor in self._host.items()}

    def fakes(self, fake: FakeTensorMode) -> Tuple[Dict[str, Tensor], Dict[int, str]]:
        """Tensors without data in every weight's place, and the parameters' names by their ids."""
        tensors: Dict[str, Tensor] = {name: fake.from_tensor(tensor) for name, tensor in self._host.items()}
        parameters = {id(tensors[name]): name for name, host in self._host.items() if isinstance(host, nn.Parameter)}
        return tensors, parameters

    @contextmanager
    def installed(self, tensors: Dict[str, Tensor]) -> Iterator[None]:
        """Put tensors in the weights' places in the module, for the time of the context."""
        self._put(tensors)
        try:
            yield
        finally:
            self._put(self._host)

    def _put(self, tensors: Dict[str, Tensor]) -> None:
        for name, places in self._places.items():
            for container, key in places:
                container[key] = tensors[name]

    @torch.no_grad()
    def to_device(self) -> None:
        """Copy the host's weights to the device."""
        for name, host in self._host.items():
            if name in self.device:
                self.device[name].copy_(host)
            else:
                self.device[name] = host.detach().clone()
        self.host_is_stale = False

    @torch.no_grad()
    def to_host(self) -> None:
        """Copy the device's weights to the host."""
        for name, tensor in self.device.items():
            self._host[name].copy_(tensor)
        self.host_is_stale = False

    def refresh_before_state_dict(self, module: nn.Module) -> None:
        """Have `state_dict()` of a module copy stale weights back first (rule 8.2)."""

        def refresh(*_: Any) -> None:
            if self.host_is_stale:
                self.to_host()

        module.register_state_dict_pre_hook(refresh)

    def forget(self) -> None:
        """Free the device's tensors."""
        self.device = {}
