"""Weights on the host and on the device (section 8).

The device has tensors of its own, copied from and to the module's parameters and buffers when
PopTorch would. Replicas share them, but for what a group of replicas has for itself.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Optional, Sequence, Set, Tuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.batchnorm import _NormBase

from ipu_vit.emulator.errors import Error
from ipu_vit.emulator.host_tensors import is_watched, lend, require_plain, unwatch, watch
from ipu_vit.emulator.replica_groups import Chosen, ReplicaGrouping

# Where a module keeps a tensor: the dictionary, and the key in it.
Place = Tuple[Dict[str, Any], str]
# What the device makes of host types (rule 6.7).
_DEVICE_TYPES = {torch.float64: torch.float32}


class DeviceWeights:
    """The device's copies of a module's parameters and buffers, by their names in the module."""

    def __init__(self, model: nn.Module, replicas: int) -> None:
        self._model = model
        self._places: Dict[str, List[Place]] = {}
        self._host: Dict[str, Tensor] = {}
        self._recurrent: List[nn.RNNBase] = []
        #: names of the parameters that require gradients
        self.trained: List[str] = []
        #: names of the buffers
        self.buffers: List[str] = []
        #: names of the buffers of batch normalisations
        self.statistics: Set[str] = set()
        #: each replica's tensors; those of a group of replicas are the same objects
        self.replicas: List[Dict[str, Tensor]] = [{} for _ in range(replicas)]
        self.host_is_stale = False
        #: how often the device's weights were copied to the host
        self.copies_to_host = 0
        #: what `replicaGrouping` was told, by the parameter's name
        self.chosen_groups: Dict[str, Chosen] = {}
        # The group of each replica, for the weights that groups have for themselves.
        self._groups: Dict[str, List[int]] = {}
        self._watching = False
        self._lent = False

    @property
    def device(self) -> Dict[str, Tensor]:
        """The first replica's tensors."""
        return self.replicas[0]

    # The host's tensors -----------------------------------------------------------------------

    def find(self) -> None:
        """Look for the module's tensors, as they are when it is wrapped or compiled."""
        names: Dict[int, str] = {}
        self._places, self._host = {}, {}
        self.trained, self.buffers, self.statistics = [], [], set()
        self._recurrent = [module for module in self._model.modules() if isinstance(module, nn.RNNBase)]
        for prefix, module in self._model.named_modules():
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
                            self.statistics.update([name] if isinstance(module, _NormBase) else [])
                        elif tensor.requires_grad:
                            self.trained.append(name)
                    self._places.setdefault(name, []).append((tensors, key))

    def _look_up(self) -> None:
        """Find what the module has now in the places of the weights that were compiled."""
        for name, places in self._places.items():
            container, key = places[0]
            tensor, before = container.get(key), self._host[name]
            if tensor is before:
                continue
            if tensor is None or tensor.shape != before.shape:
                found = "removed" if tensor is None else f"replaced by one of shape {tuple(tensor.shape)}"
                raise Error(
                    f"{name} of shape {tuple(before.shape)} was {found} after the model was compiled: wrap the changed "
                    "model anew"
                )
            self._host[name] = tensor
            if self._watching:
                watch(tensor, self.refresh_host)

    def name_of(self, tensor: Tensor) -> Optional[str]:
        """The name of a host tensor, if it is one of the module's."""
        return next((name for name, host in self._host.items() if host is tensor), None)

    def names_by_address(self) -> Dict[int, str]:
        """Names by the host tensors' storage addresses (rule 4.16)."""
        return {tensor.data_ptr(): name for name, tensor in self._host.items()}

    # Tracing ----------------------------------------------------------------------------------

    def fakes(self, fake: FakeTensorMode) -> Dict[str, Tensor]:
        """Tensors without data, as forward sees each weight."""
        self.find()
        self._group()
        fakes: Dict[str, Tensor] = {}
        for name, host in self._host.items():
            shape, stride = (host.shape[1:], host.stride()[1:]) if name in self._groups else (host.shape, host.stride())
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
                replaced = any(container.get(key) is not tensors[name] for container, key in places)
                if replaced and name not in self.statistics:
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
        self._groups = {}
        for name, chosen in self.chosen_groups.items():
            if name not in self._host:
                raise Error(f"replicaGrouping was called for {name}, which is no parameter of the model any more")
            groups, shape = ReplicaGrouping(*chosen).groups(len(self.replicas)), self._host[name].shape
            count = max(groups) + 1
            if not shape or shape[0] != count:
                raise Error(
                    f"{name} has values for {count} groups of replicas, so its first dimension must be {count}, but "
                    f"its shape is {tuple(shape)}"
                )
            self._groups[name] = groups

    @property
    def has_groups(self) -> bool:
        """Whether groups of replicas have weights of their own."""
        return any(max(groups) for groups in self._groups.values())

    def separate(self, names: Sequence[str]) -> None:
        """From now on each replica has tensors of its own for these."""
        for name in names:
            for replica in self.replicas[1:]:
                replica[name] = self.device[name].clone()

    def sharers(self, names: Sequence[str]) -> Dict[Tuple[int, ...], List[str]]:
        """Names by the replicas that share them: one entry for each group of replicas that has weights of its own."""
        sharers: Dict[Tuple[int, ...], List[str]] = {}
        for name in names:
            groups = self._groups_of(name)
            for group in range(max(groups) + 1):
                members = tuple(replica for replica, its in enumerate(groups) if its == group)
                sharers.setdefault(members, []).append(name)
        return sharers

    def _groups_of(self, name: str) -> List[int]:
        return self._groups.get(name, [0] * len(self.replicas))

    # Copies -----------------------------------------------------------------------------------

    @torch.no_grad()
    def to_device(self, names: Optional[Sequence[str]] = None) -> None:
        """Copy the host's weights, or some of them, to the device."""
        if names is None:
            self.host_is_stale = False
        self._look_up()
        with torch._C.DisableTorchFunctionSubclass():
            for name in self._host if names is None else names:
                self._copy_to_device(name)

    def _copy_to_device(self, name: str) -> None:
        host, groups = self._host[name], self._groups_of(name)
        for replica, tensors in enumerate(self.replicas):
            part = host[groups[replica]] if name in self._groups else host
            first_of_group = groups.index(groups[replica])
            if name in tensors:
                tensors[name].copy_(part)
            elif first_of_group < replica:
                tensors[name] = self.replicas[first_of_group][name]
            else:
                tensors[name] = part.detach().to(_DEVICE_TYPES.get(part.dtype, part.dtype), copy=True)

    @torch.no_grad()
    def to_host(self) -> None:
        """Copy the device's weights to the host: of each group, the first replica's."""
        self.copies_to_host += 1
        self.host_is_stale = self._lent = False
        self._look_up()
        with torch._C.DisableTorchFunctionSubclass():
            for name, tensor in self.device.items():
                host = self._host[name]
                if name in self._groups:
                    groups = self._groups[name]
                    tensor = torch.stack([self.replicas[groups.index(group)][name] for group in range(max(groups) + 1)])
                if host.data_ptr() == tensor.data_ptr():
                    host.data = tensor.detach().clone()
                else:
                    host.copy_(tensor)

    def lend_host(self) -> None:
        """Let the host's tensors be the device's until somebody looks at them, rather than take memory of their own."""
        if self._lent:
            return
        with torch._C.DisableTorchFunctionSubclass():
            for name, host in self._host.items():
                tensor = self.device[name]
                if is_watched(host) and host.dtype == tensor.dtype and host.shape == tensor.shape:
                    lend(tensor, host)
        self._lent = True

    def forget(self) -> None:
        """Free the device's tensors."""
        self.replicas = [{} for _ in self.replicas]

    # Watching ---------------------------------------------------------------------------------

    def refresh_host(self) -> None:
        """Copy the weights back if the device has changed them since, or still has them."""
        if self.host_is_stale or self._lent:
            self.to_host()

    def watch_host(self) -> None:
        """Have the module's tensors copied back when they are touched; Error for buffers that are no plain tensors."""
        self.find()
        for name in self.buffers:
            require_plain(name, self._host[name])
        self._watching = True
        for tensor in self._host.values():
            watch(tensor, self.refresh_host)

    def unwatch_host(self) -> None:
        self._watching = False
        for tensor in self._host.values():
            unwatch(tensor)
