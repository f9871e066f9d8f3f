"""Evaluation counts every image once and scores as a plain loop does."""

from __future__ import annotations

import os
import signal
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import List, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tiny_runs import CPU, plain_model, random_weights, sentence, tiny_preset, truncate

from ipu_vit.__main__ import main
from ipu_vit.build import build_model
from ipu_vit.errors import UserError
from ipu_vit.evaluate import Evaluator
from ipu_vit.report import Report
from ipu_vit.settings import Settings

CLASSES = 8


@dataclass
class Pictures:
    """Random images, which count how often they are looked at."""

    count: int
    loaded: List[int] = field(default_factory=list)

    @property
    def classes(self) -> Sequence[str]:
        return [str(number) for number in range(CLASSES)]

    def __len__(self) -> int:
        return self.count

    def load(self, index: int) -> np.ndarray:
        self.loaded.append(index)
        return self.pixels(index)

    def pixels(self, index: int) -> np.ndarray:
        return np.random.default_rng(index).integers(256, size=(8, 8, 3), dtype=np.uint8)

    def label(self, index: int) -> int:
        return index * 5 % CLASSES

    def name(self, index: int) -> str:
        return f"image {index}"


def settings_with(micro_batch: int, layers_per_ipu: List[int]) -> Settings:
    return Settings(
        precision="float32",
        model={"image_size": 8, "patch_size": 4, "width": 16, "depth": 4, "heads": 2, "mlp_width": 32,
               "classes": CLASSES, "dropout": 0.5},
        data={"source": "generated", "generated_size": None, "mean": (100.0, 110.0, 120.0), "std": (50.0, 60.0, 70.0)},
        pipeline={"layers_per_ipu": layers_per_ipu, "available_memory_proportion": [0.3]},
        evaluation={"micro_batch": micro_batch},
    )  # fmt: skip


@hypothesis_settings(max_examples=20)
@given(
    images=st.integers(1, 30),
    micro_batch=st.integers(1, 7),
    layers_per_ipu=st.sampled_from([[4], [2, 2], [1, 1, 1, 1]]),
    seed=st.integers(0, 100),
)
def test_score_equals_that_of_a_loop(images: int, micro_batch: int, layers_per_ipu: List[int], seed: int) -> None:
    settings, source = settings_with(micro_batch, layers_per_ipu), Pictures(images)
    weights = build_model(settings)
    random_weights(weights, seed)
    score = Evaluator(settings, CPU, source).score(weights.state_dict(), Report())

    model = plain_model(settings, weights.state_dict()).eval()
    mean, std = np.array([100, 110, 120]), np.array([50, 60, 70])
    first, fifth = 0, 0
    for index in range(images):
        pixels = torch.from_numpy((source.pixels(index) - mean) / std).permute(2, 0, 1)
        logits = model(pixels[None])[0].tolist()
        best = sorted(range(CLASSES), key=lambda number: -logits[number])
        assert score.predictions[index] == best[0]
        first += best[0] == source.label(index)
        fifth += source.label(index) in best[:5]
    assert (score.top1, score.top5, score.images) == (first / images, fifth / images, images)
    assert len(score.predictions) == images
    assert Counter(source.loaded) == Counter(range(images))


def test_new_weights_are_scored(tmp_path: Path) -> None:
    """An evaluator that has been used scores the weights it is given, not those of before."""
    settings, source = settings_with(4, [2, 2]), Pictures(20)
    evaluator, report = Evaluator(settings, CPU, source), Report()
    weights = []
    for seed in (1, 2, 1):
        model = build_model(settings)
        random_weights(model, seed)
        weights.append(evaluator.score(model.state_dict(), report).predictions.tolist())
    assert weights[0] == weights[2] != weights[1]


def test_first_host_batches_only() -> None:
    settings, source = settings_with(2, [2, 2]), Pictures(20)
    score = Evaluator(settings, CPU, source).score(build_model(settings).state_dict(), Report(), host_batches=2)
    assert score.images == 2 * 2 * 2


# --- images that cannot be read ----------------------------------------------------------------------


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    return tiny_preset(tmp_path)


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_images_are_an_error_or_left_out(
    preset: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = preset.parent / "images/val/bee/1.JPEG"
    truncate(broken)
    arguments = ["evaluate", str(preset), f"data.workers={workers}"]
    assert main(arguments) == 2
    said = sentence(capsys.readouterr().err)
    assert str(broken) in said and "data.skip_unreadable=true" in said

    assert main([*arguments, "data.skip_unreadable=true"]) == 0
    said = capsys.readouterr().out
    assert "6 images)" in said
    assert "1 unreadable images were left out" in said and str(broken) in said


def test_nothing_to_score(preset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for image in (preset.parent / "images/val").rglob("*.JPEG"):
        truncate(image)
    assert main(["evaluate", str(preset), "data.skip_unreadable=true"]) == 2
    assert "no validation image that can be read" in sentence(capsys.readouterr().err)


@pytest.mark.parametrize("skip, code", [("false", 2), ("true", 0)])
def test_unreadable_validation_image_after_training(
    preset: Path, skip: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run's checkpoint is there in any case, and leaving the image out finishes the run."""
    broken = preset.parent / "images/val/ant/0.JPEG"
    truncate(broken)
    assert main(["train", str(preset), f"data.skip_unreadable={skip}", "evaluation.pictures=7"]) == code
    assert (preset.parent / "run/checkpoints/update-00000004.safetensors").exists()
    assert (preset.parent / "run/predictions.png").exists() == (code == 0)
    output = capsys.readouterr()
    assert str(broken) in (output.err if code else output.out)


# --- workers that are killed -------------------------------------------------------------------------


class Deadly(Pictures):
    """Kills the process that asks for the last image, as the kernel does when memory runs out."""

    def load(self, index: int) -> np.ndarray:
        if index == len(self) - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.pixels(index)


def test_a_killed_worker_ends_an_evaluation_with_advice() -> None:
    settings = settings_with(2, [2, 2])
    settings = settings.model_copy(update={"data": settings.data.model_copy(update={"workers": 1})})
    with pytest.raises(UserError, match=r"data\.workers=1: .*(killed by signal|exited unexpectedly).*fewer workers"):
        Evaluator(settings, CPU, Deadly(200)).score(build_model(settings).state_dict(), Report())
