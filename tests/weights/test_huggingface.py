"""Hugging Face's weights: files that `transformers` writes, and directories for it to load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable

import pytest
import torch
from reference_models import SIZES, randomise, transformers_config

from ipu_vit.errors import UserError
from ipu_vit.models.vit import VisionTransformer
from ipu_vit.weights.formats import open_weights
from ipu_vit.weights.huggingface import write_huggingface
from ipu_vit.weights.load import load_weights

transformers = pytest.importorskip("transformers")
Make = Callable[..., VisionTransformer]


@pytest.fixture
def theirs() -> Any:
    model = transformers.ViTForImageClassification(transformers_config(SIZES)).eval()
    randomise(model)
    return model


@pytest.mark.parametrize("size", ["1GB", "5KB"], ids=["one file", "sharded"])
def test_what_transformers_saves(theirs: Any, vit: Make, same_logits: Any, tmp_path: Path, size: str) -> None:
    theirs.save_pretrained(tmp_path, max_shard_size=size)
    assert (tmp_path / "model.safetensors").exists() == (size == "1GB")
    ours = vit()
    report = load_weights(ours, str(tmp_path))
    same_logits(ours, theirs)
    assert report.format == "Hugging Face"
    assert report.summary() == f"weights: {len(report.kept)} tensors from {tmp_path} (Hugging Face)"
    assert open_weights(str(tmp_path)).heads == 3


@pytest.mark.parametrize("sharded", [False, True])
def test_pytorch_model_bin(theirs: Any, vit: Make, same_logits: Any, tmp_path: Path, sharded: bool) -> None:
    state = theirs.state_dict()  # which has the names that transformers 5 has in memory
    if sharded:
        names = {name: f"pytorch_model-{1 + i % 2}.bin" for i, name in enumerate(state)}
        for file in set(names.values()):
            torch.save({name: state[name] for name in state if names[name] == file}, tmp_path / file)
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    else:
        torch.save(state, tmp_path / "pytorch_model.bin")
    ours = vit()
    load_weights(ours, str(tmp_path))
    same_logits(ours, theirs)


def test_a_model_without_a_head_has_no_prefix_and_a_pooler(vit: Make, tmp_path: Path) -> None:
    theirs = transformers.ViTModel(transformers_config(SIZES)).eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    ours = vit(representation=12)
    report = load_weights(ours, str(tmp_path / "model.safetensors"))
    assert report.replaced == {"head.classify": "the file has none"}
    assert not report.unused
    images = torch.randn(2, 3, 12, 12)
    ours.head.classify = torch.nn.Identity()
    with torch.no_grad():
        assert (ours(images) - theirs(images).pooler_output).abs().max() <= 1e-4


def test_a_pooler_that_a_classifier_ignores_is_not_used(
    theirs: Any, vit: Make, same_logits: Any, tmp_path: Path
) -> None:
    theirs.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    pooler = {"vit.pooler.dense.weight": torch.ones(12, 12), "vit.pooler.dense.bias": torch.ones(12)}
    torch.save({**theirs.state_dict(), **pooler}, tmp_path / "pytorch_model.bin")
    ours = vit()
    report = load_weights(ours, str(tmp_path))
    same_logits(ours, theirs)
    assert report.unused == ("vit.pooler.dense.bias", "vit.pooler.dense.weight")
    assert not report.replaced


def test_transformers_loads_what_is_written(vit: Make, same_logits: Any, tmp_path: Path) -> None:
    ours = vit()
    write_huggingface(ours.state_dict(), str(tmp_path / "new" / "model"), heads=3, epsilon=1e-6)
    theirs, info = transformers.ViTForImageClassification.from_pretrained(
        tmp_path / "new" / "model", output_loading_info=True
    )
    assert not any(info.values())
    assert theirs.config.num_labels == 5
    same_logits(ours, theirs)


def test_transformers_loads_a_model_without_classes(vit: Make, tmp_path: Path) -> None:
    ours = vit(representation=12)
    state = {name: tensor for name, tensor in ours.state_dict().items() if not name.startswith("head.classify.")}
    write_huggingface(state, str(tmp_path), heads=3, epsilon=1e-6)
    theirs, info = transformers.ViTModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    ours.head.classify = torch.nn.Identity()
    images = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        assert (ours(images) - theirs.eval()(images).pooler_output).abs().max() <= 1e-4


def test_a_representation_before_classes_is_refused(vit: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^head.representation cannot be written: transformers has no tanh layer"):
        write_huggingface(vit(representation=7).state_dict(), str(tmp_path / "out"), heads=3, epsilon=1e-6)
    assert not (tmp_path / "out").exists()


def test_heads_and_epsilon_come_from_the_configuration(theirs: Any, vit: Make, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["layer_norm_eps"] = 1e-12
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_weights(vit(), str(tmp_path)).remarks == (
        "layer norms have epsilon 1e-12 in the file, 1e-06 in the model",
    )
    with pytest.raises(UserError, match=r"attention has 3 heads in the file but 4 in the model; model.heads=3 would"):
        load_weights(vit(heads=4), str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"hidden_act": "quick_gelu"}', "config.json has hidden_act='quick_gelu'; 'gelu' is accepted"),
        ('{"num_attention_heads": "3"}', "config.json says that attention has '3' heads"),
        ('{"layer_norm_eps": -1}', "config.json says that the epsilon of layer norms is -1"),
        ("{", "config.json cannot be read as JSON: "),
    ],
)
def test_a_configuration_that_cannot_be_followed(
    vit: Make, theirs: Any, tmp_path: Path, content: str, message: str
) -> None:
    theirs.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        load_weights(vit(), str(tmp_path))


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"classifier.bias": "model-2.safetensors"}, "weights=.*model-2.safetensors does not exist"),
        ({"classifier.bias": "../model.safetensors"}, r"names \.\./model.safetensors; files beside the index"),
        ({"classifier.bias": "model.safetensors.index.json"}, "index.json is of no known format; accepted"),
        ({"classifier.bias": 7}, "names 7; files beside the index"),
        ({"other": "model-1.safetensors"}, "names tensors that its files lack: other in model-1.safetensors"),
        ([], "is of no known format, with tensors such as none"),
        (None, "cannot be read as an index of weight files"),
    ],
)
def test_an_index_that_cannot_be_followed(
    vit: Make, theirs: Any, tmp_path: Path, weight_map: Any, message: str
) -> None:
    theirs.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "model-1.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match=message):
        load_weights(vit(), str(tmp_path))
