"""What a model costs: multiply-adds of one image, forward, in closed form.

Matrix products and convolutions only; the backward pass takes twice as many. That is what decides how long
a pipeline stage takes, so layers can be spread over IPUs before any model is built.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Optional, Sequence, Tuple


@dataclass(frozen=True)
class Costs:
    """Multiply-adds of one image in each part of a model."""

    embedding: int
    layers: List[int]
    head: int

    @property
    def parts(self) -> List[int]:
        """All of them in the order they run: embedding, layers, head."""
        return [self.embedding, *self.layers, self.head]

    @property
    def total(self) -> int:
        return sum(self.parts)


def costs(
    *,
    image_size: int,
    patch_size: int,
    width: int,
    depth: int,
    mlp_width: int,
    classes: int,
    kind: str = "vit",
    representation: Optional[int] = None,
    class_token: bool = True,
    tokens_mlp_width: Optional[int] = None,
    resnet_depths: Optional[Sequence[int]] = None,
    resnet_width: int = 64,
    **others: Any,
) -> Costs:
    """The costs of the model that `ipu_vit.models.build` makes of the same keywords; `others` cost nothing."""
    stem, channels, side = 0, 3, image_size
    if kind == "hybrid":
        stem, channels, side = _resnet(image_size, resnet_depths or (), resnet_width)
    patches = (side // patch_size) ** 2
    embedding = stem + patches * patch_size**2 * channels * width
    if kind == "mixer":
        layer = 2 * patches * width * ((tokens_mlp_width or 0) + mlp_width)
        return Costs(embedding, [layer] * depth, width * classes)
    tokens = patches + class_token
    projections, mixing, mlp = 4 * tokens * width**2, 2 * tokens**2 * width, 2 * tokens * width * mlp_width
    features = representation or width
    head = features * classes + (width * representation if representation else 0)
    return Costs(embedding, [projections + mixing + mlp] * depth, head)


def _resnet(image_size: int, depths: Sequence[int], width: int) -> Tuple[int, int, int]:
    """Multiply-adds of the ResNet, and the channels and the side of its features."""
    side = _halved(image_size)
    cost = side**2 * 7 * 7 * 3 * width
    side, channels = _halved(side), width
    for stage, depth in enumerate(depths):
        inner, outer = width * 2**stage, 4 * width * 2**stage
        for unit in range(depth):
            before = side
            if unit == 0 and stage > 0:
                side = _halved(side)
            projected = channels != outer or side != before
            cost += before**2 * channels * inner + side**2 * (9 * inner**2 + inner * outer)
            cost += side**2 * channels * outer if projected else 0
            channels = outer
    return cost, channels, side


def _halved(side: int) -> int:
    return -(-side // 2)
