"""A sample is the same whoever asks for it, and whenever."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numbered_images import Numbers, all_of, contents, labels_of, samples_of
from torch.utils.data import DataLoader

from ipu_vit.data.augment import EvaluationTransform, TrainingTransform
from ipu_vit.data.crops import RandomResizedCrop
from ipu_vit.data.erasing import RandomErasing
from ipu_vit.data.folder import ImageFolder
from ipu_vit.data.randaugment import RandAugment
from ipu_vit.data.resize import channels_first
from ipu_vit.data.samples import (
    EvaluationSamples,
    TrainingSamples,
    check_readable,
    unreadable_files,
    worker_init,
)
from ipu_vit.errors import UserError

SEEDS = st.integers(0, 2**31 - 1)


# Order


@given(count=st.integers(1, 40), seed=SEEDS, global_batch=st.integers(1, 50))
def test_every_epoch_sees_every_image_once(count: int, seed: int, global_batch: int) -> None:
    epochs = 3
    updates = -(-epochs * count // global_batch)
    labels = labels_of(samples_of(Numbers(count), seed=seed, global_batch=global_batch, last_update=updates))
    for epoch in range(epochs):
        assert sorted(labels[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_epochs_and_seeds_differ_in_order() -> None:
    one, other = (labels_of(samples_of(Numbers(100), seed=seed, last_update=50)) for seed in (0, 1))
    assert len({tuple(labels) for labels in (one[:100], one[100:], other[:100], other[100:], range(100))}) == 5


@given(seed=SEEDS, first=st.integers(0, 12))
def test_resuming_continues_the_run(seed: int, first: int) -> None:
    whole = samples_of(Numbers(10), seed=seed, last_update=12)
    rest = samples_of(Numbers(10), seed=seed, first_update=first, last_update=12)
    assert contents(rest) == contents(whole)[first * 4 :]


@given(seed=SEEDS, processes=st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_processes_share_each_global_batch(seed: int, processes: int) -> None:
    options = {"seed": seed, "global_batch": 12, "last_update": 5}
    whole = contents(samples_of(Numbers(17), **options))
    parts = [
        contents(samples_of(Numbers(17), **options, process=process, processes=processes))
        for process in range(processes)
    ]
    share = 12 // processes
    for update in range(5):
        together = [sample for part in parts for sample in part[update * share : (update + 1) * share]]
        assert Counter(together) == Counter(whole[update * 12 : (update + 1) * 12])


def test_the_same_image_is_augmented_afresh_in_each_epoch() -> None:
    samples = samples_of(Numbers(1), last_update=50)
    assert len({int(image[2, 0, 0]) for image, _ in all_of(samples)}) > 60  # 200 draws of 256 give 139 on average


def test_ends_with_the_last_update() -> None:
    samples = samples_of(Numbers(10), first_update=3, last_update=5, processes=2)
    assert len(samples) == 4
    with pytest.raises(IndexError):
        samples[4]


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="global_batch=4 does not divide by processes=3"):
        samples_of(Numbers(10), last_update=1, processes=3)


@given(
    seed=SEEDS,
    processes=st.sampled_from([1, 2, 3, 6]),
    accumulation=st.integers(1, 3),
    micro_batch=st.integers(1, 3),
    first_update=st.integers(0, 5),
)
def test_each_of_all_replicas_has_its_micro_batches(
    seed: int, processes: int, accumulation: int, micro_batch: int, first_update: int
) -> None:
    """With 6 replicas, spread over any number of processes, the same one has the same images at each step."""
    batch = {"global_batch": 6 * accumulation * micro_batch, "first_update": first_update, "seed": seed,
             "last_update": first_update + 2}  # fmt: skip
    whole = np.array(labels_of(samples_of(Numbers(17), **batch))).reshape(2, accumulation, 6, micro_batch)
    own = 6 // processes
    for process in range(processes):
        part = samples_of(Numbers(17), **batch, process=process, processes=processes, turn=own * micro_batch)
        found = np.array(labels_of(part)).reshape(2, accumulation, own, micro_batch)
        assert (found == whole[:, :, process * own : (process + 1) * own]).all()


# Worker processes


@pytest.mark.parametrize("workers, method", [(2, "fork"), (2, "spawn")])
def test_workers_change_nothing(photographs: Path, workers: int, method: str) -> None:
    erase = RandomErasing(0.5, (127.5,) * 3, (127.5,) * 3)
    samples = TrainingSamples(
        ImageFolder(photographs, "data.root"),
        TrainingTransform(16, RandomResizedCrop(), change=RandAugment(2, 9.0), erase=erase),
        image_size=16,
        seed=7,
        global_batch=6,
        first_update=1,
        last_update=5,
    )
    alone = list(DataLoader(samples, batch_size=6))
    helped = list(
        DataLoader(
            samples, batch_size=6, num_workers=workers, worker_init_fn=worker_init, multiprocessing_context=method
        )
    )
    assert alone[0][0].shape == (6, 3, 16, 16) and alone[0][0].dtype == torch.uint8
    assert alone[0][1].shape == (6,) and alone[0][1].dtype == torch.int64
    assert len(alone) == len(helped) == 4
    for (images, labels), (same_images, same_labels) in zip(alone, helped):
        assert torch.equal(images, same_images) and torch.equal(labels, same_labels)


def test_samples_of_a_large_set_are_cheap_to_send() -> None:
    samples = samples_of(Numbers(1_000_000), last_update=10)
    samples[0]
    assert len(pickle.dumps(samples)) < 1000


# Unreadable images in training


def test_unreadable_images_give_way_to_the_next_in_their_epoch(tmp_path: Path) -> None:
    log = tmp_path / "unreadable.txt"
    whole = labels_of(samples_of(Numbers(10), last_update=5))
    broken = (whole[3], whole[4], whole[9])
    labels = labels_of(samples_of(Numbers(10, broken), last_update=5, unreadable_log=log))
    expected = []
    for epoch in (whole[:10], whole[10:]):
        for position in range(10):
            onwards = epoch[position:] + epoch[:position]
            expected.append(next(label for label in onwards if label not in broken))
    assert labels == expected
    assert unreadable_files(log) == sorted(f"image {number}: broken" for number in broken)


def test_files_that_are_no_images_are_replaced_and_listed(photographs: Path, tmp_path: Path) -> None:
    cut, text, empty = photographs / "ant/0.JPEG", photographs / "bee/text.jpg", photographs / "cat/empty.png"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    text.write_text("not an image")
    empty.write_bytes(b"")
    log = tmp_path / "unreadable.txt"
    samples = TrainingSamples(
        ImageFolder(photographs, "data.root"),
        TrainingTransform(16, RandomResizedCrop()),
        image_size=16,
        seed=0,
        global_batch=11,
        first_update=0,
        last_update=2,
        unreadable_log=log,
    )
    images = [image for batch, _ in DataLoader(samples, batch_size=11, num_workers=2) for image in batch]
    assert len(images) == 22 and all(float(image.float().std()) > 1 for image in images)
    assert [line.split(": ")[0] for line in unreadable_files(log)] == sorted(map(str, (cut, text, empty)))


def test_a_set_without_readable_images_ends_the_run(tmp_path: Path) -> None:
    log = tmp_path / "unreadable.txt"
    samples = samples_of(Numbers(3, broken=(0, 1, 2)), last_update=1, unreadable_log=log)
    labels = torch.tensor([samples[item][1] for item in range(4)])
    with pytest.raises(UserError, match=r"data\.root .*image \d: broken"):
        check_readable(labels, log)


def test_no_log_no_unreadable_files(tmp_path: Path) -> None:
    assert unreadable_files(tmp_path / "none.txt") == []


# Evaluation


def evaluation(source: Any, **options: Any) -> EvaluationSamples:
    return EvaluationSamples(source, channels_first, image_size=1, **options)


@given(count=st.integers(1, 50), pad_to=st.integers(1, 20))
def test_evaluation_has_every_image_once_and_pads(count: int, pad_to: int) -> None:
    samples = all_of(evaluation(Numbers(count), pad_to=pad_to))
    assert len(samples) % pad_to == 0 and len(samples) - count < pad_to
    assert [int(label) for _, label in samples] == list(range(count)) + [-1] * (len(samples) - count)
    assert [int(image[0]) for image, _ in samples] == list(range(count)) + [0] * (len(samples) - count)


def test_evaluation_batches(photographs: Path) -> None:
    samples = EvaluationSamples(
        ImageFolder(photographs, "data.root"), EvaluationTransform(18, 16), image_size=16, pad_to=4
    )
    batches = list(DataLoader(samples, batch_size=4))
    assert torch.cat([labels for _, labels in batches]).tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, -1, -1, -1]
    assert all(images.shape == (4, 3, 16, 16) and images.dtype == torch.uint8 for images, _ in batches)


def test_evaluation_stops_at_an_unreadable_image(tmp_path: Path) -> None:
    log = tmp_path / "unreadable.txt"
    labels = torch.tensor([label for _, label in all_of(evaluation(Numbers(4, broken=(2,)), unreadable_log=log))])
    with pytest.raises(UserError, match=r"image 2: broken.*data\.skip_unreadable"):
        check_readable(labels, log)
    check_readable(labels[:2], log)


def test_evaluation_may_skip_unreadable_images(tmp_path: Path) -> None:
    log = tmp_path / "unreadable.txt"
    samples = all_of(evaluation(Numbers(4, broken=(2,)), skip_unreadable=True, unreadable_log=log))
    assert [int(label) for _, label in samples] == [0, 1, -1, 3]
    assert not samples[2][0].any()
    assert unreadable_files(log) == ["image 2: broken"]
