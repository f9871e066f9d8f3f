"""`poptorch.DataLoader`: a torch loader whose batches are what one call of a model consumes.

One call consumes device iterations x replicas x accumulation micro batches (rule 7.1), so this is torch's
loader with that batch size, and three things around it:

- in the asynchronous modes an inner loader, of the same settings, runs in another process
  (`async_accessor`), which also joins smaller pieces to batches when rebatching;
- with several processes, the dataset is cut into one part for each (`partition`);
- a `batch_sampler`'s batches are joined until they make one call's worth (`Joined`).
"""

from __future__ import annotations

from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Union

import torch.utils.data
from torch.utils.data import IterableDataset, Sampler

from ipu_vit.emulator.async_accessor import AsynchronousDataAccessor, count_items
from ipu_vit.emulator.enums import DataLoaderMode
from ipu_vit.emulator.log import logger
from ipu_vit.emulator.options import Options
from ipu_vit.emulator.partition import Epochs, Partition


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
        assert isinstance(options, Options), f"DataLoader takes a poptorch.Options first, not {options!r}"
        options._freeze()
        mode = DataLoaderMode(mode)
        self._options = options
        self._accessor: Optional[AsynchronousDataAccessor] = None
        micro_batches = (
            options.device_iterations
            * (options.replication_factor // options.input_group_size)
            * options.Training.gradient_accumulation
        )
        micro_batch = batch_size if batch_sampler is None else getattr(batch_sampler, "batch_size", None)
        self._combined_batch_size: Optional[int] = None if micro_batch is None else micro_batches * micro_batch

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
            dataset = self._partition(dataset, bool(shuffle), drop_last)
            if shuffle:
                positions = kwargs.get("sampler")
                loading.update(sampler=Epochs(range(len(dataset)) if positions is None else positions), shuffle=None)
        super().__init__(dataset, **loading)
        if not drop_last:
            self._warn_of_rest()
        if mode != DataLoaderMode.Sync:
            # Only an accessor that rebatches can yield a last batch that is shorter than the first.
            rebatches = mode == DataLoaderMode.AsyncRebatched or (not drop_last and self._combined_batch_size != 1)
            if rebatches and self._combined_batch_size is not None and batch_sampler is None:
                loading.update(batch_size=self._worker_size(rebatched_worker_size), drop_last=False)
            self._accessor = self._make_accessor(
                torch.utils.data.DataLoader(dataset, **loading), rebatches, drop_last, async_options or {}
            )

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
        # Batches without a batch size, as a batch sampler's, are counted; the items in them are not.
        return super().__len__() if self._accessor is None or self.batch_size is None else len(self._accessor)

    def __iter__(self) -> Any:
        return super().__iter__() if self._accessor is None else iter(self._accessor)

    def _make_accessor(
        self, loader: Any, rebatches: bool, drop_last: bool, async_options: Dict[str, Any]
    ) -> AsynchronousDataAccessor:
        assert "rebatched_size" not in async_options, (
            "rebatched_size is not one of the async_options: use mode=DataLoaderMode.AsyncRebatched"
        )
        loader.rebatched_drop_last = drop_last
        return AsynchronousDataAccessor(
            loader, rebatched_size=self._combined_batch_size if rebatches else None, **async_options
        )

    def _worker_size(self, rebatched_worker_size: Optional[int]) -> int:
        combined = self._combined_batch_size
        assert combined is not None
        size = combined if rebatched_worker_size is None else rebatched_worker_size
        assert size <= combined, f"rebatched_worker_size ({size}) must not exceed the combined batch size ({combined})"
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

    def _partition(self, dataset: Any, shuffle: bool, drop_last: bool) -> Partition:
        distributed = self._options.Distributed
        assert self._combined_batch_size is not None, (
            "batch_size=None leaves batches to the dataset, which then cannot be cut into the processes' parts: set "
            "auto_distributed_partitioning=False"
        )
        assert not shuffle or self._options.exists("random_seed"), (
            "Shuffling over several processes needs the same Options.randomSeed in each of them"
        )
        return Partition(
            dataset,
            distributed.processId,
            distributed.numProcesses,
            self._combined_batch_size,
            drop_last,
            self._options.random_seed if shuffle else None,
        )

    def _warn_of_rest(self) -> None:
        if self._combined_batch_size is None:
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
