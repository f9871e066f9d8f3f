"""A whole model as ONNX: `images` (B, 3, S, S), normalised, to `logits` (B, classes), for any B."""

from __future__ import annotations

import importlib.util
import inspect
import io
import math
import warnings
from typing import Any, Mapping

import torch
from torch import Tensor

from ipu_vit.errors import UserError
from ipu_vit.models.vit import VisionTransformer
from ipu_vit.weights.atomic import replacing
from ipu_vit.weights.table import CLASSIFY, POSITION, REPRESENTATION

OPSET = 16  # the newest that PyTorch 2.0 writes well, and every runtime in use reads


def write_onnx(state: Mapping[str, Tensor], path: str, heads: int, epsilon: float) -> None:
    """Write a model with parameters under our names.

    Raises UserError for weights without classes, and where the package `onnx` is not installed.
    """
    if f"{CLASSIFY}.bias" not in state:
        raise UserError(f"{path} cannot be written: an ONNX file is a whole model, and the weights have no classes")
    if importlib.util.find_spec("onnx") is None:
        raise UserError(f"{path} cannot be written: PyTorch needs the package onnx for it; pip install onnx")
    patch_size = state["embedding.patch.weight"].shape[-1]
    image_size = patch_size * math.isqrt(state[POSITION].shape[1] - 1)
    model = VisionTransformer(
        image_size=image_size,
        patch_size=patch_size,
        width=state[POSITION].shape[-1],
        depth=len({name.split(".")[1] for name in state if name.startswith("layers.")}),
        heads=heads,
        mlp_width=len(state["layers.0.mlp.expand.bias"]),
        classes=len(state[f"{CLASSIFY}.bias"]),
        representation=len(state[f"{REPRESENTATION}.bias"]) if f"{REPRESENTATION}.bias" in state else None,
        norm_epsilon=epsilon,
    )
    model.load_state_dict(dict(state))
    # Traced, as every supported PyTorch can; the newer way needs yet another package.
    export: Any = torch.onnx.export
    tracing = {"dynamo": False} if "dynamo" in inspect.signature(export).parameters else {}
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export(
            model.eval(),
            (torch.zeros(2, 3, image_size, image_size),),
            content,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
            **tracing,
        )
    with replacing(path) as file:
        file.write(content.getvalue())
