"""Parts of splits: which images they have, and that they never share one they should not."""

from __future__ import annotations

import pickle
from collections import Counter
from typing import Any, List, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipu_vit.data.part import name_of, part_of
from ipu_vit.data.source import Source
from ipu_vit.settings import DataSettings


class Sorted:
    """Images that are their numbers, ten of each class, sorted by class."""

    def __init__(self, count: int) -> None:
        self.count = count

    @property
    def classes(self) -> Sequence[str]:
        return [str(number) for number in range(-(-self.count // 10))]

    def __len__(self) -> int:
        return self.count

    def load(self, index: int) -> np.ndarray:
        return np.full((1, 1, 3), index % 251, np.uint8)

    def label(self, index: int) -> int:
        return index // 10

    def name(self, index: int) -> str:
        return str(index)


def numbers(source: Source) -> List[int]:
    return [int(source.name(index)) for index in range(len(source))]


@given(count=st.integers(1, 300), cuts=st.lists(st.integers(0, 100), min_size=2, max_size=2).map(sorted))
def test_neighbours_share_nothing_and_lack_nothing(count: int, cuts: List[int]) -> None:
    splits = [f"train[:{cuts[0]}%]", f"train[{cuts[0]}%:{cuts[1]}%]", f"train[{cuts[1]}%:]"]
    parts = [part_of(Sorted(count), split) for split in splits]
    assert sorted(number for part in parts for number in numbers(part)) == list(range(count))
    assert [len(part) for part in parts] == [
        round(count * cuts[0] / 100),
        round(count * cuts[1] / 100) - round(count * cuts[0] / 100),
        count - round(count * cuts[1] / 100),
    ]


@given(count=st.integers(1, 300), cut=st.integers(0, 400))
def test_counts_are_counts(count: int, cut: int) -> None:
    first, rest = (part_of(Sorted(count), split) for split in (f"a[:{cut}]", f"a[{cut}:]"))
    assert len(first) == min(cut, count)
    assert sorted(numbers(first) + numbers(rest)) == list(range(count))


def test_a_part_has_some_of_nearly_every_class() -> None:
    """Where the images are sorted by class, the first ones would be of few classes."""
    part = part_of(Sorted(2000), "train[:50%]")
    counts = Counter(part.label(index) for index in range(len(part)))
    assert len(counts) > 195 and sum(counts.values()) == 1000
    # Of 10 images of a class, 1000 of 2000 drawn, the mean is 5 and the variance near 2.5.
    assert 1.8 < np.var([counts[label] for label in range(200)]) < 3.2


def test_a_part_answers_as_its_source_and_in_its_order() -> None:
    source = Sorted(50)
    part = part_of(source, "train[10%:60%]")
    assert numbers(part) == sorted(numbers(part)) and part.classes == source.classes
    for index, number in enumerate(numbers(part)):
        assert part.label(index) == source.label(number)
        assert np.array_equal(part.load(index), source.load(number))
    assert numbers(pickle.loads(pickle.dumps(part))) == numbers(part)


def test_the_images_of_a_part_never_change() -> None:
    """Else images that were held out would be trained on when a run goes on somewhere else."""
    assert numbers(part_of(Sorted(20), "train[:5]")) == [1, 8, 10, 18, 19]


@pytest.mark.parametrize("split", ["train", "train[:]", "train[:100%]", "train[0:]", "train[:10000]"])
def test_the_whole(split: str) -> None:
    assert name_of(split) == "train" and numbers(part_of(Sorted(30), split)) == list(range(30))


@pytest.mark.parametrize(
    "split", ["train[", "train[:98%", "train[98%]", "[:98%]", "", "train[-5:]", "train[:9.5%]", "a[:1][:1]"]
)
def test_what_is_no_split_is_refused(split: str) -> None:
    given_: Any = {"train_split": split}
    with pytest.raises(ValueError, match=r"accepted are a name and a part such as train\[:98%\] or train\[:1000\]"):
        DataSettings(**given_)
