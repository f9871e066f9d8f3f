"""The split of a global batch, against every split there is."""

from __future__ import annotations

import re
from typing import List

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipu_vit.batching import BatchPlan, is_power_of_two, legal_micro_batches, powers_of_two

batches = st.integers(1, 600)
micro_batches = st.integers(1, 80)
replica_counts = st.integers(1, 9)
stage_counts = st.integers(1, 8)


def works(global_batch: int, micro_batch: int, replicas: int, stages: int) -> bool:
    """Is the batch a whole number of micro batches for every replica, 2·stages − 1 or more?"""
    per_replica = global_batch / replicas
    return per_replica % micro_batch == 0 and per_replica / micro_batch >= 2 * stages - 1


@pytest.mark.parametrize("replicas, accumulation", [(1, 32), (2, 16), (4, 8)])
def test_544_images_in_micro_batches_of_17(replicas: int, accumulation: int) -> None:
    plan = BatchPlan.of(global_batch=544, micro_batch=17, replicas=replicas, stages=4)
    assert plan.accumulation == accumulation


def test_published_run_accumulates_32() -> None:
    assert BatchPlan.of(global_batch=2176, micro_batch=17, replicas=4, stages=4).accumulation == 32


def test_host_batch_holds_every_device_iteration() -> None:
    plan = BatchPlan.of(global_batch=2040, micro_batch=17, replicas=4, stages=4, device_iterations=8)
    assert plan.host_batch == 16_320


@given(batches, replica_counts, stage_counts)
def test_legal_micro_batches_are_all_of_them(global_batch: int, replicas: int, stages: int) -> None:
    every = [size for size in range(1, global_batch + 1) if works(global_batch, size, replicas, stages)]
    assert list(legal_micro_batches(global_batch, replicas, stages)) == every


@given(batches, micro_batches, replica_counts, stage_counts)
def test_plan_exists_exactly_when_a_split_does(global_batch: int, micro_batch: int, replicas: int, stages: int) -> None:
    try:
        plan = BatchPlan.of(global_batch=global_batch, micro_batch=micro_batch, replicas=replicas, stages=stages)
    except ValueError:
        assert not works(global_batch, micro_batch, replicas, stages)
    else:
        assert works(global_batch, micro_batch, replicas, stages)
        assert plan.micro_batch * plan.accumulation * plan.replicas == global_batch


@given(batches, micro_batches, replica_counts, stage_counts)
def test_every_hint_is_accepted(global_batch: int, micro_batch: int, replicas: int, stages: int) -> None:
    try:
        BatchPlan.of(global_batch=global_batch, micro_batch=micro_batch, replicas=replicas, stages=stages)
        return
    except ValueError as error:
        message = str(error)
    hinted_batches = numbers(r"global batch(?:es)? that do(?:es)?: ([\d and]+)", message)
    hinted_micro_batches = numbers(r"micro batches that fit \d+: ([\d, ]+)", message)
    assert hinted_batches or hinted_micro_batches
    for value in hinted_batches:
        BatchPlan.of(global_batch=value, micro_batch=micro_batch, replicas=replicas, stages=stages)
    for value in hinted_micro_batches:
        BatchPlan.of(global_batch=global_batch, micro_batch=value, replicas=replicas, stages=stages)


@given(batches, micro_batches, replica_counts, stage_counts)
def test_hinted_global_batches_are_the_nearest(global_batch: int, micro_batch: int, replicas: int, stages: int) -> None:
    """No global batch between the hinted ones works, nor one below if a single one is hinted."""
    try:
        BatchPlan.of(global_batch=global_batch, micro_batch=micro_batch, replicas=replicas, stages=stages)
        return
    except ValueError as error:
        hinted = numbers(r"global batch(?:es)? that do(?:es)?: ([\d and]+)", str(error))
    if hinted:
        low = hinted[0] + 1 if len(hinted) == 2 else 1
        between = range(low, hinted[-1])
        assert not any(works(size, micro_batch, replicas, stages) for size in between)


def test_message_names_setting_value_and_what_works() -> None:
    with pytest.raises(ValueError) as caught:
        BatchPlan.of(global_batch=544, micro_batch=18, replicas=1, stages=4)
    assert str(caught.value) == (
        "pipeline.global_batch=544 does not divide by micro_batch=18 × replicas=1 = 18; "
        "nearest global batches that do: 540 and 558; micro batches that fit 544: 8, 16, 17, 32, 34, 68"
    )


def test_powers_of_two() -> None:
    few = {1, 2, 4, 8, 16, 32, 64}
    assert [number for number in range(-4, 65) if is_power_of_two(number)] == sorted(few)
    for limit in range(1, 65):
        assert powers_of_two(limit) == sorted(number for number in few if number <= limit)


def numbers(pattern: str, message: str) -> List[int]:
    found = re.search(pattern, message)
    return [int(number) for number in re.findall(r"\d+", found[1])] if found else []
