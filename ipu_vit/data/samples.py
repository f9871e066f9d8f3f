"""Which image is which sample of a run.

Training sample *k* of the whole run depends on the seed and *k* alone: with N images it is image
`order(epoch)[k % N]` of epoch `k // N`, augmented by the *k*th stream of random numbers. Hence a
resumed run needs no more than its first update, and neither the number of worker processes, nor
that of training processes, nor how far either reads ahead, changes what the model sees.

                 update 0          update 1          update 2
    sample     0  1  2  3        4  5  6  7        8  9 10 11        global batch 4
    process    0  1  0  1        0  1  0  1        0  1  0  1        2 processes, in turns of 1 sample
    epoch      0  0  0  0        0  0  1  1        1  1  1  1        N = 6 images

Processes take turns as replicas do: a turn is a micro batch for each replica of the process. So with any
number of processes the same images meet in a micro batch, on the same replica of all.

With R repeats (Hoffer et al. 2020, arXiv 1901.09335) each image of that order comes R times on end,
each time augmented anew. N samples are still an epoch, so that a pass over all images takes R. A
weight update has the next samples of the repeated order: every Rth of them, then every Rth from the
second on, and so forth. So an image comes again in the same update, or where that ends in the next,
but ⌊global batch / R⌋ places or more away: in another micro batch, never mixed with itself.

    repeated   a  a  b  b        c  c  d  d        e  e  f  f        R = 2 repeats
    sample     a  b  a  b        c  d  c  d        e  f  e  f

How an image is mixed with another (`ipu_vit.data.mixing`) is drawn from streams of their own, by *k*
as well.
"""

from __future__ import annotations

import contextlib
import os
from functools import lru_cache
from pathlib import Path
from typing import Any, Callable, List, Optional, Tuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ipu_vit.data.decode import UnreadableImage
from ipu_vit.data.memory import keep_freed_memory
from ipu_vit.data.picture import Picture, opener
from ipu_vit.data.source import DAMAGED, DamagedSource, Source
from ipu_vit.data.streams import Streams
from ipu_vit.errors import UserError

MOST_TRIES = 100
"""Unreadable images in a row before training stops: the disk is gone, not an image."""

NO_LABEL = -1
"""The label of padding, and of images that evaluation skips."""

UNREADABLE = -2
"""The label that tells of an image nobody could read, or of a damaged data set; see `check_readable`."""

Sample = Tuple[Any, ...]
"""A tensor of an image, uint8 (3, size, size), its label, an int, and if images are mixed, of how: float32 (5,)."""


