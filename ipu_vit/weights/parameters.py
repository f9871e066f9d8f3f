"""Our parameters: their names, how their shapes hang together, and what sizes of a model they tell."""

from __future__ import annotations

import math
import re
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Tuple

from ipu_vit.weights.shapes import Shape

CLASS_TOKEN = "embedding.class_token"
POSITION = "embedding.position"
STEM = "embedding.stem"
REPRESENTATION = "head.representation"
CLASSIFY = "head.classify"

# `{i}` is the number of a layer; `{s}` and `{u}` are those of a stage of a hybrid's ResNet and of a unit in it.
# C width, P patch size, N tokens, M MLP width, T width of the MLP across tokens, R representation,
# F features of the head (R if there is a representation, else C), K classes. Of a ResNet: W0 channels of
# its stem, W1 twice as many, and so on; {in} what goes into a unit, {features} into the patches.
UNIT = "embedding.stem.stages.{s}.{u}."
FIRST_UNIT = "embedding.stem.stages.{s}.0."
SHAPES = {
    "embedding.stem.root.weight": "W0 3 7 7",
    "embedding.stem.root_norm.weight": "W0",
    "embedding.stem.root_norm.bias": "W0",
    FIRST_UNIT + "projection.weight": "4W{s} {in} 1 1",
    FIRST_UNIT + "projection_norm.weight": "4W{s}",
    FIRST_UNIT + "projection_norm.bias": "4W{s}",
    UNIT + "conv1.weight": "W{s} {in} 1 1",
    UNIT + "norm1.weight": "W{s}",
    UNIT + "norm1.bias": "W{s}",
    UNIT + "conv2.weight": "W{s} W{s} 3 3",
    UNIT + "norm2.weight": "W{s}",
    UNIT + "norm2.bias": "W{s}",
    UNIT + "conv3.weight": "4W{s} W{s} 1 1",
    UNIT + "norm3.weight": "4W{s}",
    UNIT + "norm3.bias": "4W{s}",
    "embedding.class_token": "1 1 C",
    "embedding.patch.weight": "C {features} P P",
    "embedding.patch.bias": "C",
    "embedding.position": "1 N C",
    "layers.{i}.attention_norm.weight": "C",
    "layers.{i}.attention_norm.bias": "C",
    "layers.{i}.attention.qkv.weight": "3C C",
    "layers.{i}.attention.qkv.bias": "3C",
    "layers.{i}.attention.output.weight": "C C",
    "layers.{i}.attention.output.bias": "C",
    "layers.{i}.tokens_norm.weight": "C",
    "layers.{i}.tokens_norm.bias": "C",
    "layers.{i}.tokens_mlp.expand.weight": "T N",
    "layers.{i}.tokens_mlp.expand.bias": "T",
    "layers.{i}.tokens_mlp.contract.weight": "N T",
    "layers.{i}.tokens_mlp.contract.bias": "N",
    "layers.{i}.mlp_norm.weight": "C",
    "layers.{i}.mlp_norm.bias": "C",
    "layers.{i}.mlp.expand.weight": "M C",
    "layers.{i}.mlp.expand.bias": "M",
    "layers.{i}.mlp.contract.weight": "C M",
    "layers.{i}.mlp.contract.bias": "C",
    "head.norm.weight": "C",
    "head.norm.bias": "C",
    "head.representation.weight": "R C",
    "head.representation.bias": "R",
    "head.classify.weight": "K F",
    "head.classify.bias": "K",
}


class Repeats(NamedTuple):
    """How often a model has what it has several times."""

    layers: int
    units: Optional[Tuple[int, ...]] = None  # in each stage of the ResNet; None without a ResNet

    def features(self) -> str:
        """What the patches are cut from: colours, the stem's channels, or those of the last stage."""
        if self.units is None:
            return "3"
        return f"4W{len(self.units) - 1}" if self.units else "W0"

    def numbers(self, name: str) -> List[Dict[str, str]]:
        """What the placeholders in a name, and in shapes of that name, stand for, one after another."""
        if "{i}" in name:
            return [{"i": str(i)} for i in range(self.layers)]
        if "{s}" not in name:
            return [{"features": self.features()}]
        last = "{u}" in name
        return [
            {"s": str(stage), "u": str(unit), "in": _into(stage, unit)}
            for stage, units in enumerate(self.units or ())
            for unit in range(units if last else 1)
        ]


