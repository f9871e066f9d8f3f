"""Repeated augmentation: which images come again, and where."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, List

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numbered_images import Numbers, all_of, contents, labels_of, samples_of
from tiny_runs import CPU

from ipu_vit.data.loader import training_loader
from ipu_vit.data.samples import epoch_order, unreadable_files
from ipu_vit.data.sources import open_sources
from ipu_vit.options import training_options
from ipu_vit.settings import Settings

SEEDS = st.integers(0, 2**31 - 1)


@given(count=st.integers(1, 12), seed=SEEDS, global_batch=st.integers(1, 12), repeats=st.integers(1, 5))
def test_updates_take_the_repeated_order_in_turn(count: int, seed: int, global_batch: int, repeats: int) -> None:
    updates = -(-3 * count * repeats // global_batch)
    passes = -(-updates * global_batch // (count * repeats))
    repeated = np.repeat(np.concatenate([epoch_order(count, seed, number) for number in range(passes)]), repeats)
    labels = labels_of(
        samples_of(Numbers(count), seed=seed, global_batch=global_batch, last_update=updates, repeats=repeats)
    )
    for start in range(0, updates * global_batch, global_batch):
        update = slice(start, start + global_batch)
        assert Counter(labels[update]) == Counter(repeated[update].tolist())


@pytest.mark.parametrize("repeats", [2, 3, 4])
def test_a_pass_takes_as_many_epochs_as_repeats(repeats: int) -> None:
    """An epoch is N samples; in R of them every image comes R times."""
    labels = labels_of(samples_of(Numbers(24), global_batch=12, last_update=4 * repeats, repeats=repeats))
    epochs = [labels[start : start + 24] for start in range(0, len(labels), 24)]
    assert len(epochs) == 2 * repeats
    assert all(len(set(epoch)) == 24 // repeats for epoch in epochs)
    for whole_pass in (labels[: 24 * repeats], labels[24 * repeats :]):
        assert Counter(whole_pass) == {image: repeats for image in range(24)}


@given(st.data())
def test_no_micro_batch_has_an_image_twice(data: Any) -> None:
    """As long as repeats fit in, which settings see to; 544 does not even divide by 3."""
    repeats = data.draw(st.integers(2, 5))
    micro_batch = data.draw(st.integers(1, 6))
    global_batch = micro_batch * data.draw(st.integers(repeats, 12))
    labels = labels_of(samples_of(Numbers(500), global_batch=global_batch, last_update=4, repeats=repeats))
    for start in range(0, len(labels), micro_batch):
        assert len(set(labels[start : start + micro_batch])) == micro_batch


def test_the_benchmarks_batch() -> None:
    labels = labels_of(samples_of(Numbers(1000), global_batch=544, last_update=3, repeats=3))
    micro_batches = [labels[start : start + 17] for start in range(0, len(labels), 17)]
    assert all(len(set(images)) == 17 for images in micro_batches)
    for start in (0, 544, 1088):  # 180 images come three times, the rest at the ends
        assert [times for _, times in Counter(labels[start : start + 544]).most_common(180)] == [3] * 180


def test_every_repetition_is_augmented_anew() -> None:
    samples = samples_of(Numbers(20), global_batch=20, last_update=20, repeats=4)
    marks: List[int] = [int(image[2, 0, 0]) for image, _ in all_of(samples)]
    assert len(set(marks)) > 180  # 400 draws of 256 give 202 on average


@given(seed=SEEDS, first=st.integers(0, 8), repeats=st.integers(2, 5))
def test_resuming_continues_the_run(seed: int, first: int, repeats: int) -> None:
    whole = samples_of(Numbers(7), seed=seed, last_update=8, repeats=repeats)
    rest = samples_of(Numbers(7), seed=seed, first_update=first, last_update=8, repeats=repeats)
    assert contents(rest) == contents(whole)[first * 4 :]


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_processes_share_each_global_batch(processes: int) -> None:
    options = {"global_batch": 12, "last_update": 5, "repeats": 3}
    whole, share = contents(samples_of(Numbers(17), **options)), 12 // processes
    for process in range(processes):
        part = contents(samples_of(Numbers(17), **options, process=process, processes=processes))
        for update in range(5):
            start = 12 * update + share * process
            assert part[update * share : (update + 1) * share] == whole[start : start + share]


def test_every_repetition_of_an_unreadable_image_is_replaced(tmp_path: Path) -> None:
    log = tmp_path / "unreadable.txt"
    options = {"global_batch": 10, "last_update": 2, "repeats": 2}
    whole = labels_of(samples_of(Numbers(10), **options))
    broken, heir = whole[0], whole[1]
    labels = labels_of(samples_of(Numbers(10, (broken,)), **options, unreadable_log=log))
    assert labels == [heir if label == broken else label for label in whole]
    assert unreadable_files(log) == [f"image {broken}: broken"]


def settings_with(repeats: int, global_batch: int, micro_batch: int) -> Settings:
    return Settings(
        augmentation={"repeats": repeats},
        pipeline={"global_batch": global_batch, "micro_batch": micro_batch},
        model={"image_size": 16},
        data={"source": "generated", "generated_size": None, "evaluation_resize": 16},
    )


def test_settings_reach_the_batches() -> None:
    """Generated images of the model's size are not augmented, so that they come again as they were."""
    chosen = settings_with(3, 42, 6)
    options = training_options(chosen, CPU)
    loader = training_loader(chosen, options, open_sources(chosen).training, chosen.schedule.updates - 2)
    batches = [images for images, _ in loader]
    assert len(batches) == 2
    for images in batches:
        assert sorted(Counter(image.numpy().tobytes() for image in images).values()) == [3] * 14


def test_as_many_repeats_as_there_are_micro_batches() -> None:
    assert settings_with(32, 544, 17).augmentation.repeats == 32
    with pytest.raises(ValueError, match=r"augmentation\.repeats=33 .*pipeline\.micro_batch=17 .*accepted: 1 to 32"):
        settings_with(33, 544, 17)
