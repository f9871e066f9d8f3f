"""The process that fills the ring of an asynchronous loader.

It obeys two orders and answers with small tuples; batches themselves pass through the ring:

    reader -> worker    RESTART   begin the dataset anew; all slots are yours, the next one is slot 0
                        RELEASE   one more slot is yours
    worker -> reader    (LAYOUT, generation, (Layout, Form))    once, before the first slot
                        (FILLED, generation, rows)              the next slot is yours
                        (END, generation, again)                the dataset is at its end; whether I began it again
                        (ERROR, -, (exception, traceback))      my last words

Slots go round in order, so neither side names them. A generation is what lies between two RESTARTs: the reader
ignores what was on its way when it sent one. The worker begins the first one unasked, and waits with its first
batch in hand unless slots are its own already (`early_preload`).

The worker lives as long as the reader's end of the connection is open. A watching thread notices when it is
not, be it because of `terminate()`, of the end of the program or of SIGKILL, even while the dataset is busy.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import re
import select
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from multiprocessing import util
from multiprocessing.connection import Connection
from typing import Any, Iterator, List, NoReturn, Optional, Tuple

import torch
import torch.utils.data

from ipu_vit.emulator.parcel import Parcel
from ipu_vit.emulator.ring import Form, Layout, SharedFile

RESTART, RELEASE = b"restart", b"release"
LAYOUT, FILLED, END, ERROR = "layout", "filled", "end", "error"

PR_SET_PDEATHSIG = 1

# Seconds for a worker to leave by itself once the reader has hung up, and then to do so when it is told.
PATIENCE = 1.0
GRACE = 4.0


@dataclass(frozen=True)
class Task:
    """How the worker is to load."""

    slots: int
    early_preload: bool  # fill slots before the reader asks for a batch
    load_indefinitely: bool  # begin the dataset again at its end
    rebatched_size: Optional[int]  # rows of a slot; None: what the dataset yields is what a slot holds
    keeps_rest: bool  # whether rows that do not fill the last slot are handed over too
    start_method: Optional[str]  # how the dataset's own workers start


class _Restart(Exception):
    """The reader wants the dataset from its beginning."""


class _Filler:
    """Writes batches, or rows that become batches of `rebatched_size`, to the ring."""

    def __init__(self, connection: Connection, file: SharedFile, task: Task) -> None:
        self._connection = connection
        self._file = file
        self._task = task
        self._form: Optional[Form] = None
        self._ring: List[List[torch.Tensor]] = []
        self._generation = 0
        self._slot = 0
        self._free = task.slots if task.early_preload else 0
        self._rows = 0  # in the slot being filled
        self._published = 0

    def run(self, dataset: Any) -> None:
        """Load the dataset again and again, as ordered."""
        ordered = True
        while True:
            try:
                while not ordered:
                    self._obey()
                ordered = self._load(dataset)
            except _Restart:
                ordered = True

    def _load(self, dataset: Any) -> bool:
        """Load the dataset once; return whether to do it again unasked."""
        published = self._published
        for batch in _iterate(dataset):
            self._put(batch)
        if self._form is None:
            raise ValueError("The dataset of an asynchronous loader is empty: it yields not one batch")
        if self._rows and self._task.keeps_rest:
            self._publish()
        self._rows = 0
        # An iterator that can be used only once is empty the second time; asking for more would never end.
        again = self._task.load_indefinitely and self._published > published
        self._send(END, again)
        return again

    def _obey(self) -> None:
        """Wait for an order."""
        try:
            order = self._connection.recv_bytes()
        except (EOFError, OSError):
            _leave()
        if order == RELEASE:
            self._free += 1
            return
        self._generation += 1
        self._slot, self._free, self._rows = 0, self._task.slots, 0
        raise _Restart

    def _put(self, batch: Any) -> None:
        if self._form is None:
            self._form = self._lay_out(batch)
        tensors = self._as_rows(self._form.take_apart(batch))
        self._check(tensors)
        begin, end = 0, len(tensors[0])
        while begin < end:
            while self._free == 0 or self._connection.poll(0):
                self._obey()
            slot = self._ring[self._slot]
            count = min(end - begin, len(slot[0]) - self._rows)
            for target, source in zip(slot, tensors):
                target[self._rows : self._rows + count] = source[begin : begin + count]
            begin += count
            self._rows += count
            if self._rows == len(slot[0]):
                self._publish()

    def _as_rows(self, tensors: List[torch.Tensor]) -> List[torch.Tensor]:
        """Tensors cut along dim 0 when they are to be rebatched; otherwise each is one row."""
        return [tensor.detach() if self._task.rebatched_size else tensor.detach()[None] for tensor in tensors]

    def _lay_out(self, first: Any) -> Form:
        form = Form(first)
        tensors = self._as_rows(form.take_apart(first))
        if any(tensor.dim() == 0 for tensor in tensors):
            raise ValueError("Rebatching joins tensors along their first dimension; the dataset yields one without")
        rows = self._task.rebatched_size or 1
        layout = Layout(self._task.slots, [(tensor.dtype, (rows, *tensor.shape[1:])) for tensor in tensors])
        self._file.reserve(layout.size)
        self._ring = layout.map(self._file)
        self._send(LAYOUT, (layout, form))
        return form

    def _check(self, tensors: List[torch.Tensor]) -> None:
        def describe(some: List[torch.Tensor]) -> List[Tuple[Any, ...]]:
            return [(tensor.dtype, *tensor.shape[1:]) for tensor in some]

        expected, found = describe(self._ring[0]), describe(tensors)
        if expected != found:
            raise ValueError(
                "Batches of an asynchronous dataset must all have the first one's data types and shapes: "
                f"the first had {expected}, a later one has {found}"
            )
        if len({len(tensor) for tensor in tensors}) > 1:
            raise ValueError(f"Tensors of one batch differ in their number of items: {[len(t) for t in tensors]}")

    def _publish(self) -> None:
        self._send(FILLED, self._rows)
        self._slot = (self._slot + 1) % self._task.slots
        self._free -= 1
        self._rows = 0
        self._published += 1

    def _send(self, kind: str, payload: Any) -> None:
        try:
            self._connection.send((kind, self._generation, payload))
        except OSError:
            _leave()


def _iterate(dataset: Any) -> Iterator[Any]:
    # A map dataset need not raise IndexError at its end, so iter() alone might never end.
    if hasattr(dataset, "__iter__") or not hasattr(dataset, "__len__"):
        return iter(dataset)
    return (dataset[index] for index in range(len(dataset)))


def _gist(error: Exception) -> str:
    """Type and message of an exception; one from a loader's own worker brings a traceback along in its message."""
    lines = "".join(traceback.format_exception_only(type(error), error)).rstrip().splitlines()
    if re.search(r"Caught \w+ in DataLoader worker", lines[0]):
        last_frame = max((number for number, line in enumerate(lines) if line.startswith("  ")), default=-1)
        lines = lines[last_frame + 1 :]
    return "\n".join(lines)


