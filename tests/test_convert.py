"""Converting: every format from every other, exactly, with nothing guessed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any, Dict, Optional

import pytest
import torch
from reference_models import SIZES, randomise, state_of

from ipu_vit.config import load_settings, save_settings
from ipu_vit.convert import WRITERS, convert
from ipu_vit.errors import UserError
from ipu_vit.models import build
from ipu_vit.models.vit import VisionTransformer
from ipu_vit.weights.formats import open_weights
from ipu_vit.weights.native import write_native
from ipu_vit.weights.safetensors_file import write_safetensors
from ipu_vit.weights.table import to_format
from ipu_vit.weights.timm import TIMM

NAMES = {
    "huggingface": "model",
    "timm": "timm.safetensors",
    "torchvision": "torchvision.pth",
    "mmpretrain": "mm.pth",
    "classyvision": "classy.torch",
    "google": "google.npz",
    "checkpoint": "own.safetensors",
}


def make(representation: Optional[int] = None) -> VisionTransformer:
    model = VisionTransformer(**SIZES, representation=representation, norm_epsilon=1e-5)
    randomise(model)
    return model.eval()


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Weights that do not tell their heads."""
    write_native(make().state_dict(), str(tmp_path / "source.safetensors"))
    return str(tmp_path / "source.safetensors")


def run_with(folder: Path, model: VisionTransformer, *overrides: str) -> str:
    """A checkpoint of a run with such settings."""
    (folder / "checkpoints").mkdir()
    write_native(model.state_dict(), str(folder / "checkpoints" / "best.safetensors"))
    save_settings(load_settings("quickstart", list(overrides)), folder / "settings.yml")
    return str(folder / "checkpoints" / "best.safetensors")


def test_every_format_from_every_other(source: str, tmp_path: Path) -> None:
    expected = make().state_dict()
    for middle in NAMES:
        first = convert(source, str(tmp_path / middle / NAMES[middle]), middle, heads=3, epsilon=1e-5)
        for last in NAMES:
            if "google" in (middle, last) and middle != last:
                continue  # NumPy packs slowly; the two ways below are enough
            second = convert(first.written[0], str(tmp_path / middle / last / NAMES[last]), last)
            found = state_of(second.written[0])
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], expected[name]) for name in expected), (middle, last)
            assert (second.heads, second.epsilon) == (3, 1e-5)


def test_google_keeps_heads_in_its_shapes_and_the_epsilon_beside_it(source: str, tmp_path: Path) -> None:
    path = str(tmp_path / "google.npz")
    report = convert(source, path, "google", heads=3, epsilon=1e-5)
    assert report.written == (path, str(tmp_path / "google.json"))
    assert json.loads((tmp_path / "google.json").read_text()) == {"ipu_vit": {"heads": 3, "norm_epsilon": 1e-5}}
    assert report.summary() == (
        f"32 tensors from {source} (checkpoint) as google: {path}, {tmp_path / 'google.json'}; "
        "3 heads, layer norms with epsilon 1e-05"
    )
    back = convert(path, str(tmp_path / "back.pth"), "mmpretrain")
    assert (back.heads, back.epsilon) == (3, 1e-5)
    (tmp_path / "google.json").unlink()
    assert convert(path, str(tmp_path / "back.pth"), "mmpretrain").epsilon == 1e-6  # which vit_jax has


def test_what_a_source_does_not_tell_is_asked_for(source: str, tmp_path: Path) -> None:
    path = str(tmp_path / "model")
    with pytest.raises(UserError, match=r"does not tell the model's heads: give heads=…$"):
        convert(source, path, "huggingface")
    with pytest.raises(UserError, match=r"does not tell the model's epsilon: give epsilon=…$"):
        convert(source, path, "huggingface", heads=3)
    with pytest.raises(UserError, match=r"^heads=5 does not divide the width of .*, 12$"):
        convert(source, path, "huggingface", heads=5, epsilon=1e-6)
    assert not Path(path).exists()
    convert(source, path, "huggingface", heads=3, epsilon=1e-6)
    with pytest.raises(UserError, match=r"^heads=4 contradicts .*, which has 3$"):
        convert(path, str(tmp_path / "weights.pth"), "timm", heads=4)


def test_a_checkpoint_of_a_run_has_them_in_its_settings(tmp_path: Path) -> None:
    source = run_with(tmp_path, make(), "model.heads=3", "model.norm_epsilon=1e-5")
    report = convert(source, str(tmp_path / "out.pth"), "timm")
    assert (report.heads, report.epsilon) == (3, 1e-5)


