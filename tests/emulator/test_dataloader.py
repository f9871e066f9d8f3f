"""The data loader keeps rules 7.1 to 7.12, with real worker processes.

Datasets yield their own indices, so what a loader should yield can be said without a loader.
"""

from __future__ import annotations

import collections
import gc
import itertools
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional

import pytest
import torch
from torch.utils.data import BatchSampler, Dataset, IterableDataset, SequentialSampler

from ipu_vit.emulator import arg_parser
from ipu_vit.emulator.async_accessor import AsynchronousDataAccessor
from ipu_vit.emulator.dataloader import DataLoader
from ipu_vit.emulator.enums import CommGroupType, DataLoaderMode, SharingStrategy
from ipu_vit.emulator.log import logger
from ipu_vit.emulator.options import Options

PROJECT = Path(__file__).parents[2]
GUARD = 120  # seconds after which a process that does not end is a failure

Pair = collections.namedtuple("Pair", ["left", "right"])


class Counting(Dataset):
    """Item i is i."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> torch.Tensor:
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
    """Item i is i and two random numbers."""

    def __getitem__(self, index: int) -> Any:
        return torch.tensor([index, torch.rand(()).item(), random.random()], dtype=torch.float64)


class Stored(Dataset):
    """Hands out the tensors it holds."""

    def __init__(self, tensors: List[torch.Tensor]) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.tensors[index]


class Failing(Counting):
    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 7:
            raise KeyError("item seven is rotten")
        return super().__getitem__(index)


class Stuck(Counting):
    """Waits for ever."""

    def __getitem__(self, index: int) -> torch.Tensor:
        threading.Event().wait()
        raise AssertionError


class Stream(IterableDataset):
    """The same numbers for every worker."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (torch.tensor([index]) for index in range(self.size))


class Sharded(Stream):
    """Each worker yields its own numbers; knows its length."""

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[torch.Tensor]:
        info = torch.utils.data.get_worker_info()
        first, step = (info.id, info.num_workers) if info else (0, 1)
        return (torch.tensor([index]) for index in range(first, self.size, step))


class Scaled:
    """A batch of a type of its own."""

    def __init__(self, values: torch.Tensor, scale: int) -> None:
        self.values = values
        self.scale = scale


class ScaledParser:
    def yieldTensors(self, struct: Scaled) -> Iterator[torch.Tensor]:
        yield struct.values

    def reconstruct(self, original_structure: Scaled, tensor_iterator: Iterator[torch.Tensor]) -> Scaled:
        return Scaled(next(tensor_iterator), original_structure.scale)


class ScaledBatches(Counting):
    def __getitem__(self, index: int) -> Any:
        return Scaled(torch.tensor([index]), 16)


class Once:
    """An iterable that is empty the second time."""

    def __init__(self, size: int) -> None:
        self.left = size

    def __iter__(self) -> Iterator[torch.Tensor]:
        while self.left:
            self.left -= 1
            yield torch.tensor([self.left])


def keep_some(worker: int) -> None:
    """A worker_init_fn that shards a `Stream` of 12."""
    info: Any = torch.utils.data.get_worker_info()
    info.dataset.size = 6 if worker else 5


def make_options(
    iterations: int = 1,
    replicas: int = 1,
    accumulation: int = 1,
    process: int = 0,
    processes: int = 1,
    seed: Optional[int] = None,
) -> Options:
    options = Options()
    options.deviceIterations(iterations).replicationFactor(replicas)
    options.Training.gradientAccumulation(accumulation)
    options.Distributed.configureProcessId(process, processes)
    if seed is not None:
        options.randomSeed(seed)
    return options


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Any:
    """Makes loaders and accessors that are terminated after the test."""

    def build(kind: Any, *args: Any, **kwargs: Any) -> Any:
        made = kind(*args, **kwargs)
        request.addfinalizer(made.terminate)
        return made

    return build


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def numbers(loader: Any) -> List[List[int]]:
    """The batches of a loader of `Counting`, copied."""
    return [batch.flatten().tolist() for batch in loader]


def join(rows: Iterable[List[int]]) -> List[int]:
    return list(itertools.chain.from_iterable(rows))


def process_of(loader: Any) -> Any:
    return getattr(loader, "_accessor", loader)._process


