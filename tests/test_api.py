"""Trained models in Python: the same numbers as elsewhere, from images of any sort."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, List

import numpy as np
import pytest
import torch
from PIL import Image
from test_trained import MIXER, make_run
from tiny_runs import CPU, plain_model

import ipu_vit
from ipu_vit.data.decode import UnreadableImage
from ipu_vit.data.sources import open_validation
from ipu_vit.errors import UserError
from ipu_vit.evaluate import Evaluator
from ipu_vit.report import Report


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with random weights, and images so different that it tells them apart."""
    run = make_run(tmp_path, "precision=float32", "data.evaluation_resize=10", "data.std=[100,110,120]")
    for number, path in enumerate(pictures(run)):
        pixels = np.random.default_rng(number).integers(256, size=(3, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((20, 15)).save(path)
    return run


def pictures(run: Path) -> List[str]:
    return sorted(str(path) for path in (run.parent / "images" / "val").rglob("*.JPEG"))


def test_a_run_predicts_what_it_was_scored_by(run: Path) -> None:
    model = ipu_vit.load_model(str(run))
    score = Evaluator(model.settings, CPU, open_validation(model.settings)).score(model.model.state_dict(), Report())
    predictions = model.predict(pictures(run), top=2)
    assert [prediction.classes[0] for prediction in predictions] == score.predictions.tolist()
    assert len(set(score.predictions.tolist())) > 1
    assert all(len(prediction.labels) == len(prediction.probabilities) == 2 for prediction in predictions)


def test_logits_are_those_of_the_device_s_arithmetic(run: Path) -> None:
    model = ipu_vit.load_model(str(run))
    exact = plain_model(model.settings, model.model.state_dict()).eval()
    pixels = model.pixels(pictures(run)).double()
    std = torch.tensor([100.0, 110, 120], dtype=torch.double).reshape(1, 3, 1, 1)
    with torch.no_grad():
        expected = exact((pixels - 127.5) / std)
    assert (model.logits(pictures(run)) - expected).abs().max() <= 1e-4


def test_predictions_are_the_softmax_of_logits(run: Path) -> None:
    model = ipu_vit.load_model(str(run))
    for prediction, logits in zip(model.predict(pictures(run)), model.logits(pictures(run)).double().numpy()):
        shares = np.exp(logits) / np.exp(logits).sum()
        order = sorted(range(3), key=lambda number: -shares[number])
        assert prediction.classes == order
        assert prediction.labels == [["ant", "bee", "cat"][number] for number in order]
        assert prediction.probabilities == pytest.approx([shares[number] for number in order], abs=1e-5)


@pytest.mark.parametrize("representation", ["none", "7"])
def test_the_last_layer_makes_logits_of_features(tmp_path: Path, representation: str) -> None:
    run = make_run(tmp_path, f"model.representation={representation}")
    model = ipu_vit.load_model(str(run))
    features = model.features(pictures(run))
    assert features.shape == (7, 16 if representation == "none" else 7)
    classify = model.model.head.classify
    with torch.no_grad():
        assert torch.allclose(features @ classify.weight.T + classify.bias, model.logits(pictures(run)), atol=1e-5)


def test_an_image_is_a_path_a_picture_or_pixels(run: Path) -> None:
    model = ipu_vit.load_model(str(run))
    path = pictures(run)[0]
    expected = model.logits(path)
    opened = Image.open(path)
    pixels = np.array(opened)
    assert expected.shape == (1, 3)
    for image in (Path(path), opened, opened.convert("RGBA"), pixels, pixels[None], [path], (pixels,)):
        assert torch.allclose(model.logits(image), expected, atol=1e-6)
    mixed = model.logits([path, pixels, opened])
    assert mixed.shape == (3, 3) and torch.allclose(mixed, expected.expand(3, 3), atol=1e-6)


def test_images_do_not_depend_on_their_batch(run: Path) -> None:
    model = ipu_vit.load_model(str(run))
    images = np.random.default_rng(0).integers(256, size=(35, 9, 11, 3), dtype=np.uint8)
    for compute in (model.logits, model.features, model.attention):
        one_by_one = torch.cat([compute(image) for image in images])
        assert torch.allclose(compute(images), one_by_one, atol=1e-5)
    assert model.attention(images).shape == (35, 2, 2) and model.pixels(images).shape == (35, 3, 8, 8)


@pytest.mark.parametrize(
    "image, message",
    [
        (np.zeros((4, 4, 3), np.float32), r"an image is float32 \(4, 4, 3\); uint8 \(height, width, 3\) is accepted"),
        (np.zeros((4, 4), np.uint8), r"an image is uint8 \(4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), r"an image is uint8 \(0, 4, 3\)"),
        ([3], "an image is int; a path, a PIL image or a uint8 array is accepted"),
        ([], "images is empty"),
    ],
)
def test_what_is_no_image_is_a_sentence(run: Path, image: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ipu_vit.load_model(str(run)).predict(image)


def test_images_that_cannot_be_read_are_named(run: Path) -> None:
    model = ipu_vit.load_model(str(run))
    with pytest.raises(UnreadableImage, match="/gone.jpg: No such file"):
        model.predict("/gone.jpg")
    with pytest.raises(UnreadableImage, match="32-bit pixels"):
        model.predict(Image.new("F", (8, 8)))


def test_labels_of_the_user(run: Path, tmp_path: Path) -> None:
    (tmp_path / "names").write_text("x\ny\nz\n")
    assert ipu_vit.load_model(str(run), labels=str(tmp_path / "names")).labels == ["x", "y", "z"]
    with pytest.raises(UserError, match="labels has 2 names, but the model has 3 classes"):
        ipu_vit.load_model(str(run), labels=["x", "y"])


def test_models_without_a_rollout_say_why(tmp_path: Path) -> None:
    mixer = ipu_vit.load_model(str(make_run(tmp_path / "mixer", *MIXER)))
    with pytest.raises(UserError, match="^model.kind=mixer has no attention, so there is no attention rollout"):
        mixer.attention(np.zeros((8, 8, 3), np.uint8))
    mean = ipu_vit.load_model(str(make_run(tmp_path / "mean", "model.pooling=mean")))
    with pytest.raises(UserError, match="^model.pooling=mean does not look at a class token"):
        mean.attention(np.zeros((8, 8, 3), np.uint8))


def test_importing_is_light_and_using_needs_no_poptorch(run: Path) -> None:
    program = (
        "import sys, ipu_vit\n"
        "assert not {'torch', 'numpy', 'yaml'} & set(sys.modules)\n"
        f"print(ipu_vit.load_model({str(run)!r}).predict({pictures(run)[0]!r})[0].labels)\n"
        "assert not {'poptorch', 'popart', 'matplotlib'} & set(sys.modules)\n"
        "ipu_vit.nonsense\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert "'ant'" in result.stdout
    assert result.stderr.endswith("AttributeError: module 'ipu_vit' has no attribute 'nonsense'\n")
