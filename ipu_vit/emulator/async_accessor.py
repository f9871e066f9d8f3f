"""`poptorch.AsynchronousDataAccessor`: another process loads batches while this one trains.

The worker (`ring_worker`) writes batches to a ring of slots in shared memory (`ring`), this side reads them.
Every slot has one owner at a time:

    worker fills slot k --FILLED--> __next__ yields views of slot k --RELEASE (at the next __next__)--> worker

So a tensor that was yielded is valid until the next step and is overwritten later (rule 7.7); no pixel is
pickled or copied on this side; and the worker runs at most `buffer_size` batches (and the one it is loading)
ahead. Both sides sleep in `recv` on one connection while there is nothing to do. Its two ends also tell each
side of the other's death: the kernel closes them whatever happens.

As with PopTorch, the first batch is loaded while the accessor is made: a dataset that cannot be loaded at all
is a `poptorch.Error` there and then, one that fails later an AssertionError at the step that misses the batch.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import signal
import time
from multiprocessing import util
from multiprocessing.connection import Connection
from typing import Any, List, NoReturn, Optional, Tuple

import torch
import torch.utils.data

from ipu_vit.emulator import ring_worker
from ipu_vit.emulator.enums import SharingStrategy
from ipu_vit.emulator.errors import Error
from ipu_vit.emulator.parcel import Parcel
from ipu_vit.emulator.ring import Form, SharedFile

_START_METHODS = {
    SharingStrategy.SharedMemory: "spawn",
    SharingStrategy.FileSystem: "spawn",
    SharingStrategy.Fork: "fork",
    SharingStrategy.ForkServer: "forkserver",
}


class WorkerTraceback(Exception):
    """Where in the worker process something failed, as the cause of the exception in this one."""


_LONGEST_WAIT = 0.5  # seconds


class AsynchronousDataAccessor:
    """Iterates over a dataset in another process.

    `miss_sleep_time_in_ms` is accepted and not needed: a worker that finds the ring full is woken, it does not poll.
    """

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
        _check(dataset, buffer_size, rebatched_size)
        strategy = SharingStrategy(sharing_strategy)
        self._dataset = dataset
        self._slots = buffer_size
        self._rebatched_size = rebatched_size
        # A loader tells in this way what to do with the items that are left for a shorter batch at the end.
        self._keeps_rest = not getattr(dataset, "rebatched_drop_last", True)

        self._slot = 0
        self._held = 0 if early_preload else buffer_size  # slots that are this side's: with them, the worker waits
        self._generation = 0
        self._iterating = False
        self._at_beginning = True  # the worker loads from the dataset's beginning, and nothing was taken yet
        self._ended: Optional[Tuple[str, Optional[str]]] = None  # why, and the worker's traceback

        file = SharedFile()
        task = ring_worker.Task(
            slots=buffer_size,
            early_preload=early_preload,
            load_indefinitely=load_indefinitely,
            rebatched_size=rebatched_size,
            keeps_rest=self._keeps_rest,
            start_method=multiprocessing.get_start_method(allow_none=True),
        )
        self._connection, self._process = _start(dataset, file, task, strategy)
        # Run when this object is deleted, or at the end of the program before child processes are joined; there, all
        # workers are told to leave before the first one is waited for.
        self._stop = util.Finalize(self, _stop, args=(self._connection, self._process), exitpriority=10)
        util.Finalize(self, self._connection.close, exitpriority=11)
        layout, self._form = self._await_first_batch()
        self._ring: List[List[torch.Tensor]] = layout.map(file)

    def terminate(self) -> None:
        """End the worker process. Iterating is an error from then on."""
        self._ended = self._ended or ("The data loader was terminated, so there is nothing to iterate over", None)
        self._stop()

    def __len__(self) -> int:
        if self._rebatched_size is None:
            return len(self._dataset)
        full, rest = divmod(count_items(self._dataset), self._rebatched_size)
        return full + (1 if rest and self._keeps_rest else 0)

    def __iter__(self) -> AsynchronousDataAccessor:
        """Begin the dataset anew: there is one iterator, this object itself (rule 7.9)."""
        if self._ended is not None:
            self._fail(*self._ended)
        if self._at_beginning:
            self._release()
        else:
            self._restart()
        self._iterating = True
        return self

    def __next__(self) -> Any:
        if not self._iterating:
            raise StopIteration
        self._release()
        kind, payload = self._receive()
        if kind == ring_worker.END:
            self._at_beginning = payload
            self._iterating = False
            raise StopIteration
        self._at_beginning = False
        tensors = self._ring[self._slot]
        self._slot = (self._slot + 1) % self._slots
        self._held = 1
        return self._form.build([tensor[:payload] if self._rebatched_size else tensor[0] for tensor in tensors])

    def _await_first_batch(self) -> Tuple[Any, Form]:
        try:
            payload: Tuple[Any, Form] = self._receive()[1]
        except AssertionError as failure:
            raise Error(str(failure)) from failure.__cause__
        except BaseException:  # an interrupt
            self.terminate()
            raise
        return payload

    def _restart(self) -> None:
        self._generation += 1
        self._slot = self._held = 0
        self._at_beginning = True
        self._order(ring_worker.RESTART)

    def _release(self) -> None:
        """Give the worker the slots that this side holds."""
        for _ in range(self._held):
            self._order(ring_worker.RELEASE)
        self._held = 0

    def _order(self, order: bytes) -> None:
        # A worker that has died may have left batches and its last words, which `_receive` reads first.
        with contextlib.suppress(OSError):
            self._connection.send_bytes(order)

    def _receive(self) -> Tuple[str, Any]:
        """The worker's next message that is not older than the last RESTART; its last words are raised."""
        while self._ended is None:
            kind, generation, payload = self._next_message()
            if kind == ring_worker.ERROR:
                gist, traceback = payload
                self._fail(f"The data loader's worker process failed: {gist}", traceback)
            if generation == self._generation:
                return kind, payload
        self._fail(*self._ended)

    def _next_message(self) -> Tuple[str, int, Any]:
        try:
            # Ctrl-C in here loses nothing: a program may go on after it. One that comes just before a wait begins
            # is heard only when the wait ends, so none is long.
            while not self._connection.poll(_LONGEST_WAIT):
                pass
            try:
                message: Tuple[str, int, Any] = self._connection.recv()
            except KeyboardInterrupt:  # what is left of this message cannot be told from the next one
                self.terminate()
                raise
        except (EOFError, OSError):
            self._fail(self._obituary(), None)
        return message

    def _fail(self, reason: str, traceback: Optional[str]) -> NoReturn:
        self._ended = self._ended or (reason, traceback)
        self.terminate()
        reason, traceback = self._ended
        raise AssertionError(reason) from (None if traceback is None else WorkerTraceback(f"\n\n{traceback}"))

    def _obituary(self) -> str:
        _wait_for(self._process, ring_worker.GRACE)
        worker, code = f"The data loader's worker process (pid {self._process.pid})", self._process.exitcode
        if code is not None and code < 0:
            hint = ", as the kernel does when memory runs out" if code == -signal.SIGKILL else ""
            return f"{worker} was killed by signal {-code}{hint}"
        hint = (
            ". If it printed a traceback about starting up: a script that loads data in other processes needs "
            '`if __name__ == "__main__":` around its main part'
        )
        return f"{worker} ended unexpectedly with exit code {code}" + ("" if hasattr(self, "_form") else hint)


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


