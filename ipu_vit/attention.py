"""Where a Vision Transformer looks: attention rollout (Abnar and Zuidema 2020, arXiv 2005.00928, section 3).

The share of every patch in the class token is followed through all layers. A layer passes on half
by attention, averaged over its heads, and half by the residual connection around it:

    R = ½ (A_L + I) · … · ½ (A_2 + I) · ½ (A_1 + I)

The class token's row of R, without the class token itself, is the map.
"""

from __future__ import annotations

import math
import os
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, List, Optional, Sequence

import numpy as np
import torch
from torch import Tensor

from ipu_vit.models.image_model import ImageModel
from ipu_vit.models.vit import Attention
from ipu_vit.settings import ModelSettings
from ipu_vit.weights.atomic import replacing


def without_rollout(model: ModelSettings) -> Optional[str]:
    """Why a model has no rollout, if it has none."""
    if model.kind == "mixer":
        return "model.kind=mixer has no attention"
    if model.pooling != "class":
        return f"model.pooling={model.pooling} does not look at a class token"
    return None


@contextmanager
def attention_weights(model: ImageModel) -> Iterator[List[Tensor]]:
    """A list to which every layer that runs meanwhile adds its attention, (B, heads, N, N)."""
    weights: List[Tensor] = []

    def keep(module: Any, inputs: Any, output: Tensor) -> None:
        weights.append(output)

    # What attention drops out in training, and leaves alone otherwise, are its weights.
    hooks = [module.dropout.register_forward_hook(keep) for module in model.modules() if isinstance(module, Attention)]
    try:
        yield weights
    finally:
        for hook in hooks:
            hook.remove()


def rollout(weights: Sequence[Tensor]) -> Tensor:
    """Attention of each layer, first to last, (B, heads, N, N), to maps of the patches (B, √(N−1), √(N−1))."""
    tokens = weights[0].shape[-1]
    flow = torch.eye(tokens, dtype=weights[0].dtype)
    for attention in weights:
        flow = (attention.mean(dim=1) + torch.eye(tokens, dtype=attention.dtype)) / 2 @ flow
    side = math.isqrt(tokens - 1)
    return flow[:, 0, 1:].reshape(-1, side, side)


def draw_attention(image: np.ndarray, weights: np.ndarray, title: str, path: Path) -> None:
    """Write a PNG: what the model sees, uint8 (S, S, 3), plain and with a map (g, g) laid over it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    size = len(image)
    for place in (1, 2):
        axes = figure.add_subplot(1, 2, place)
        axes.set_axis_off()
        axes.imshow(image, extent=(0, size, size, 0))
    axes.imshow(weights, extent=(0, size, size, 0), cmap="inferno", alpha=0.6, interpolation="bicubic")
    figure.suptitle(title.replace("$", r"\$"), fontsize=11)
    with replacing(os.fspath(path)) as file:
        figure.savefig(file, format="png", dpi=100)
