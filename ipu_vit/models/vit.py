"""The Vision Transformer (Dosovitskiy et al. 2020, arXiv 2010.11929, section 3.1).

Written from operators that PopTorch has handlers for: attention is spelled out as matrix products
and a softmax, because `scaled_dot_product_attention` is not among them.

Shapes: B images, N tokens (patches + class token), C width, H heads.
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor, nn


class Embedding(nn.Module):
    """Images (B, 3, S, S) to tokens (B, 1 + (S/P)², C): patches, class token, positions."""

    def __init__(self, image_size: int, patch_size: int, width: int, dropout: float) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.empty(1, 1 + (image_size // patch_size) ** 2, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch(images).flatten(2).transpose(1, 2)
        class_token = self.class_token.expand(patches.shape[0], -1, -1)
        return self.dropout(torch.cat([class_token, patches], dim=1) + self.position)


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
        self, width: int, heads: int, mlp_width: int, dropout: float, attention_dropout: float, norm_epsilon: float
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=norm_epsilon)
        self.attention = Attention(width, heads, attention_dropout)
        self.mlp_norm = nn.LayerNorm(width, eps=norm_epsilon)
        self.mlp = MLP(width, mlp_width, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.dropout(self.attention(self.attention_norm(tokens)))
        return tokens + self.dropout(self.mlp(self.mlp_norm(tokens)))


class Head(nn.Module):
    """Tokens (B, N, C) to logits (B, classes), from the class token."""

    def __init__(self, width: int, classes: int, representation: Optional[int], norm_epsilon: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=norm_epsilon)
        self.representation = nn.Linear(width, representation) if representation else None
        self.classify = nn.Linear(representation or width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        features = self.norm(tokens[:, 0])
        if self.representation is not None:
            features = torch.tanh(self.representation(features))
        return self.classify(features)


class VisionTransformer(nn.Module):
    """Images (B, 3, S, S), normalised, to logits (B, classes)."""

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
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        norm_epsilon: float = 1e-6,
    ) -> None:
        super().__init__()
        self.embedding = Embedding(image_size, patch_size, width, dropout)
        self.layers = nn.ModuleList(
            EncoderLayer(width, heads, mlp_width, dropout, attention_dropout, norm_epsilon) for _ in range(depth)
        )
        self.head = Head(width, classes, representation, norm_epsilon)
        self.initialise()

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embedding(images)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.head(tokens)

    @torch.no_grad()
    def initialise(self) -> None:
        """Initial weights as the ViT paper's code has them (vit_jax `models_vit.py`).

        Xavier-uniform matrices with near-zero MLP biases, LeCun-normal patch and representation
        layers, positions of deviation 0.02, and a head of zeros, so that training starts from
        equal class probabilities.
        """
        for name, parameter in self.named_parameters():
            if name.endswith(".bias"):
                nn.init.normal_(parameter, std=1e-6 if ".mlp." in name else 0.0)
            elif name.endswith(".qkv.weight"):
                # Three matrices in one parameter: each is initialised by its own size, as vit_jax has them.
                for matrix in parameter.chunk(3):
                    nn.init.xavier_uniform_(matrix)
            elif name in ("embedding.patch.weight", "head.representation.weight"):
                _lecun_normal(parameter)
            elif parameter.dim() == 2:
                nn.init.xavier_uniform_(parameter)
        nn.init.normal_(self.embedding.position, std=0.02)
        nn.init.zeros_(self.embedding.class_token)
        nn.init.zeros_(self.head.classify.weight)


def _lecun_normal(weight: Tensor) -> None:
    """Truncated normal of variance 1 / fan-in (LeCun et al. 1998), cut at two deviations."""
    fan_in = weight[0].numel()
    # A normal cut at ±2 has deviation 0.8796; dividing by it restores variance 1 / fan-in.
    std = fan_in**-0.5 / 0.87962566103423978
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
