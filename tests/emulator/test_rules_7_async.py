"""Loading in another process: modes, options, slots, endings (rules 7.4, 7.6, 7.7, 7.9, 7.12)."""

from __future__ import annotations

import contextlib
import gc
import itertools
import multiprocessing
import pickle
import random
import threading
from typing import Any, List, Optional

import numpy
import poptorch
import pytest
import torch
from loader_datasets import (
    Augmented,
    Counting,
    Images,
    Once,
    Sharded,
    Stored,
    Stuck,
    Watched,
    join,
    make_options,
    numbers,
    process_of,
    wait_until,
)

SYNC, ASYNC, REBATCHED = poptorch.DataLoaderMode
Accessor = poptorch.AsynchronousDataAccessor
Strategy = poptorch.SharingStrategy

# 7.4 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("mode", [ASYNC, REBATCHED])
def test_rule_7_4_every_mode_yields_the_batches_of_sync(make: Any, mode: Any, shuffle: bool, workers: int) -> None:
    # Rebatching also loads the rest that it then drops, and so would draw more random numbers.
    dataset = Augmented(22 if mode == ASYNC else 20)

    def epochs(some_mode: Any) -> List[Any]:
        torch.manual_seed(3)
        random.seed(4)
        numpy.random.seed(5)
        options = make_options(iterations=2)
        loader = make(
            poptorch.DataLoader, options, dataset, batch_size=2, shuffle=shuffle, num_workers=workers, mode=some_mode
        )
        return [[batch.clone() for batch in loader] for _ in range(2)]

    expected, found = epochs(SYNC), epochs(mode)
    assert [len(epoch) for epoch in found] == [5, 5]
    for batch, other in zip(itertools.chain(*expected), itertools.chain(*found)):
        assert torch.equal(batch, other)


def test_rule_7_4_rebatching_loses_fewer_items(make: Any) -> None:
    def load(mode: Any, **kwargs: Any) -> List[int]:
        loader = make(
            poptorch.DataLoader, make_options(), Sharded(14), batch_size=4, num_workers=2, mode=mode, **kwargs
        )
        return sorted(join(numbers(loader)))

    # Two workers of 7 items each make one batch of 4 each, or 7 and 7 single items, which are 3 batches of 4.
    assert load(ASYNC) == list(range(8))
    assert load(REBATCHED, rebatched_worker_size=1) == list(range(12))


@pytest.mark.parametrize("worker_size", [1, 3, 4, None])
def test_rule_7_4_pieces_of_any_size_become_full_batches(make: Any, worker_size: Optional[int]) -> None:
    options = make_options()
    loader = make(
        poptorch.DataLoader, options, Images(11), batch_size=4, mode=REBATCHED, rebatched_worker_size=worker_size
    )
    for _ in range(2):
        epoch = [(images[:, 0, 0, 0].tolist(), labels.tolist()) for images, labels in loader]
        assert epoch == [([0, 1, 2, 3], [0, 1, 2, 3]), ([4, 5, 6, 7], [4, 5, 6, 7])]


def test_rule_7_4_sizes() -> None:
    with pytest.raises(AssertionError, match=r"rebatched_worker_size \(5\) must not exceed"):
        poptorch.DataLoader(make_options(), Counting(8), batch_size=4, mode=REBATCHED, rebatched_worker_size=5)
    with pytest.raises(AssertionError, match="rebatched_size must be None or greater than 1, not 1"):
        Accessor(Counting(8), rebatched_size=1)


def test_rule_7_4_too_few_items_to_rebatch_are_no_batch(make: Any) -> None:
    loader = make(poptorch.DataLoader, make_options(), Counting(3), batch_size=4, mode=REBATCHED)
    for _ in range(2):
        assert numbers(loader) == []
    assert len(loader) == 0


# 7.6 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", list(Strategy))
def test_rule_7_6_every_sharing_strategy(make: Any, strategy: Any) -> None:
    accessor = make(Accessor, Counting(5), sharing_strategy=strategy)
    for _ in range(2):
        assert numbers(accessor) == [[0], [1], [2], [3], [4]]


