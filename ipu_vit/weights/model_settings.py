"""The settings of the model that a file of weights is for, as far as its tensors tell."""

from __future__ import annotations

import math
from typing import Any, Dict, List, Mapping

from ipu_vit.weights.shapes import Shape, model_sizes

STEM = "embedding.stem."


def model_settings(shapes: Mapping[str, Shape]) -> Dict[str, Any]:
    """The settings of `model:` that give parameters such shapes; heads and epsilon show in none.

    Without a class token the head can only see the mean of the patches.
    """
    settings: Dict[str, Any] = dict(model_sizes(shapes))
    if "layers.0.tokens_mlp.expand.weight" in shapes:
        return {**settings, **_mixer(shapes)}
    if "embedding.class_token" not in shapes:
        settings.update(class_token=False, pooling="mean")
    if any(name.startswith(STEM) for name in shapes):
        settings.update(_hybrid(shapes, settings["image_size"]))
    return settings


def _mixer(shapes: Mapping[str, Shape]) -> Dict[str, Any]:
    width, _, _, patch = shapes["embedding.patch.weight"]
    hidden, tokens = shapes["layers.0.tokens_mlp.expand.weight"]
    return {
        "kind": "mixer",
        "width": width,
        "patch_size": patch,
        "image_size": patch * math.isqrt(tokens),
        "tokens_mlp_width": hidden,
        "class_token": False,
        "pooling": "mean",
    }


def _hybrid(shapes: Mapping[str, Shape], features: int) -> Dict[str, Any]:
    """`features` is the side of what the ResNet makes of an image: its stem, and each stage but the first, halve it."""
    units: Dict[int, set] = {}
    for name in shapes:
        if name.startswith(STEM + "stages."):
            stage, unit = name[len(STEM + "stages.") :].split(".")[:2]
            units.setdefault(int(stage), set()).add(unit)
    depths: List[int] = [len(units[stage]) for stage in sorted(units)]
    return {
        "kind": "hybrid",
        "resnet_depths": depths,
        "resnet_width": shapes[STEM + "root.weight"][0],
        "image_size": features * 4 * 2 ** max(len(depths) - 1, 0),
    }
