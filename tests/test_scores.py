"""Scores against loops that count one image after the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, List, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipu_vit.errors import UserError
from ipu_vit.scores import RealLabels, score_of, worst_classes

CLASSES = 6


class Files:
    """Images that are nothing but names, in any order."""

    classes: Sequence[str] = tuple("abcdef")

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> np.ndarray:
        raise NotImplementedError

    def label(self, index: int) -> int:
        return 0

    def name(self, index: int) -> str:
        return f"/data/val/class{index % 3}/{self.names[index]}"


def write(path: Path, content: Any) -> str:
    path.write_text(json.dumps(content))
    return str(path)


predicted = st.permutations(range(CLASSES)).map(lambda order: order[:5])


@given(images=st.lists(st.tuples(predicted, st.integers(-1, CLASSES - 1)), min_size=1, max_size=40))
def test_scores_are_counted_image_by_image(images: List[Any]) -> None:
    counted = [(best, label) for best, label in images if label >= 0]
    best, labels = np.array([best for best, _ in images]), np.array([label for _, label in images])
    if not counted:
        with pytest.raises(UserError, match="nothing to score"):
            score_of(best, labels)
        return
    score = score_of(best, labels)
    assert score.images == len(counted)
    assert score.top1 == sum(best[0] == label for best, label in counted) / len(counted)
    assert score.top5 == sum(label in best for best, label in counted) / len(counted)

    worst = worst_classes(score, "abcdef", CLASSES)
    assert {entry.name for entry in worst} == {"abcdef"[label] for _, label in counted}
    assert [entry.accuracy for entry in worst] == sorted(entry.accuracy for entry in worst)
    for entry in worst:
        of_class = [best[0] for best, label in counted if "abcdef"[label] == entry.name]
        assert entry.images == len(of_class)
        assert entry.accuracy == sum("abcdef"[number] == entry.name for number in of_class) / len(of_class)
        assert dict(entry.taken_for) == {
            "abcdef"[number]: of_class.count(number) for number in set(of_class) if "abcdef"[number] != entry.name
        }
        numbers = [number for _, number in entry.taken_for]
        assert numbers == sorted(numbers, reverse=True)
    assert worst_classes(score, "abcdef", 1) == worst[:1]


@given(
    images=st.lists(
        st.tuples(st.integers(0, CLASSES - 1), st.lists(st.integers(0, CLASSES - 1), max_size=3), st.booleans()),
        min_size=1,
        max_size=30,
    ),
    order=st.randoms(use_true_random=False),
)
def test_reassessed_labels_go_by_file_name(images: List[Any], order: Any, tmp_path_factory: Any) -> None:
    """The file lists images by name; folders of classes have them in another order."""
    path = write(tmp_path_factory.getbasetemp() / "real.json", [labels for _, labels, _ in images])
    numbers = list(range(len(images)))
    order.shuffle(numbers)
    real = RealLabels(path, Files([f"ILSVRC2012_val_{number + 1:08}.JPEG" for number in numbers]), CLASSES)
    predictions = np.array([images[number][0] for number in numbers])
    counted = np.array([images[number][2] for number in numbers])
    right = [prediction in labels for prediction, labels, counts in images if labels and counts]
    assert real.accuracy(predictions, counted) == (sum(right) / len(right) if right else None, len(right))


def test_score_says_both(tmp_path: Path) -> None:
    """The published accuracy of a class counts where the old label is wrong, and empty lists leave images out."""
    real = RealLabels(write(tmp_path / "real.json", [[0, 1], [], [3]]), Files(["1.JPEG", "2.JPEG", "3.JPEG"]), CLASSES)
    best = np.array([[1, 0, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]])
    score = score_of(best, np.array([0, 0, 0]), real)
    assert (score.top1, score.top5, score.real, score.real_images) == (2 / 3, 1.0, 0.5, 2)
    assert score.figures() == {"top1": 2 / 3, "top5": 1.0, "images": 3, "real": 0.5, "real_images": 2}
    assert str(score) == "Valid Accuracy: 0.66667 (top-1 66.67 %, top-5 100.00 %, 3 images, ReaL 50.00 % of 2)"


@pytest.mark.parametrize(
    "content, message",
    [
        ([[0]], "is about 1 images, but there are 2 for validation"),
        ([[0], [CLASSES]], "is no list with a list of classes from 0 to 5 for each image"),
        ([[0], [True]], "is no list"),
        ([[0], 1], "is no list"),
        ({"0": [1]}, "is no list"),
    ],
)
def test_a_file_that_does_not_fit_is_a_sentence(tmp_path: Path, content: Any, message: str) -> None:
    path = write(tmp_path / "real.json", content)
    with pytest.raises(UserError, match=f"^evaluation.real_labels={path} {message}"):
        RealLabels(path, Files(["a", "b"]), CLASSES)


def test_files_that_cannot_be_read_or_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone.json cannot be read as JSON: No such file"):
        RealLabels(str(tmp_path / "gone.json"), Files(["a"]), CLASSES)
    (tmp_path / "real.json").write_text("[[")
    with pytest.raises(UserError, match="cannot be read as JSON: "):
        RealLabels(str(tmp_path / "real.json"), Files(["a"]), CLASSES)
    with pytest.raises(UserError, match="several of the validation images are called a"):
        RealLabels(write(tmp_path / "real.json", [[0], [0]]), Files(["a", "a"]), CLASSES)
