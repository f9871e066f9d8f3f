"""Mixers of Google's and of timm: against a forward pass on the file's own arrays, and against timm's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Dict

import numpy
import pytest
import torch
from reference_models import difference, randomise, state_of, timm_mixer
from safetensors.torch import load_file

from ipu_vit.convert import convert
from ipu_vit.errors import UserError
from ipu_vit.models.mixer import Mixer
from ipu_vit.models.vit import VisionTransformer
from ipu_vit.weights.formats import open_weights
from ipu_vit.weights.google import write_google
from ipu_vit.weights.load import load_weights
from ipu_vit.weights.native import write_native

Arrays = Dict[str, Any]


def small(**changes: Any) -> Mixer:
    sizes: Any = dict(image_size=12, patch_size=4, width=16, depth=2, tokens_mlp_width=8, mlp_width=64, classes=5)
    model = Mixer(**{**sizes, **changes})
    randomise(model)
    return model.eval()


def random_arrays(tokens: int = 9, width: int = 16, patch: int = 4, classes: int = 5) -> Arrays:
    """A Mixer's arrays by the names and shapes that Flax gives them in vit_jax and big_vision."""
    shapes: Dict[str, Any] = {
        "stem/kernel": (patch, patch, 3, width), "stem/bias": (width,),
        "pre_head_layer_norm/scale": (width,), "pre_head_layer_norm/bias": (width,),
        "head/kernel": (width, classes), "head/bias": (classes,),
    }  # fmt: skip
    for i in range(2):
        for norm in (0, 1):
            shapes[f"MixerBlock_{i}/LayerNorm_{norm}/scale"] = (width,)
            shapes[f"MixerBlock_{i}/LayerNorm_{norm}/bias"] = (width,)
        for mixing, outer, inner in (("token", tokens, 8), ("channel", width, 64)):
            for dense, (inputs, outputs) in enumerate(((outer, inner), (inner, outer))):
                shapes[f"MixerBlock_{i}/{mixing}_mixing/Dense_{dense}/kernel"] = (inputs, outputs)
                shapes[f"MixerBlock_{i}/{mixing}_mixing/Dense_{dense}/bias"] = (outputs,)
    random = numpy.random.RandomState(0)
    return {name: 0.4 * random.standard_normal(shape).astype(numpy.float32) for name, shape in shapes.items()}


def forward(arrays: Arrays, images: numpy.ndarray) -> numpy.ndarray:
    """Logits (B, K) of images (B, S, S, 3), in float64 and in Flax's order of axes; GELU is the exact one."""
    w = {name: array.astype(numpy.float64) for name, array in arrays.items()}

    def norm(x: Any, name: str) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred**2).mean(-1, keepdims=True)
        return centred / numpy.sqrt(variance + 1e-6) * w[f"{name}/scale"] + w[f"{name}/bias"]

    def mlp(x: Any, name: str) -> Any:
        hidden = x @ w[f"{name}/Dense_0/kernel"] + w[f"{name}/Dense_0/bias"]
        hidden = hidden * 0.5 * (1 + numpy.vectorize(math.erf)(hidden / math.sqrt(2)))
        return hidden @ w[f"{name}/Dense_1/kernel"] + w[f"{name}/Dense_1/bias"]

    patch, batch, side = w["stem/kernel"].shape[0], len(images), images.shape[1]
    grid = side // patch
    patches = images.reshape(batch, grid, patch, grid, patch, 3).transpose(0, 1, 3, 2, 4, 5)
    x = numpy.einsum("nghijc,ijcd->nghd", patches, w["stem/kernel"]) + w["stem/bias"]
    x = x.reshape(batch, grid * grid, -1)
    for i in range(2):
        block = f"MixerBlock_{i}/"
        x = x + mlp(norm(x, block + "LayerNorm_0").swapaxes(1, 2), block + "token_mixing").swapaxes(1, 2)
        x = x + mlp(norm(x, block + "LayerNorm_1"), block + "channel_mixing")
    return norm(x, "pre_head_layer_norm").mean(1) @ w["head/kernel"] + w["head/bias"]


