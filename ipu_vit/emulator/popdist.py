"""PopDist, which tells the processes of a distributed program apart: here a program is one process.

PopRun, which would start several and describe them in the environment, is not there, so that
`isPopdistEnvSet()` is false and programs take their way for a single process (rule 11.2).
"""

from __future__ import annotations

from typing import Any, Dict, NoReturn, Optional

from ipu_vit.emulator import options
from ipu_vit.emulator.option_groups import DistributedOptions


def isPopdistEnvSet() -> bool:
    """Whether PopRun has started this process."""
    return False


def init() -> None:
    """Meet the other processes."""


def getInstanceIndex() -> int:
    """The number of this process."""
    return 0


def getNumInstances() -> int:
    """How many processes there are."""
    return 1


def getNumLocalReplicas() -> int:
    """How many replicas this process runs."""
    return 1


def getNumTotalReplicas() -> int:
    """How many replicas all processes run."""
    return getNumInstances() * getNumLocalReplicas()


def getNumIpusPerReplica() -> int:
    """How many IPUs each replica takes."""
    return 1


def _refuse(setter: str) -> NoReturn:
    raise RuntimeError(
        f"{setter} has no place in popdist.poptorch.Options, which takes it from PopRun: use poptorch.Options to set it"
    )


class _DistributedOptions(DistributedOptions):
    """`Options.Distributed` whose answers come from PopRun."""

    def __init__(self) -> None:
        super().__init__()
        self.set(num_distributed_processes=getNumInstances(), distributed_process_id=getInstanceIndex())

    def disable(self) -> NoReturn:
        _refuse("Distributed.disable")

    def setEnvVarNames(self, var_num_processes: str, var_process_id: str) -> NoReturn:
        _refuse("Distributed.setEnvVarNames")

    def configureProcessId(self, process_id: int, num_processes: int) -> NoReturn:
        _refuse("Distributed.configureProcessId")


class Options(options.Options):
    """`popdist.poptorch.Options`: replicas, processes and devices are PopRun's to choose."""

    def __init__(self, ipus_per_replica: Optional[int] = None) -> None:
        super().__init__()
        self._distributed = _DistributedOptions()
        self.set(replication_factor=getNumLocalReplicas())
        if ipus_per_replica is not None:
            self.createOrSet(ipus_per_replica=ipus_per_replica)

    def replicationFactor(self, replication_factor: int) -> Any:
        _refuse("replicationFactor")

    def useIpuId(self, ipu_id: int) -> Any:
        _refuse("useIpuId")

    def toDict(self) -> Dict[str, Any]:
        found = super().toDict()
        found.pop("ipus_per_replica", None)  # not the compiler's business
        return found
