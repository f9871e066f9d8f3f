"""Stands in for PopDist: the name and number of a program's processes."""

from __future__ import annotations

from ipu_vit.emulator.popdist import (
    getInstanceIndex,
    getNumInstances,
    getNumIpusPerReplica,
    getNumLocalReplicas,
    getNumTotalReplicas,
    init,
    isPopdistEnvSet,
)

__all__ = [
    "getInstanceIndex",
    "getNumInstances",
    "getNumIpusPerReplica",
    "getNumLocalReplicas",
    "getNumTotalReplicas",
    "init",
    "isPopdistEnvSet",
]
