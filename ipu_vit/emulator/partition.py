"""Which items of a dataset are one process's, when several processes train together (rule 7.11).

The dataset, in an order common to all processes, is cut into one contiguous block per process, each of as
many whole batches; what is left over stays at the end:

    order:   [ process 0 | process 1 | process 2 | rest ]

Shuffled, every epoch has an order of its own, drawn from the seed that all processes have, and in the first
epoch and every other one after it the blocks begin that much later, so that the rest is at the front:

    order:   [ rest | process 0 | process 1 | process 2 ]

When nothing is to be dropped, the rest is dealt out instead, and the first processes have an item more.
"""

from __future__ import annotations

from typing import Any, Iterable, Iterator, Optional, Sized, Tuple, Union, cast

import torch
from torch.utils.data import Dataset, Sampler


class Partition(Dataset[Any]):
    """One process's part of a dataset.

    Items of a shuffled part are asked for by epoch and position, which `Epochs` yields; so the part has no
    state that the processes which load items would have to be told about.
    """

    def __init__(
        self, dataset: Any, process: int, processes: int, batch: int, drop_last: bool, seed: Optional[int]
    ) -> None:
        items = len(dataset)
        if drop_last:
            length = items // (batch * processes) * batch
            assert length, (
                f"A dataset of {items} items has not one batch of {batch} for each of {processes} processes: use a "
                "smaller combined batch size, fewer processes, or drop_last=False"
            )
            self._first = process * length
            self._moved = items % length
        else:
            length, rest = divmod(items, processes)
            self._first = process * length + min(process, rest)
            self._moved = 0
            length += process < rest
        self._length = length
        self._dataset = dataset
        self._seed = seed
        self._drawn = 0  # orders, of which the last one is kept
        self._order = torch.empty(0)
        self._generator_state = torch.empty(0)  # instead of the generator, which torch 2.0 cannot pickle

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Union[int, Tuple[int, int]]) -> Any:
        if not isinstance(index, tuple):
            return self._dataset[self._first + index]
        epoch, position = index
        first = self._first if epoch % 2 else self._first + self._moved
        return self._dataset[int(self._order_in(epoch)[first + position])]

    def _order_in(self, epoch: int) -> torch.Tensor:
        if epoch + 1 < self._drawn:
            self._drawn = 0
        while self._drawn <= epoch:
            generator = torch.Generator()
            if self._drawn:
                generator.set_state(self._generator_state)
            else:
                generator.manual_seed(cast(int, self._seed))
            self._order = torch.randperm(len(self._dataset), generator=generator)
            self._generator_state = generator.get_state()
            self._drawn += 1
        return self._order


class Epochs(Sampler[Tuple[int, int]]):
    """The positions of another sampler, each with the number of the epoch."""

    def __init__(self, positions: Iterable[int]) -> None:
        self._positions = positions
        self._epoch = 0

    def __len__(self) -> int:
        return len(cast(Sized, self._positions))

    def __iter__(self) -> Iterator[Tuple[int, int]]:
        epoch = self._epoch
        self._epoch += 1
        return ((epoch, position) for position in self._positions)
