"""Layers are on the IPUs that the settings say, and each layer's output is stored."""

from __future__ import annotations

from typing import Any, List, Set

import poptorch
import pytest
import torch
from tiny_runs import CPU

from ipu_vit.build import build_model
from ipu_vit.evaluate import EvaluationStep
from ipu_vit.optim import build_optimizer
from ipu_vit.options import evaluation_options, training_options
from ipu_vit.parallel import contents_of_ipus, place
from ipu_vit.settings import Settings
from ipu_vit.steps import TrainingStep

LAYOUTS = [[4], [2, 2], [3, 1], [1, 1, 1, 1], [0, 2, 2, 0]]
WIDTH, TOKENS, MICRO_BATCH = 16, 5, 2


def settings_with(layers_per_ipu: List[int], checkpoints: str = "layer") -> Settings:
    return Settings(
        model={"image_size": 8, "patch_size": 4, "width": WIDTH, "depth": 4, "heads": 2, "mlp_width": 32, "classes": 3},
        data={"evaluation_resize": 16},
        pipeline={
            "layers_per_ipu": layers_per_ipu,
            "available_memory_proportion": [0.3],
            "global_batch": 14,
            "micro_batch": MICRO_BATCH,
            "recomputation_checkpoints": checkpoints,
        },
    )


def compiled(settings: Settings) -> Any:
    model = build_model(settings).train()
    place(model, settings.pipeline)
    optimizer = build_optimizer(model, settings.optimizer, 0.1)
    executor = poptorch.trainingModel(TrainingStep(model, settings), training_options(settings, CPU), optimizer)
    executor.compile(torch.zeros(14, 3, 8, 8, dtype=torch.uint8), torch.zeros(14, dtype=torch.int64))
    return executor


def expected_parts(layers_per_ipu: List[int]) -> List[Set[str]]:
    """What belongs on each IPU: embedding first, then the layers in order, the head last."""
    layer_numbers = iter(range(4))
    parts = [{f"layers.{next(layer_numbers)}" for _ in range(count)} for count in layers_per_ipu]
    parts[0].add("embedding")
    parts[-1].add("head")
    return parts


def part_of(parameter: str) -> str:
    words = parameter.split(".")
    return ".".join(words[1:3]) if words[1] == "layers" else words[1]


@pytest.mark.parametrize("layers_per_ipu", LAYOUTS)
def test_parameters_are_where_the_settings_say(layers_per_ipu: List[int]) -> None:
    executor = compiled(settings_with(layers_per_ipu))
    found = {stage.ipu: {part_of(name) for name in stage.parameters} for stage in executor.program.stages}
    assert found == dict(enumerate(expected_parts(layers_per_ipu)))
    assert [stage.stage for stage in executor.program.stages] == list(range(len(layers_per_ipu)))
    names = [name for stage in executor.program.stages for name in stage.parameters]
    assert sorted(names) == sorted(f"model.{name}" for name, _ in executor.model.model.named_parameters())


@pytest.mark.parametrize("layers_per_ipu", LAYOUTS)
def test_plan_tells_the_same(layers_per_ipu: List[int]) -> None:
    model = build_model(settings_with(layers_per_ipu))
    contents = contents_of_ipus(model, layers_per_ipu)
    names = {id(module): name for name, module in model.named_modules()}
    assert [{names[id(module)] for module in ipu.modules} for ipu in contents] == expected_parts(layers_per_ipu)
    assert sum(ipu.parameters for ipu in contents) == sum(parameter.numel() for parameter in model.parameters())
    assert sum(ipu.weight_bytes for ipu in contents) == 2 * sum(ipu.parameters for ipu in contents)


KINDS = {
    "hybrid": {"kind": "hybrid", "resnet_depths": [], "resnet_width": 32, "image_size": 16},
    "mixer": {"kind": "mixer", "tokens_mlp_width": 6, "pooling": "mean", "class_token": False},
}


@pytest.mark.parametrize("layers_per_ipu", [[4], [0, 2, 2, 0]])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_the_same_outline(kind: str, layers_per_ipu: List[int]) -> None:
    settings = settings_with(layers_per_ipu)
    model = build_model(Settings(**{**settings.model_dump(), "model": {**settings.model.model_dump(), **KINDS[kind]}}))
    contents = contents_of_ipus(model, layers_per_ipu)
    names = {id(module): name for name, module in model.named_modules()}
    assert [{names[id(module)] for module in ipu.modules} for ipu in contents] == expected_parts(layers_per_ipu)
    assert sum(ipu.parameters for ipu in contents) == sum(parameter.numel() for parameter in model.parameters())


def test_descriptions() -> None:
    model = build_model(settings_with([4]))
    assert [ipu.description for ipu in contents_of_ipus(model, [1, 1, 2, 0])] == [
        "embedding + layer 0", "layer 1", "layers 2-3", "head",
    ]  # fmt: skip


@pytest.mark.parametrize("checkpoints, per_layer", [("layer", 1), ("none", 0)])
@pytest.mark.parametrize("layers_per_ipu", [[4], [1, 3], [1, 1, 1, 1]])
def test_every_layers_output_is_stored(layers_per_ipu: List[int], checkpoints: str, per_layer: int) -> None:
    executor = compiled(settings_with(layers_per_ipu, checkpoints))
    output = MICRO_BATCH * TOKENS * WIDTH * 2  # bytes of float16
    found = [stage.checkpoint_bytes for stage in executor.program.stages]
    assert found == [count * per_layer * output for count in layers_per_ipu]


def test_evaluation_is_placed_alike() -> None:
    settings = settings_with([1, 1, 1, 1])
    model = build_model(settings).eval()
    place(model, settings.pipeline)
    executor = poptorch.inferenceModel(EvaluationStep(model, settings).eval(), evaluation_options(settings, CPU))
    executor(torch.zeros(4, 3, 8, 8, dtype=torch.uint8))
    found = [{part_of(name) for name in stage.parameters} for stage in executor.program.stages]
    assert found == expected_parts([1, 1, 1, 1])