def _check(dataset: Any, buffer_size: int, rebatched_size: Optional[int]) -> None:
    if getattr(dataset, "_accessor", None) is not None:
        raise Error(
            "The DataLoader is asynchronous itself: iterate over it, or make it with mode=poptorch.DataLoaderMode.Sync"
        )
    if buffer_size < 1:
        raise ValueError(f"buffer_size must be at least 1, not {buffer_size}")
    if rebatched_size is None:
        # Only PopTorch's own loaders are looked at, by their combinedBatchSize; others fail at their short batch.
        assert getattr(dataset, "combinedBatchSize", None) in (None, 1) or dataset.drop_last, (
            "A DataLoader with drop_last=False ends in a batch that is short, which an AsynchronousDataAccessor yields "
            "only when it rebatches: set rebatched_size"
        )
    else:
        assert rebatched_size > 1, f"rebatched_size must be None or greater than 1, not {rebatched_size}"


def _start(dataset: Any, file: SharedFile, task: ring_worker.Task, strategy: SharingStrategy) -> Tuple[Connection, Any]:
    """A worker process, and this side's end of the connection to it."""
    context: Any = multiprocessing.get_context(_START_METHODS[strategy])
    if strategy == SharingStrategy.ForkServer:
        # Imported once in the server instead of in every worker.
        context.set_forkserver_preload(["torch", "torch.utils.data", ring_worker.__name__])
    connection, workers_end = multiprocessing.Pipe()
    # Processes forked from this one must not keep the connection open when this one dies.
    util.register_after_fork(connection, Connection.close)
    parcel = Parcel(dataset, on_disk=strategy == SharingStrategy.FileSystem)
    # Not a daemon, for those may have no children, and most datasets are loaders with workers.
    process = context.Process(
        target=ring_worker.work, args=(workers_end, file, parcel, task), name="poptorch-data", daemon=False
    )
    try:
        process.start()
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        connection.close()
        raise type(error)(
            f"The dataset cannot be pickled, which loading in another process needs: {error}. Define its class, "
            "and the functions it holds, at the top of a module, and open files in __getitem__ or __iter__"
        ) from error
    finally:
        workers_end.close()
    return connection, process


def _stop(connection: Connection, process: Any) -> None:
    connection.close()
    if not _wait_for(process, ring_worker.PATIENCE + 2 * ring_worker.GRACE):
        process.kill()
        process.join()


def _wait_for(process: Any, seconds: float) -> bool:
    """Whether a process ends in time. What `join` waits for may be held open by processes that it forked."""
    deadline = time.monotonic() + seconds
    while process.exitcode is None and time.monotonic() < deadline:
        process.join(0.05)
    return process.exitcode is not None
