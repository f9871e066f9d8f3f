"""Adding up what replicas have accumulated: those of this process, then those of all processes (rule 3.2)."""

from __future__ import annotations

from typing import Optional, Sequence

from torch import Tensor

from ipu_vit.emulator.errors import Error
from ipu_vit.emulator.options import Options
from ipu_vit.emulator.random import BitStream
from ipu_vit.emulator.rounding import store


def all_reduce(sums: Sequence[Tensor], mean: bool, options: Options, bits: Optional[BitStream]) -> Tensor:
    """The sum, or the mean, of one bucket's accumulators, in the memory of the first.

    It is stored in the accumulators' type as any other sum is, so halves can overflow here too.
    """
    processes = options.Distributed.numProcesses
    if len(sums) * processes == 1:
        return sums[0]
    total = sums[0].float()
    for other in sums[1:]:
        total.add_(other)
    total = reduce_over_processes(total, options)
    if mean:
        total.div_(len(sums) * processes)
    store(total, sums[0], bits)
    return sums[0]


def reduce_over_processes(total: Tensor, options: Options) -> Tensor:
    """The sum of a float32 tensor over all processes of a distributed run."""
    if options.Distributed.numProcesses == 1:
        return total
    raise Error(
        f"Training in {options.Distributed.numProcesses} processes is not emulated: raise replicationFactor instead"
    )
