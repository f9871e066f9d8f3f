"""What runs on the device for one micro batch: bytes in, loss or predictions out."""

from __future__ import annotations

from typing import Optional, Tuple

import torch
from torch import Tensor, nn

from ipu_vit.data.ondevice import Mix, Normalise, mixed_targets, partners, partners_share
from ipu_vit.losses import build_loss
from ipu_vit.models.image_model import ImageModel
from ipu_vit.settings import Settings


class TrainingStep(nn.Module):
    """uint8 images (B, 3, S, S) and labels (B,) to the loss and the share of right predictions.

    With mixing, float32 (B, 5), each image is mixed with the next of the micro batch, and right is
    whoever predicts the label that has the larger share of the target.
    """

    def __init__(self, model: ImageModel, settings: Settings) -> None:
        super().__init__()
        self.model = model
        self.normalise = _normaliser(settings)
        if settings.augmentation.mixes:
            self.mix = Mix(settings.model.image_size)
        self.loss = build_loss(settings.loss)

    def forward(self, images: Tensor, labels: Tensor, mixing: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
        pixels = self.normalise(images)
        if mixing is None:
            logits = self.model(pixels).float()
            return self.loss(logits, labels), _share_right(logits, labels)
        # An input is read on one IPU only: the first works out what the last has to know of the mixing.
        share = partners_share(mixing, images.shape[-1])
        logits = self.model(self.mix(pixels, mixing)).float()
        larger = torch.where(share > 0.5, partners(labels), labels)
        return self.loss(logits, mixed_targets(labels, share, logits.shape[-1])), _share_right(logits, larger)


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


def _share_right(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.detach().argmax(dim=-1) == labels).float().mean()


def _normaliser(settings: Settings) -> Normalise:
    dtype = torch.float16 if settings.precision == "float16" else torch.float32
    return Normalise(settings.data.mean, settings.data.std, dtype)