@pytest.mark.parametrize("prefix", ["", "params/"], ids=["vit_jax", "big_vision"])
def test_google_s_arrays_give_the_same_logits(tmp_path: Path, prefix: str) -> None:
    arrays, path = random_arrays(), str(tmp_path / "mixer.npz")
    numpy.savez(path, **{prefix + name: array for name, array in arrays.items()})
    ours = small()
    report = load_weights(ours, path)
    assert report.summary() == f"weights: {len(arrays)} tensors from {path} (Google Mixer .npz)"
    images = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    expected = forward(arrays, images.permute(0, 2, 3, 1).double().numpy())
    assert abs(expected[0] - expected[1]).max() > 0.1
    with torch.no_grad():
        assert abs(ours(images).double().numpy() - expected).max() <= 1e-4


def test_timm_s_files_give_the_same_logits(tmp_path: Path) -> None:
    theirs = timm_mixer()
    randomise(theirs)
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    ours = small()
    report = load_weights(ours, str(tmp_path / "timm.pth"))
    assert report.format == "timm Mixer"
    assert difference(ours, theirs) <= 1e-4


def test_timm_loads_what_is_written(tmp_path: Path) -> None:
    ours, theirs = small(), timm_mixer()
    write_native(ours.state_dict(), str(tmp_path / "own.safetensors"))
    convert(str(tmp_path / "own.safetensors"), str(tmp_path / "timm.safetensors"), "timm", epsilon=1e-6)
    theirs.load_state_dict(load_file(tmp_path / "timm.safetensors"), strict=True)
    assert difference(ours, theirs) <= 1e-4


def test_round_trips_are_exact(tmp_path: Path) -> None:
    expected = small().state_dict()
    source = str(tmp_path / "own.safetensors")
    write_native(expected, source)
    for to, name in (("google", "mixer.npz"), ("timm", "mixer.pth"), ("checkpoint", "mixer.safetensors")):
        report = convert(source, str(tmp_path / to / name), to, epsilon=1e-5)
        assert report.summary().endswith("; no heads, layer norms with epsilon 1e-05")
        back = convert(report.written[0], str(tmp_path / to / "back.safetensors"), "checkpoint")
        assert (back.heads, back.epsilon) == (None, 1e-5)
        found = state_of(back.written[0])
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    half = str(tmp_path / "half.npz")
    write_google(small().half().state_dict(), half, heads=None, dtype=torch.float16)
    assert all(torch.equal(tensor, expected[name].half().float()) for name, tensor in state_of(half).items())


@pytest.mark.parametrize("to", ["huggingface", "torchvision", "mmpretrain", "classyvision"])
def test_formats_without_mixers_say_so(tmp_path: Path, to: str) -> None:
    write_native(small().state_dict(), str(tmp_path / "own.safetensors"))
    with pytest.raises(UserError, match="^layers.0.tokens_mlp.*cannot be written: the layout of .* has no place for"):
        convert(str(tmp_path / "own.safetensors"), str(tmp_path / "out.pth"), to, epsilon=1e-6)


def test_heads_of_a_mixer_are_refused(tmp_path: Path) -> None:
    write_native(small().state_dict(), str(tmp_path / "own.safetensors"))
    with pytest.raises(UserError, match="^heads=3 does not go with .*own.safetensors, a Mixer, which has none$"):
        convert(str(tmp_path / "own.safetensors"), str(tmp_path / "out.pth"), "timm", heads=3, epsilon=1e-6)


@pytest.mark.parametrize("name", ["stem/bias", "MixerBlock_1/token_mixing/Dense_1/kernel", "pre_head_layer_norm/scale"])
def test_lost_and_renamed_arrays_are_named(tmp_path: Path, name: str) -> None:
    arrays, path = random_arrays(), str(tmp_path / "mixer.npz")
    arrays["renamed"] = arrays.pop(name)
    numpy.savez(path, **arrays)
    with pytest.raises(UserError, match=f"^weights={path} is not a Mixer in Google's layout: it lacks {name}$"):
        open_weights(path)


def test_another_number_of_tokens_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "mixer.npz")
    write_google(small().state_dict(), path, heads=None)
    with pytest.raises(UserError, match=r"tokens_mlp.expand.weight is \(8, 9\) .*; model.image_size=12 would fit$"):
        load_weights(small(image_size=20), path)


def test_another_kind_of_model_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "mixer.npz")
    write_google(small().state_dict(), path, heads=None)
    ours = VisionTransformer(image_size=12, patch_size=4, width=16, depth=2, heads=2, mlp_width=64, classes=5)
    with pytest.raises(UserError, match="; model.kind=mixer model.tokens_mlp_width=8 would fit$"):
        load_weights(ours, path)