def run_script(tmp_path: Path, code: str, **kwargs: Any) -> subprocess.Popen[str]:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(code))
    paths = [str(PROJECT), str(Path(__file__).parent)]
    return subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )


# 7.1 ------------------------------------------------------------------------------------------


def test_rule_7_1_a_batch_is_what_one_call_consumes() -> None:
    loader = DataLoader(make_options(iterations=2, replicas=2, accumulation=3), Counting(50), batch_size=2)
    assert loader.combinedBatchSize == 24
    assert numbers(loader) == [list(range(24)), list(range(24, 48))]


def test_rule_7_1_replicas_that_share_input_count_once() -> None:
    options = make_options(iterations=3, replicas=4)
    options.inputReplicaGrouping(2, CommGroupType.Consecutive)
    assert DataLoader(options, Counting(100), batch_size=5).combinedBatchSize == 3 * (4 // 2) * 5


def test_rule_7_1_options_are_frozen() -> None:
    options = make_options()
    loader = DataLoader(options, Counting(4))
    assert loader.options is options
    with pytest.raises(AttributeError, match="Can't modify frozen Options"):
        options.deviceIterations(2)


# 7.2 ------------------------------------------------------------------------------------------


def test_rule_7_2_the_rest_is_dropped_by_default() -> None:
    assert numbers(DataLoader(make_options(), Counting(10), batch_size=4)) == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("mode", [DataLoaderMode.Sync, DataLoaderMode.Async, DataLoaderMode.AsyncRebatched])
def test_rule_7_2_keeping_the_rest_warns_of_its_size(make: Any, log: Any, mode: DataLoaderMode) -> None:
    loader = make(DataLoader, make_options(), Counting(10), batch_size=4, drop_last=False, mode=mode)
    assert "last batch has 2 items instead of 4" in log.text
    for _ in range(2):
        assert numbers(loader) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_rule_7_2_no_rest_no_warning(log: Any) -> None:
    DataLoader(make_options(), Counting(8), batch_size=4, drop_last=False)
    assert not log.records


def test_rule_7_2_workers_persist_by_default() -> None:
    assert DataLoader(make_options(), Counting(4), num_workers=1).persistent_workers
    assert not DataLoader(make_options(), Counting(4)).persistent_workers
    assert not DataLoader(make_options(), Counting(4), num_workers=1, persistent_workers=False).persistent_workers


# 7.3 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [DataLoaderMode.Sync, DataLoaderMode.Async])
def test_rule_7_3_batches_of_a_batch_sampler_are_joined(make: Any, mode: DataLoaderMode) -> None:
    batches = BatchSampler(range(11, -1, -1), batch_size=2, drop_last=True)
    loader = make(DataLoader, make_options(iterations=2), Counting(12), batch_sampler=batches, mode=mode)
    assert loader.combinedBatchSize == 4
    assert len(loader) == 3
    assert numbers(loader) == [[11, 10, 9, 8], [7, 6, 5, 4], [3, 2, 1, 0]]


@pytest.mark.parametrize("mode", [DataLoaderMode.Sync, DataLoaderMode.Async])
@pytest.mark.parametrize("drop_last", [True, False])
def test_rule_7_3_an_incomplete_join_is_a_rest(make: Any, mode: DataLoaderMode, drop_last: bool) -> None:
    batches = BatchSampler(range(10), batch_size=2, drop_last=True)
    options = make_options(iterations=2)
    loader = make(DataLoader, options, Counting(10), batch_sampler=batches, mode=mode, drop_last=drop_last)
    expected = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert numbers(loader) == expected[: 2 if drop_last else 3]
    assert len(loader) == len(expected[: 2 if drop_last else 3])


def test_rule_7_3_exclusions() -> None:
    batches = BatchSampler(range(4), batch_size=2, drop_last=True)
    with pytest.raises(AssertionError, match="either shuffle or batch_sampler"):
        DataLoader(make_options(), Counting(4), batch_sampler=batches, shuffle=True)
    distributed = make_options(processes=2)
    with pytest.raises(AssertionError, match="auto_distributed_partitioning=False"):
        DataLoader(distributed, Counting(4), batch_sampler=batches)
    loader = DataLoader(distributed, Counting(4), batch_sampler=batches, auto_distributed_partitioning=False)
    assert numbers(loader) == [[0, 1], [2, 3]]


def test_rule_7_3_a_sampler_goes_to_torch() -> None:
    loader = DataLoader(make_options(), Counting(9), batch_size=2, sampler=[5, 3, 8, 0])
    assert numbers(loader) == [[5, 3], [8, 0]]


# 7.4 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("mode", [DataLoaderMode.Async, DataLoaderMode.AsyncRebatched])
def test_rule_7_4_every_mode_yields_the_batches_of_sync(
    make: Any, mode: DataLoaderMode, shuffle: bool, workers: int
) -> None:
    # Rebatching also loads the rest that it then drops, and so would draw more random numbers.
    dataset = Augmented(22 if mode == DataLoaderMode.Async else 20)

    def epochs(some_mode: DataLoaderMode) -> List[Any]:
        torch.manual_seed(3)
        random.seed(4)
        options = make_options(iterations=2)
        loader = make(DataLoader, options, dataset, batch_size=2, shuffle=shuffle, num_workers=workers, mode=some_mode)
        return [[batch.clone() for batch in loader] for _ in range(3)]

    expected, found = epochs(DataLoaderMode.Sync), epochs(mode)
    assert [len(epoch) for epoch in found] == [5, 5, 5]
    for batch, other in zip(itertools.chain(*expected), itertools.chain(*found)):
        assert torch.equal(batch, other)


@pytest.mark.parametrize("strategy", list(SharingStrategy))
def test_rule_7_4_every_sharing_strategy(make: Any, strategy: SharingStrategy) -> None:
    accessor = make(AsynchronousDataAccessor, Counting(5), sharing_strategy=strategy)
    for _ in range(2):
        assert numbers(accessor) == [[0], [1], [2], [3], [4]]


def test_rule_7_4_rebatching_loses_fewer_items(make: Any) -> None:
    def load(mode: DataLoaderMode, **kwargs: Any) -> List[int]:
        loader = make(DataLoader, make_options(), Sharded(14), batch_size=4, num_workers=2, mode=mode, **kwargs)
        return sorted(join(numbers(loader)))

    # Two workers of 7 items each make one batch of 4 each, or 7 and 7 single items, which are 3 batches of 4.
    assert load(DataLoaderMode.Async) == list(range(8))
    assert load(DataLoaderMode.AsyncRebatched, rebatched_worker_size=1) == list(range(12))


@pytest.mark.parametrize("worker_size", [1, 2, 3, 4, None])
def test_rule_7_4_pieces_of_any_size_become_full_batches(make: Any, worker_size: Optional[int]) -> None:
    loader = make(
        DataLoader,
        make_options(),
        Images(11),
        batch_size=4,
        mode=DataLoaderMode.AsyncRebatched,
        rebatched_worker_size=worker_size,
    )
    for _ in range(2):
        epoch = [(images[:, 0, 0, 0].tolist(), labels.tolist()) for images, labels in loader]
        assert epoch == [([0, 1, 2, 3], [0, 1, 2, 3]), ([4, 5, 6, 7], [4, 5, 6, 7])]


def test_rule_7_4_worker_size_is_at_most_the_combined_batch() -> None:
    with pytest.raises(AssertionError, match=r"rebatched_worker_size \(5\) must not exceed"):
        DataLoader(
            make_options(), Counting(8), batch_size=4, mode=DataLoaderMode.AsyncRebatched, rebatched_worker_size=5
        )


def test_rule_7_4_an_accessor_cuts_items_that_are_larger_than_its_batches(make: Any) -> None:
    loader = torch.utils.data.DataLoader(Counting(10), batch_size=5)
    accessor = make(AsynchronousDataAccessor, loader, rebatched_size=3)
    assert numbers(accessor) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert len(accessor) == 3


# 7.5 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", list(DataLoaderMode))
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("dataset", [Counting(11), Sharded(11)])
def test_rule_7_5_len(make: Any, mode: DataLoaderMode, drop_last: bool, dataset: Any) -> None:
    loader = make(DataLoader, make_options(iterations=2), dataset, batch_size=2, mode=mode, drop_last=drop_last)
    assert len(loader) == (2 if drop_last else 3)
    assert len(list(loader)) == len(loader)


@pytest.mark.parametrize("mode", list(DataLoaderMode))
def test_rule_7_5_an_iterable_dataset_needs_a_length(make: Any, mode: DataLoaderMode) -> None:
    loader = make(DataLoader, make_options(), Stream(6), batch_size=2, mode=mode)
    with pytest.raises(TypeError):
        len(loader)
    assert numbers(loader) == [[0, 1], [2, 3], [4, 5]]


# 7.6 ------------------------------------------------------------------------------------------


def test_rule_7_6_async_options(make: Any) -> None:
    loader = make(
        DataLoader,
        make_options(),
        Counting(4),
        mode=DataLoaderMode.Async,
        async_options=dict(
            buffer_size=2,
            miss_sleep_time_in_ms=1.0,
            load_indefinitely=False,
            early_preload=True,
            sharing_strategy=SharingStrategy.Fork,
        ),
    )
    for _ in range(3):
        assert numbers(loader) == [[0], [1], [2], [3]]


def test_rule_7_6_rebatched_size_is_refused() -> None:
    with pytest.raises(AssertionError, match="rebatched_size"):
        DataLoader(make_options(), Counting(4), mode=DataLoaderMode.Async, async_options={"rebatched_size": 2})


def test_rule_7_6_a_buffer_has_at_least_one_slot() -> None:
    with pytest.raises(ValueError, match="buffer_size must be at least 1, not 0"):
        AsynchronousDataAccessor(Counting(4), buffer_size=0)


def test_rule_7_6_an_unpicklable_dataset_is_refused_at_once() -> None:
    class Local(Counting):
        pass

    with pytest.raises((pickle.PicklingError, AttributeError), match="cannot be pickled"):
        AsynchronousDataAccessor(Local(3))
    dataset = Counting(3)
    dataset.lock = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="cannot be pickled"):
        AsynchronousDataAccessor(dataset)


