"""Where each layer lives: blocks on IPUs, pipeline stages, recomputation checkpoints.

The first IPU has the embedding, the last one the head; between them the encoder layers are laid
out by `pipeline.layers_per_ipu`. Each IPU is one pipeline stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any, List

import poptorch
from torch import Tensor, nn

from ipu_vit.models.image_model import ImageModel
from ipu_vit.settings import PipelineSettings


@dataclass(frozen=True)
class IpuContents:
    """What one IPU of a replica holds."""

    ipu: int
    modules: List[nn.Module]
    description: str

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for module in self.modules for parameter in module.parameters())

    @property
    def weight_bytes(self) -> int:
        return sum(p.numel() * p.element_size() for module in self.modules for p in module.parameters())


def contents_of_ipus(model: ImageModel, layers_per_ipu: List[int]) -> List[IpuContents]:
    """The modules on each IPU, in the order they run."""
    ends = list(accumulate(layers_per_ipu))
    contents = []
    for ipu, (end, count) in enumerate(zip(ends, layers_per_ipu)):
        modules: List[nn.Module] = list(model.layers[end - count : end])
        words = [_layers(end - count, end)] if count else []
        if ipu == 0:
            modules, words = [model.embedding, *modules], ["embedding", *words]
        if ipu == len(ends) - 1:
            modules, words = [*modules, model.head], [*words, "head"]
        contents.append(IpuContents(ipu, modules, " + ".join(words)))
    return contents


def place(model: ImageModel, pipeline: PipelineSettings) -> None:
    """Mark the model's modules with the IPU they run on and what is stored for the backward pass."""
    for contents in contents_of_ipus(model, pipeline.layers_per_ipu):
        if contents.modules:
            poptorch.BeginBlock(contents.modules[0], user_id=f"ipu{contents.ipu}", ipu_id=contents.ipu)
    if pipeline.recomputation_checkpoints == "layer":
        for layer in model.layers:
            layer.register_forward_hook(_store_output)


def _store_output(module: nn.Module, inputs: Any, output: Tensor) -> Any:
    return poptorch.recomputationCheckpoint(output)


def _layers(first: int, end: int) -> str:
    return f"layer {first}" if end - first == 1 else f"layers {first}-{end - 1}"
