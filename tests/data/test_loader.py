"""What the loader hands over depends on neither its layout nor its workers, nor on where a run begins."""

from __future__ import annotations

from typing import Any, Dict, List, Tuple

import numpy as np
import pytest
from numbered_images import Numbers, samples_of
from tiny_runs import CPU

from ipu_vit.data.loader import training_loader
from ipu_vit.options import training_options
from ipu_vit.settings import Settings

UPDATES, FIRST = 8, 4
PLAIN: Dict[str, Any] = {"micro_batch": 2, "replicas": 1, "device_iterations": 1, "prefetch_depth": 3}


class Noise:
    """Random pictures, of which each is another; in a class of its own."""

    classes = [str(number) for number in range(30)]

    def __len__(self) -> int:
        return 30

    def load(self, index: int) -> np.ndarray:
        return np.random.default_rng(index).integers(256, size=(20, 24, 3), dtype=np.uint8)

    def label(self, index: int) -> int:
        return index

    def name(self, index: int) -> str:
        return f"image {index}"


def updates(workers: int = 0, **pipeline: Any) -> List[List[Tuple[bytes, int, bytes]]]:
    """For each update from FIRST on, over the end of an epoch, all that it gets: pixels, labels, how they are mixed."""
    settings = Settings(
        model={"image_size": 16, "patch_size": 8, "classes": 30},
        data={"workers": workers, "crop_area": (0.3, 1.0), "evaluation_resize": 16},
        augmentation={"policy": "randaugment", "erasing": 0.5, "mixup": 0.8, "repeats": 2},
        pipeline={"layers_per_ipu": [12], "available_memory_proportion": [0.3], "global_batch": 24,
                  **PLAIN, **pipeline},
        schedule={"updates": UPDATES, "warmup": 0},
    )  # fmt: skip
    options = training_options(settings, CPU)
    loader = training_loader(settings, options, Noise(), FIRST)
    try:
        samples = [
            (image.numpy().tobytes(), int(label), mixing.numpy().tobytes())
            for images, labels, mixings in loader
            for image, label, mixing in zip(images, labels, mixings)
        ]
    finally:
        loader.terminate()
    assert len(samples) == 24 * (UPDATES - FIRST)
    return [sorted(samples[start : start + 24]) for start in range(0, len(samples), 24)]


@pytest.mark.parametrize(
    "changes",
    [
        {"replicas": 2},
        {"replicas": 4, "micro_batch": 3},
        {"micro_batch": 12},
        {"device_iterations": 4},
        {"workers": 1, "prefetch_depth": 1},
        {"workers": 2, "prefetch_depth": 5, "replicas": 2, "device_iterations": 2},
    ],
    ids=str,
)
def test_updates_get_the_same_whatever_the_layout_and_the_workers(changes: Any) -> None:
    assert updates(**changes) == updates()


class Counted(Numbers):
    """Tells which images were asked for."""

    asked: List[int] = []

    def load(self, index: int) -> np.ndarray:
        self.asked.append(index)
        return super().load(index)


def test_a_resumed_run_reads_nothing_of_what_was_seen() -> None:
    """In the middle of an epoch of a million images, the first that is read is the first that is wanted."""
    Counted.asked.clear()
    samples = samples_of(Counted(1_000_000), global_batch=100, first_update=7777, last_update=7778)
    labels = [int(samples[item][1]) for item in range(100)]
    assert Counted.asked == labels and len(set(labels)) == 100