def test_rule_7_6_a_script_needs_its_guard(tmp_path: Path) -> None:
    script = run_script(
        tmp_path,
        """
        from ipu_vit.emulator.async_accessor import AsynchronousDataAccessor
        from test_dataloader import Counting
        list(AsynchronousDataAccessor(Counting(3)))
        """,
    )
    _, errors = script.communicate(timeout=GUARD)
    assert script.returncode == 1
    assert errors.rstrip().endswith("""needs `if __name__ == "__main__":` around its main part""")


def test_rule_7_6_datasets_of_many_tensors_are_left_alone(make: Any) -> None:
    tensors = list(torch.arange(600.0).view(300, 2))
    accessor = make(AsynchronousDataAccessor, Stored(tensors))
    assert torch.equal(torch.stack([item.clone() for item in accessor]), torch.arange(600.0).view(300, 2))
    assert not any(tensor.is_shared() for tensor in tensors)


def test_rule_7_6_shared_tensors_stay_shared(make: Any) -> None:
    tensor = torch.zeros(2).share_memory_()
    accessor = make(AsynchronousDataAccessor, Stored([tensor]))
    tensor.fill_(5)
    assert next(iter(accessor)).tolist() == [5, 5]


# 7.7 ------------------------------------------------------------------------------------------


def test_rule_7_7_tensors_are_overwritten(make: Any) -> None:
    accessor = make(AsynchronousDataAccessor, Counting(5), buffer_size=1, load_indefinitely=False)
    kept = list(accessor)
    assert [item.item() for item in kept] == [4] * 5


