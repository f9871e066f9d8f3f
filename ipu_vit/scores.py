"""What predictions are worth: accuracies, reassessed labels, and the classes that are confused most."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from ipu_vit.data.samples import NO_LABEL
from ipu_vit.data.source import Source
from ipu_vit.errors import UserError


@dataclass(frozen=True)
class Score:
    """The result of one evaluation. Accuracies are shares of the images that were counted."""

    top1: float
    top5: float
    images: int
    predictions: np.ndarray  # class of each image, in the order of the source
    labels: Optional[np.ndarray] = None  # the right ones, or NO_LABEL for images that were not counted
    real: Optional[float] = None  # share of predictions among the reassessed labels
    real_images: int = 0  # those that have such labels

    def __str__(self) -> str:
        real = f", ReaL {100 * self.real:.2f} % of {self.real_images}" if self.real is not None else ""
        return (
            f"Valid Accuracy: {self.top1:.5f} (top-1 {100 * self.top1:.2f} %, top-5 {100 * self.top5:.2f} %, "
            f"{self.images} images{real})"
        )

    def figures(self) -> Dict[str, Any]:
        """The accuracies and what they are of, for a JSON file."""
        figures = {"top1": self.top1, "top5": self.top5, "images": self.images}
        return figures if self.real is None else {**figures, "real": self.real, "real_images": self.real_images}


def score_of(best: np.ndarray, labels: np.ndarray, real: Optional[RealLabels] = None) -> Score:
    """Score predictions, best class first (N, 5), against labels (N,), NO_LABEL where an image does not count."""
    right = best == labels[:, None]
    counted = labels != NO_LABEL
    count = int(counted.sum())
    if not count:
        raise UserError("data.root holds no validation image that can be read, so there is nothing to score")
    accuracy, images = real.accuracy(best[:, 0], counted) if real else (None, 0)
    return Score(
        top1=float(right[counted, 0].sum()) / count,
        top5=float(right[counted].any(axis=1).sum()) / count,
        images=count,
        predictions=best[:, 0],
        labels=labels,
        real=accuracy,
        real_images=images,
    )


# --- reassessed labels ---------------------------------------------------------------------------


class RealLabels:
    """Reassessed labels of ImageNet's validation images (ReaL; Beyer et al. 2020, arXiv 2006.07159).

    An image has any number of right classes; those without any are not counted. The file is a JSON list
    with a list of classes for each image, ILSVRC2012_val_00000001 first: that is, by file name.
    """

    def __init__(self, path: str, source: Source, classes: int) -> None:
        lists = _read(path, classes)
        names = [os.path.basename(source.name(index)) for index in range(len(source))]
        if len(lists) != len(names):
            raise UserError(
                f"evaluation.real_labels={path} is about {len(lists)} images, but there are {len(names)} for validation"
            )
        by_name = sorted(range(len(names)), key=names.__getitem__)
        twice = [names[b] for a, b in zip(by_name, by_name[1:]) if names[a] == names[b]]
        if twice:
            raise UserError(
                f"evaluation.real_labels={path} goes by the names of files, but several of the validation images are "
                f"called {twice[0]}"
            )
        self.of = dict(zip(by_name, lists))  # by the number of the image

    def accuracy(self, predictions: np.ndarray, counted: np.ndarray) -> Tuple[Optional[float], int]:
        """The share of predictions (N,) that are right, and the number of images that it is of."""
        right = [
            int(predictions[image]) in self.of[image] for image in np.flatnonzero(counted).tolist() if self.of[image]
        ]
        return (sum(right) / len(right) if right else None), len(right)


def _read(path: str, classes: int) -> List[List[int]]:
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"evaluation.real_labels={path} cannot be read as JSON: {reason}") from error
    if not isinstance(content, list) or not all(_are_classes(labels, classes) for labels in content):
        raise UserError(
            f"evaluation.real_labels={path} is no list with a list of classes from 0 to {classes - 1} for each image"
        )
    return content


def _are_classes(labels: Any, classes: int) -> bool:
    return isinstance(labels, list) and all(type(label) is int and 0 <= label < classes for label in labels)


# --- confused classes ----------------------------------------------------------------------------


class ClassScore(NamedTuple):
    """How well one class is recognised."""

    name: str
    accuracy: float
    images: int
    taken_for: List[Tuple[str, int]]  # the other classes its images were taken for, and how many of them, most first


def worst_classes(score: Score, names: Sequence[str], count: int) -> List[ClassScore]:
    """The classes with the lowest accuracy, worst first, of those that have images."""
    assert score.labels is not None
    taken: Dict[int, Counter] = {}
    for label, prediction in zip(score.labels.tolist(), score.predictions.tolist()):
        if label != NO_LABEL:
            taken.setdefault(label, Counter())[prediction] += 1
    found = []
    for label, predictions in taken.items():
        images = sum(predictions.values())
        others = [(names[other], number) for other, number in predictions.most_common() if other != label]
        found.append(
            (predictions[label] / images, label, ClassScore(names[label], predictions[label] / images, images, others))
        )
    return [entry for _, _, entry in sorted(found)[:count]]
