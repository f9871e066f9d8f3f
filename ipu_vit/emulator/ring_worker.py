"""The process that fills the ring of an asynchronous loader.

It obeys two orders and answers with small tuples; batches themselves pass through the ring:

    reader -> worker    START     begin the dataset anew; all slots are yours, the next one is slot 0
                        RELEASE   I am done with my oldest slot
    worker -> reader    (LAYOUT, -, (Layout, Structure))   once, before the first slot
                        (FILLED, generation, rows)         the next slot is yours
                        (END, generation, again)           the dataset is at its end; whether I began it again
                        (ERROR, -, traceback)              my last words

Slots go round in order, so neither side names them. A generation is what lies between two STARTs: the reader
ignores what was on its way when it sent one.

The worker lives as long as the reader's end of the connection is open. A watching thread notices when it is
not, be it because of `terminate()`, of the end of the program or of SIGKILL, even while the dataset is busy.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import random
import select
import signal
import sys
import threading
import time
import traceback
from multiprocessing import util
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, Dict, Iterator, List, Optional, Tuple

import torch
import torch.utils.data

from ipu_vit.emulator.arg_parser import custom_parsers
from ipu_vit.emulator.ring import Layout, SharedFile, Structure

START, RELEASE = b"start", b"release"
LAYOUT, FILLED, END, ERROR = "layout", "filled", "end", "error"

# Seconds for a worker to leave by itself once the reader has hung up, and then to do so when it is told.
PATIENCE = 1.0
GRACE = 4.0


class _Pickler(ForkingPickler):
    """Copies plain tensors, except those in shared memory.

    Multiprocessing would move every tensor to shared memory and pass a file descriptor for each, which fails
    for a dataset of a few hundred tensors and changes the caller's.
    """

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is not torch.Tensor or obj.device.type != "cpu" or obj.layout != torch.strided:
            return NotImplemented
        if obj.is_shared() or obj.requires_grad or obj.is_complex() or obj.is_quantized:
            return NotImplemented
        return _restore_tensor, (obj.contiguous().view(-1).view(torch.uint8).numpy(), obj.dtype, obj.shape)


def _restore_tensor(data: Any, dtype: torch.dtype, shape: torch.Size) -> torch.Tensor:
    tensor: torch.Tensor = torch.from_numpy(data)
    return tensor.view(dtype).view(shape)


class Parcel:
    """What the worker needs of the reader's process: the dataset and the state of its random generators.

    A forked worker has them already. Others get them pickled, in a file which they open once they can report
    errors: a dataset whose class cannot be imported there is a common mistake.
    """

    def __init__(self, dataset: Any, on_disk: bool = False) -> None:
        self._dataset = dataset
        self._file = SharedFile(on_disk)

    def __getstate__(self) -> Dict[str, Any]:
        with open(self._file.fd, "wb", closefd=False) as file:
            contents = (self._dataset, custom_parsers, torch.get_rng_state(), random.getstate())
            _Pickler(file, pickle.HIGHEST_PROTOCOL).dump(contents)
        return {"_file": self._file}

    def unpack(self) -> Any:
        """The dataset; the random generators are set."""
        if not hasattr(self, "_dataset"):
            with open(self._file.fd, "rb", closefd=False) as file:
                file.seek(0)
                self._dataset, parsers, torch_state, python_state = pickle.load(file)
            custom_parsers.update(parsers)
            torch.set_rng_state(torch_state)
            random.setstate(python_state)
        return self._dataset


class _Restart(Exception):
    """The reader wants the dataset from its beginning."""


class _Filler:
    """Writes batches, or rows that become batches of `rebatched_size`, to the ring."""

    def __init__(
        self, connection: Connection, file: SharedFile, slots: int, rebatched_size: Optional[int], keeps_rest: bool
    ) -> None:
        self._connection = connection
        self._file = file
        self._slot_count = slots
        self._rebatched_size = rebatched_size
        self._keeps_rest = keeps_rest
        self._structure: Optional[Structure] = None
        self._ring: List[List[torch.Tensor]] = []
        self._generation = 0
        self._slot = 0
        self._free = 0
        self._rows = 0  # in the slot being filled
        self._published = 0

    def run(self, dataset: Any, load_indefinitely: bool) -> None:
        """Load the dataset again and again, as ordered."""
        ordered = False
        while True:
            try:
                while not ordered:
                    self._obey()
                ordered = self._load(dataset, load_indefinitely)
            except _Restart:
                ordered = True

    def _load(self, dataset: Any, load_indefinitely: bool) -> bool:
        """Load the dataset once; return whether to do it again unasked."""
        published = self._published
        for batch in _iterate(dataset):
            self._put(batch)
        if self._rows and self._keeps_rest:
            self._publish()
        self._rows = 0
        if self._published == 0:
            raise ValueError("The dataset of an asynchronous loader is empty: it yields not one batch")
        # An iterator that can be used only once is empty the second time; asking for more would never end.
        again = load_indefinitely and self._published > published
        self._connection.send((END, self._generation, again))
        return again

    def _obey(self) -> None:
        """Wait for an order."""
        if self._connection.recv_bytes() == RELEASE:
            self._free += 1
            return
        self._generation += 1
        self._slot, self._free, self._rows = 0, self._slot_count, 0
        raise _Restart

    def _put(self, batch: Any) -> None:
        if self._structure is None:
            self._lay_out(batch)
        assert self._structure is not None
        tensors = self._as_rows(self._structure.take_apart(batch))
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
        return [tensor.detach() if self._rebatched_size else tensor.detach()[None] for tensor in tensors]

    def _lay_out(self, first: Any) -> None:
        structure = Structure(first)
        tensors = self._as_rows(structure.take_apart(first))
        if not tensors:
            raise ValueError("An asynchronous dataset must yield at least one tensor; its first batch holds none")
        if any(tensor.dim() == 0 for tensor in tensors):
            raise ValueError("Rebatching joins tensors along their first dimension; the dataset yields one without")
        rows = self._rebatched_size or 1
        layout = Layout(self._slot_count, [(tensor.dtype, (rows, *tensor.shape[1:])) for tensor in tensors])
        self._file.reserve(layout.size)
        self._ring = layout.map(self._file)
        self._structure = structure
        self._connection.send((LAYOUT, self._generation, (layout, structure)))

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
        self._connection.send((FILLED, self._generation, self._rows))
        self._slot = (self._slot + 1) % self._slot_count
        self._free -= 1
        self._rows = 0
        self._published += 1


def _iterate(dataset: Any) -> Iterator[Any]:
    # A map dataset need not raise IndexError at its end, so iter() alone might never end.
    return iter(dataset) if hasattr(dataset, "__iter__") else (dataset[index] for index in range(len(dataset)))


def _leave(*_: Any) -> None:
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
    os._exit(1)


def work(
    connection: Connection,
    file: SharedFile,
    parcel: Parcel,
    slots: int,
    rebatched_size: Optional[int],
    keeps_rest: bool,
    load_indefinitely: bool,
    start_method: Optional[str],
) -> None:
    """The worker process."""
    # The dataset's own workers start as they would in the reader's process, and not as this one was started.
    multiprocessing.set_start_method(start_method, force=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program; it closes the connection if it ends
    signal.signal(signal.SIGTERM, _leave)
    # The dataset's own workers must not keep the connection open when this process dies.
    util.register_after_fork(connection, Connection.close)
    threading.Thread(target=_leave_with_reader, args=(connection.fileno(),), daemon=True).start()
    torch.set_num_threads(1)  # like torch's own workers: the other cores are for training
    dataset = None
    try:
        dataset = parcel.unpack()
        _Filler(connection, file, slots, rebatched_size, keeps_rest).run(dataset, load_indefinitely)
    except SystemExit:
        pass
    except Exception:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # Nobody listens if the reader's end was closed, which is how a worker is told to leave.
        with contextlib.suppress(OSError):
            connection.send((ERROR, 0, traceback.format_exc()))
    # A loader's workers end well when its iterator does, and this one outlives a pass over the loader. Killed by
    # multiprocessing when this process ends, they might be in the middle of making shared memory, and leave it.
    if isinstance(dataset, torch.utils.data.DataLoader):
        dataset._iterator = None
