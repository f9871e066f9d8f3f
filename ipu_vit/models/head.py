"""The head that all models share: tokens to logits.

Shapes: B images, N tokens, C width.
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor, nn


class Head(nn.Module):
    """Tokens (B, N, C) to logits (B, classes), from the class token or from the mean of the patches.

    ViT and big_vision normalise before they take the mean (`pool_norm="before"`), fine-tuned MAE
    models, and timm's `fc_norm`, after it; for the class token that is the same.
    """

    def __init__(
        self,
        width: int,
        classes: int,
        representation: Optional[int],
        norm_epsilon: float,
        pooling: str = "class",
        class_token: bool = True,
        pool_norm: str = "before",
        bias: float = 0.0,
    ) -> None:
        super().__init__()
        self.pooling, self.pool_norm = pooling, pool_norm
        self.first_patch = int(class_token)
        self.norm = nn.LayerNorm(width, eps=norm_epsilon)
        self.representation = nn.Linear(width, representation) if representation else None
        self.classify = nn.Linear(representation or width, classes)
        self.bias = bias

    @torch.no_grad()
    def start_even(self) -> None:
        """Zero weights, so that every class starts with the same logit: the bias.

        Below 0 it lets a sigmoid loss of many classes start from "none of them": big_vision has −6.9, about
        −ln 1000, for ImageNet (`configs/vit_i1k.py`), and −10 for ImageNet-21k (`configs/vit_i21k.py`).
        """
        nn.init.zeros_(self.classify.weight)
        nn.init.constant_(self.classify.bias, self.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        features = self._pool(tokens)
        if self.representation is not None:
            features = torch.tanh(self.representation(features))
        logits: Tensor = self.classify(features)
        return logits

    def _pool(self, tokens: Tensor) -> Tensor:
        """One normalised vector per image, (B, C)."""
        if self.pooling == "class":
            pooled: Tensor = self.norm(tokens[:, 0])
        elif self.pool_norm == "before":
            pooled = self.norm(tokens[:, self.first_patch :]).mean(dim=1)
        else:
            pooled = self.norm(tokens[:, self.first_patch :].mean(dim=1))
        return pooled
