"""Trained models in Python, in plain PyTorch on the CPU: `ipu_vit.load_model`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Callable, Iterator, List, NamedTuple, Optional, Sequence, Union

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ipu_vit.attention import attention_weights, rollout, without_rollout
from ipu_vit.build import load_trained
from ipu_vit.data.decode import decode, pixels_of
from ipu_vit.data.ondevice import Normalise
from ipu_vit.data.transforms import evaluation_transform
from ipu_vit.errors import UserError
from ipu_vit.labels import numbered, read_labels
from ipu_vit.models import build
from ipu_vit.models.image_model import ImageModel
from ipu_vit.settings import Settings
from ipu_vit.trained import Trained, find_trained
from ipu_vit.weights.load import LoadReport
from ipu_vit.weights.parameters import CLASSIFY
from ipu_vit.weights.shapes import listed

BATCH = 16
"""Images that go through the model at once."""

Picture = Union[str, "os.PathLike[str]", Image.Image, np.ndarray]
"""A path, a picture of Pillow, or uint8 pixels: height × width × RGB."""

Pictures = Union[Picture, Sequence[Picture]]


class Prediction(NamedTuple):
    """The most probable classes of one image, best first."""

    labels: List[str]
    probabilities: List[float]
    classes: List[int]


def load_model(
    source: str, overrides: Sequence[str] = (), labels: Optional[Union[str, Sequence[str]]] = None
) -> TrainedModel:
    """A trained model to use, in float32.

    `source` is the folder of a run, a checkpoint in one, weights of any format (a path or an address), or
    a preset, of which `weights=…` must be given. `overrides` are settings such as `model.heads=12`, for
    what the source does not tell. `labels` are the names of the classes, or a file that has them.

    Raises UserError, one sentence, for what cannot be used.
    """
    trained = find_trained(source, overrides)
    classes = trained.settings.model.classes
    names = trained.labels or numbered(classes)
    if isinstance(labels, (str, os.PathLike)):
        names = read_labels(labels, classes)
    elif labels is not None:
        names = list(labels)
        if len(names) != classes:
            raise UserError(f"labels has {len(names)} names, but the model has {classes} classes")
    if trained.settings.weights is None:
        raise UserError(f"{source} has weights=none, and random weights predict nothing; give weights=…")
    model = build(**trained.settings.model.model_dump()).eval()
    report = load_trained(model, trained.settings)
    if trained.of_a_run:
        _compute_as_devices_do(model)
    return TrainedModel(model, trained, names, report)


class TrainedModel:
    """A model with its weights, how its images are prepared, and the names of its classes.

    Every method takes one image or several; the result has a row for each. Paths that cannot be read
    raise `ipu_vit.data.decode.UnreadableImage`.
    """

    def __init__(self, model: ImageModel, trained: Trained, labels: List[str], report: LoadReport) -> None:
        self.model = model
        self.settings: Settings = trained.settings
        self.labels = labels
        self.remarks: List[str] = [*report.summary().splitlines(), *trained.remarks]
        self._untrained = report.replaced
        data = self.settings.data.model_copy(update={"source": "folder"})  # others may be prepared
        self._transform = evaluation_transform(self.settings.model_copy(update={"data": data}))
        self._normalise = Normalise(data.mean, data.std, torch.float32)

    def predict(self, images: Pictures, top: int = 5) -> List[Prediction]:
        """The `top` most probable classes of each image."""
        probabilities = torch.softmax(self.logits(images), dim=-1)
        best = torch.topk(probabilities, min(top, len(self.labels)), dim=-1)
        return [
            Prediction([self.labels[number] for number in numbers], shares, numbers)
            for shares, numbers in zip(best.values.tolist(), best.indices.tolist())
        ]

    def logits(self, images: Pictures) -> Tensor:
        """The logits of each image, (N, classes)."""
        self.check_trained()
        return self._run(images, self.model)

    def features(self, images: Pictures) -> Tensor:
        """What the last linear layer sees of each image: (N, width), or (N, representation) if the model has one."""
        self.check_trained(but=CLASSIFY)
        seen: List[Tensor] = []

        def keep(module: nn.Module, inputs: Any) -> None:
            seen.append(inputs[0])

        hook = self.model.head.classify.register_forward_pre_hook(keep)
        try:
            return self._run(images, lambda batch: (self.model(batch), seen.pop())[1])
        finally:
            hook.remove()

    def attention(self, images: Pictures) -> Tensor:
        """How much of each patch is in the class token, by attention rollout: (N, rows, columns), sums below 1.

        Raises UserError for models without attention or without a class token.
        """
        self.check_attention()

        def rolled_out(batch: Tensor) -> Tensor:
            with attention_weights(self.model) as weights:
                self.model(batch)
            return rollout(weights)

        return self._run(images, rolled_out)

    def pixels(self, images: Pictures) -> Tensor:
        """What the model sees of each image before it is normalised: uint8 (N, 3, S, S)."""
        return torch.cat(list(self._batches(images)))

    def check_attention(self) -> None:
        """Raise UserError if there is no attention to be had."""
        reason = without_rollout(self.settings.model)
        if reason is not None:
            raise UserError(f"{reason}, so there is no attention rollout; it is for models with model.pooling=class")
        self.check_trained(but=CLASSIFY)

    def check_trained(self, but: str = "") -> None:
        """Raise UserError if parts of the model, besides `but`, were not in the file of weights."""
        reasons = [f"{part} starts anew ({why})" for part, why in self._untrained.items() if part != but]
        if reasons:
            raise UserError(f"weights={self.settings.weights} leave parts of the model untrained: {listed(reasons)}")

    @torch.no_grad()
    def _run(self, images: Pictures, compute: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.cat([compute(self._normalise(batch)) for batch in self._batches(images)])

    def _batches(self, images: Pictures) -> Iterator[Tensor]:
        pictures = _several(images)
        for start in range(0, len(pictures), BATCH):
            arrays = [self._transform(_array(picture)) for picture in pictures[start : start + BATCH]]
            yield torch.from_numpy(np.stack(arrays))


def _several(images: Pictures) -> Sequence[Picture]:
    single = isinstance(images, (str, os.PathLike, Image.Image)) or (isinstance(images, np.ndarray) and images.ndim < 4)
    several: Any = [images] if single else images
    if not len(several):
        raise UserError("images is empty; one image or more are accepted")
    return several


def _array(picture: Picture) -> np.ndarray:
    """Pixels as `decode` has them."""
    if isinstance(picture, Image.Image):
        return pixels_of(picture)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3 or 0 in picture.shape:
            raise UserError(f"an image is {picture.dtype} {picture.shape}; uint8 (height, width, 3) is accepted")
        return picture
    if isinstance(picture, (str, os.PathLike)):
        return decode(Path(picture).expanduser())
    raise UserError(f"an image is {type(picture).__name__}; a path, a PIL image or a uint8 array is accepted")


def _compute_as_devices_do(model: nn.Module) -> None:
    """The GELU that a run was trained with: on an IPU it is always the tanh form."""
    for module in model.modules():
        if isinstance(module, nn.GELU):
            module.approximate = "tanh"