@pytest.mark.parametrize("slots", [2, 3])
def test_rule_7_7_one_ring_of_slots(make: Any, slots: int) -> None:
    accessor = make(AsynchronousDataAccessor, Images(9), buffer_size=slots)
    with pytest.raises(RuntimeError, match="labels must be tensors"):
        next(iter(accessor))
    loader = torch.utils.data.DataLoader(Images(9))
    accessor = make(AsynchronousDataAccessor, loader, buffer_size=slots)
    kept = [images for images, _ in accessor]
    places = [images.data_ptr() for images in kept]
    assert len(set(places)) == slots
    assert places == [places[step % slots] for step in range(9)]


def test_rule_7_7_a_batch_is_valid_until_the_next_step(make: Any) -> None:
    accessor = make(AsynchronousDataAccessor, Counting(50), buffer_size=2)
    for _ in range(2):
        for expected, item in enumerate(accessor):
            assert item.item() == expected


def test_rule_7_7_tensors_outlive_their_loader(make: Any) -> None:
    accessor = make(AsynchronousDataAccessor, Counting(2))
    kept = next(iter(accessor))
    accessor.terminate()
    del accessor
    gc.collect()
    assert kept.item() == 0


# 7.8 ------------------------------------------------------------------------------------------


def test_rule_7_8_tuples(make: Any) -> None:
    loader = make(DataLoader, make_options(), Images(6), batch_size=2, mode=DataLoaderMode.Async)
    for step, batch in enumerate(loader):
        expected = torch.utils.data.default_collate([Images(6)[2 * step], Images(6)[2 * step + 1]])
        assert type(batch) is type(expected)
        for tensor, other in zip(batch, expected):
            assert tensor.dtype == other.dtype and torch.equal(tensor, other)