def test_rule_7_6_async_options(make: Any) -> None:
    loader = make(
        poptorch.DataLoader,
        make_options(),
        Counting(4),
        mode=ASYNC,
        async_options=dict(
            buffer_size=2,
            miss_sleep_time_in_ms=1.0,
            load_indefinitely=False,
            early_preload=True,
            sharing_strategy=Strategy.Fork,
        ),
    )
    for _ in range(3):
        assert numbers(loader) == [[0], [1], [2], [3]]


def test_rule_7_6_mistaken_options() -> None:
    with pytest.raises(AssertionError, match="rebatched_size"):
        poptorch.DataLoader(make_options(), Counting(4), mode=ASYNC, async_options={"rebatched_size": 2})
    with pytest.raises(TypeError, match="bufer_size"):
        poptorch.DataLoader(make_options(), Counting(4), mode=ASYNC, async_options={"bufer_size": 2})
    with pytest.raises(ValueError, match="buffer_size must be at least 1, not 0"):
        Accessor(Counting(4), buffer_size=0)
    with pytest.raises(ValueError, match="not a valid SharingStrategy"):
        Accessor(Counting(4), sharing_strategy=7)


def test_rule_7_6_early_preload_fills_the_buffer(make: Any) -> None:
    dataset = Watched(20)
    make(Accessor, dataset, buffer_size=4, early_preload=True)
    wait_until(lambda: bool(dataset.loads == 5))  # four in the ring and one in the worker's hand


def test_rule_7_6_otherwise_one_batch_is_loaded_until_somebody_iterates(make: Any) -> None:
    dataset = Watched(20)
    accessor = make(Accessor, dataset, buffer_size=4)
    assert dataset.loads == 1
    iter(accessor)
    wait_until(lambda: bool(dataset.loads == 5))


def test_rule_7_6_an_unpicklable_dataset_is_refused() -> None:
    class Local(Counting):
        pass

    with pytest.raises((pickle.PicklingError, AttributeError), match="cannot be pickled"):
        Accessor(Local(3))
    with pytest.raises(TypeError, match="cannot be pickled"):
        Accessor(Stored([threading.Lock()]))


def test_rule_7_6_datasets_of_many_tensors_are_left_alone(make: Any) -> None:
    tensors = list(torch.arange(600.0).view(300, 2))
    accessor = make(Accessor, Stored(tensors))
    assert torch.equal(torch.stack([item.clone() for item in accessor]), torch.arange(600.0).view(300, 2))
    assert not any(tensor.is_shared() for tensor in tensors)


def test_rule_7_6_shared_tensors_stay_shared(make: Any) -> None:
    tensor = torch.zeros(2).share_memory_()
    accessor = make(Accessor, Stored([tensor] * 9), buffer_size=1)
    iterator = iter(accessor)
    next(iterator)
    tensor.fill_(5)
    assert [item.tolist() for item in iterator][-1] == [5, 5]


def test_rule_7_6_the_programs_start_method_stays(make: Any) -> None:
    before = multiprocessing.get_start_method()
    make(Accessor, Counting(1))
    assert multiprocessing.get_start_method() == before


# 7.7 ------------------------------------------------------------------------------------------


def test_rule_7_7_tensors_are_overwritten(make: Any) -> None:
    kept = list(make(Accessor, Counting(5), buffer_size=1, load_indefinitely=False))
    assert [item.item() for item in kept] == [4] * 5


@pytest.mark.parametrize("slots", [2, 3])
def test_rule_7_7_one_ring_of_slots(make: Any, slots: int) -> None:
    accessor = make(Accessor, torch.utils.data.DataLoader(Images(9)), buffer_size=slots)
    kept = [images for images, _ in accessor]
    places = [images.data_ptr() for images in kept]
    assert len(set(places)) == slots
    assert places == [places[step % slots] for step in range(9)]


def test_rule_7_7_a_batch_is_valid_until_the_next_step(make: Any) -> None:
    accessor = make(Accessor, Counting(50), buffer_size=2)
    for _ in range(2):
        for expected, item in enumerate(accessor):
            assert item.item() == expected


