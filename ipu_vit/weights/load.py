"""Start a model from a file of trained weights.

The file's format is found from its content. Everything but the head must fit the model, and all
shapes are compared before anything is read. What fine-tuning changes on purpose is adapted and
reported: the grid of positions, the number of classes, the `pre_logits` layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import torch
from torch import nn

from ipu_vit.errors import UserError
from ipu_vit.models.positions import fixed_positions, grid_side, layout_of
from ipu_vit.models.vit import Attention
from ipu_vit.weights.formats import WeightFile, open_weights
from ipu_vit.weights.parameters import CLASS_TOKEN, CLASSIFY, POSITION, REPRESENTATION, STEM, model_sizes, within
from ipu_vit.weights.positions import Grid, resize_positions
from ipu_vit.weights.shapes import Shape, listed


@dataclass(frozen=True)
class LoadReport:
    """What became of a file's weights."""

    path: str
    format: str
    kept: Tuple[str, ...]  # parameters copied, resized ones included
    resized: Optional[Tuple[Grid, Grid]] = None  # grid of positions in the file, in the model
    replaced: Mapping[str, str] = field(default_factory=dict)  # parts left at their initial values, and why
    dropped: Mapping[str, str] = field(default_factory=dict)  # parts of the file not copied, and why
    unused: Tuple[str, ...] = ()  # entries of the file that mean nothing to us
    remarks: Tuple[str, ...] = ()  # what else differs between the file and the model

    def summary(self) -> str:
        """One line on what was copied and, if there is any, one on what was not."""
        copied = f"weights: {len(self.kept)} tensors from {self.path} ({self.format})"
        if self.resized:
            old, new = (f"{height}×{width}" for height, width in self.resized)
            copied += f", positions resized from {old} to {new}"
        rest = [f"{name} starts anew ({why})" for name, why in self.replaced.items()]
        rest += [f"{name} dropped ({why})" for name, why in self.dropped.items()]
        rest += self.remarks
        if self.unused:
            rest.append(f"not used: {listed(self.unused)}")
        return "\n".join([copied] + (["weights: " + "; ".join(rest)] if rest else []))


def load_weights(model: nn.Module, path: str, resize: str = "bilinear") -> LoadReport:
    """Copy the weights of the file at `path` into `model`, whatever the model's number type.

    Positions on another grid are resized, `bilinear` or `bicubic`.
    """
    file = open_weights(path)
    parameters = dict(model.named_parameters())
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    replaced, dropped = _plan_head(file.shapes, shapes)
    frozen = POSITION in parameters and not parameters[POSITION].requires_grad
    fixed = frozen or (file.fixed_positions and POSITION in shapes and shapes[POSITION][-1] % 4 == 0)
    if frozen and POSITION in file.shapes:
        dropped[POSITION] = "the model's are fixed"
    had, has = CLASS_TOKEN in file.shapes, CLASS_TOKEN in shapes
    if has and not had:
        replaced[CLASS_TOKEN] = "the file has none"
    if had and not has:
        dropped[CLASS_TOKEN] = "the model has none"
    kept = [name for name in shapes if not within(name, replaced) and not (fixed and name == POSITION)]
    _check(file, shapes, kept, _heads(model), path)
    resized = None if frozen else _plan_positions(file.shapes, shapes, path)
    with torch.no_grad():
        for name in kept:
            tensor = file.read(name)
            if name == POSITION and resized:
                tensor = resize_positions(tensor, resized[1], resize, class_token=had)
            if name == POSITION and has and not had:
                tensor = torch.cat([parameters[name][:, :1].to(tensor), tensor], dim=1)
            if name == POSITION and had and not has:
                tensor = tensor[:, 1:]
            parameters[name].copy_(tensor)
        if fixed:
            parameters[POSITION].copy_(fixed_positions(shapes[POSITION][1:], class_token=has))
    strangers = [name for name in file.shapes if name not in shapes and not within(name, dropped)]
    unused = (*file.unused, *strangers)
    remarks = _compare_epsilon(file, model)
    if file.norms_mean:
        remarks.append("its last norm follows the mean of the patches and is read as head.norm (model.pool_norm=after)")
    if file.fixed_positions and fixed:
        remarks.append("positions are fixed sines and cosines, which the file has no need to hold")
    return LoadReport(path, file.format, tuple(kept), resized, replaced, dropped, unused, tuple(remarks))


def _heads(model: nn.Module) -> Optional[int]:
    return next((module.heads for module in model.modules() if isinstance(module, Attention)), None)


