"""One name for whatever has been trained: what it is found to be, and what it does not tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import random_weights, settings_of, tiny_preset

from ipu_vit.api import load_model
from ipu_vit.config import save_settings
from ipu_vit.convert import convert
from ipu_vit.errors import UserError
from ipu_vit.labels import write_labels
from ipu_vit.models import build
from ipu_vit.trained import checkpoint_in, find_trained
from ipu_vit.weights.native import write_native

MIXER = ("model={kind: mixer, class_token: false, pooling: mean, tokens_mlp_width: 5, dropout: 0}",)


def make_run(folder: Path, *overrides: str, names: Any = ("best", "update-00000002", "update-00000010")) -> Path:
    """A run's folder as training leaves it, each checkpoint with weights of its own."""
    run = folder / "run"
    (run / "checkpoints").mkdir(parents=True)
    settings = settings_of(tiny_preset(folder), *overrides)
    save_settings(settings, run / "settings.yml")
    write_labels(["ant", "bee", "cat"], run / "labels.json")
    torch.manual_seed(3)
    model = build(**settings.model.model_dump())
    for seed, name in enumerate(names):
        random_weights(model, seed)
        write_native(model.state_dict(), str(run / "checkpoints" / f"{name}.safetensors"))
    return run


def test_a_run_has_its_best_checkpoint(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    found = find_trained(str(run), ["data.workers=3"])
    assert found.settings.weights == str(run / "checkpoints" / "best.safetensors")
    assert found.settings.data.workers == 3 and found.settings.model.width == 16
    assert found.labels == ["ant", "bee", "cat"] and found.of_a_run
    (run / "checkpoints" / "best.safetensors").unlink()
    assert checkpoint_in(str(run)).endswith("update-00000010.safetensors")
    chosen = str(run / "checkpoints" / "update-00000002.safetensors")
    assert find_trained(str(run), [f"weights={chosen}"]).settings.weights == chosen
    of_checkpoint = find_trained(chosen)
    assert of_checkpoint.settings.weights == chosen and of_checkpoint.labels == found.labels
    assert of_checkpoint.of_a_run


def test_a_run_without_a_checkpoint(tmp_path: Path) -> None:
    run = make_run(tmp_path, names=())
    with pytest.raises(UserError, match=f"^{run} is the folder of a run that has not saved a checkpoint yet$"):
        find_trained(str(run))


def test_odd_names_of_folders(tmp_path: Path) -> None:
    run = make_run(tmp_path).rename(tmp_path / "a: [b] #c = 'd'")
    assert load_model(str(run)).labels == ["ant", "bee", "cat"]


@pytest.mark.parametrize("name", ["nowhere", "/no/where.npz", "quickstar"])
def test_what_is_not_there(name: str) -> None:
    with pytest.raises(
        UserError, match=f"^{name} is neither the folder of a run, nor weights, nor a preset; the nearest presets are "
    ):
        find_trained(name)


def test_a_preset_needs_weights(tmp_path: Path) -> None:
    preset = str(tiny_preset(tmp_path))
    with pytest.raises(UserError, match="has weights=none, and random weights predict nothing; give weights=…$"):
        load_model(preset)
    with pytest.raises(UserError, match="^weights is not set: "):
        load_model("vit_b16_ft_4xb544")
    run = make_run(tmp_path / "other")
    weights = f"weights={run}/checkpoints/best.safetensors"
    images = torch.randint(256, (2, 9, 9, 3), dtype=torch.uint8).numpy()
    assert torch.allclose(load_model(preset, [weights]).logits(images), load_model(str(run)).logits(images), atol=0.05)
    with pytest.raises(UserError, match=r"head.classify starts anew \(3 classes in the file, 4 in the model\)$"):
        load_model(preset, [weights, "model.classes=4"]).logits(images)


def test_heads_and_epsilon_are_never_guessed(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    bare = str(tmp_path / "bare.safetensors")
    (run / "checkpoints" / "best.safetensors").rename(bare)
    with pytest.raises(
        UserError, match=r"does not tell model.heads and model.norm_epsilon: give model.heads=… model.n"
    ):
        find_trained(bare)
    settings = find_trained(bare, ["model.heads=2", "model.norm_epsilon=1e-5"]).settings
    assert (settings.model.heads, settings.model.norm_epsilon) == (2, 1e-5)
    convert(bare, str(tmp_path / "timm.pth"), "timm", heads=2, epsilon=1e-5)
    settings = find_trained(str(tmp_path / "timm.pth")).settings
    assert (settings.model.heads, settings.model.norm_epsilon) == (2, 1e-5)
    with pytest.raises(UserError, match="attention has 2 heads in the file but 4 in the model"):
        load_model(str(tmp_path / "timm.pth"), ["model.heads=4"])


def test_a_mixer_has_no_heads_to_tell(tmp_path: Path) -> None:
    run = make_run(tmp_path, *MIXER)
    bare = str(tmp_path / "bare.safetensors")
    images = torch.randint(256, (2, 8, 8, 3), dtype=torch.uint8).numpy()
    expected = load_model(str(run)).logits(images)
    (run / "checkpoints" / "best.safetensors").rename(bare)
    model = load_model(bare, ["model.norm_epsilon=1e-6"])
    assert model.settings.model.kind == "mixer"
    assert torch.allclose(model.logits(images), expected, atol=0.05)  # of the other GELU


def test_layers_with_more_than_ours_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    path = str(tmp_path / "timm.safetensors")
    convert(str(run / "checkpoints" / "best.safetensors"), path, "timm")
    tensors: Dict[str, torch.Tensor] = load_file(path)
    save_file({**tensors, "blocks.1.adapter.weight": torch.ones(16)}, path)
    with pytest.raises(UserError, match=r"has blocks.1.adapter.weight, which the layers of these models do not have$"):
        find_trained(path)


def test_the_mean_of_patches_shows_in_a_name(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    path = tmp_path / "timm.safetensors"
    convert(str(run / "checkpoints" / "best.safetensors"), str(path), "timm")
    tensors = load_file(path)
    save_file(
        {{"norm.weight": "fc_norm.weight", "norm.bias": "fc_norm.bias"}.get(k, k): t for k, t in tensors.items()}, path
    )
    found = find_trained(str(path))
    assert (found.settings.model.pooling, found.settings.model.pool_norm) == ("mean", "after")
    assert any("model.pooling" in remark for remark in found.remarks)
    assert find_trained(str(path), ["model.pooling=class"]).settings.model.pooling == "class"


def test_what_is_assumed_of_images_is_said(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    convert(str(run / "checkpoints" / "best.safetensors"), str(tmp_path / "hf"), "huggingface")
    [remark] = find_trained(str(tmp_path / "hf"), ["data.std=[1,2,3]"]).remarks
    assert remark == (
        "nothing tells how images are prepared, so it is done by data.mean=[127.5,127.5,127.5] data.std=[1.0,2.0,3.0] "
        "data.evaluation_resize=none data.interpolation=bilinear"
    )
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["num_attention_heads"] == 2
