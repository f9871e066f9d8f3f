"""Images that are their own number, and samples of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Sequence, Tuple, Union

import numpy as np

from ipu_vit.data.decode import UnreadableImage
from ipu_vit.data.picture import Picture
from ipu_vit.data.resize import channels_first
from ipu_vit.data.samples import EvaluationSamples, Sample, TrainingSamples


@dataclass(frozen=True)
class Numbers:
    """Image i is one pixel with value i (modulo 256), of class i; the broken ones cannot be loaded."""

    count: int
    broken: Tuple[int, ...] = ()

    @property
    def classes(self) -> Sequence[str]:
        return [str(number) for number in range(self.count)]

    def __len__(self) -> int:
        return self.count

    def load(self, index: int) -> np.ndarray:
        if index in self.broken:
            raise UnreadableImage(self.name(index), "broken")
        return np.full((1, 1, 3), index % 256, np.uint8)

    def label(self, index: int) -> int:
        return index

    def name(self, index: int) -> str:
        return f"image {index}"


def marked(picture: Picture, rng: np.random.Generator) -> np.ndarray:
    """Not augmented, but with a random number in place of the last channel."""
    image = picture.pixels()
    image[0, 0, 2] = rng.integers(256)
    return channels_first(image)


def samples_of(source: Any, **options: Any) -> TrainingSamples:
    return TrainingSamples(
        source, marked, **{"image_size": 1, "seed": 0, "global_batch": 4, "first_update": 0, **options}
    )


def labels_of(samples: TrainingSamples) -> List[int]:
    return [int(sample[1]) for sample in all_of(samples)]


def all_of(samples: Union[TrainingSamples, EvaluationSamples]) -> List[Sample]:
    return [samples[item] for item in range(len(samples))]


def contents(samples: TrainingSamples) -> List[Tuple[bytes, int]]:
    return [(image.numpy().tobytes(), int(label)) for image, label in all_of(samples)]
