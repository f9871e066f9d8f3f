"""`poptorch.AsynchronousDataAccessor`: another process loads batches while this one trains.

The worker (`ring_worker`) writes batches to a ring of slots in shared memory (`ring`), this side reads them.
Every slot has one owner at a time:

    worker fills slot k --FILLED--> __next__ yields views of slot k --RELEASE (at the next __next__)--> worker

So a tensor that was yielded is valid until the next step and is overwritten later (rule 7.7); no pixel is
pickled or copied on this side; and the worker runs at most `buffer_size` batches (and the one it is loading)
ahead. Both sides sleep in `recv` on one connection while there is nothing to do. Its two ends also tell each
side of the other's death: the kernel closes them whatever happens.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import signal
from multiprocessing import util
from multiprocessing.connection import Connection
from typing import Any, List, Optional, Tuple

import torch
import torch.utils.data

from ipu_vit.emulator import ring_worker
from ipu_vit.emulator.enums import SharingStrategy
from ipu_vit.emulator.ring import SharedFile, Structure

_START_METHODS = {
    SharingStrategy.SharedMemory: "spawn",
    SharingStrategy.FileSystem: "spawn",
    SharingStrategy.Fork: "fork",
    SharingStrategy.ForkServer: "forkserver",
}


class AsynchronousDataAccessor:
    """Iterates over a dataset in another process.

    `miss_sleep_time_in_ms` is accepted and not needed: a worker that finds the ring full is woken, it does not poll.
    """

    # Whether rebatching yields what is left at the end of the dataset, as a shorter batch.
    keeps_rest = False

    def __init__(
        self,
        dataset: Any,
        buffer_size: int = 3,
        miss_sleep_time_in_ms: float = 0.1,
        load_indefinitely: bool = True,
        early_preload: bool = False,
        sharing_strategy: SharingStrategy = SharingStrategy.ForkServer,
        rebatched_size: Optional[int] = None,
    ) -> None:
        if buffer_size < 1:
            raise ValueError(f"buffer_size must be at least 1, not {buffer_size}")
        self._dataset = dataset
        self._buffer_size = buffer_size
        self._rebatched_size = rebatched_size
        self._file = SharedFile()
        self._ring: List[List[torch.Tensor]] = []
        self._structure: Optional[Structure] = None
        self._slot = 0
        self._holds_slot = False
        self._generation = 0
        self._iterating = False
        self._at_beginning = False  # the worker loads from the dataset's beginning, and nothing was taken yet
        self._end: Optional[str] = None

        context: Any = multiprocessing.get_context(_START_METHODS[sharing_strategy])
        if sharing_strategy == SharingStrategy.ForkServer:
            # Imported once in the server instead of in every worker.
            context.set_forkserver_preload(["torch", "torch.utils.data", ring_worker.__name__])
        self._connection, workers_end = multiprocessing.Pipe()
        # Processes forked from this one must not keep the connection open when this one dies.
        util.register_after_fork(self._connection, Connection.close)
        parcel = ring_worker.Parcel(dataset, on_disk=sharing_strategy == SharingStrategy.FileSystem)
        # Not a daemon, for those may have no children, and most datasets are loaders with workers.
        self._process = context.Process(
            target=ring_worker.work,
            args=(
                workers_end,
                self._file,
                parcel,
                buffer_size,
                rebatched_size,
                self.keeps_rest,
                load_indefinitely,
                multiprocessing.get_start_method(allow_none=True),
            ),
            name="poptorch-data",
            daemon=False,
        )
        try:
            self._process.start()
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            self._connection.close()
            raise type(error)(
                f"The dataset cannot be pickled, which loading in another process needs: {error}. Define its class, "
                "and the functions it holds, at the top of a module, and open files in __getitem__ or __iter__"
            ) from error
        finally:
            workers_end.close()
        # Runs when this object is deleted, or at the end of the program before child processes are joined.
        self._stop = util.Finalize(self, _stop, args=(self._connection, self._process), exitpriority=10)
        if early_preload:
            self._start()

    def terminate(self) -> None:
        """End the worker process. Iterating is an error from then on."""
        self._end = self._end or "The data loader was terminated"
        self._stop()

    def __len__(self) -> int:
        if self._rebatched_size is None:
            return len(self._dataset)
        full, rest = divmod(count_items(self._dataset), self._rebatched_size)
        return full + (1 if rest and self.keeps_rest else 0)

    def __iter__(self) -> AsynchronousDataAccessor:
        """Begin the dataset anew: there is one iterator, this object itself (rule 7.9)."""
        if not self._at_beginning:
            self._start()
        self._iterating = True
        return self

    def __next__(self) -> Any:
        if not self._iterating:
            raise StopIteration
        if self._holds_slot:
            self._order(ring_worker.RELEASE)
            self._holds_slot = False
        kind, payload = self._receive()
        if kind == ring_worker.END:
            self._at_beginning = payload
            self._iterating = False
            raise StopIteration
        self._at_beginning = False
        tensors = self._ring[self._slot]
        self._slot = (self._slot + 1) % self._buffer_size
        self._holds_slot = True
        assert self._structure is not None
        return self._structure.build([tensor[:payload] if self._rebatched_size else tensor[0] for tensor in tensors])

    def _start(self) -> None:
        self._generation += 1
        self._slot = 0
        self._holds_slot = False
        self._at_beginning = True
        self._order(ring_worker.START)

    def _order(self, order: bytes) -> None:
        if self._end is not None:
            raise RuntimeError(self._end)
        # A worker that has died may have left batches and its last words, which `_receive` reads first.
        with contextlib.suppress(OSError):
            self._connection.send_bytes(order)

    def _receive(self) -> Tuple[str, Any]:
        """The worker's next message that is not older than the last START."""
        while True:
            if self._end is not None:
                raise RuntimeError(self._end)
            try:
                kind, generation, payload = self._connection.recv()
            except (EOFError, OSError):
                self._fail(self._obituary())
                continue
            if kind == ring_worker.ERROR:
                self._fail(f"The data loader's worker process failed:\n\n{payload}")
            elif kind == ring_worker.LAYOUT:
                layout, self._structure = payload
                self._ring = layout.map(self._file)
            elif generation == self._generation:
                return kind, payload

    def _fail(self, reason: str) -> None:
        self._end = reason
        self.terminate()

    def _obituary(self) -> str:
        self._process.join(ring_worker.GRACE)
        worker, code = f"The data loader's worker process (pid {self._process.pid})", self._process.exitcode
        if code is not None and code < 0:
            hint = ", as the kernel does when memory runs out" if code == -signal.SIGKILL else ""
            return f"{worker} was killed by signal {-code}{hint}"
        return (
            f"{worker} ended unexpectedly with exit code {code}. If it printed a traceback about starting up: a script "
            'that loads data in other processes needs `if __name__ == "__main__":` around its main part'
        )


def count_items(dataset: Any) -> int:
    """How many items a loader yields in all its batches, or a dataset whose items are of one row."""
    if not isinstance(dataset, torch.utils.data.DataLoader):
        return len(dataset)
    if dataset.batch_size is None:
        raise TypeError("The size of a batch sampler's batches is not known")
    if dataset.drop_last:
        return len(dataset) * dataset.batch_size
    iterable = isinstance(dataset.dataset, torch.utils.data.IterableDataset)
    return len(dataset.dataset if iterable else dataset.sampler)  # type: ignore[arg-type]


def _stop(connection: Connection, process: Any) -> None:
    connection.close()
    process.join(ring_worker.PATIENCE + 2 * ring_worker.GRACE)
    if process.is_alive():
        process.kill()
        process.join()
