"""The processes of a run, and what they tell each other.

One small interface on two engines. Under `poprun`, popdist tells who is who; under `horovodrun`, Horovod
does. Messages go through Horovod either way, as in any PopTorch program: over MPI as the SDK's Horovod
does it, or over Gloo. A single process needs neither.

Every message begins with a small one that is always alike, in which each process says whether it is well:

    process 0     state · sum         state · broadcast         state: told that 1 has failed
    process 1     state · sum         state · broadcast         state: failed

So a process that fails need not know what the others are about to tell each other, and nobody waits for it.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Dict, Iterator, List, Optional, Sequence, Tuple, Type

from ipu_vit.device import find_popdist
from ipu_vit.errors import ToldElsewhere, UserError

if TYPE_CHECKING:
    from torch import Tensor

    from ipu_vit.settings import PipelineSettings

_NUMBERS = 8  # that a state has room for
_PIECE = 2**30  # bytes of one broadcast


class Processes:
    """The only process of a run. Several of them are `SeveralProcesses`, and `together` finds which."""

    rank = 0
    size = 1
    #: replicas of each process, and IPUs of each replica, if PopRun has decided on them
    replicas: Optional[int] = None
    ipus: Optional[int] = None
    #: what is raised when another process is gone
    lost: Tuple[Type[Exception], ...] = ()

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and tells."""
        return self.rank == 0

    def __str__(self) -> str:
        return f"process {self.rank} of {self.size}"

    def sum(self, *values: float) -> List[float]:
        """Add up each of up to 8 numbers over all processes, as float64."""
        return list(values)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in one of the processes, or more."""
        return bool(self.sum(flag)[0])

    def gather(self, content: bytes) -> List[bytes]:
        """What each process has, by rank; all of them get it."""
        return [content]

    def broadcast(self, content: bytes) -> bytes:
        """What process 0 has."""
        return content

    def broadcast_tensors(self, tensors: Dict[str, Tensor]) -> None:
        """Overwrite tensors, of the same names, shapes and types everywhere, by those of process 0."""

    def fail(self) -> bool:
        """Tell the others that this process cannot go on; whether it is the one that should say why."""
        return True

    def replicas_of_each(self, pipeline: PipelineSettings) -> int:
        """How many replicas each process runs; raises UserError, naming what fits, if the settings' numbers do not."""
        if self.ipus not in (None, pipeline.ipus):
            raise UserError(
                f"pipeline.ipus={pipeline.ipus}, but poprun has been started with --ipus-per-replica {self.ipus}: "
                f"write pipeline.ipus={self.ipus} and its layers_per_ipu, or --ipus-per-replica {pipeline.ipus}"
            )
        total = None if self.replicas is None else self.replicas * self.size
        if total not in (None, pipeline.replicas):
            raise UserError(
                f"pipeline.replicas={pipeline.replicas}, but poprun has been started with --num-replicas {total}: "
                f"write pipeline.replicas={total}, or --num-replicas {pipeline.replicas}"
            )
        return pipeline.replicas_of_each(self.size)

    @contextmanager
    def first_goes_ahead(self) -> Iterator[None]:
        """Let process 0 be done with a piece of work before the others begin with it."""
        if not self.is_first:
            self.any(False)
        yield
        if self.is_first:
            self.any(False)


ALONE = Processes()