def _leave(*_: Any) -> NoReturn:
    """End this process, as nobody wants its batches any more."""
    # Once only: the exit must not interrupt the clean-up that it causes.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(0)


def _leave_with_reader(connection: int) -> None:
    """Wait until the reader hangs up, and see to it that this process ends, gently first.

    Between two batches it notices by itself (`_obey`); a slow dataset is interrupted, a stuck one killed.
    """
    hang_up = select.poll()
    hang_up.register(connection, 0)
    hang_up.poll()
    time.sleep(PATIENCE)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    for worker in multiprocessing.active_children():
        worker.terminate()
    os._exit(1)


def _end_with_parent(connection: Connection) -> None:
    """Runs in every process that the dataset forks: it must not outlive this one, nor keep the connection open.

    A loader's workers look for their parent now and then, but not while they load, and in vain if it died before
    they first looked.
    """
    connection.close()
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # Linux
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:
        os._exit(1)


def _raise_if_a_worker_was_killed() -> None:
    """Say that the dataset's own worker was killed, instead of what it left half done."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a loader's handler raises the same, but anywhere
    deadline = time.monotonic() + PATIENCE  # its connections close a little before it has ended
    with contextlib.suppress(ChildProcessError, AttributeError):  # no child at all; no waitid on this system
        while time.monotonic() < deadline:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is not None and ended.si_code != os.CLD_EXITED:
                raise RuntimeError(f"DataLoader worker (pid {ended.si_pid}) was killed by signal {ended.si_status}")
            time.sleep(0.01)


def work(connection: Connection, file: SharedFile, parcel: Parcel, task: Task) -> None:
    """The worker process."""
    # The dataset's own workers start as they would in the reader's process, and not as this one was started.
    multiprocessing.set_start_method(task.start_method, force=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program; it closes the connection if it ends
    signal.signal(signal.SIGTERM, _leave)
    util.register_after_fork(connection, _end_with_parent)
    threading.Thread(target=_leave_with_reader, args=(connection.fileno(),), daemon=True).start()
    torch.set_num_threads(1)  # like torch's own workers: the other cores are for training
    dataset = None
    try:
        dataset = parcel.unpack()
        try:
            _Filler(connection, file, task).run(dataset)
        except (EOFError, OSError):
            _raise_if_a_worker_was_killed()
            raise
    except SystemExit:
        pass
    except Exception as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        with contextlib.suppress(OSError):  # nobody may listen any more
            connection.send((ERROR, 0, (_gist(error), traceback.format_exc())))
    # A loader's workers end well when its iterator does, and this one outlives a pass over the loader. Killed by
    # multiprocessing when this process ends, they might be in the middle of making shared memory, and leave it.
    if isinstance(dataset, torch.utils.data.DataLoader):
        dataset._iterator = None
