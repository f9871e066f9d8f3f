"""A whole model as ONNX: `images` (B, 3, S, S), normalised, to `logits` (B, classes), for any B."""

from __future__ import annotations

import importlib.util
import inspect
import io
import warnings
from typing import Any, Mapping, Optional

import torch
from torch import Tensor

from ipu_vit.errors import UserError
from ipu_vit.models import build
from ipu_vit.weights.atomic import replacing
from ipu_vit.weights.parameters import CLASS_TOKEN, CLASSIFY, has_attention, model_sizes
from ipu_vit.weights.shapes import shapes_of

OPSET = 16  # the newest that PyTorch 2.0 writes well, and every runtime in use reads


def write_onnx(state: Mapping[str, Tensor], path: str, heads: Optional[int], epsilon: float) -> None:
    """Write a model with parameters under our names; `heads` mean nothing to a Mixer.

    Raises UserError for weights without classes, and where the package `onnx` is not installed.
    """
    if f"{CLASSIFY}.bias" not in state:
        raise UserError(f"{path} cannot be written: an ONNX file is a whole model, and the weights have no classes")
    if has_attention(state) and CLASS_TOKEN not in state:
        raise UserError(f"{path} cannot be written: the weights have no class token to take the classes from")
    if importlib.util.find_spec("onnx") is None:
        raise UserError(f"{path} cannot be written: PyTorch needs the package onnx for it; pip install onnx")
    sizes = model_sizes(shapes_of(state))
    model = build(**sizes, heads=heads, norm_epsilon=epsilon)
    model.load_state_dict(dict(state))
    # Traced, as every supported PyTorch can; the newer way needs yet another package.
    export: Any = torch.onnx.export
    tracing = {"dynamo": False} if "dynamo" in inspect.signature(export).parameters else {}
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export(
            model.eval(),
            (torch.zeros(2, 3, sizes["image_size"], sizes["image_size"]),),
            content,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
            **tracing,
        )
    with replacing(path) as file:
        file.write(content.getvalue())
