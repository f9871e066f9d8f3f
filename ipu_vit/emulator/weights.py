"""Weights on the host and on the device (section 8).

The device has tensors of its own, copied from and to the module's parameters and buffers when
PopTorch would. Replicas share them, but for what a group of replicas has for itself.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.batchnorm import _NormBase

from ipu_vit.emulator.errors import Error
from ipu_vit.emulator.host_tensors import grouping_of, unwatch, watch

# Where a module keeps a tensor: the dictionary, and the key in it.
Place = Tuple[Dict[str, Any], str]
# What the device makes of host types (rule 6.7).
_DEVICE_TYPES = {torch.float64: torch.float32}


class DeviceWeights:
    """The device's copies of a module's parameters and buffers, by their names in the module."""

    def __init__(self, model: nn.Module, replicas: int) -> None:
        self._places: Dict[str, List[Place]] = {}
        self._host: Dict[str, Tensor] = {}
        #: names of the buffers of batch normalisations
        self.statistics = {
            f"{prefix}.{name}" if prefix else name
            for prefix, module in model.named_modules()
            if isinstance(module, _NormBase)
            for name in module._buffers
        }
        self._recurrent = [module for module in model.modules() if isinstance(module, nn.RNNBase)]
        #: names of the parameters that require gradients
        self.trained: List[str] = []
        #: names of the buffers
        self.buffers: List[str] = []
        #: each replica's tensors; those of a group of replicas are the same objects
        self.replicas: List[Dict[str, Tensor]] = [{} for _ in range(replicas)]
        self.host_is_stale = False
        #: how often the device's weights were copied to the host
        self.copies_to_host = 0
        self._groups: Dict[str, List[int]] = {}
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
                        if not trainable:
                            self.buffers.append(name)
                        elif tensor.requires_grad:
                            self.trained.append(name)
                    self._places.setdefault(name, []).append((tensors, key))

    @property
    def device(self) -> Dict[str, Tensor]:
        """The first replica's tensors."""
        return self.replicas[0]

    def name_of(self, tensor: Tensor) -> Optional[str]:
        """The name of a host tensor, if it is one of the module's."""
        return next((name for name, host in self._host.items() if host is tensor), None)

    def names_by_address(self) -> Dict[int, str]:
        """Names by the host tensors' storage addresses (rule 4.16)."""
        return {tensor.data_ptr(): name for name, tensor in self._host.items()}

    # Tracing ----------------------------------------------------------------------------------

    def fakes(self, fake: FakeTensorMode) -> Dict[str, Tensor]:
        """Tensors without data, as forward sees each weight."""
        self._group()
        fakes: Dict[str, Tensor] = {}
        for name, host in self._host.items():
            shape, stride = (
                (host.shape[1:], host.stride()[1:]) if self._is_grouped(name) else (host.shape, host.stride())
            )
            with fake:
                tensor = torch.empty_strided(shape, stride, dtype=_DEVICE_TYPES.get(host.dtype, host.dtype))
            is_parameter = isinstance(host, nn.Parameter)
            fakes[name] = nn.Parameter(tensor, host.requires_grad) if is_parameter else tensor
        return fakes

    @contextmanager
    def installed(self, tensors: Dict[str, Tensor]) -> Iterator[None]:
        """Put tensors in the weights' places in the module; Error if forward puts others there (rule 8.7)."""
        self._put(tensors)
        try:
            yield
            for name, places in self._places.items():
                if any(container.get(key) is not tensors[name] for container, key in places):
                    raise Error(
                        f"forward assigns a new tensor to {name}: a device can only change it in place, for example "
                        "with copy_()"
                    )
        finally:
            self._put(self._host)

    def _put(self, tensors: Dict[str, Tensor]) -> None:
        for name, places in self._places.items():
            for container, key in places:
                container[key] = tensors[name]
        for module in self._recurrent:  # these keep a list of their parameters
            module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]

    # Replicas ---------------------------------------------------------------------------------

    def _group(self) -> None:
        for name, host in self._host.items():
            grouping = grouping_of(host)
            self._groups[name] = [0] * len(self.replicas) if grouping is None else grouping.groups(len(self.replicas))
            count = max(self._groups[name]) + 1
            if count > 1 and (host.dim() == 0 or host.shape[0] != count):
                raise Error(
                    f"{name} has values for {count} groups of replicas, so its first dimension must be {count}, but "
                    f"its shape is {tuple(host.shape)}"
                )

    def _is_grouped(self, name: str) -> bool:
        return max(self._groups[name]) > 0

    def separate(self, names: Sequence[str]) -> None:
        """From now on each replica has tensors of its own for these."""
        for name in names:
            for replica in self.replicas[1:]:
                replica[name] = self.device[name].clone()

    def sharers(self, names: Sequence[str]) -> Dict[Tuple[int, ...], List[str]]:
        """Names by the replicas that share them: one entry for each group of replicas that has weights of its own."""
        sharers: Dict[Tuple[int, ...], List[str]] = {}
        for name in names:
            groups = self._groups[name]
            for group in range(max(groups) + 1):
                members = tuple(replica for replica, its in enumerate(groups) if its == group)
                sharers.setdefault(members, []).append(name)
        return sharers

    # Copies -----------------------------------------------------------------------------------

    @torch.no_grad()
    def to_device(self, names: Optional[Sequence[str]] = None) -> None:
        """Copy the host's weights, or some of them, to the device."""
        if names is None:
            self.host_is_stale = False
        for name in self._host if names is None else names:
            host, first = self._host[name], name not in self.device
            for replica, tensors in enumerate(self.replicas):
                part = host[self._groups[name][replica]] if self._is_grouped(name) else host
                before = self._before(name, replica)
                if before is not None and first:
                    tensors[name] = before
                elif first:
                    tensors[name] = part.detach().to(_DEVICE_TYPES.get(part.dtype, part.dtype), copy=True)
                else:
                    tensors[name].copy_(part)

    def _before(self, name: str, replica: int) -> Optional[Tensor]:
        """The tensor of an earlier replica of the same group."""
        groups = self._groups[name]
        first = groups.index(groups[replica])
        return self.replicas[first][name] if first < replica else None

    @torch.no_grad()
    def to_host(self, names: Optional[Sequence[str]] = None) -> None:
        """Copy the device's weights, or some of them, to the host: of each group, the first replica's."""
        self.copies_to_host += 1
        if names is None:
            self.host_is_stale = False
        for name in self.device if names is None else names:
            if self._is_grouped(name):
                for group in range(max(self._groups[name]) + 1):
                    self._host[name][group].copy_(self.replicas[self._groups[name].index(group)][name])
            else:
                self._host[name].copy_(self.device[name])

    def forget(self) -> None:
        """Free the device's tensors."""
        self.replicas = [{} for _ in self.replicas]

    # Watching ---------------------------------------------------------------------------------

    def refresh_host(self) -> None:
        """Copy the weights back if the device has changed them since."""
        if self.host_is_stale:
            self.to_host()

    def watch_host(self, following: bool) -> None:
        """Mark the module's tensors as wrapped; if following, copy the device's back when they are touched."""
        for tensor in self._host.values():
            watch(tensor, self.refresh_host if following else None)

    def unwatch_host(self) -> None:
        for tensor in self._host.values():
            unwatch(tensor)
