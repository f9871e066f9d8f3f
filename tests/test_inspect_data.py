"""What inspect-data shows is what the model sees, and what it says is so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import CPU, settings_of, tiny_preset, truncate

from ipu_vit import inspect_data as room
from ipu_vit.__main__ import main
from ipu_vit.errors import UserError
from ipu_vit.inspect_data import as_the_model_sees_them, inspect_data

CLASSES = ["ant", "bee", "cat"]


@pytest.fixture(autouse=True)
def in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "SECONDS", 0.0)


def batch(images: int) -> Any:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(256, size=(images, 3, 8, 8), dtype=np.uint8))
    return pixels, torch.arange(images) % 3


def test_pixels_are_those_of_the_batch(tmp_path: Path) -> None:
    settings = settings_of(tiny_preset(tmp_path), "data.mean=[120,110,100]", "data.std=[58,57,56]")
    images, labels = batch(40)
    seen, titles = as_the_model_sees_them(settings, CLASSES, (images, labels))
    np.testing.assert_array_equal(seen, images[:32].permute(0, 2, 3, 1).numpy())
    assert titles == [CLASSES[number % 3] for number in range(32)]


def test_mixed_images_are_shown_mixed_with_both_labels(tmp_path: Path) -> None:
    settings = settings_of(tiny_preset(tmp_path), "augmentation.mixup=0.8", "augmentation.cutmix=1.0")
    images, labels = batch(4)
    mixing = torch.tensor([[0.25, 0, 8, 0, 8], [1, 0, 4, 0, 8], [0, 0, 8, 0, 8], [1, 2, 4, 2, 6]])
    seen, titles = as_the_model_sees_them(settings, CLASSES, (images, labels, mixing))
    assert titles == ["75% ant\n25% bee", "50% bee\n50% ant", "cat", "88% ant\n12% cat"]
    pixels = images.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(seen[0], 0.75 * pixels[0] + 0.25 * pixels[1], atol=0.51)
    np.testing.assert_array_equal(seen[1], np.concatenate([pixels[0, :4], pixels[1, 4:]]))  # micro batches of 2
    np.testing.assert_array_equal(seen[2], pixels[2])
    np.testing.assert_array_equal(seen[3, 2:4, 2:6], pixels[2, 2:4, 2:6])
    assert (seen[3] == pixels[3]).all(axis=-1).sum() >= 64 - 8


def test_the_command_tells_of_classes_files_and_speed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preset = tiny_preset(tmp_path)
    broken = tmp_path / "images" / "val" / "bee" / "1.JPEG"
    truncate(broken)
    picture = tmp_path / "sheet.png"
    assert main(["inspect-data", str(preset), "--picture", str(picture), "--read-all", "data.workers=1"]) == 0
    said = capsys.readouterr().out
    assert "training: 13 images of 3 classes, from 4 (bee) to 5 (ant), 4 in the median" in said
    assert "validation: 7 images of 3 classes, from 1 (cat) to 3 (ant)" in said
    assert "images/s by itself with data.workers=1" in said and "4 Mk2 IPUs eats 1,400 images/s" in said
    assert f"1 of all images cannot be read\n  {broken}: " in said
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    assert pixels.shape[1] > 300 and (pixels < 250).any(axis=-1).mean() > 0.2


def test_unreadable_images_that_were_met_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preset = tiny_preset(tmp_path)
    for image in (tmp_path / "images" / "train" / "cat").iterdir():
        truncate(image)
    inspect_data(settings_of(preset), CPU, tmp_path / "sheet.png")
    assert "cat/0.JPEG: " in capsys.readouterr().out


def test_a_picture_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sheet\.png cannot be written"):
        inspect_data(settings_of(tiny_preset(tmp_path)), CPU, tmp_path / "nowhere" / "sheet.png")


def test_generated_images_can_be_inspected_too(tmp_path: Path) -> None:
    picture = tmp_path / "sheet.png"
    inspect_data(settings_of(tiny_preset(tmp_path), "data=generated", "data.generated_images=20"), CPU, picture)
    assert Image.open(picture).format == "PNG"