def _into(stage: int, unit: int) -> str:
    """The channels that go into a unit of a ResNet."""
    if unit:
        return f"4W{stage}"
    return f"4W{stage - 1}" if stage else "W0"


def filled(text: str, numbers: Mapping[str, str]) -> str:
    """A name or a shape with its placeholders replaced; `{u+1}` is for formats that count from 1."""

    def value(match: re.Match[str]) -> str:
        found = numbers.get(match[1], match[0])
        return str(int(found) + 1) if match[2] else found

    return re.sub(r"\{(\w+)(\+1)?\}", value, text)


def repeats_of(names: Iterable[str]) -> Repeats:
    """How often parameters of ours have layers and units."""
    numbers = [re.match(r"layers\.(\d+)\.|embedding\.stem\.(?:stages\.(\d+)\.(\d+)\.)?", name) for name in names]
    layers = {match[1] for match in numbers if match and match[1]}
    units = {(match[2], match[3]) for match in numbers if match and match[2]}
    stem = any(match and not match[1] for match in numbers)
    return Repeats(len(layers), count_units(units) if stem else None)


def count_units(found: Iterable[Tuple[str, str]]) -> Tuple[int, ...]:
    """The number of units in each stage, from pairs of a stage's number and a unit's."""
    stages = [stage for stage, _ in set(found)]
    return tuple(stages.count(stage) for stage in sorted(set(stages), key=int))


def within(name: str, parts: Iterable[str]) -> bool:
    """Whether a parameter is one of the parts of a model, or in one."""
    return any(name == part or name.startswith(part + ".") for part in parts)


def has_attention(names: Iterable[str]) -> bool:
    """Whether the parameters are those of a model with attention heads: any but a Mixer."""
    return any(".attention." in name for name in names)


def model_sizes(shapes: Mapping[str, Shape]) -> Dict[str, Any]:
    """The keywords of `ipu_vit.models.build` that give parameters such shapes, as far as they can be told."""
    axes = {
        "width": ("embedding.patch.weight", 0),
        "patch_size": ("embedding.patch.weight", 3),
        "mlp_width": ("layers.0.mlp.expand.weight", 0),
        "tokens_mlp_width": ("layers.0.tokens_mlp.expand.weight", 0),
        "resnet_width": ("embedding.stem.root.weight", 0),
        "representation": ("head.representation.weight", 0),
        "classes": ("head.classify.bias", 0),
    }
    repeats = repeats_of(shapes)
    mixes = "layers.0.tokens_mlp.expand.weight" in shapes
    sizes: Dict[str, Any] = {
        "kind": "mixer" if mixes else "vit" if repeats.units is None else "hybrid",
        "class_token": CLASS_TOKEN in shapes,
        "resnet_depths": None if repeats.units is None else list(repeats.units),
        "tokens_mlp_width": None,
    }
    sizes.update({key: shapes[name][axis] for key, (name, axis) in axes.items() if axis < len(shapes.get(name, ()))})
    sizes["depth"] = repeats.layers
    tokens = _tokens(shapes)
    if tokens is not None and "patch_size" in sizes:
        side = math.isqrt(max(tokens - (CLASS_TOKEN in shapes), 0))
        sizes["image_size"] = side * sizes["patch_size"] * _stride(repeats)
    return sizes


def _tokens(shapes: Mapping[str, Shape]) -> Optional[int]:
    for name in (POSITION, "layers.0.tokens_mlp.expand.weight"):
        if len(shapes.get(name, ())) > 1:
            return shapes[name][1]
    return None


def _stride(repeats: Repeats) -> int:
    """Pixels that are as wide as one feature: the stem has 4, each stage after the first doubles them."""
    return 1 if repeats.units is None else 4 * 2 ** max(len(repeats.units) - 1, 0)
