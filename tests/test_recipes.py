"""Every preset: it says where it comes from, has its source's numbers, and runs when it is shrunk."""

from __future__ import annotations

import io
import json
import re
import shlex
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any, Dict, List, NamedTuple

import pytest
import torch
import yaml
from rich.console import Console
from tiny_runs import CPU, losses

from ipu_vit.build import build_model
from ipu_vit.config import list_presets, load_settings, presets_folder
from ipu_vit.data.augment import TrainingTransform
from ipu_vit.data.transforms import training_transform
from ipu_vit.report import Report, show_plan
from ipu_vit.settings import Section, Settings
from ipu_vit.train import train

PRESETS = [name for name, _ in list_presets()]
FULL = {name: load_settings(name, []) for name in PRESETS}

# What the sources say, one line for each recipe. `updates` is a number, or of how many epochs of ImageNet-1k
# (or of ImageNet-21k, "e21") they are; `decay` is as the source has it, big_vision's without the learning rate.
# `pixels`: of the image, and of the shorter side in evaluation ("-": the whole image becomes the square).
SOURCES = """
preset                                images updates   peak    warmup rule  decay     clip pixels  smooth mixup policy           classes dropout
vit_b16_ft_4xb544                        544  20000    0.02     3200  sgd   1e-5         - 224/224      0     0 -                   1000     0.1
vit_b16_ft_16xb2176                     2176   5000    0.08      800  sgd   1e-5         - 224/224      0     0 -                   1000     0.1
vit_b16_ft_mmpretrain_16xb2176          2176   5000    0.08      800  sgd   1e-5         - 224/224      0     0 -                   1000     0.1
vit_b16_pre_mmcls_16xb4096              4096   300e    0.003   10000  adamw 0.3          1 224/256    0.1   0.2 autoaugment         1000     0.1
vit_b32_pre_mmcls_16xb4096              4096   300e    0.003   10000  adamw 0.3          1 224/256    0.1   0.2 autoaugment         1000     0.1
vit_l16_pre_mmcls_16xb4096              4096   300e    0.003   10000  adamw 0.3          1 224/256    0.1   0.2 autoaugment         1000     0.1
vit_b16_pre_mmpretrain_16xb4096         4096   300e    0.003     30e  adamw 0.3          1 224/256    0.1   0.2 autoaugment         1000     0.1
vit_b32_pre_mmpretrain_16xb4096         4096   300e    0.003     30e  adamw 0.3          1 224/256    0.1   0.2 autoaugment         1000     0.1
vit_l16_pre_mmpretrain_16xb4096         4096   300e    0.003     30e  adamw 0.3          1 224/256    0.1   0.2 autoaugment         1000     0.1
vit_b16_ft384_mmcls_16xb4096            4096   300e    0.003   10000  adamw 0.3          1 384/384    0.1     0 -                   1000     0.1
vit_b32_ft384_mmcls_16xb4096            4096   300e    0.003   10000  adamw 0.3          1 384/384    0.1     0 -                   1000     0.1
vit_l16_ft384_mmcls_16xb4096            4096   300e    0.003   10000  adamw 0.3          1 384/384    0.1     0 -                   1000     0.1
vit_b16_pre_mmcls_mae_16xb4096          4096   300e    1.6e-3    20e  adamw 0.3          5 224/256    0.1   0.8 timm_randaugment    1000       0
vit_b32_pre_classy_16xb4096             4096   300e    0.003     30e  adamw 0.3          1 224/256    0.1   0.2 autoaugment         1000     0.1
vit_b16_pre_classy_16xb4096             4096   300e    0.003     30e  adamw 0.3          1 224/256    0.1   0.2 autoaugment         1000     0.1
vit_l32_pre_classy_16xb4096             4096   300e    0.003     30e  adamw 0.3          1 224/256    0.1   0.2 autoaugment         1000     0.1
vit_l16_pre_classy_16xb4096             4096   300e    0.003     30e  adamw 0.3          1 224/256    0.1   0.2 autoaugment         1000     0.1
vit_b32_ft384_classy_4xb512              512     8e    0.01        0  sgd   0            1 384/438      0     0 autoaugment         1000     0.1
vit_b16_ft384_classy_4xb512              512     8e    0.01        0  sgd   0            1 384/438      0     0 autoaugment         1000     0.1
vit_l32_ft384_classy_8xb512              512     8e    0.01        0  sgd   0            1 384/438      0     0 autoaugment         1000     0.1
vit_l16_ft384_classy_8xb512              512     8e    0.01        0  sgd   0            1 384/438      0     0 autoaugment         1000     0.1
vit_b16_ft384_jax_4xb512                 512  20000    0.03      500  sgd   0            1 384/-        0     0 -                   1000       0
vit_b16_cifar10_jax_4xb512               512  10000    0.01      500  sgd   0            1 384/-        0     0 -                     10       0
vit_b16_cifar100_jax_4xb512              512  10000    0.03      500  sgd   0            1 384/-        0     0 -                    100       0
vit_b16_cifar10_jax_short_4xb512         512    500    0.01       50  sgd   0            1 384/-        0     0 -                     10       0
vit_b16_cifar100_jax_short_4xb512        512   1000    0.03      100  sgd   0            1 384/-        0     0 -                    100       0
vit_b16_pets_jax_4xb512                  512    500    0.03      100  sgd   0            1 384/-        0     0 -                     37       0
vit_b16_flowers_jax_4xb512               512    500    0.03      100  sgd   0            1 384/-        0     0 -                    102       0
vit_b16_vtab_jax_4xb512                  512   2500    0.01      500  sgd   0            1 384/-        0     0 -                     10       0
mixer_b16_cifar10_jax_4xb512             512  10000    0.03      500  sgd   0            1 224/-        0     0 -                     10       0
vit_b16_i21k_jax_16xb4096               4096  90e21    0.001   10000  adamw 0.03         1 224/256      0     0 -                  21843     0.1
vit_b16_pre_bigvision_16xb4096          4096   297e    0.001   10000  adamw 1e-4/1e-3    1 224/256      0   0.5 randaugment         1000       0
vit_b16_i21k_bigvision_16xb4096         4096 299e21    0.001   10000  adamw 1e-4/1e-3    1 224/256      0   0.2 randaugment        21843       0
vit_s16_pre_bigvision_4xb1024           1024 89.1e     0.001   10000  adamw 1e-4/1e-3    1 224/256      0   0.2 randaugment         1000       0
mixer_b16_pre_bigvision_16xb4096        4096   297e    0.001   10000  adamw 1e-4/1e-3    1 224/256      0   0.5 randaugment         1000       0
vit_b32_ft384_bigvision_4xb512           512  20000    0.03      500  sgd   0            1 384/448      0     0 -                   1000       0
vit_b32_cifar10_bigvision_4xb512         512  10000    0.003     500  sgd   0            1 384/448      0     0 -                     10       0
vit_b32_cifar100_bigvision_4xb512        512  10000    0.01      500  sgd   0            1 384/448      0     0 -                    100       0
vit_b32_pets_bigvision_4xb512            512    500    0.003     100  sgd   0            1 384/448      0     0 -                     37       0
vit_b32_flowers_bigvision_4xb512         512    500    0.003     100  sgd   0            1 384/448      0     0 -                    102       0
vit_b16_pre_nosam_16xb4096              4096   297e    0.003   10000  adamw 1e-3/3e-3    1 224/256      0     0 -                   1000       0
mixer_b16_pre_nosam_16xb4096            4096   297e    0.003   10000  adamw 1e-3/3e-3    1 224/256      0     0 -                   1000       0
vit_b16_cifar10_sam_4xb512               512  10000    0.01      500  sgd   0            1 224/-        0     0 -                     10       0
mixer_b16_cifar10_sam_4xb512             512  10000    0.01      500  sgd   0            1 224/-        0     0 -                     10       0
vit_b16_ft_graphcore_16xb2040           2040   5000    0.08      800  sgd   1e-5         - 224/224      0     0 -                   1000     0.1
vit_b16_cifar10_graphcore_16xb8704      8704   2000    0.03      500  sgd   0            - 224/224      0     0 -                     10     0.1
vit_b16_pre_graphcore_16xb4096          4096   300e    0.001   10000  adam  0.004        - 224/256      0   0.5 autoaugment         1000       0
vit_b16_pre_graphcore_lamb_16xb65536   65536  11730    0.006    1200  lamb  0.01         - 224/256      0   0.5 autoaugment         1000       0
vit_b16_cifar10_optimum_4xb2176         2176   2200    1e-4      550  adamw 0            - 224/224      0     0 -                     10       0
vit_b16_ft_mae_16xb1024                 1024   100e    5e-4*4     5e  adamw 0.05         - 224/256    0.1   0.8 timm_randaugment    1000       0
"""  # noqa: E501
OF_THIS_REPOSITORY = {"quickstart", "quickstart_scratch", "pretrain_glyphs"}
IMAGES = {"e": 1_281_167, "e21": 14_197_122}

