"""Groups of replicas that have values of a weight for themselves.

The first dimension of such a weight on the host counts the groups, forward sees the rest. So does
that of its optimizer state, wherever that is saved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Sequence, Tuple

import torch
from torch import Tensor, nn

from ipu_vit.emulator.enums import CommGroupType, VariableRetrievalMode
from ipu_vit.emulator.errors import Error


@dataclass(frozen=True)
class ReplicaGrouping:
    """How a weight's values are shared: `size` replicas to a group, next to each other or interleaved."""

    kind: CommGroupType
    size: int
    retrieval: VariableRetrievalMode

    def __post_init__(self) -> None:
        if not isinstance(self.kind, CommGroupType) or not isinstance(self.retrieval, VariableRetrievalMode):
            raise Error(
                "replicaGrouping takes a poptorch.CommGroupType, the replicas of a group, and a "
                f"poptorch.VariableRetrievalMode, not {self.kind!r} and {self.retrieval!r}"
            )

    def groups(self, replicas: int) -> List[int]:
        """The group of each replica."""
        groups = self._groups(replicas)
        if self.retrieval == VariableRetrievalMode.AllReplicas and max(groups) + 1 < replicas:
            raise Error(
                f"VariableRetrievalMode.AllReplicas brings back {replicas} values, one from each replica, but a weight "
                f"of {max(groups) + 1} groups has no room for more than one from each group: use OnePerGroup"
            )
        return groups

    def _groups(self, replicas: int) -> List[int]:
        if self.kind == CommGroupType.All:
            return [0] * replicas
        if self.kind == CommGroupType.NoGrouping:
            return list(range(replicas))
        if self.size < 1 or replicas % self.size:
            raise Error(f"Groups of {self.size} replicas do not divide replicationFactor {replicas}")
        if self.kind == CommGroupType.Consecutive:
            return [replica // self.size for replica in range(replicas)]
        return [replica % (replicas // self.size) for replica in range(replicas)]


# What `executor.per_replica_params` keeps by a parameter's name.
Chosen = Tuple[CommGroupType, int, VariableRetrievalMode]


class GroupableParameter:
    """A parameter as an attribute of an executor: everything the parameter is, and `replicaGrouping`."""

    def __init__(self, parameter: nn.Parameter, choose: Callable[[Chosen], None]) -> None:
        self._parameter = parameter
        self._choose = choose

    def replicaGrouping(
        self, comm_group_type: CommGroupType, shards: int, variable_retrieval_mode: VariableRetrievalMode
    ) -> None:
        """Give groups of replicas values of their own; the first dimension then counts the groups."""
        self._choose((comm_group_type, shards, variable_retrieval_mode))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parameter, name)


# Optimizer state --------------------------------------------------------------------------------


def joined(states: Sequence[Dict[str, Tensor]]) -> Dict[str, Tensor]:
    """The states of several groups' updates as one: what more than one has is stacked, in the order of the groups."""
    columns: Dict[str, List[Tensor]] = {}
    for state in states:
        for name, tensor in state.items():
            columns.setdefault(name, []).append(tensor)
    return {name: column[0] if len(column) == 1 else torch.stack(column) for name, column in columns.items()}


def parted(state: Dict[str, Tensor], owners: Sequence[Dict[str, Tensor]]) -> List[Dict[str, Tensor]]:
    """The inverse of `joined`, for updates that have these states now; RuntimeError for what fits none of them."""
    parts: List[Dict[str, Tensor]] = [{} for _ in owners]
    for name, tensor in state.items():
        having = [part for part, own in zip(parts, owners) if name in own]
        if not having or (len(having) > 1 and tensor.shape[:1] != (len(having),)):
            raise RuntimeError(f"The optimizer state {name} of shape {tuple(tensor.shape)} fits no parameter")
        for part, value in zip(having, tensor if len(having) > 1 else [tensor]):
            part[name] = value
    return parts
