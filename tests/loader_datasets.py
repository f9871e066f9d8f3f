"""Datasets that other processes can import, whose items are their own numbers, and what tests of loaders share."""

from __future__ import annotations

import collections
import itertools
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, List, Optional

import numpy
import poptorch
import torch
from torch.utils.data import Dataset, IterableDataset

TESTS = Path(__file__).parent
GUARD = 120
"""Seconds after which something that does not happen is a failure."""

Pair = collections.namedtuple("Pair", ["left", "right"])


class Counting(Dataset):  # type: ignore[type-arg]
    """Item i is i."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        return torch.tensor([index])


class Images(Counting):
    """Small images and integer labels, as ordinary datasets yield them."""

    def __getitem__(self, index: int) -> Any:
        return torch.full((3, 4, 4), index, dtype=torch.uint8), index


class Named(Counting):
    def __getitem__(self, index: int) -> Any:
        return {"image": torch.full((2,), index, dtype=torch.float16), "label": index % 2 == 0}


class Pairs(Counting):
    def __getitem__(self, index: int) -> Any:
        return Pair(torch.tensor(index), torch.tensor([0.5 * index]))


class Augmented(Counting):
    """Item i is i and a random number of each kind."""

    def __getitem__(self, index: int) -> Any:
        return torch.tensor([index, torch.rand(()).item(), random.random(), numpy.random.rand()], dtype=torch.float64)


class Stored(Dataset):  # type: ignore[type-arg]
    """Hands out the things it holds."""

    def __init__(self, things: List[Any]) -> None:
        self.things = things

    def __len__(self) -> int:
        return len(self.things)

    def __getitem__(self, index: int) -> Any:
        return self.things[index]


class Failing(Counting):
    """Item 7 cannot be loaded."""

    def __init__(self, size: int, error: Exception) -> None:
        super().__init__(size)
        self.error = error

    def __getitem__(self, index: int) -> Any:
        if index == 7:
            raise self.error
        return super().__getitem__(index)


class Stuck(Counting):
    """Waits for ever instead of loading item 1."""

    def __getitem__(self, index: int) -> Any:
        if index:
            threading.Event().wait()
        return super().__getitem__(index)


class Loaders(Counting):
    """Items are the process that loaded them."""

    def __getitem__(self, index: int) -> Any:
        return torch.tensor(os.getpid())


class Watched(Counting):
    """Counts in all processes together how often items are loaded."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.loads = torch.zeros(1, dtype=torch.int64).share_memory_()

    def __getitem__(self, index: int) -> Any:
        self.loads += 1
        return super().__getitem__(index)


class Interrupting(Counting):
    """Interrupts the program that made it when it waits for item 3."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.program = os.getpid()
        self.wanted = torch.zeros(1, dtype=torch.int64).share_memory_()  # items, by the program
        self.interrupted = torch.zeros(1, dtype=torch.bool).share_memory_()

    def __getitem__(self, index: int) -> Any:
        if index == 3:
            wait_until(lambda: bool(self.wanted == 4))
            os.kill(self.program, signal.SIGINT)
            wait_until(lambda: bool(self.interrupted))
        return super().__getitem__(index)


class Stream(IterableDataset):  # type: ignore[type-arg]
    """The same numbers for every worker."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __iter__(self) -> Iterator[Any]:
        return (torch.tensor([index]) for index in range(self.size))


class Sharded(Stream):
    """Each worker yields its own numbers; knows its length."""

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Any]:
        info = torch.utils.data.get_worker_info()
        first, step = (info.id, info.num_workers) if info else (0, 1)
        return (torch.tensor([index]) for index in range(first, self.size, step))


class Once:
    """An iterable that is empty the second time."""

    def __init__(self, size: int) -> None:
        self.left = size

    def __iter__(self) -> Iterator[Any]:
        while self.left:
            self.left -= 1
            yield torch.tensor([self.left])


class Scaled:
    """A batch of a type of its own."""

    def __init__(self, values: torch.Tensor, scale: int) -> None:
        self.values = values
        self.scale = scale


class ScaledParser(poptorch.ICustomArgParser):
    def yieldTensors(self, struct: Any) -> Iterator[Any]:
        yield struct.values

    def reconstruct(self, original_structure: Any, tensor_iterator: Iterator[Any]) -> Any:
        return Scaled(next(tensor_iterator), original_structure.scale)


def keep_some(worker: int) -> None:
    """A worker_init_fn that shards a `Stream` of 12."""
    info: Any = torch.utils.data.get_worker_info()
    info.dataset.size = 6 if worker else 5


def hold_second(worker: int) -> None:
    """A worker_init_fn that one of two workers never gets out of."""
    if worker == 1:
        threading.Event().wait()


def stack_reversed(items: List[Any]) -> Any:
    """A collate_fn."""
    return {"items": torch.stack(items[::-1])}


def make_options(
    iterations: int = 1,
    replicas: int = 1,
    accumulation: int = 1,
    process: int = 0,
    processes: int = 1,
    seed: Optional[int] = None,
) -> Any:
    options = poptorch.Options()
    options.deviceIterations(iterations).replicationFactor(replicas)
    options.Training.gradientAccumulation(accumulation)
    options.Distributed.configureProcessId(process, processes)
    if seed is not None:
        options.randomSeed(seed)
    return options


def numbers(loader: Any) -> List[List[int]]:
    """The batches of a loader of `Counting`, copied."""
    return [batch.flatten().tolist() for batch in loader]


def join(rows: Iterable[List[int]]) -> List[int]:
    return list(itertools.chain.from_iterable(rows))


def process_of(loader: Any) -> Any:
    """The worker process of an asynchronous loader or an accessor."""
    return (getattr(loader, "_accessor", None) or loader)._process


def wait_until(happened: Callable[[], bool]) -> None:
    """Wait for what another process does."""
    deadline = time.monotonic() + GUARD
    while not happened():
        assert time.monotonic() < deadline
        os.sched_yield()


def run_script(folder: Path, code: str, **kwargs: Any) -> subprocess.Popen[str]:
    """Start a program that may import this module."""
    script = folder / "script.py"
    script.write_text(textwrap.dedent(code))
    return subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], str(TESTS)])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )
