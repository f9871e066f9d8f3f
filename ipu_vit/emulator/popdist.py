"""PopDist, which tells the processes of a distributed program apart (rule 11.2).

PopRun describes a program's processes in their environments, as it does here for a process of two replicas
that is the second of four:

    POPDIST_NUM_TOTAL_REPLICAS=8         replicas of all processes
    POPDIST_NUM_LOCAL_REPLICAS=2         those of this process, of which every process has as many
    POPDIST_REPLICA_INDEX_OFFSET=2       the number of its first one
    POPDIST_NUM_IPUS_PER_REPLICA=4

Without these variables `isPopdistEnvSet()` is false, and programs take their way for a single process.
"""

from __future__ import annotations

import os
from typing import Any, Dict, NoReturn, Optional

from ipu_vit.emulator import options
from ipu_vit.emulator.option_groups import DistributedOptions


def isPopdistEnvSet() -> bool:
    """Whether PopRun has started this process."""
    return "POPDIST_NUM_TOTAL_REPLICAS" in os.environ


def init() -> None:
    """Meet the other processes."""


def getInstanceIndex() -> int:
    """The number of this process."""
    return _variable("REPLICA_INDEX_OFFSET", 0) // getNumLocalReplicas()


def getNumInstances() -> int:
    """How many processes there are."""
    return getNumTotalReplicas() // getNumLocalReplicas()


def getNumLocalReplicas() -> int:
    """How many replicas this process runs."""
    return _variable("NUM_LOCAL_REPLICAS", 1)


def getNumTotalReplicas() -> int:
    """How many replicas all processes run."""
    return _variable("NUM_TOTAL_REPLICAS", 1)


def getNumIpusPerReplica() -> int:
    """How many IPUs each replica takes."""
    return _variable("NUM_IPUS_PER_REPLICA", 1)


def _variable(name: str, default: int) -> int:
    return int(os.environ.get(f"POPDIST_{name}", default))


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
