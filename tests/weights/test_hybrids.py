"""Hybrids of Google's, timm's and Hugging Face's: the same logits as timm's and transformers' models."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Sequence

import numpy
import pytest
import torch
from reference_models import difference, randomise, state_of, timm_hybrid
from safetensors.torch import load_file

from ipu_vit.convert import convert
from ipu_vit.errors import UserError
from ipu_vit.models.hybrid import Hybrid
from ipu_vit.models.vit import VisionTransformer
from ipu_vit.weights.formats import open_weights
from ipu_vit.weights.google import write_google
from ipu_vit.weights.load import load_weights
from ipu_vit.weights.native import write_native

DEPTHS = [((2, 1), 2), ((1, 2, 1), 1), ((), 4)]  # units in each stage, and features that are a patch wide
each_resnet = pytest.mark.parametrize(("depths", "patch_size"), DEPTHS, ids=str)


def small(depths: Sequence[int] = (1, 2), patch_size: int = 1, **changes: Any) -> Hybrid:
    sizes: Any = dict(image_size=32, width=12, depth=2, heads=3, mlp_width=20, classes=5, resnet_width=32)
    model = Hybrid(resnet_depths=depths, patch_size=patch_size, **{**sizes, **changes})
    randomise(model, seed=6)
    return model.eval()


def google_arrays(theirs: Any, depths: Sequence[int]) -> Dict[str, Any]:
    """The weights of timm's hybrid as vit_jax's modules name them, group norms with the four axes of older Flax."""
    state = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    arrays: Dict[str, Any] = {}

    def convolution(name: str, source: str) -> None:
        arrays[f"{name}/kernel"] = numpy.moveaxis(state[f"{source}.weight"], (2, 3, 1, 0), (0, 1, 2, 3))

    def norm(name: str, source: str, *axes: int) -> None:
        for ours, end in (("weight", "scale"), ("bias", "bias")):
            arrays[f"{name}/{end}"] = state[f"{source}.{ours}"].reshape(*axes, -1)

    def dense(name: str, source: str) -> None:
        arrays[f"{name}/kernel"], arrays[f"{name}/bias"] = state[f"{source}.weight"].T, state[f"{source}.bias"]

    backbone = "patch_embed.backbone."
    stem = backbone + "stem." if depths else backbone
    convolution("conv_root", stem + "conv")
    norm("gn_root", stem + "norm", 1, 1, 1)
    for stage, units in enumerate(depths, 1):
        for unit in range(1, units + 1):
            name, source = f"block{stage}/unit{unit}/", f"{backbone}stages.{stage - 1}.blocks.{unit - 1}."
            for i in (1, 2, 3):
                convolution(f"{name}conv{i}", f"{source}conv{i}")
                norm(f"{name}gn{i}", f"{source}norm{i}", 1, 1, 1)
            if unit == 1:
                convolution(f"{name}conv_proj", f"{source}downsample.conv")
                norm(f"{name}gn_proj", f"{source}downsample.norm", 1, 1, 1)
    convolution("embedding", "patch_embed.proj")
    arrays["embedding/bias"] = state["patch_embed.proj.bias"]
    arrays["cls"], arrays["Transformer/posembed_input/pos_embedding"] = state["cls_token"], state["pos_embed"]
    for i in range(2):
        name, source = f"Transformer/encoderblock_{i}/", f"blocks.{i}."
        attention = name + "MultiHeadDotProductAttention_1/"
        for j, part in enumerate(("query", "key", "value")):
            rows = slice(12 * j, 12 * (j + 1))
            arrays[f"{attention}{part}/kernel"] = state[source + "attn.qkv.weight"][rows].T.reshape(12, 3, 4)
            arrays[f"{attention}{part}/bias"] = state[source + "attn.qkv.bias"][rows].reshape(3, 4)
        arrays[f"{attention}out/kernel"] = state[source + "attn.proj.weight"].T.reshape(3, 4, 12)
        arrays[f"{attention}out/bias"] = state[source + "attn.proj.bias"]
        norm(name + "LayerNorm_0", source + "norm1")
        norm(name + "LayerNorm_2", source + "norm2")
        dense(name + "MlpBlock_3/Dense_0", source + "mlp.fc1")
        dense(name + "MlpBlock_3/Dense_1", source + "mlp.fc2")
    norm("Transformer/encoder_norm", "norm")
    dense("head", "head")
    return arrays


@each_resnet
@pytest.mark.parametrize("prefix", ["", "opt/target/"])
def test_google_s_arrays_give_timm_s_logits(
    tmp_path: Path, depths: Sequence[int], patch_size: int, prefix: str
) -> None:
    theirs = timm_hybrid(depths, patch_size)
    randomise(theirs)
    arrays, path = google_arrays(theirs, depths), str(tmp_path / "hybrid.npz")
    numpy.savez(path, **{prefix + name: array for name, array in arrays.items()})
    ours = small(depths, patch_size)
    report = load_weights(ours, path)
    assert difference(ours, theirs, 32) <= 1e-4
    assert (report.format, report.unused, open_weights(path).heads) == ("Google .npz", (), 3)


@each_resnet
def test_timm_reads_the_npz_that_is_written(tmp_path: Path, depths: Sequence[int], patch_size: int) -> None:
    ours, theirs = small(depths, patch_size), timm_hybrid(depths, patch_size)
    path = str(tmp_path / "hybrid.npz")
    write_google(ours.state_dict(), path, heads=3)
    theirs.load_pretrained(path)
    assert difference(ours, theirs, 32) <= 1e-4


@each_resnet
def test_timm_s_files_give_the_same_logits(tmp_path: Path, depths: Sequence[int], patch_size: int) -> None:
    theirs = timm_hybrid(depths, patch_size)
    randomise(theirs)
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    ours = small(depths, patch_size)
    report = load_weights(ours, str(tmp_path / "timm.pth"))
    assert difference(ours, theirs, 32) <= 1e-4
    assert (report.format, report.unused) == ("timm", ())


@each_resnet
def test_timm_loads_what_is_written(tmp_path: Path, depths: Sequence[int], patch_size: int) -> None:
    ours, theirs = small(depths, patch_size), timm_hybrid(depths, patch_size)
    write_native(ours.state_dict(), str(tmp_path / "own.safetensors"))
    convert(str(tmp_path / "own.safetensors"), str(tmp_path / "timm.safetensors"), "timm", heads=3, epsilon=1e-6)
    theirs.load_state_dict(load_file(tmp_path / "timm.safetensors"), strict=True)
    assert difference(ours, theirs, 32) <= 1e-4


def test_hugging_face_s_files_give_the_same_logits(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "ViTHybridConfig"):
        pytest.skip("transformers 5 has no hybrids")
    backbone = dict(
        global_padding="same", layer_type="bottleneck", depths=[1, 2], out_features=["stage2"],
        embedding_dynamic_padding=True, embedding_size=32, hidden_sizes=[128, 256],
    )  # fmt: skip
    config = transformers.ViTHybridConfig(
        backbone_config=backbone, backbone_featmap_shape=[1, 256, 4, 4], image_size=32, patch_size=1, hidden_size=12,
        num_hidden_layers=2, num_attention_heads=3, intermediate_size=20, num_labels=5, layer_norm_eps=1e-6,
    )  # fmt: skip
    theirs = transformers.ViTHybridForImageClassification(config).eval()
    randomise(theirs)
    for module in theirs.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.eps = 1e-6  # as in vit_jax, where these models come from
    theirs.save_pretrained(tmp_path)
    ours = small((1, 2))
    report = load_weights(ours, str(tmp_path))
    assert difference(ours, theirs, 32) <= 1e-4
    assert (report.format, report.unused, report.replaced) == ("Hugging Face", (), {})


@each_resnet
def test_round_trips_are_exact(tmp_path: Path, depths: Sequence[int], patch_size: int) -> None:
    expected = small(depths, patch_size, representation=None).state_dict()
    source = str(tmp_path / "own.safetensors")
    write_native(expected, source)
    for to, name in (("google", "hybrid.npz"), ("timm", "hybrid.pth"), ("checkpoint", "hybrid.safetensors")):
        report = convert(source, str(tmp_path / to / name), to, heads=3, epsilon=1e-5)
        found = state_of(report.written[0])
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("to", ["huggingface", "torchvision", "mmpretrain", "classyvision"])
def test_formats_without_hybrids_say_so(tmp_path: Path, to: str) -> None:
    write_native(small().state_dict(), str(tmp_path / "own.safetensors"))
    with pytest.raises(UserError, match="^embedding.stem.*cannot be written: the layout of .* has no place for it$"):
        convert(str(tmp_path / "own.safetensors"), str(tmp_path / "out.pth"), to, heads=3, epsilon=1e-6)


@pytest.mark.parametrize(
    "name", ["conv_root/kernel", "gn_root/bias", "block2/unit2/gn3/scale", "block1/unit1/conv_proj/kernel"]
)
def test_lost_and_renamed_arrays_are_named(tmp_path: Path, name: str) -> None:
    path = str(tmp_path / "hybrid.npz")
    write_google(small().state_dict(), path, heads=3)
    with numpy.load(path) as file:
        arrays = {"renamed" if key == name else key: file[key] for key in file}
    numpy.savez(path, **arrays)
    with pytest.raises(UserError, match=f"^weights={path} is not a ViT in Google's layout: it lacks {name}$"):
        open_weights(path)


def test_shapes_that_contradict_each_other_are_named(tmp_path: Path) -> None:
    path = str(tmp_path / "hybrid.npz")
    write_google(small().state_dict(), path, heads=3)
    with numpy.load(path) as file:
        arrays = dict(file)
    arrays["block2/unit1/conv1/kernel"] = numpy.zeros((1, 1, 64, 64), numpy.float32)
    numpy.savez(path, **arrays)
    with pytest.raises(UserError, match=r"conv1/kernel is \(1, 1, 64, 64\) but \(1, 1, 128, 64\) is expected$"):
        open_weights(path)


def test_another_model_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "hybrid.npz")
    write_google(small((1, 2)).state_dict(), path, heads=3)
    with pytest.raises(UserError, match=r"; model.resnet_depths=\[1,2\] would fit$"):
        load_weights(small((1, 3)), path)
    with pytest.raises(UserError, match=r"; model.resnet_depths=\[1,2\] model.resnet_width=32 would fit$"):
        load_weights(small((1, 3), resnet_width=64), path)
    plain = VisionTransformer(image_size=32, patch_size=8, width=12, depth=2, heads=3, mlp_width=20, classes=5)
    hint = r"model.kind=hybrid model.resnet_depths=\[1,2\] model.patch_size=1 would fit$"
    with pytest.raises(UserError, match=f"; {hint}"):
        load_weights(plain, path)
    write_google(plain.state_dict(), path, heads=3)
    with pytest.raises(UserError, match="; model.kind=vit model.resnet_depths=none model.patch_size=8 would fit$"):
        load_weights(small(), path)


def test_positions_are_resized(tmp_path: Path) -> None:
    path = str(tmp_path / "hybrid.npz")
    write_google(small().state_dict(), path, heads=3)
    assert load_weights(small(image_size=48), path).resized == ((4, 4), (6, 6))