def test_rule_7_7_tensors_outlive_their_loader(make: Any) -> None:
    accessor = make(Accessor, Counting(2))
    kept = next(iter(accessor))
    accessor.terminate()
    del accessor
    gc.collect()
    assert kept.item() == 0


# 7.9 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [ASYNC, REBATCHED])
def test_rule_7_9_a_new_iterator_begins_anew(make: Any, mode: Any) -> None:
    loader = make(poptorch.DataLoader, make_options(), Counting(40), batch_size=2, num_workers=2, mode=mode)
    for taken in (1, 2, 7, 20):
        iterator = iter(loader)
        assert [next(iterator).tolist() for _ in range(taken)] == [[[2 * i], [2 * i + 1]] for i in range(taken)]
    first = iter(loader)
    next(first)
    assert iter(loader) is first
    assert next(first).tolist() == [[0], [1]]


def test_rule_7_9_an_iterator_at_its_end_stays_there(make: Any) -> None:
    accessor = make(Accessor, Counting(2))
    with pytest.raises(StopIteration):
        next(accessor)  # nobody began to iterate
    iterator = iter(accessor)
    assert len(list(iterator)) == len(accessor) == 2
    with pytest.raises(StopIteration):
        next(iterator)


@pytest.mark.parametrize("strategy", [Strategy.Fork, Strategy.ForkServer])
def test_rule_7_9_terminate(strategy: Any) -> None:
    loader = poptorch.DataLoader(
        make_options(), Counting(9), num_workers=2, mode=ASYNC, async_options={"sharing_strategy": strategy}
    )
    iterator = iter(loader)
    next(iterator)
    for _ in range(2):
        loader.terminate()
        assert process_of(loader).exitcode == 0
    for step in (lambda: iter(loader), lambda: next(iterator)):
        with pytest.raises(AssertionError, match="was terminated"):
            step()


def test_rule_7_9_terminating_before_the_first_step_or_in_the_middle_of_one() -> None:
    for start in (False, True):
        accessor = Accessor(Stuck(3), early_preload=start)
        accessor.terminate()
        assert process_of(accessor).exitcode == 0


def test_rule_7_9_terminating_a_synchronous_loader_is_nothing() -> None:
    loader = poptorch.DataLoader(make_options(), Counting(2))
    loader.terminate()
    assert numbers(loader) == [[0], [1]]


def test_rule_7_9_a_loader_is_no_context() -> None:
    with pytest.raises((AttributeError, TypeError)):
        with contextlib.ExitStack() as stack:
            stack.enter_context(poptorch.DataLoader(make_options(), Counting(2)))


def test_rule_7_9_a_forgotten_loader_ends_its_worker() -> None:
    accessor = Accessor(Counting(2))
    next(iter(accessor))
    process = process_of(accessor)
    del accessor
    gc.collect()
    assert process.exitcode == 0


def test_rule_7_9_several_loaders_end_one_by_one(make: Any) -> None:
    accessors = [make(Accessor, Counting(4), sharing_strategy=strategy) for strategy in (2, 3, 2, 3)]
    for accessor in accessors:
        next(iter(accessor))
    for count, accessor in enumerate(accessors, start=1):
        accessor.terminate()
        assert [process_of(other).is_alive() for other in accessors] == [False] * count + [True] * (4 - count)


# 7.12 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("indefinitely", [True, False])
def test_rule_7_12_the_next_epoch_is_prepared(make: Any, indefinitely: bool) -> None:
    dataset = Watched(2)
    accessor = make(Accessor, dataset, load_indefinitely=indefinitely)
    assert numbers(accessor) == [[0], [1]]
    if indefinitely:
        wait_until(lambda: bool(dataset.loads > 2))
    else:
        assert dataset.loads == 2
    assert numbers(accessor) == [[0], [1]]


def test_rule_7_12_what_can_be_iterated_once_ends_once(make: Any) -> None:
    accessor = make(Accessor, Once(3))
    assert numbers(accessor) == [[2], [1], [0]]
    for _ in range(3):
        assert numbers(accessor) == []