# What the lines above have no column for: a name's pattern, and what each preset that has it must have.
TRAITS: Dict[str, Dict[str, Any]] = {
    r"vit_b16_": {"model.patch_size": 16, "model.width": 768, "model.depth": 12, "model.heads": 12},
    r"vit_b32_": {"model.patch_size": 32, "model.width": 768, "model.depth": 12, "model.heads": 12},
    r"vit_l16_": {"model.patch_size": 16, "model.width": 1024, "model.depth": 24, "model.heads": 16},
    r"vit_l32_": {"model.patch_size": 32, "model.width": 1024, "model.depth": 24, "model.heads": 16},
    r"vit_s16_": {"model.fixed_positions": True, "model.width": 384, "model.heads": 6, "model.mlp_width": 1536},
    r"vit_s16": {"loss.kind": "softmax"},
    r"mixer_": {"model.kind": "mixer", "model.tokens_mlp_width": 384, "model.mlp_width": 3072, "model.depth": 12},
    r"_(mmcls|mmpretrain|classy)_": {"model.attention_dropout": 0.0, "loss.kind": "softmax"},
    r"_pre_(mmcls|mmpretrain)_\d": {
        "schedule.warmup_start": 1e-4, "loss.smoothing_rule": "classy_vision", "data.interpolation": "bicubic",
        "model.representation": 3072, "optimizer.no_decay": ["class_token", "position"],
    },
    r"_ft384_mmcls": {"data.mean": (127.5,) * 3, "data.interpolation": "bilinear", "model.representation": None},
    r"_(pre|ft384)_mmcls_": {"schedule.curve": "cosine_times_warmup"},
    r"_mmpretrain_": {"schedule.curve": "warmup_then_cosine"},
    r"_mmcls_mae_": {
        "model.drop_path": 0.1, "averaging.decay": 0.9999, "optimizer.betas": (0.9, 0.95), "schedule.final": 0.01,
        "optimizer.no_decay": ["class_token", "position", "norm", "bias"], "loss.smoothing_rule": "original",
    },
    r"_(mmcls_mae|ft_mae)_": {
        "augmentation.cutmix": 1.0, "augmentation.erasing": 0.25, "augmentation.randaugment_magnitude": 9.0,
        "augmentation.randaugment_deviation": 0.5, "model.drop_path": 0.1,
    },
    r"_ft_mae_": {
        "optimizer.layer_decay": 0.65, "model.pooling": "mean", "model.pool_norm": "after",
        "optimizer.loss_scaling": 1024.0, "averaging.decay": 0.0,
    },
    r"_(b16|b32)_pre_classy": {"model.representation": 3072, "loss.smoothing_rule": "classy_vision"},
    r"_l(16|32)_pre_classy": {"model.representation": 4096, "model.mlp_width": 4096},
    r"_classy_": {"schedule.curve": "warmup_then_cosine", "data.mean": (123.675, 116.28, 103.53)},
    r"_ft384_classy": {"optimizer.nesterov": True, "optimizer.momentum": 0.9},
    r"_(jax|bigvision|nosam|sam)_": {"data.mean": (127.5,) * 3, "data.std": (127.5,) * 3, "data.flip": 0.5},
    r"vit_.*_(jax|nosam)_|mixer_|_(pre|pets|flowers|ft384)_bigvision": {
        "data.crop": "inception", "data.crop_area": (0.05, 1.0),
    },
    r"_cifar\d+_bigvision": {"data.crop": "resize_then_crop", "data.crop_resize": 448},
    r"_(pre|i21k)_(bigvision|nosam)|_i21k_": {"optimizer.no_decay": ["class_token", "position", "norm", "bias"]},
    r"(vit|mixer)_b16_pre_bigvision": {
        "loss.kind": "sigmoid", "model.head_bias": -6.9, "augmentation.randaugment_magnitude": 15.0,
    },
    r"_i21k_": {"loss.kind": "sigmoid", "model.head_bias": -10.0},
    r"vit_b16_pre_bigvision": {"model.representation": 768, "model.pooling": "class"},
    r"_i21k_bigvision|_s16_|vit_.*_nosam": {"model.class_token": False, "model.pooling": "mean"},
    r"_i21k_bigvision|_s16_": {"augmentation.randaugment_magnitude": 10.0, "augmentation.randaugment_layers": 2},
    r"mixer_b16_pre_bigvision": {
        "model.drop_path": 0.1, "schedule.curve": "warmup_then_linear", "schedule.final": 1e-5,
    },
    r"_nosam": {"schedule.curve": "warmup_then_linear", "schedule.final": 0.01, "loss.kind": "sigmoid"},
    r"_ft_4xb544|_ft_16xb2176": {"schedule.curve": "cosine_times_warmup", "schedule.warmup_start": 0.02},
    r"_ft_(4|16|mmpretrain)": {
        "data.mean": (127.5,) * 3, "data.interpolation": "bilinear", "optimizer.loss_scaling": 256.0, "seed": 42,
        "optimizer.no_decay": ["class_token", "position"], "optimizer.velocity_type": "float16",
        "pipeline.layers_per_ipu": [3, 3, 3, 3], "pipeline.micro_batch": 17,
    },
    r"_graphcore_|_optimum_": {"optimizer.no_decay": [], "schedule.curve": "warmup_then_cosine"},
    r"_ft_graphcore": {"pipeline.device_iterations": 8, "optimizer.loss_scaling": 0.25, "pipeline.micro_batch": 17},
    r"_pre_graphcore": {"model.attention_dropout": 0.1, "model.representation": 768, "pipeline.micro_batch": 8},
    r"_lamb_": {"optimizer.eps": 1e-6, "optimizer.loss_scaling": 1024.0, "optimizer.accumulator_type": "float32"},
    r"_pre_": {"weights": None},
    r"_(ft|ft384|cifar10|cifar100|pets|flowers|vtab)_": {"weights": ""},
    r"_b(16|32)_ft384_classy_": {"model.representation": 3072},
    r"_l(16|32)_ft384_classy_": {"model.representation": 4096},
    r"_(ft|cifar10|cifar100|pets|flowers|vtab)_|_ft384_(mmcls|jax|bigvision)": {"model.representation": None},
}  # fmt: skip


