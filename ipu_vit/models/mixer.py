"""MLP-Mixer (Tolstikhin et al. 2021, arXiv 2105.01601): perceptrons over tokens take attention's place.

Shapes: B images, N tokens (patches), C width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ipu_vit.models.drop_path import DropPath, rising_rates
from ipu_vit.models.head import Head
from ipu_vit.models.image_model import ImageModel
from ipu_vit.models.initial import lecun_normal
from ipu_vit.models.vit import MLP


class PatchEmbedding(nn.Module):
    """Images (B, 3, S, S) to tokens (B, (S/P)², C), row by row; the mixing itself knows positions."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.patch(images).flatten(2).transpose(1, 2)
        return tokens


class MixerLayer(nn.Module):
    """One layer: a perceptron across tokens, then one across the width; the unit that is placed on an IPU."""

    def __init__(
        self, tokens: int, width: int, tokens_mlp_width: int, mlp_width: int, norm_epsilon: float, drop_path: float
    ) -> None:
        super().__init__()
        self.tokens_norm = nn.LayerNorm(width, eps=norm_epsilon)
        self.tokens_mlp = MLP(tokens, tokens_mlp_width, dropout=0.0)
        self.mlp_norm = nn.LayerNorm(width, eps=norm_epsilon)
        self.mlp = MLP(width, mlp_width, dropout=0.0)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor) -> Tensor:
        mixed = self.tokens_mlp(self.tokens_norm(tokens).transpose(1, 2)).transpose(1, 2)
        tokens = tokens + self.drop_path(mixed)
        return tokens + self.drop_path(self.mlp(self.mlp_norm(tokens)))


class Mixer(ImageModel):
    """MLP-Mixer; logits come from the mean of its tokens."""

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        width: int,
        depth: int,
        tokens_mlp_width: int,
        mlp_width: int,
        classes: int,
        drop_path: float = 0.0,
        norm_epsilon: float = 1e-6,
        head_bias: float = 0.0,
    ) -> None:
        super().__init__()
        tokens = (image_size // patch_size) ** 2
        self.embedding = PatchEmbedding(patch_size, width)
        self.layers = nn.ModuleList(
            MixerLayer(tokens, width, tokens_mlp_width, mlp_width, norm_epsilon, rate)
            for rate in rising_rates(drop_path, depth)
        )
        self.head = Head(width, classes, None, norm_epsilon, pooling="mean", class_token=False, bias=head_bias)
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Initial weights as vit_jax has them: LeCun-normal ones, zero biases, a head of zeros (`models_mixer.py`)."""
        for name, parameter in self.named_parameters():
            if name.endswith(".bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() > 1:
                lecun_normal(parameter)
        self.head.start_even()