def test_rule_7_8_named_tuples(make: Any) -> None:
    loader = make(DataLoader, make_options(), Pairs(4), batch_size=2, mode=DataLoaderMode.Async)
    pairs = [Pair(pair.left.tolist(), pair.right.tolist()) for pair in loader]
    assert pairs == [Pair([0, 1], [[0.0], [0.5]]), Pair([2, 3], [[1.0], [1.5]])]


def test_rule_7_8_dictionaries(make: Any) -> None:
    loader = make(DataLoader, make_options(), Named(4), batch_size=2, mode=DataLoaderMode.AsyncRebatched)
    batches: List[Dict[str, Any]] = [{key: value.clone() for key, value in batch.items()} for batch in loader]
    assert [list(batch) for batch in batches] == [["image", "label"]] * 2
    assert batches[1]["image"].dtype == torch.float16
    assert batches[1]["image"].tolist() == [[2, 2], [3, 3]]
    assert batches[1]["label"].tolist() == [True, False]


def test_rule_7_8_registered_types(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(arg_parser.custom_parsers, Scaled, ScaledParser())
    accessor = make(AsynchronousDataAccessor, ScaledBatches(3))
    assert [(batch.values.item(), batch.scale) for batch in accessor] == [(0, 16), (1, 16), (2, 16)]


def test_rule_7_8_scalars_and_zero_sizes(make: Any) -> None:
    accessor = make(AsynchronousDataAccessor, Stored([torch.tensor(True), torch.tensor(False)]))
    assert [item.item() for item in accessor] == [True, False]
    accessor = make(AsynchronousDataAccessor, Stored([torch.zeros(0, 3), torch.ones(0, 3)]))
    assert [item.shape for item in accessor] == [(0, 3), (0, 3)]


@pytest.mark.parametrize(
    "items, sentence",
    [
        ([3], "not int"),
        ([[torch.zeros(1), [torch.zeros(1)]]], "nothing may be nested"),
        ([{"label": 3}], "part 'label' of a batch is a int"),
        ([()], "at least one tensor"),
        ([torch.zeros(2), torch.zeros(3)], "must all have the first one's data types and shapes"),
        ([torch.zeros(2), torch.zeros(2).half()], "must all have the first one's data types and shapes"),
        ([{"a": torch.zeros(2)}, {"b": torch.zeros(2)}], r"had the keys \['a'\], a later one has \['b'\]"),
        ([torch.zeros(2), [torch.zeros(2)]], "The first batch was a Tensor, a later one is a list"),
        ([[torch.zeros(2)], [torch.zeros(2)] * 2], "must all have the first one's data types and shapes"),
        ([], "empty"),
    ],
)
def test_rule_7_8_other_datasets_are_refused_by_the_worker(make: Any, items: List[Any], sentence: str) -> None:
    accessor = make(AsynchronousDataAccessor, Stored(items))
    with pytest.raises(RuntimeError, match=sentence):
        list(accessor)


def test_rule_7_8_rebatching_needs_a_first_dimension_of_one_size(make: Any) -> None:
    with pytest.raises(RuntimeError, match="without"):
        list(make(AsynchronousDataAccessor, Stored([torch.tensor(1)]), rebatched_size=2))
    with pytest.raises(RuntimeError, match="differ in their number of items"):
        items: List[Any] = [(torch.zeros(2), torch.zeros(3))]
        list(make(AsynchronousDataAccessor, Stored(items), rebatched_size=2))


@pytest.mark.parametrize("mode", [DataLoaderMode.Async, DataLoaderMode.AsyncRebatched])
def test_rule_7_8_a_dataset_without_one_batch_is_empty(make: Any, mode: DataLoaderMode) -> None:
    loader = make(DataLoader, make_options(), Counting(3), batch_size=4, mode=mode)
    with pytest.raises(RuntimeError, match="is empty"):
        next(iter(loader))


@pytest.mark.parametrize("workers", [0, 2])
def test_rule_7_8_a_failing_dataset_is_reported_with_its_traceback(make: Any, workers: int) -> None:
    loader = make(DataLoader, make_options(), Failing(10), num_workers=workers, mode=DataLoaderMode.Async)
    seen: List[int] = []
    with pytest.raises(RuntimeError, match="item seven is rotten") as failure:
        for batch in loader:
            seen.append(batch.item())
    assert seen == [0, 1, 2, 3, 4, 5, 6]
    assert "in __getitem__" in str(failure.value)
    with pytest.raises(RuntimeError, match="item seven is rotten"):
        iter(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_rule_7_8_a_killed_worker_is_reported(make: Any, workers: int) -> None:
    loader = make(DataLoader, make_options(), Counting(10), num_workers=workers, mode=DataLoaderMode.Async)
    next(iter(loader))
    os.kill(process_of(loader).pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="was killed by signal 9"):
        while True:
            list(loader)


# 7.9 ------------------------------------------------------------------------------------------


def test_rule_7_9_a_new_iterator_begins_anew(make: Any) -> None:
    for mode in (DataLoaderMode.Async, DataLoaderMode.AsyncRebatched):
        loader = make(DataLoader, make_options(), Counting(40), batch_size=2, num_workers=2, mode=mode)
        for taken in (1, 2, 7, 20):
            iterator = iter(loader)
            assert [next(iterator).tolist() for _ in range(taken)] == [[[2 * i], [2 * i + 1]] for i in range(taken)]
        first = iter(loader)
        next(first)
        assert iter(loader) is first
        assert next(first).tolist() == [[0], [1]]


def test_rule_7_9_an_iterator_at_its_end_stays_there(make: Any) -> None:
    accessor = make(AsynchronousDataAccessor, Counting(2))
    iterator = iter(accessor)
    assert len(list(iterator)) == len(accessor) == 2
    with pytest.raises(StopIteration):
        next(iterator)


@pytest.mark.parametrize("strategy", [SharingStrategy.Fork, SharingStrategy.ForkServer])
def test_rule_7_9_terminate(strategy: SharingStrategy) -> None:
    loader = DataLoader(
        make_options(),
        Counting(9),
        num_workers=2,
        mode=DataLoaderMode.Async,
        async_options={"sharing_strategy": strategy},
    )
    next(iter(loader))
    loader.terminate()
    assert process_of(loader).exitcode == 0
    loader.terminate()
    with pytest.raises(RuntimeError, match="was terminated"):
        iter(loader)


def test_rule_7_9_terminating_before_the_first_batch_or_in_the_middle_of_one() -> None:
    for start in (True, False):
        accessor = AsynchronousDataAccessor(Stuck(3), early_preload=start)
        accessor.terminate()
        assert process_of(accessor).exitcode == 0


def test_rule_7_9_terminating_a_synchronous_loader_is_nothing() -> None:
    loader = DataLoader(make_options(), Counting(2))
    loader.terminate()
    assert numbers(loader) == [[0], [1]]


def test_rule_7_9_a_forgotten_loader_ends_its_worker() -> None:
    accessor = AsynchronousDataAccessor(Counting(2))
    next(iter(accessor))
    process = process_of(accessor)
    del accessor
    gc.collect()
    assert process.exitcode == 0


def test_rule_7_9_several_loaders_end_one_by_one(make: Any) -> None:
    accessors = [make(AsynchronousDataAccessor, Counting(4), sharing_strategy=strategy) for strategy in (2, 3, 2, 3)]
    for accessor in accessors:
        next(iter(accessor))
    for count, accessor in enumerate(accessors, start=1):
        accessor.terminate()
        assert [process_of(other).is_alive() for other in accessors] == [False] * count + [True] * (4 - count)


@pytest.mark.parametrize(
    "strategy, ending",
    [(3, "pass"), (3, "raise SystemExit(0)"), (3, "loader.terminate()"), (0, "pass"), (1, "pass"), (2, "pass")],
)
def test_rule_7_9_the_end_of_the_program_is_quiet(tmp_path: Path, strategy: int, ending: str) -> None:
    script = run_script(
        tmp_path,
        f"""
        from ipu_vit.emulator.dataloader import DataLoader
        from ipu_vit.emulator.options import Options
        from test_dataloader import Images

        if __name__ == "__main__":
            options = Options()
            loader = DataLoader(options, Images(500), batch_size=4, num_workers=2, mode=1,
                                async_options=dict(sharing_strategy={strategy}))
            for step, batch in enumerate(loader):
                if step == 5:
                    break
            {ending}
        """,
    )
    output, errors = script.communicate(timeout=GUARD)
    assert (script.returncode, output, errors) == (0, "", "")


@pytest.mark.parametrize("strategy", list(SharingStrategy))
def test_rule_7_9_no_worker_outlives_a_killed_program(tmp_path: Path, strategy: SharingStrategy) -> None:
    script = run_script(
        tmp_path,
        f"""
        from ipu_vit.emulator.dataloader import DataLoader
        from ipu_vit.emulator.options import Options
        from test_dataloader import Images, Stuck

        if __name__ == "__main__":
            def load(dataset, workers):
                return DataLoader(Options(), dataset, num_workers=workers, mode=1,
                                  async_options=dict(sharing_strategy={int(strategy)}, early_preload=True))

            waiting, loading, stuck = load(Images(500), 2), load(Images(10**9), 0), load(Stuck(500), 0)
            next(iter(waiting))
            print("ready", flush=True)
            for images, labels in loading:
                pass
        """,
    )
    assert script.stdout is not None
    assert script.stdout.readline() == "ready\n"
    script.kill()
    # Every process that was started holds the other end of this pipe, so its end is the end of them all.
    output, errors = script.communicate(timeout=GUARD)
    assert (output, errors) == ("", "")


def test_rule_7_9_interrupts_are_for_the_program(make: Any) -> None:
    loader = make(DataLoader, make_options(), Counting(30), num_workers=1, mode=DataLoaderMode.Async)
    iterator = iter(loader)
    next(iterator)
    os.kill(process_of(loader).pid, signal.SIGINT)
    assert len(list(iterator)) == 30


# 7.10 -----------------------------------------------------------------------------------------


def test_rule_7_10_unsharded_workers_are_warned_of(log: Any) -> None:
    loader = DataLoader(make_options(), Stream(2), num_workers=2)
    assert "Each of the 2 workers iterates over the whole IterableDataset" in log.text
    assert sorted(numbers(loader)) == [[0], [0], [1], [1]]


def test_rule_7_10_a_worker_init_fn_shards(make: Any, log: Any) -> None:
    loader = make(
        DataLoader, make_options(), Stream(12), num_workers=2, worker_init_fn=keep_some, mode=DataLoaderMode.Async
    )
    assert not log.records
    assert sorted(join(numbers(loader))) == sorted([*range(5), *range(6)])


def test_rule_7_10_an_iterable_dataset_is_not_partitioned() -> None:
    options = make_options(processes=2)
    with pytest.raises(AssertionError, match="auto_distributed_partitioning=False"):
        DataLoader(options, Stream(4))
    assert numbers(DataLoader(options, Stream(2), auto_distributed_partitioning=False)) == [[0], [1]]


# 7.11 -----------------------------------------------------------------------------------------


def shares(items: int, processes: int, make: Any = None, epochs: int = 2, **kwargs: Any) -> List[List[List[List[int]]]]:
    """Batches by process and epoch."""
    seed = kwargs.pop("seed", None)
    result = []
    for process in range(processes):
        options = make_options(process=process, processes=processes, seed=seed)
        loader = make(DataLoader, options, Counting(items), **kwargs)
        found = [numbers(loader) for _ in range(epochs)]
        assert [len(loader)] * epochs == [len(epoch) for epoch in found]
        result.append(found)
    return result


@pytest.mark.parametrize("mode", [DataLoaderMode.Sync, DataLoaderMode.Async])
def test_rule_7_11_contiguous_blocks(make: Any, mode: DataLoaderMode) -> None:
    first, second = shares(21, 2, make, batch_size=4, mode=mode)
    assert first == [[[0, 1, 2, 3], [4, 5, 6, 7]]] * 2
    assert second == [[[8, 9, 10, 11], [12, 13, 14, 15]]] * 2


@pytest.mark.parametrize("mode", [DataLoaderMode.Sync, DataLoaderMode.Async])
@pytest.mark.parametrize("items, processes, batch", [(21, 2, 4), (24, 3, 4), (50, 3, 5)])
def test_rule_7_11_shuffled_blocks_are_disjoint_and_complete_over_two_epochs(
    make: Any, mode: DataLoaderMode, items: int, processes: int, batch: int
) -> None:
    found = shares(items, processes, make, batch_size=batch, shuffle=True, seed=9, mode=mode)
    steps = items // (processes * batch)
    seen = set()
    for epoch in range(2):
        rows = [row for process in found for row in process[epoch]]
        assert [len(row) for row in rows] == [batch] * (steps * processes)
        flat = join(rows)
        assert len(set(flat)) == len(flat)
        seen.update(flat)
    assert seen == set(range(items))


def test_rule_7_11_every_other_epoch_has_the_same_items_in_another_order(make: Any) -> None:
    (epochs,) = shares(22, 2, make, epochs=4, batch_size=4, shuffle=True, seed=9)[:1]
    flat = [join(epoch) for epoch in epochs]
    assert sorted(flat[0]) == sorted(flat[2]) and flat[0] != flat[2]
    assert sorted(flat[1]) == sorted(flat[3]) and flat[1] != flat[3]
    assert sorted(flat[0]) != sorted(flat[1])


def test_rule_7_11_equal_numbers_of_batches_when_the_rest_is_kept(make: Any) -> None:
    found = shares(23, 3, make, batch_size=4, drop_last=False)
    assert [[len(row) for row in process[0]] for process in found] == [[4, 3]] * 3
    assert join(row for process in found for row in process[0]) == list(range(21))


def test_rule_7_11_a_sampler_orders_the_block(make: Any) -> None:
    options = make_options(process=1, processes=2)
    loader = make(DataLoader, options, Counting(8), batch_size=2, sampler=SequentialSampler(range(2)))
    assert numbers(loader) == [[4, 5]]


def test_rule_7_11_shuffling_needs_a_seed() -> None:
    with pytest.raises(AssertionError, match="randomSeed"):
        DataLoader(make_options(processes=2), Counting(8), shuffle=True)


# 7.12 -----------------------------------------------------------------------------------------


def test_rule_7_12_the_next_epoch_is_prepared(make: Any) -> None:
    tensor = torch.zeros(1).share_memory_()
    for indefinitely in (True, False):
        tensor.zero_()
        accessor = make(AsynchronousDataAccessor, Stored([tensor]), load_indefinitely=indefinitely)
        assert [item.item() for item in accessor] == [0]
        if indefinitely:
            assert accessor._connection.poll(GUARD)  # the next epoch's item is in the ring
        tensor.fill_(1)
        assert [item.item() for item in accessor] == [0 if indefinitely else 1]


def test_rule_7_12_what_can_be_iterated_once_ends_once(make: Any) -> None:
    accessor = make(AsynchronousDataAccessor, Once(3))
    assert numbers(accessor) == [[2], [1], [0]]
    for _ in range(3):
        assert numbers(accessor) == []


def test_a_synchronous_loader_can_be_the_dataset_of_an_accessor(make: Any) -> None:
    loader = DataLoader(make_options(iterations=2), Counting(9), batch_size=2, num_workers=1)
    accessor = make(AsynchronousDataAccessor, loader)
    assert numbers(accessor) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert len(accessor) == 2


def test_the_callers_start_method_stays(make: Any) -> None:
    before = multiprocessing.get_start_method()
    make(AsynchronousDataAccessor, Counting(1))
    assert multiprocessing.get_start_method() == before
