"""`poptorch.DataLoader`: a torch loader whose batches are what one call of a model consumes.

One call consumes device iterations x replicas x accumulation micro batches (rule 7.1), so this is torch's
loader with that batch size, and three things around it:

- in the asynchronous modes an inner loader, of the same settings, runs in another process
  (`async_accessor`), which also joins smaller pieces to batches when rebatching;
- with several processes, a sampler (`Partition`) picks this process's items;
- a `batch_sampler`'s batches are joined until they make one call's worth (`Joined`).
"""

from __future__ import annotations

from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Sized, Union, cast

import torch
import torch.utils.data
from torch.utils.data import IterableDataset, RandomSampler, Sampler, SequentialSampler

from ipu_vit.emulator.async_accessor import AsynchronousDataAccessor, count_items
from ipu_vit.emulator.enums import DataLoaderMode
from ipu_vit.emulator.log import logger


class Partition(Sampler[int]):
    """This process's share of a dataset of which every process takes as many items (rule 7.11).

    The dataset, in an order common to all processes, is cut into one contiguous block per process; what is
    left over stays at the end:

        order:   [ process 0 | process 1 | process 2 | rest ]

    With a permuted order, every other epoch exchanges the rest with as many items from the front, so that two
    epochs together see everything. `positions` says in which order a process goes through its block.
    """

    def __init__(
        self, items: int, share: int, process: int, processes: int, positions: Iterable[int], seed: Optional[int]
    ) -> None:
        self._share = share
        self._process = process
        self._rest = items - share * processes
        self._positions = positions
        self._permuted = seed is not None
        self._order = torch.arange(items)
        if seed is not None:
            self._order = torch.randperm(items, generator=torch.Generator().manual_seed(seed))
        self._epoch = 0

    def __len__(self) -> int:
        return len(cast(Sized, self._positions))

    def __iter__(self) -> Iterator[int]:
        block = self._block()
        self._epoch += 1
        return (block[position] for position in self._positions)

    def _block(self) -> List[int]:
        order = self._order
        if self._permuted and self._epoch % 2:
            moved = min(self._rest, len(order) // 2)
            end = len(order) - moved
            order = torch.cat([order[end:], order[moved:end], order[:moved]])
        first = self._process * self._share
        block: List[int] = order[first : first + self._share].tolist()
        return block


class Joined(Sampler[List[int]]):
    """A batch sampler whose batches are `count` batches of another one in a row."""

    def __init__(self, batch_sampler: Any, count: int, drop_last: bool) -> None:
        self._batch_sampler = batch_sampler
        self._count = count
        self._drop_last = drop_last

    def __len__(self) -> int:
        full, rest = divmod(len(self._batch_sampler), self._count)
        return full + (1 if rest and not self._drop_last else 0)

    def __iter__(self) -> Iterator[List[int]]:
        joined: List[int] = []
        for number, batch in enumerate(self._batch_sampler, start=1):
            joined.extend(batch)
            if number % self._count == 0:
                yield joined
                joined = []
        if joined and not self._drop_last:
            yield joined


class _KeepingAccessor(AsynchronousDataAccessor):
    keeps_rest = True


class DataLoader(torch.utils.data.DataLoader[Any]):
    """Yields batches for one call of a model compiled with `options`, which are frozen from here on."""

    def __init__(
        self,
        options: Any,
        dataset: Any,
        batch_size: int = 1,
        shuffle: Optional[bool] = None,
        num_workers: int = 0,
        drop_last: bool = True,
        persistent_workers: Optional[bool] = None,
        auto_distributed_partitioning: bool = True,
        mode: DataLoaderMode = DataLoaderMode.Sync,
        async_options: Optional[Dict[str, Any]] = None,
        rebatched_worker_size: Optional[int] = None,
        batch_sampler: Optional[Union[Sampler[Sequence[int]], Iterable[Sequence[int]]]] = None,
        **kwargs: Any,
    ) -> None:
        options._freeze()
        self._options = options
        self._accessor: Optional[AsynchronousDataAccessor] = None
        self._keeps_rest = not drop_last
        # Only the accessor can yield a last batch that is shorter than the first.
        self._rebatches = mode == DataLoaderMode.AsyncRebatched or (mode == DataLoaderMode.Async and not drop_last)

        micro_batches = (
            options.device_iterations
            * (options.replication_factor // options.input_group_size)
            * options.Training.gradient_accumulation
        )
        if batch_sampler is not None:
            batch_size = getattr(batch_sampler, "batch_size", batch_size)
        self._combined_batch_size: int = micro_batches * batch_size

        partitioned = auto_distributed_partitioning and options.Distributed.numProcesses > 1
        loading: Dict[str, Any] = dict(
            kwargs,
            num_workers=num_workers,
            persistent_workers=num_workers > 0 if persistent_workers is None else persistent_workers,
        )
        if batch_sampler is not None:
            assert not shuffle, "A batch_sampler decides the order itself: give either shuffle or batch_sampler"
            assert not partitioned, (
                "A batch_sampler picks the items itself: with several processes let it pick each process's own, "
                "and set auto_distributed_partitioning=False"
            )
            loading.update(batch_sampler=Joined(batch_sampler, micro_batches, drop_last))
        else:
            loading.update(batch_size=self._combined_batch_size, drop_last=drop_last, shuffle=shuffle)
        if isinstance(dataset, IterableDataset):
            self._check_iterable(partitioned, num_workers, kwargs)
        elif partitioned:
            loading.update(sampler=self._partition(dataset, bool(shuffle), kwargs.get("sampler")), shuffle=None)
        super().__init__(dataset, **loading)
        self._warn_of_rest()

        if mode != DataLoaderMode.Sync:
            async_options = dict(async_options or {})
            assert "rebatched_size" not in async_options, (
                "rebatched_size is not one of the async_options: use mode=DataLoaderMode.AsyncRebatched"
            )
            if self._rebatches:
                async_options["rebatched_size"] = self._combined_batch_size
                if batch_sampler is None:
                    loading.update(batch_size=self._worker_size(rebatched_worker_size), drop_last=False)
            accessor = _KeepingAccessor if self._keeps_rest else AsynchronousDataAccessor
            self._accessor = accessor(torch.utils.data.DataLoader(dataset, **loading), **async_options)

    @property
    def combinedBatchSize(self) -> Optional[int]:
        """Items per batch: what one call of the model consumes."""
        return self._combined_batch_size

    @property
    def options(self) -> Any:
        return self._options

    def terminate(self) -> None:
        """End the worker process of an asynchronous loader."""
        if self._accessor is not None:
            self._accessor.terminate()

    def __len__(self) -> int:
        # A batch sampler's batches are counted, the items in them are not.
        return super().__len__() if self._accessor is None or self.batch_size is None else len(self._accessor)

    def __iter__(self) -> Any:
        return super().__iter__() if self._accessor is None else iter(self._accessor)

    def _worker_size(self, rebatched_worker_size: Optional[int]) -> int:
        size = self._combined_batch_size if rebatched_worker_size is None else rebatched_worker_size
        assert size <= self._combined_batch_size, (
            f"rebatched_worker_size ({size}) must not exceed the combined batch size ({self._combined_batch_size})"
        )
        return size

    def _check_iterable(self, partitioned: bool, num_workers: int, kwargs: Dict[str, Any]) -> None:
        assert not partitioned, (
            "An IterableDataset cannot be partitioned over processes: yield each process's own items and set "
            "auto_distributed_partitioning=False"
        )
        if num_workers > 1 and kwargs.get("worker_init_fn") is None:
            logger.warning(
                "Each of the %d workers iterates over the whole IterableDataset unless worker_init_fn, or "
                "torch.utils.data.get_worker_info() in the dataset, gives each its own part",
                num_workers,
            )

    def _partition(self, dataset: Any, shuffle: bool, sampler: Optional[Iterable[int]]) -> Partition:
        distributed = self._options.Distributed
        items, processes = len(dataset), distributed.numProcesses
        share = items // processes
        if not self._keeps_rest:
            share -= share % self._combined_batch_size
        seed = None
        if shuffle:
            assert self._options.exists("random_seed"), (
                "Shuffling over several processes needs the same Options.randomSeed in each of them"
            )
            seed = self._options.random_seed
        if sampler is None:
            sampler = RandomSampler(range(share)) if shuffle else SequentialSampler(range(share))
        return Partition(items, share, distributed.processId, processes, sampler, seed)

    def _warn_of_rest(self) -> None:
        if not self._keeps_rest:
            return
        try:
            rest = count_items(self) % self._combined_batch_size
        except TypeError:  # an IterableDataset without a length, or a batch sampler
            logger.warning("drop_last=False: the last batch may be short, and a model cannot run a batch that is")
            return
        if rest:
            logger.warning(
                "drop_last=False: the last batch has %d items instead of %d, and a model compiled for the latter "
                "cannot run it",
                rest,
                self._combined_batch_size,
            )
