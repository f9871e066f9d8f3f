"""Groups of replicas that share a weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List

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
        if self.kind == CommGroupType.All:
            return [0] * replicas
        if self.kind == CommGroupType.NoGrouping:
            return list(range(replicas))
        if self.size < 1 or replicas % self.size:
            raise Error(f"Groups of {self.size} replicas do not divide replicationFactor {replicas}")
        if self.kind == CommGroupType.Consecutive:
            return [replica // self.size for replica in range(replicas)]
        return [replica % (replicas // self.size) for replica in range(replicas)]
