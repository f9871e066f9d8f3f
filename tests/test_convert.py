"""Converting: every format from every other, exactly, with nothing guessed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any, Dict, Optional

import pytest
import torch
from torch import Tensor, nn

from ipu_vit.config import load_settings, save_settings
from ipu_vit.convert import WRITERS, convert
from ipu_vit.errors import UserError
from ipu_vit.models.vit import VisionTransformer
from ipu_vit.weights.formats import open_weights
from ipu_vit.weights.native import write_native

NAMES = {
    "huggingface": "model",
    "timm": "timm.safetensors",
    "mmpretrain": "mm.pth",
    "google": "google.npz",
    "checkpoint": "own.safetensors",
}


def make(representation: Optional[int] = None) -> VisionTransformer:
    torch.manual_seed(2)
    model = VisionTransformer(
        image_size=12,
        patch_size=4,
        width=12,
        depth=2,
        heads=3,
        mlp_width=20,
        classes=5,
        representation=representation,
        norm_epsilon=1e-5,
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Weights that do not tell their heads."""
    write_native(make().state_dict(), str(tmp_path / "source.safetensors"))
    return str(tmp_path / "source.safetensors")


def state_of(path: str) -> Dict[str, Tensor]:
    file = open_weights(path)
    return {name: file.read(name) for name in file.shapes}


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
    (tmp_path / "checkpoints").mkdir()
    write_native(make().state_dict(), str(tmp_path / "checkpoints" / "best.safetensors"))
    settings = load_settings("quickstart", ["model.heads=3", "model.norm_epsilon=1e-5"])
    save_settings(settings, tmp_path / "settings.yml")
    report = convert(str(tmp_path / "checkpoints" / "best.safetensors"), str(tmp_path / "out.pth"), "timm")
    assert (report.heads, report.epsilon) == (3, 1e-5)


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


@pytest.mark.parametrize("representation", [None, 7])
def test_onnxruntime_gives_the_same_logits(tmp_path: Path, representation: Optional[int]) -> None:
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    ours = make(representation)
    source, path = str(tmp_path / "source.safetensors"), str(tmp_path / "out.onnx")
    write_native(ours.state_dict(), source)
    convert(source, path, "onnx", heads=3, epsilon=1e-5)
    session: Any = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5):
        images = torch.randn(batch, 3, 12, 12)
        (found,) = session.run(["logits"], {"images": images.numpy()})
        with torch.no_grad():
            assert (ours(images) - torch.from_numpy(found)).abs().max() <= 1e-4