class Recipe(NamedTuple):
    """What a source says, as it is written above."""

    name: str
    images: str
    updates: str
    peak: str
    warmup: str
    rule: str
    decay: str
    clip: str
    pixels: str
    smoothing: str
    mixup: str
    policy: str
    classes: str
    dropout: str


RECIPES = [Recipe(*line.split()) for line in SOURCES.strip().splitlines()[1:]]


def number(text: str) -> float:
    """`1e-4/1e-3` and `5e-4*4` are numbers too."""
    first, operator, second = re.fullmatch(r"([\d.e-]+?)(?:([*/])([\d.e-]+))?", text).groups()  # type: ignore[union-attr]
    return float(first) * {"*": float, "/": lambda by: 1 / float(by)}[operator](second) if operator else float(first)


def updates(text: str, images: int) -> Any:
    """A number of updates, or about that many epochs."""
    match = re.fullmatch(r"([\d.]+)(e21|e)", text)
    return pytest.approx(float(match[1]) * IMAGES[match[2]] / images, rel=2e-3) if match else int(text)


def text_of(name: str) -> str:
    return (presets_folder() / f"{name}.yml").read_text(encoding="utf-8")


def value(settings: Settings, name: str) -> Any:
    return reduce(getattr, name.split("."), settings)


def different(first: Settings, second: Settings) -> List[str]:
    """Dotted names of what differs."""
    names = []
    for part, field in Settings.model_fields.items():
        is_group = isinstance(field.annotation, type) and issubclass(field.annotation, Section)
        names += [f"{part}.{key}" for key in field.annotation.model_fields] if is_group else [part]  # type: ignore[union-attr]
    return [name for name in names if value(first, name) != value(second, name)]