class TrainingSamples(Dataset[Sample]):
    """The samples of updates `first_update` to `last_update` (exclusive) that one process feeds.

    An unreadable image is replaced by the next readable one of its epoch, so that batches stay
    full, and its name is added to `unreadable_log`. Too many in a row get the label UNREADABLE.
    Processes take turns of `turn` samples, or one turn each in every update. Each image comes `repeats`
    times. `mixing` draws how an image is mixed, if it is to be.
    """

    def __init__(
        self,
        source: Source,
        transform: Callable[[Picture, np.random.Generator], np.ndarray],
        *,
        image_size: int,
        seed: int,
        global_batch: int,
        first_update: int,
        last_update: int,
        process: int = 0,
        processes: int = 1,
        turn: Optional[int] = None,
        repeats: int = 1,
        mixing: Optional[Callable[[np.random.Generator], np.ndarray]] = None,
        unreadable_log: Optional[Path] = None,
    ) -> None:
        if global_batch % (processes * (turn or 1)):
            raise ValueError(f"global_batch={global_batch} does not divide by processes={processes} × turn={turn}")
        self.source = source
        self.open = opener(source)
        self.transform = transform
        self.image_size = image_size
        self.seed = seed
        self.global_batch = global_batch
        self.local_batch = global_batch // processes
        self.first_update = first_update
        self.last_update = last_update
        self.process = process
        self.processes = processes
        self.turn = turn or self.local_batch
        self.repeats = repeats
        self.mixing = mixing
        self.unreadable_log = unreadable_log
        self._augmentation, self._mixing = Streams(seed, AUGMENTATION), Streams(seed, MIXING)

    def __len__(self) -> int:
        return (self.last_update - self.first_update) * self.local_batch

    def __getitem__(self, item: int) -> Sample:
        if not 0 <= item < len(self):
            raise IndexError(item)
        update, place = divmod(item, self.local_batch)
        start, (turns, place) = (self.first_update + update) * self.global_batch, divmod(place, self.turn)
        place += (turns * self.processes + self.process) * self.turn
        repeated = start + int(places_apart(self.global_batch, self.repeats)[place])
        image_and_label = self._augmented(start + place, *divmod(repeated // self.repeats, len(self.source)))
        if self.mixing is None:
            return image_and_label
        return (*image_and_label, torch.from_numpy(self.mixing(self._mixing.at(start + place))))

    def _augmented(self, sample: int, epoch: int, position: int) -> Sample:
        order = epoch_order(len(self.source), self.seed, epoch)
        for step in range(MOST_TRIES):
            index = int(order[(position + step) % len(order)])
            try:
                image = self.transform(self.open(index), self._augmentation.at(sample))
                return torch.from_numpy(image), self.source.label(index)
            except UnreadableImage as error:
                _log_unreadable(self.unreadable_log, f"{self.source.name(index)}: {error.reason}")
            except DamagedSource as error:
                _log_unreadable(self.unreadable_log, str(error))
                break
        return _blank(self.image_size, UNREADABLE)


class EvaluationSamples(Dataset[Sample]):
    """Every image once, in order, then black images with label −1: cut into equal parts, one for each process.

    The length of a part is a multiple of `pad_to`.
    An unreadable image is logged and gets the label UNREADABLE, because a score over fewer images is
    another score; with `skip_unreadable` it becomes padding.
    """

    def __init__(
        self,
        source: Source,
        transform: Callable[[np.ndarray], np.ndarray],
        *,
        image_size: int,
        pad_to: int = 1,
        process: int = 0,
        processes: int = 1,
        skip_unreadable: bool = False,
        unreadable_log: Optional[Path] = None,
    ) -> None:
        self.source = source
        self.transform = transform
        self.image_size = image_size
        self._length = -(-len(source) // (pad_to * processes)) * pad_to
        self._first = process * self._length
        self.skip_unreadable = skip_unreadable
        self.unreadable_log = unreadable_log

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, item: int) -> Sample:
        if not 0 <= item < len(self):
            raise IndexError(item)
        item += self._first
        if item >= len(self.source):
            return _blank(self.image_size, NO_LABEL)
        try:
            image = self.source.load(item)
        except UnreadableImage as error:
            _log_unreadable(self.unreadable_log, f"{self.source.name(item)}: {error.reason}")
            return _blank(self.image_size, NO_LABEL if self.skip_unreadable else UNREADABLE)
        except DamagedSource as error:
            _log_unreadable(self.unreadable_log, str(error))
            return _blank(self.image_size, UNREADABLE)
        return torch.from_numpy(self.transform(image)), self.source.label(item)


# What random numbers are for, which with the seed is their key.
ORDER, AUGMENTATION, MIXING = 0, 1, 2


@lru_cache(maxsize=2)
def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The images of an epoch in the order they are seen; the last two epochs' are kept."""
    order = np.arange(count, dtype=np.int32)
    np.random.default_rng((seed, ORDER, epoch)).shuffle(order)
    order.flags.writeable = False
    return order


@lru_cache(maxsize=1)
def places_apart(global_batch: int, repeats: int) -> np.ndarray:
    """For each sample of a weight update its place in the repeated order: 0, R, 2R, ..., 1, R + 1, ..."""
    return np.argsort(np.arange(global_batch) % repeats, kind="stable")


def worker_init(worker: int) -> None:
    """For DataLoader's `worker_init_fn`: one thread each, as the workers are the parallelism."""
    torch.set_num_threads(1)
    keep_freed_memory()


def check_readable(labels: Tensor, log: Optional[Path]) -> None:
    """Raise UserError if labels tell of images that nobody could read, or of a damaged data set.

    Samples are made in other processes, whose exceptions arrive as tracebacks; a label arrives as
    it is.
    """
    if bool((labels == UNREADABLE).any()):
        names = unreadable_files(log) if log is not None else []
        damaged = [name for name in names if DAMAGED in name]
        if damaged:
            raise UserError(damaged[0])
        last = f", for example {names[-1]}" if names else ""
        raise UserError(
            f"data.root holds images that cannot be read{last}; replace them, or have evaluation leave them out with "
            "data.skip_unreadable=true"
        )


def unreadable_files(log: Path) -> List[str]:
    """The names in a log of unreadable images, each once, sorted."""
    if not log.exists():
        return []
    return sorted({os.fsdecode(line) for line in log.read_bytes().splitlines()})


def _log_unreadable(log: Optional[Path], name: str) -> None:
    """Add a line in one write to a file opened for appending, which several processes may do at once.

    A disk that is full is no reason to stop here: the run's own files will tell of it.
    """
    if log is None:
        return
    with contextlib.suppress(OSError):
        file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, os.fsencode(name) + b"\n")
        finally:
            os.close(file)


def _blank(image_size: int, label: int) -> Sample:
    return torch.zeros(3, image_size, image_size, dtype=torch.uint8), label