class SeveralProcesses(Processes):
    """One of several processes, which must all call the same methods in the same order."""

    def __init__(self, rank: int, size: int, replicas: Optional[int] = None, ipus: Optional[int] = None) -> None:
        """Raises UserError if Horovod is missing, or knows other processes."""
        try:
            import horovod.torch as hvd
            from horovod.common.exceptions import HorovodInternalError
        except ImportError as error:
            raise UserError(
                f"this is process {rank} of {size}, and Horovod, by which they train together, is missing: "
                "./run.sh install-horovod"
            ) from error
        hvd.init()
        if (hvd.rank(), hvd.size()) != (rank, size):
            raise UserError(
                f"this is process {rank} of {size}, but Horovod has it as {hvd.rank()} of {hvd.size()}: it has not "
                "been built for whoever starts the processes, poprun with MPI or horovodrun with Gloo"
            )
        self.rank, self.size, self.replicas, self.ipus = rank, size, replicas, ipus
        self.lost = (HorovodInternalError,)
        self._hvd = hvd

    def sum(self, *values: float) -> List[float]:
        return [sum(column) for column in zip(*self._exchange(values))]

    def gather(self, content: bytes) -> List[bytes]:
        import torch

        lengths = [int(row[0]) for row in self._exchange([len(content)])]
        padded = torch.frombuffer(bytearray(content + b"\0"), dtype=torch.uint8)  # Horovod wants a row of everybody
        joined = self._hvd.allgather(padded, name="gather").numpy()
        starts = [sum(lengths[:rank]) + rank for rank in range(self.size)]
        return [joined[start : start + length].tobytes() for start, length in zip(starts, lengths)]

    def broadcast(self, content: bytes) -> bytes:
        import torch

        length = int(self._exchange([len(content)])[0][0])
        buffer = bytearray(content) if self.is_first else bytearray(length)
        for start in range(0, length, _PIECE):
            piece = torch.frombuffer(memoryview(buffer)[start : start + _PIECE], dtype=torch.uint8)
            self._hvd.broadcast_(piece, root_rank=0, name="broadcast")
        return bytes(buffer)

    def broadcast_tensors(self, tensors: Dict[str, Tensor]) -> None:
        self._exchange([])
        self._hvd.broadcast_parameters(tensors, root_rank=0)

    def fail(self) -> bool:
        try:
            self._exchange([], failed=True)
        except ToldElsewhere:
            return False
        except self.lost:
            pass
        return True

    def _exchange(self, values: Sequence[float], failed: bool = False) -> List[List[float]]:
        """Every process's numbers, by rank; ToldElsewhere if another one, and none of lower rank, has failed."""
        import torch

        mine = torch.zeros(1, 1 + _NUMBERS, dtype=torch.float64)
        mine[0, 0] = failed
        mine[0, 1 : 1 + len(values)] = torch.tensor(values, dtype=torch.float64)
        states = self._hvd.allgather(mine, name="state").tolist()
        failing = [rank for rank, state in enumerate(states) if state[0]]
        if failing and failing[0] != self.rank:
            raise ToldElsewhere(f"process {failing[0]} of {self.size} has failed")
        return [state[1 : 1 + len(values)] for state in states]


# Starting and ending together -------------------------------------------------------------------


@contextmanager
def together() -> Iterator[Processes]:
    """The processes that were started with this one, which is one of them.

    A UserError in any of them ends all, and the first that had it raises it; the others raise ToldElsewhere.
    UserError if one of them is gone.
    """
    processes = _join()
    try:
        yield processes
    except LostProcess as error:
        raise _naming(error, processes) from error
    except UserError as error:
        if isinstance(error, ToldElsewhere) or not processes.fail():
            raise ToldElsewhere(str(error)) from error
        raise _naming(error, processes) from error
    except processes.lost as error:
        raise _naming(LostProcess("another process has ended"), processes) from error


class LostProcess(UserError):
    """Another process has ended without a word."""


def _naming(error: UserError, processes: Processes) -> UserError:
    return error if processes.is_first else UserError(f"in {processes}: {error}")


def _join() -> Processes:
    popdist = find_popdist()
    if popdist is not None:
        popdist.init()
        size, replicas, ipus = popdist.getNumInstances(), popdist.getNumLocalReplicas(), popdist.getNumIpusPerReplica()
        if size > 1:
            return SeveralProcesses(popdist.getInstanceIndex(), size, replicas, ipus)
        alone = Processes()
        alone.replicas, alone.ipus = replicas, ipus
        return alone
    size = int(os.environ.get("HOROVOD_SIZE", "1"))
    return SeveralProcesses(int(os.environ["HOROVOD_RANK"]), size) if size > 1 else Processes()