# --- the files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_introduces_itself(name: str) -> None:
    text = text_of(name)
    head = text.split("\n\n")[0]
    for word in (f"Command   ./run.sh {name}", "Source   ", "Hardware ", "Expected ", "Unverified "):
        assert f"\n# {word}" in head
    assert 20 < len(dict(list_presets())[name]) < 100
    base = yaml.safe_load(text).get("base")
    assert base is None or "base" not in yaml.safe_load(text_of(base))


@pytest.mark.parametrize("name", sorted(set(PRESETS) - OF_THIS_REPOSITORY))
def test_names_tell_ipus_and_images(name: str) -> None:
    pipeline = FULL[name].pipeline
    assert name.endswith(f"_{pipeline.ipus * pipeline.replicas}xb{pipeline.global_batch}")


@pytest.mark.parametrize("document", ["recipes", "migrating"])
def test_documents_name_presets_that_exist(document: str) -> None:
    text = (presets_folder().parent / "docs" / f"{document}.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\b(?:vit|mixer)_[a-z]\d+_\w+xb\d+", text))
    assert named and named <= set(PRESETS)
    if document == "recipes":
        assert named == set(PRESETS) - OF_THIS_REPOSITORY


def test_commands_of_the_guide_load() -> None:
    text = (presets_folder().parent / "docs" / "migrating.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [shlex.split(line)[1:] for line in re.findall(r"^ {4}(\./run\.sh .+)$", text, re.M)]
    assert len(commands) == 5
    for preset, *overrides in commands:
        load_settings(preset, overrides)
    graphcore = next(command for command in commands if "pipeline.global_batch=2040" in command)
    as_typed, as_preset = load_settings(graphcore[0], graphcore[1:]), FULL["vit_b16_ft_graphcore_16xb2040"]
    assert set(different(as_typed, as_preset)) == {
        "name", "output", "weights", "data.root", "checkpoint.every", "pipeline.replicated_tensor_sharding",
    }  # fmt: skip


def test_table_has_every_recipe() -> None:
    assert sorted(recipe.name for recipe in RECIPES) == sorted(set(PRESETS) - OF_THIS_REPOSITORY)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_numbers_are_those_of_the_source(recipe: Recipe) -> None:
    settings = FULL[recipe.name]
    images = int(recipe.images)
    assert settings.pipeline.global_batch == images
    assert settings.schedule.updates == updates(recipe.updates, images)
    assert settings.schedule.lr == pytest.approx(number(recipe.peak))
    assert settings.schedule.warmup == updates(recipe.warmup, images)
    assert settings.optimizer.name == recipe.rule
    assert settings.optimizer.weight_decay == pytest.approx(number(recipe.decay))
    assert settings.optimizer.max_grad_norm == (None if recipe.clip == "-" else float(recipe.clip))
    pixels, shorter_side = recipe.pixels.split("/")
    assert settings.model.image_size == int(pixels)
    assert settings.data.evaluation_resize == (None if shorter_side == "-" else int(shorter_side))
    assert settings.loss.label_smoothing == float(recipe.smoothing)
    assert settings.augmentation.mixup == float(recipe.mixup)
    assert settings.augmentation.policy == (None if recipe.policy == "-" else recipe.policy)
    assert settings.model.classes == int(recipe.classes)
    assert settings.model.dropout == float(recipe.dropout)


@pytest.mark.parametrize("pattern", TRAITS)
def test_traits_are_those_of_the_source(pattern: str) -> None:
    found = [name for name in set(PRESETS) - OF_THIS_REPOSITORY if re.search(pattern, name)]
    assert found
    for name in found:
        assert {key: value(FULL[name], key) for key in TRAITS[pattern]} == TRAITS[pattern], name


def test_4xb544_is_the_published_recipe_with_as_many_epochs() -> None:
    ours, published = FULL["vit_b16_ft_4xb544"], FULL["vit_b16_ft_16xb2176"]
    fewer = published.pipeline.global_batch // ours.pipeline.global_batch
    assert fewer == 4 and published.pipeline.batch_plan().accumulation == 32
    assert ours.schedule.lr == pytest.approx(published.schedule.lr / fewer)
    for name in ("schedule.updates", "schedule.warmup", "checkpoint.every"):
        assert value(ours, name) == value(published, name) * fewer
    for part in ("model", "data", "augmentation", "optimizer", "loss", "evaluation"):
        assert getattr(ours, part) == getattr(published, part)


@pytest.mark.parametrize("name", PRESETS)
def test_plan_of_every_preset(name: str) -> None:
    settings, said = FULL[name], io.StringIO()
    with torch.device("meta"):
        show_plan(Report(console=Console(file=said, width=200)), settings, build_model(settings))
    plan = settings.pipeline.batch_plan()
    assert f"batch {plan.global_batch} = micro batch {plan.micro_batch} × accumulation {plan.accumulation}" in (
        said.getvalue()
    )
    assert said.getvalue().count("layer") == settings.pipeline.ipus


# --- shrunken runs -------------------------------------------------------------------------------

# All that shrinking may change. What is not here, a shrunken run has as the preset has it.
SIZES = {
    "name", "output", "weights", "export", "rehearse", "shrink",
    "model.image_size", "model.patch_size", "model.width", "model.depth", "model.heads", "model.mlp_width",
    "model.tokens_mlp_width", "model.resnet_depths", "model.resnet_width", "model.representation", "model.classes",
    "data.source", "data.root", "data.prepare", "data.generated_images", "data.generated_size",
    "data.crop_resize", "data.evaluation_resize",
    "data.workers", "data.validation_split",
    "pipeline.layers_per_ipu", "pipeline.replicas", "pipeline.global_batch", "pipeline.micro_batch",
    "pipeline.device_iterations", "pipeline.executable_cache",
    "schedule.updates", "schedule.warmup", "schedule.milestones", "schedule.cooldown", "schedule.timescale",
    "averaging.every", "evaluation.every", "evaluation.micro_batch", "checkpoint.every",
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_shrinking_leaves_everything_but_sizes(name: str) -> None:
    full, small = FULL[name], load_settings(name, ["shrink=true"])
    assert set(different(full, small)) <= SIZES
    assert small.pipeline.ipus == full.pipeline.ipus
    assert (small.pipeline.replicas > 1) == (full.pipeline.replicas > 1)
    assert (small.pipeline.device_iterations > 1) == (full.pipeline.device_iterations > 1)
    assert (small.schedule.warmup > 0) == (full.schedule.warmup > 0)
    assert (small.model.representation is None) == (full.model.representation is None)
    assert small.pipeline.batch_plan().accumulation == 2 * small.pipeline.ipus - 1
    assert small.schedule.updates <= 4
    assert (small.name, small.output) == (f"{name}_shrunk", f"runs/{name}_shrunk")


@pytest.mark.parametrize("name", PRESETS)
def test_shrunken_runs_change_images_as_their_presets_do(name: str) -> None:
    full, small = (training_transform(load_settings(name, [f"shrink={shrink}"])) for shrink in ("false", "true"))
    assert isinstance(full, TrainingTransform) and isinstance(small, TrainingTransform)
    assert type(small.crop) is type(full.crop)
    assert replace(small, image_size=full.image_size, crop=full.crop) == full


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_runs_when_shrunk(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["shrink=true", "evaluation.pictures=0", f"output={tmp_path}/run"]
    if "\nbase: " in text_of(name):
        overrides += ["pipeline.replicas=1"]  # replicas are tried in what it builds on
    settings = load_settings(name, overrides)
    train(settings, CPU)
    assert "shrunk to a tiny model" in capsys.readouterr().out.splitlines()[0]
    seen = losses(tmp_path / "run")
    assert seen[-1]["update"] == settings.schedule.updates
    assert json.loads((tmp_path / "run" / "result.json").read_text())["images"] == 1000
    assert list((tmp_path / "run" / "checkpoints").glob("update-*"))