def _compare_epsilon(file: WeightFile, model: nn.Module) -> List[str]:
    """A remark if layer norms were trained with another epsilon; it is no fault, for it hardly shows."""
    ours = next((module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)), None)
    if file.epsilon is None or ours is None or file.epsilon == ours:
        return []
    return [f"layer norms have epsilon {file.epsilon:g} in the file, {ours:g} in the model"]


def _plan_head(found: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> Tuple[Dict[str, str], Dict[str, str]]:
    """Which parts of the head start anew, and which parts of the file are dropped, with the reasons."""
    replaced: Dict[str, str] = {}
    dropped: Dict[str, str] = {}
    in_file, in_model = (f"{REPRESENTATION}.weight" in shapes for shapes in (found, wanted))
    file_classes, model_classes = (math.prod(shapes.get(f"{CLASSIFY}.bias", ())) for shapes in (found, wanted))
    if in_file and not in_model:
        dropped[REPRESENTATION] = "the model has none"
    if in_model and not in_file:
        replaced[REPRESENTATION] = "the file has none"
    if f"{CLASSIFY}.bias" not in found:
        replaced[CLASSIFY] = "the file has none"
    elif file_classes != model_classes:
        replaced[CLASSIFY] = f"{file_classes} classes in the file, {model_classes} in the model"
    elif in_file != in_model:
        # Its numbers were learnt on features that this model does not compute.
        replaced[CLASSIFY] = f"it follows {REPRESENTATION} only in the {'file' if in_file else 'model'}"
    return replaced, dropped


def _plan_positions(found: Mapping[str, Shape], wanted: Mapping[str, Shape], path: str) -> Optional[Tuple[Grid, Grid]]:
    """The grids to resize from and to, if they differ."""
    had, has = CLASS_TOKEN in found, CLASS_TOKEN in wanted
    if POSITION not in wanted or POSITION not in found or (had == has and found[POSITION] == wanted[POSITION]):
        return None
    old, new = grid_side(found[POSITION][1], had), grid_side(wanted[POSITION][1], has)
    if old is None or new is None:
        raise UserError(
            f"weights={path} has {found[POSITION][1]} position embeddings, "
            f"which are not {layout_of(had)} and cannot be resized"
        )
    return None if old == new else ((old, old), (new, new))


def _check(file: WeightFile, wanted: Mapping[str, Shape], kept: Sequence[str], heads: Optional[int], path: str) -> None:
    """Refuse a file that does not fit, with the settings that would make it fit."""
    faults: List[str] = []
    for name in kept:
        shape = file.shapes.get(name)
        if shape is None:
            faults.append(f"{name} is missing in the file but {wanted[name]} in the model")
        elif _fixed(name, shape) != _fixed(name, wanted[name]):
            faults.append(f"{name} is {shape} in the file but {wanted[name]} in the model")
    faults += [
        f"{name} is {shape} in the file but missing in the model"
        for name, shape in file.shapes.items()
        if (name.startswith("layers.") or within(name, [STEM])) and name not in wanted
    ]
    # The number of heads changes what is computed but no shape of ours.
    if heads is not None and file.heads not in (None, heads):
        faults.append(f"attention has {file.heads} heads in the file but {heads} in the model")
    if faults:
        theirs, ours = _settings(file.shapes, file.heads), _settings(wanted, heads)
        fitting = [f"{key}={_typed(value)}" for key, value in theirs.items() if key in ours and ours[key] != value]
        hint = f"; {' '.join(fitting)} would fit" if fitting else ""
        raise UserError(f"weights={path} does not fit the model: {listed(faults)}{hint}")


def _fixed(name: str, shape: Shape) -> Shape:
    """The shape without what resizing changes."""
    return shape[:1] + shape[2:] if name == POSITION and len(shape) == 3 else shape


def _settings(shapes: Mapping[str, Shape], heads: Optional[int]) -> Dict[str, Any]:
    """The settings that give a model such shapes, without those that need not fit."""
    sizes = model_sizes(shapes)
    adapted = ["classes", "class_token"]
    if sizes["kind"] != "mixer":  # whose perceptrons across tokens are made for so many of them
        adapted.append("image_size")
    settings = {f"model.{key}": size for key, size in sizes.items() if key not in adapted}
    if heads is not None:
        settings["model.heads"] = heads
    return settings


def _typed(value: Any) -> str:
    """A value as an override has it, without blanks."""
    return "none" if value is None else str(value).replace(" ", "")
