"""What published models say of the images they were trained on: how they are prepared, and what classes are called.

transformers has it in `preprocessor_config.json` and `config.json`, timm in the `pretrained_cfg` of `config.json`.
Both count brightness from 0 to 1 where our settings count from 0 to 255.
"""

from __future__ import annotations

import math
import os
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from ipu_vit.errors import UserError
from ipu_vit.labels import in_order
from ipu_vit.weights.formats import WeightFile
from ipu_vit.weights.huggingface import HUGGING_FACE
from ipu_vit.weights.notes import read_json
from ipu_vit.weights.timm import TIMM

INTERPOLATIONS = {2: "bilinear", 3: "bicubic", "bilinear": "bilinear", "bicubic": "bicubic"}
"""Pillow's numbers, which transformers writes, and timm's names."""

RESIZE = "data.evaluation_resize"
INTERPOLATION = "data.interpolation"


class Preparation(NamedTuple):
    """What files beside the weights tell."""

    data: Dict[str, Any]  # settings of `data:`
    untold: Tuple[str, ...] = ()  # settings that they do tell, but in a way that ours have no word for
    labels: Optional[List[str]] = None
    source: Optional[str] = None  # the file that tells how images are prepared


def read_preparation(file: WeightFile, folder: str, image_size: int) -> Preparation:
    """What is known of the images of the weights in `folder`, for a model that sees so many pixels."""
    config = read_json(os.path.join(folder, "config.json"))
    if file.format == HUGGING_FACE.title:
        path = os.path.join(folder, "preprocessor_config.json")
        processor = read_json(path)
        found = _of_transformers(processor, image_size, path) if processor else Preparation({})
        names = config.get("id2label")
        return found._replace(labels=in_order(names) if isinstance(names, dict) else None)
    if file.format == TIMM.title and isinstance(config.get("pretrained_cfg"), dict):
        path = os.path.join(folder, "config.json")
        found = _of_timm(config["pretrained_cfg"], image_size, path)
        names = config.get("label_names")
        return found._replace(labels=[str(name) for name in names] if isinstance(names, list) else None)
    return Preparation({})


def _of_transformers(processor: Dict[str, Any], image_size: int, path: str) -> Preparation:
    """`ViTImageProcessor` resizes, crops, rescales and normalises, each if asked to."""
    factor = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1.0
    normalises = processor.get("do_normalize", True)
    mean = processor.get("image_mean", [0.5] * 3) if normalises else [0.0] * 3
    std = processor.get("image_std", [0.5] * 3) if normalises else [1.0] * 3
    data = _normalisation(mean, std, factor, path)
    size, crop = processor.get("size"), processor.get("crop_size")
    whole, edge = _side(size), size.get("shortest_edge") if isinstance(size, dict) else None
    resize: Tuple[Optional[int], ...]
    if processor.get("do_center_crop"):
        resize = (edge,) if _side(crop) == image_size and isinstance(edge, int) else ()
    else:
        resize = (None,) if whole == image_size and processor.get("do_resize", True) else ()
    return _told(data, resize, processor.get("resample", 2), path)


def _of_timm(config: Dict[str, Any], image_size: int, path: str) -> Preparation:
    """timm resizes the shorter side to the model's divided by `crop_pct`, and crops the centre."""
    data = _normalisation(config.get("mean"), config.get("std"), 1 / 255, path)
    share, mode = config.get("crop_pct"), config.get("crop_mode") or "center"
    fits = list(config.get("input_size", ()))[1:] == [image_size, image_size]
    resize: Tuple[Optional[int], ...] = ()
    if fits and mode == "center" and isinstance(share, (int, float)) and 0 < share <= 1:
        resize = (math.floor(image_size / share),)
    elif fits and mode == "squash" and share == 1:
        resize = (None,)
    return _told(data, resize, config.get("interpolation"), path)


def _told(data: Dict[str, Any], resize: Tuple[Optional[int], ...], interpolation: Any, path: str) -> Preparation:
    """Settings of what was understood; `resize` is empty if it was not."""
    untold = []
    if resize:
        data["evaluation_resize"] = resize[0]
    else:
        untold.append(RESIZE)
    if interpolation in INTERPOLATIONS:
        data["interpolation"] = INTERPOLATIONS[interpolation]
    else:
        untold.append(INTERPOLATION)
    return Preparation(data, tuple(untold), source=path)


def _side(size: Any) -> Optional[int]:
    """The side of a square, which may be written as a number or as height and width."""
    if isinstance(size, int):
        return size
    if isinstance(size, dict) and "height" in size and size["height"] == size.get("width"):
        return size["height"]
    return None


def _normalisation(mean: Any, std: Any, factor: Any, path: str) -> Dict[str, Any]:
    """(factor · x − mean) / std, for x from 0 to 255, as a mean and a deviation of x."""
    try:
        return {"mean": [float(m) / factor for m in mean], "std": [float(s) / factor for s in std]}
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"{path} normalises images by mean={mean!r} and std={std!r}; three numbers each are accepted"
        ) from error
