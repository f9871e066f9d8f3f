"""What transformers and timm write about images, against what they then do with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Dict, List

import numpy as np
import pytest
from PIL import Image

from ipu_vit.api import load_model
from ipu_vit.errors import UserError
from ipu_vit.models.vit import VisionTransformer
from ipu_vit.trained import find_trained
from ipu_vit.weights.huggingface import write_huggingface
from ipu_vit.weights.native import write_native

Make = Callable[..., VisionTransformer]
PICTURES = ((40, 30), (17, 90), (12, 12))


def photograph(width: int, height: int) -> Image.Image:
    coarse = np.random.default_rng(width).integers(256, size=(5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(vit: Make, tmp_path: Path) -> Path:
    """A model of Hugging Face's layout that tells nothing of its images."""
    write_huggingface(vit().state_dict(), str(tmp_path), heads=3, epsilon=1e-6)
    return tmp_path


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"resample": 3, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
        {"do_normalize": False},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0], "image_std": [1.0, 1.0, 1.0]},
        {"do_rescale": False},
    ],
)
def test_same_pixels_and_logits_as_transformers(folder: Path, changes: Dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    transformers.ViTImageProcessor(size={"height": 12, "width": 12}, **changes).save_pretrained(folder)
    processor = transformers.ViTImageProcessor.from_pretrained(folder)
    theirs = transformers.ViTForImageClassification.from_pretrained(folder).eval()
    ours = load_model(str(folder))
    assert not any("nothing tells" in remark for remark in ours.remarks)
    pictures = [photograph(*size) for size in PICTURES]
    pixels = processor(pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = theirs(pixels).logits
    assert (expected[0] - expected[1]).abs().max() > 1e-3
    scale = max(1.0, float(pixels.abs().max()))
    assert torch.allclose(ours._normalise(ours.pixels(pictures)), pixels, atol=1e-6 * scale)
    assert (ours.logits(pictures) - expected).abs().max() <= 1e-4


def test_an_older_file_has_one_number_for_the_size(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": 12, "image_mean": [0.5] * 3}))
    data = find_trained(str(folder)).settings.data
    assert (data.evaluation_resize, data.interpolation, data.mean, data.std) == (
        None,
        "bilinear",
        (127.5,) * 3,
        (127.5,) * 3,
    )


def test_a_centre_crop(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"size": {"shortest_edge": 16}, "crop_size": {"height": 12, "width": 12}, "do_center_crop": True})
    )
    assert find_trained(str(folder)).settings.data.evaluation_resize == 16


@pytest.mark.parametrize(
    "processor, untold",
    [
        ({"size": 16}, "data.evaluation_resize"),
        ({"size": {"height": 12, "width": 16}}, "data.evaluation_resize"),
        ({"size": {"shortest_edge": 12}}, "data.evaluation_resize"),
        ({"size": 12, "do_resize": False}, "data.evaluation_resize"),
        ({"size": {"shortest_edge": 16}, "crop_size": 14, "do_center_crop": True}, "data.evaluation_resize"),
        ({"size": 12, "resample": 0}, "data.interpolation"),
    ],
)
def test_what_has_no_setting_is_asked_for(folder: Path, processor: Dict[str, Any], untold: str) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    with pytest.raises(UserError, match=f"^{folder} does not tell {untold}: give {untold}=…$"):
        find_trained(str(folder))
    value = {"data.evaluation_resize": "12", "data.interpolation": "bicubic"}[untold]
    assert find_trained(str(folder), [f"{untold}={value}"]).settings


@pytest.mark.parametrize("values", [{"image_mean": 0.5}, {"image_std": ["a", "b", "c"]}, {"rescale_factor": 0}])
def test_a_normalisation_that_is_none(folder: Path, values: Dict[str, Any]) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": 12, **values}))
    with pytest.raises(UserError, match="preprocessor_config.json normalises images by mean=.*three numbers"):
        find_trained(str(folder))


def test_names_of_classes(folder: Path) -> None:
    names = ["ant", "bee", "cat", "dog", "elk"]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "id2label": dict(enumerate(names))}))
    assert load_model(str(folder)).labels == names
    assert load_model(str(folder), labels=names[::-1]).labels == names[::-1]
    (folder / "config.json").write_text(json.dumps({**config, "id2label": {"0": "ant"}}))
    assert load_model(str(folder)).labels == ["0", "1", "2", "3", "4"]


TIMM: Dict[str, Any] = {
    "input_size": [3, 12, 12], "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center",
    "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
}  # fmt: skip


def timm_folder(folder: Path, model: Any, config: Dict[str, Any]) -> str:
    from safetensors.torch import save_file

    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"pretrained_cfg": config, "label_names": list("abcde")}))
    return str(folder)


def test_pixels_of_timm(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    model = timm.models.VisionTransformer(
        img_size=12, patch_size=4, embed_dim=12, depth=2, num_heads=3, mlp_ratio=2, num_classes=5
    )
    ours = load_model(timm_folder(tmp_path, model, TIMM), ["model.heads=3"])
    assert ours.labels == list("abcde")
    config = timm.data.resolve_data_config({}, pretrained_cfg=TIMM)
    transform = timm.data.create_transform(**config)
    for size in PICTURES:
        picture = photograph(*size)
        difference = ours._normalise(ours.pixels(picture))[0] - transform(picture)
        # In 8-bit steps of about 0.017: we resize and crop in one pass, where timm rounds in between.
        assert difference.abs().mean() < 0.017


@pytest.mark.parametrize(
    "changes, resize, untold",
    [
        ({}, 13, []),
        ({"crop_pct": 1.0, "crop_mode": None}, 12, []),
        ({"crop_pct": 1.0, "crop_mode": "squash"}, None, []),
        ({"crop_mode": "border"}, 0, ["data.evaluation_resize"]),
        ({"input_size": [3, 16, 16]}, 0, ["data.evaluation_resize"]),
        ({"interpolation": "random"}, 13, ["data.interpolation"]),
    ],
)
def test_what_timm_tells(vit: Make, tmp_path: Path, changes: Dict[str, Any], resize: Any, untold: List[str]) -> None:
    from ipu_vit.convert import convert

    write_native(vit().state_dict(), str(tmp_path / "own.safetensors"))
    convert(str(tmp_path / "own.safetensors"), str(tmp_path / "model.safetensors"), "timm", 3, 1e-6)
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {**TIMM, **changes}}))
    if untold:
        with pytest.raises(UserError, match=f"does not tell {untold[0]}: "):
            find_trained(str(tmp_path))
        return
    data = find_trained(str(tmp_path)).settings.data
    assert (data.evaluation_resize, data.interpolation) == (resize, "bicubic")
    assert data.mean == pytest.approx((123.675, 116.28, 103.53)) and data.std == pytest.approx((58.395, 57.12, 57.375))
