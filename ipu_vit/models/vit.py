"""The Vision Transformer (Dosovitskiy et al. 2020, arXiv 2010.11929, section 3.1).

Written from operators that PopTorch has handlers for: attention is spelled out as matrix products
and a softmax, because `scaled_dot_product_attention` is not among them.

Shapes: B images, N tokens (patches, after the class token if there is one), C width, H heads.
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor, nn

from ipu_vit.models.drop_path import DropPath, rising_rates
from ipu_vit.models.head import Head
from ipu_vit.models.image_model import ImageModel
from ipu_vit.models.initial import lecun_normal
from ipu_vit.models.positions import fixed_positions as fixed_grid


class Stem(nn.Module):
    """What may stand before the patches: images (B, 3, S, S) to features (B, channels, S / stride, S / stride)."""

    channels: int
    stride: int


class Embedding(nn.Module):
    """Images (B, 3, S, S) to tokens (B, N, C): class token, then patches row by row; all with positions."""

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        width: int,
        dropout: float,
        class_token: bool = True,
        fixed_positions: bool = False,
        stem: Optional[Stem] = None,
    ) -> None:
        super().__init__()
        channels, stride = (stem.channels, stem.stride) if stem else (3, 1)
        patches = (image_size // (stride * patch_size)) ** 2
        self.stem = stem
        self.patch = nn.Conv2d(channels, width, kernel_size=patch_size, stride=patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width)) if class_token else None
        self.position = nn.Parameter(torch.empty(1, class_token + patches, width), requires_grad=not fixed_positions)
        self.dropout = nn.Dropout(dropout)

    def forward(self, images: Tensor) -> Tensor:
        features = images if self.stem is None else self.stem(images)
        tokens = self.patch(features).flatten(2).transpose(1, 2)
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        return self.dropout(tokens + self.position)

    def place(self) -> None:
        """Give the patches their first positions: of deviation 0.02, or for good those that are fixed."""
        if self.position.requires_grad:
            nn.init.normal_(self.position, std=0.02)
        else:
            self.position.copy_(fixed_grid(self.position.shape[1:], self.class_token is not None))


class Attention(nn.Module):
    """Multi-head self-attention over tokens (B, N, C)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, length, width = tokens.shape
        qkv = self.qkv(tokens).reshape(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        weights = torch.softmax((query * self.scale) @ key.transpose(-2, -1), dim=-1)
        mixed = self.dropout(weights) @ value
        return self.output(mixed.transpose(1, 2).reshape(batch, length, width))


class MLP(nn.Module):
    """The two-layer perceptron of an encoder layer, applied to each token."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.expand = nn.Linear(width, hidden)
        self.gelu = nn.GELU()
        self.contract = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.contract(self.dropout(self.gelu(self.expand(tokens))))


class EncoderLayer(nn.Module):
    """One pre-norm transformer layer; the unit that is placed on an IPU."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        dropout: float,
        attention_dropout: float,
        norm_epsilon: float,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=norm_epsilon)
        self.attention = Attention(width, heads, attention_dropout)
        self.mlp_norm = nn.LayerNorm(width, eps=norm_epsilon)
        self.mlp = MLP(width, mlp_width, dropout)
        self.dropout = nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.drop_path(self.dropout(self.attention(self.attention_norm(tokens))))
        return tokens + self.drop_path(self.dropout(self.mlp(self.mlp_norm(tokens))))


class VisionTransformer(ImageModel):
    """The Vision Transformer; a class token is needed to pool from it, and optional for the mean."""

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        mlp_width: int,
        classes: int,
        representation: Optional[int] = None,
        class_token: bool = True,
        pooling: str = "class",
        pool_norm: str = "before",
        fixed_positions: bool = False,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_epsilon: float = 1e-6,
        head_bias: float = 0.0,
        stem: Optional[Stem] = None,
    ) -> None:
        super().__init__()
        self.embedding: Embedding = Embedding(
            image_size, patch_size, width, dropout, class_token, fixed_positions, stem
        )
        self.layers = nn.ModuleList(
            EncoderLayer(width, heads, mlp_width, dropout, attention_dropout, norm_epsilon, rate)
            for rate in rising_rates(drop_path, depth)
        )
        self.head = Head(width, classes, representation, norm_epsilon, pooling, class_token, pool_norm, head_bias)
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Initial weights as the ViT paper's code has them (vit_jax `models_vit.py`).

        Xavier-uniform matrices with near-zero MLP biases, LeCun-normal convolutions and representation
        layer, positions of deviation 0.02, and a head of zeros, so that training starts from
        equal class probabilities.
        """
        for name, parameter in self.named_parameters():
            if name.endswith(".bias"):
                nn.init.normal_(parameter, std=1e-6 if ".mlp." in name else 0.0)
            elif name.endswith(".qkv.weight"):
                # Three matrices in one parameter: each is initialised by its own size, as vit_jax has them.
                for matrix in parameter.chunk(3):
                    nn.init.xavier_uniform_(matrix)
            elif parameter.dim() == 4 or name == "head.representation.weight":
                lecun_normal(parameter)
            elif parameter.dim() == 2:
                nn.init.xavier_uniform_(parameter)
        self.embedding.place()
        self.head.start_even()
