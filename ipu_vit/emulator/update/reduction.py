"""Adding up what replicas have accumulated: those of this process, then those of all processes (rule 3.2).

Processes meet in Horovod, with which PopTorch programs also do themselves what PopTorch leaves to them:
broadcasting first weights, adding up figures.
"""

from __future__ import annotations

from typing import Any, Iterable, List, Optional, Sequence

import torch
from torch import Tensor

from ipu_vit.emulator.errors import Error
from ipu_vit.emulator.options import Options
from ipu_vit.emulator.random import BitStream
from ipu_vit.emulator.rounding import store


def all_reduce(
    replicas: Sequence[Sequence[Tensor]], means: Sequence[bool], options: Options, bits: Optional[BitStream]
) -> List[Tensor]:
    """The sum, or for buckets in `means` the mean, of each bucket's accumulators, in the memory of the first replica's.

    `replicas` are those of this process, each with an accumulator for every bucket. Results are stored in
    the accumulators' type as any other sum is, so halves can overflow here too.
    """
    processes: int = options.Distributed.numProcesses
    count = len(replicas) * processes
    if count == 1:
        return list(replicas[0])
    totals: Iterable[Tensor] = (_sum(accumulators) for accumulators in zip(*replicas))  # halves' take memory: in turn
    if processes > 1:
        totals = sum_over_processes(list(totals))
    for total, target, mean in zip(totals, replicas[0], means):
        store(total.div_(count) if mean else total, target, bits)
    return list(replicas[0])


def _sum(accumulators: Sequence[Tensor]) -> Tensor:
    total = accumulators[0].float()
    for other in accumulators[1:]:
        total.add_(other)
    return total


# Processes --------------------------------------------------------------------------------------


def meet(options: Options) -> None:
    """Find the other processes; Error if they are not those that the options tell of."""
    hvd = _horovod(options)
    wanted = (options.Distributed.processId, options.Distributed.numProcesses)
    found = (hvd.rank(), hvd.size())
    if found != wanted:
        raise Error(
            f"Options.Distributed has this as process {wanted[0]} of {wanted[1]}, but Horovod as {found[0]} of "
            f"{found[1]}: start the program with horovodrun -np {wanted[1]}, and call "
            "options.Distributed.configureProcessId(hvd.rank(), hvd.size())"
        )


def sum_over_processes(tensors: List[Tensor]) -> List[Tensor]:
    """Add up each tensor over all processes, in place.

    All of them go in one group, so that Horovod always joins the same ones to one large message, and sums
    of three and more numbers are taken in the same order in every run.
    """
    import horovod.torch as hvd

    hvd.grouped_allreduce_(tensors, name="reduction", op=hvd.Sum)
    return tensors


def of_first_process(number: int) -> int:
    """Process 0's number, in all processes."""
    import horovod.torch as hvd

    return int(hvd.broadcast(torch.tensor([number]), root_rank=0, name="number"))


def _horovod(options: Options) -> Any:
    try:
        import horovod.torch as hvd
    except ImportError as error:
        raise Error(
            f"Horovod is missing: training in {options.Distributed.numProcesses} processes is emulated with "
            "horovod.torch, built with Gloo, by which their gradients are added up"
        ) from error
    if not hvd.is_initialized():
        hvd.init()
    return hvd
