"""What runs on the device for one micro batch: bytes in, loss or predictions out."""

from __future__ import annotations

from typing import Tuple

import torch
from torch import Tensor, nn

from ipu_vit.data.ondevice import Normalise
from ipu_vit.losses import build_loss
from ipu_vit.models.image_model import ImageModel
from ipu_vit.settings import Settings


class TrainingStep(nn.Module):
    """uint8 images (B, 3, S, S) and labels (B,) to the loss and the share of right predictions."""

    def __init__(self, model: ImageModel, settings: Settings) -> None:
        super().__init__()
        self.model = model
        self.normalise = _normaliser(settings)
        self.loss = build_loss(settings.loss)

    def forward(self, images: Tensor, labels: Tensor) -> Tuple[Tensor, Tensor]:
        logits = self.model(self.normalise(images)).float()
        right = (logits.detach().argmax(dim=-1) == labels).float().mean()
        return self.loss(logits, labels), right


class EvaluationStep(nn.Module):
    """uint8 images (B, 3, S, S) to the classes of the highest logits, best first, (B, 5 or fewer)."""

    def __init__(self, model: ImageModel, settings: Settings) -> None:
        super().__init__()
        self.model = model
        self.normalise = _normaliser(settings)
        self.best = min(5, settings.model.classes)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(self.normalise(images)).float()
        return torch.topk(logits, self.best, dim=-1).indices


def _normaliser(settings: Settings) -> Normalise:
    dtype = torch.float16 if settings.precision == "float16" else torch.float32
    return Normalise(settings.data.mean, settings.data.std, dtype)