def test_the_mean_of_the_patches_is_refused_for_other_formats_and_for_export_alike(tmp_path: Path) -> None:
    source = run_with(tmp_path, make(), "model.heads=3", "model.pooling=mean")
    with pytest.raises(UserError, match="has model.pooling=mean, which no other format can tell; a checkpoint of"):
        convert(source, str(tmp_path / "out.pth"), "timm")
    with pytest.raises(UserError, match="^export=out.npz cannot tell that model.pooling=mean, unless it is of a Mixer"):
        load_settings("quickstart", ["model.pooling=mean", "export=out.npz"])
    with pytest.raises(UserError, match="^export=out.json is no name for a file of weights; accepted: one that ends"):
        load_settings("quickstart", ["export=out.json"])
    mixer = ["model.kind=mixer", "model.tokens_mlp_width=8", "model.class_token=false", "model.pooling=mean"]
    assert load_settings("quickstart", [*mixer, "export=out.npz"]).export == "out.npz"


def test_a_norm_after_the_mean_is_refused_for_formats_that_cannot_tell(tmp_path: Path) -> None:
    state = make().state_dict()
    tensors = to_format(TIMM, state)
    for end in (".weight", ".bias"):
        tensors["fc_norm" + end] = tensors.pop("norm" + end)
    source = str(tmp_path / "mean.safetensors")
    write_safetensors(tensors, source)
    with pytest.raises(UserError, match="mean.safetensors has its last norm after .*, which to=google cannot tell"):
        convert(source, str(tmp_path / "out.npz"), "google", heads=3)
    report = convert(source, str(tmp_path / "out.safetensors"), "checkpoint", heads=3)
    assert torch.equal(state_of(report.written[0])["head.norm.weight"], state["head.norm.weight"])


def test_a_format_without_room_says_so(tmp_path: Path) -> None:
    source = str(tmp_path / "source.safetensors")
    write_native(make(representation=7).state_dict(), source)
    for to in ("huggingface", "timm"):
        with pytest.raises(UserError, match="^head.representation.* cannot be written: "):
            convert(source, str(tmp_path / "out" / "model"), to, heads=3, epsilon=1e-5)
    report = convert(source, str(tmp_path / "out" / "model.pth"), "mmpretrain", heads=3, epsilon=1e-5)
    assert state_of(report.written[0]).keys() == make(representation=7).state_dict().keys()


def test_destinations_that_cannot_be(source: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^to=tensorflow is not a format that can be written; accepted: huggingface, "):
        convert(source, str(tmp_path / "out"), "tensorflow")
    with pytest.raises(UserError, match=r"^destination=.*out.json is no name for a file of tensors"):
        convert(source, str(tmp_path / "out.json"), "timm", heads=3, epsilon=1e-5)
    for to in ("huggingface", "timm"):
        with pytest.raises(UserError, match=r"cannot be (made|written): "):
            convert(source, f"{source}/model", to, heads=3, epsilon=1e-5)
    assert set(WRITERS) == {*NAMES, "onnx"}


def test_a_file_can_replace_its_source(source: str) -> None:
    report = convert(source, source, "timm", heads=3, epsilon=1e-5)
    convert(source, source, "mmpretrain")
    assert report.written[0] == source
    assert open_weights(source).format == "mmpretrain"
    assert all(torch.equal(tensor, make().state_dict()[name]) for name, tensor in state_of(source).items())


def test_onnx_without_the_package_says_what_to_install(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"out.onnx cannot be written: PyTorch needs the package onnx .* pip install"):
        convert(source, str(tmp_path / "out.onnx"), "onnx", heads=3, epsilon=1e-5)


def kinds() -> Dict[str, Dict[str, Any]]:
    """Small models of every kind that can be written as ONNX, by what `build` takes."""
    sizes = {**SIZES, "norm_epsilon": 1e-5}
    return {
        "vit": sizes,
        "vit, representation": {**sizes, "representation": 7},
        "mixer": {**sizes, "kind": "mixer", "tokens_mlp_width": 8},
        "hybrid": {**sizes, "kind": "hybrid", "resnet_depths": [1, 2], "resnet_width": 32, "patch_size": 1,
                   "image_size": 16},
        "stem alone": {**sizes, "kind": "hybrid", "resnet_depths": [], "resnet_width": 32, "patch_size": 2,
                       "image_size": 16},
    }  # fmt: skip


@pytest.mark.parametrize("kind", kinds())
def test_onnxruntime_gives_the_same_logits(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    ours = build(**kinds()[kind]).eval()
    randomise(ours)
    source, path = str(tmp_path / "source.safetensors"), str(tmp_path / "out.onnx")
    write_native(ours.state_dict(), source)
    convert(source, path, "onnx", heads=None if kind == "mixer" else 3, epsilon=1e-5)
    session: Any = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5):
        images = torch.randn(batch, 3, kinds()[kind]["image_size"], kinds()[kind]["image_size"])
        (found,) = session.run(["logits"], {"images": images.numpy()})
        with torch.no_grad():
            assert (ours(images) - torch.from_numpy(found)).abs().max() <= 1e-4
