"""What tensor shapes tell, and words about them, shared by every message on weights."""

from __future__ import annotations

import math
from typing import Dict, Mapping, Sequence, Tuple

from torch import Tensor

Shape = Tuple[int, ...]


def listed(items: Sequence[str], most: int = 3) -> str:
    """The first few items; a ViT has hundreds of tensors, and one fault often shows in all of them."""
    more = len(items) - most
    return ", ".join(items[:most]) + (f" and {more} more" if more > 0 else "")


def model_sizes(shapes: Mapping[str, Shape]) -> Dict[str, int]:
    """The arguments of `VisionTransformer` that give parameters such shapes, as far as they can be told."""
    axes = {
        "width": ("embedding.position", 2),
        "patch_size": ("embedding.patch.weight", 3),
        "mlp_width": ("layers.0.mlp.expand.weight", 0),
        "representation": ("head.representation.weight", 0),
        "classes": ("head.classify.bias", 0),
    }
    sizes = {key: shapes[name][axis] for key, (name, axis) in axes.items() if axis < len(shapes.get(name, ()))}
    sizes["depth"] = len({name.split(".")[1] for name in shapes if name.startswith("layers.")})
    if "width" in sizes and "patch_size" in sizes:
        patches = shapes["embedding.position"][1] - ("embedding.class_token" in shapes)
        sizes["image_size"] = sizes["patch_size"] * math.isqrt(max(patches, 0))
    return sizes


def shapes_of(state: Mapping[str, Tensor]) -> Dict[str, Shape]:
    """The shapes of parameters."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
