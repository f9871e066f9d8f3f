"""The outline that all models share."""

from __future__ import annotations

from torch import Tensor, nn

from ipu_vit.models.head import Head


class ImageModel(nn.Module):
    """Images (B, 3, S, S), normalised, to logits (B, classes), in three parts.

    Whoever places a model on devices needs to know no more: `embedding` makes tokens of images,
    each of the `layers` makes tokens of tokens, and `head` makes logits of tokens.
    """

    embedding: nn.Module
    layers: nn.ModuleList
    head: Head

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embedding(images)
        for layer in self.layers:
            tokens = layer(tokens)
        logits: Tensor = self.head(tokens)
        return logits
