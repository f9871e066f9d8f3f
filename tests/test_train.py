"""Training: the arithmetic of one update, and what a user is told when a run cannot go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np
import poptorch
import pytest
import torch
import torch.nn.functional as F
from tiny_runs import (
    CLASSES,
    CPU,
    contents,
    losses,
    plain_model,
    random_weights,
    run,
    sentence,
    tiny_preset,
    truncate,
)
from torch import Tensor

import ipu_vit.train
from ipu_vit.__main__ import main
from ipu_vit.build import build_model
from ipu_vit.checkpoint import Checkpoints
from ipu_vit.emulator.runner import observe_micro_batches
from ipu_vit.optim import build_optimizer
from ipu_vit.options import training_options
from ipu_vit.parallel import place
from ipu_vit.settings import Settings
from ipu_vit.steps import TrainingStep
from ipu_vit.tracking.files import read_figures

# --- one update ------------------------------------------------------------------------------------

LR = 0.1


def float32_settings(images: int, replicas: int, micro_batch: int, label_smoothing: float) -> Settings:
    return Settings(
        precision="float32",
        model={"image_size": 8, "patch_size": 4, "width": 16, "depth": 4, "heads": 2, "mlp_width": 32, "classes": 5},
        data={"mean": (120.0, 130.0, 140.0), "std": (60.0, 50.0, 70.0), "evaluation_resize": 8},
        pipeline={
            "layers_per_ipu": [1, 1, 1, 1],
            "replicas": replicas,
            "global_batch": images,
            "micro_batch": micro_batch,
            "stochastic_rounding": False,
        },
        optimizer={"weight_decay": 0.01, "accumulator_type": "float32", "velocity_type": "float32"},
        loss={"label_smoothing": label_smoothing},
    )


def batch_of(images: int) -> Tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(images)
    pixels = torch.randint(0, 256, (images, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return pixels, torch.randint(0, 5, (images,), generator=generator)


def initial_model(settings: Settings) -> Any:
    model = build_model(settings).train()
    random_weights(model)
    return model


@lru_cache(maxsize=None)
def updated_plainly(images: int, label_smoothing: float) -> Dict[str, Tensor]:
    """The weights after one update of plain PyTorch in float64, the whole batch at once."""
    settings = float32_settings(images, 1, 1, label_smoothing)
    model = plain_model(settings, initial_model(settings).state_dict())
    names = dict(model.named_parameters())
    undecayed = [names.pop("embedding.class_token"), names.pop("embedding.position")]
    groups: List[Any] = [{"params": list(names.values()), "weight_decay": 0.01}, {"params": undecayed}]
    optimizer = torch.optim.SGD(groups, lr=LR, momentum=0.9)
    pixels, labels = batch_of(images)
    mean, std = (torch.tensor(settings_of).double().view(3, 1, 1) for settings_of in ((120, 130, 140), (60, 50, 70)))
    F.cross_entropy(model((pixels.double() - mean) / std), labels, label_smoothing=label_smoothing).backward()
    optimizer.step()
    return model.state_dict()


def splits(images: int, replicas: int) -> List[int]:
    """Every micro batch that cuts the images of a replica into 7 or more equal parts, as four stages need."""
    return [size for size in range(1, images) if images % (size * replicas) == 0 and images // (size * replicas) >= 7]


@pytest.mark.parametrize(
    "images, replicas, micro_batch",
    [(56 * replicas, replicas, size) for replicas in (1, 2, 4) for size in splits(56, 1)]
    + [(544, replicas, size) for replicas in (1, 2, 4) for size in splits(544, replicas)[-2:]],
)
def test_update_equals_that_of_the_whole_batch(images: int, replicas: int, micro_batch: int) -> None:
    """However a batch is cut into micro batches, accumulation and replicas, the pipeline's update is the same."""
    label_smoothing = 0.1 if images == 544 else 0.0
    settings = float32_settings(images, replicas, micro_batch, label_smoothing)
    assert splits(56, 1) == [1, 2, 4, 7, 8]
    model = initial_model(settings)
    place(model, settings.pipeline)
    optimizer = build_optimizer(model, settings.optimizer, LR)
    executor = poptorch.trainingModel(TrainingStep(model, settings), training_options(settings, CPU), optimizer)
    executor(*batch_of(images))
    executor.copyWeightsToHost()
    for name, expected in updated_plainly(images, label_smoothing).items():
        difference = (model.state_dict()[name].double() - expected).abs().max()
        assert difference <= 1e-6 * expected.abs().max(), name


# --- what stops a run ------------------------------------------------------------------------------


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    return tiny_preset(tmp_path)


def complaint(capsys: pytest.CaptureFixture[str], preset: Path, *overrides: str) -> str:
    """The one sentence that a run ends with."""
    capsys.readouterr()
    assert main(["train", str(preset), *overrides]) == 2
    return sentence(capsys.readouterr().err)


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["data.root=none"], ["data.root is not set"]),
        (["data.root=/nowhere"], ["data.root=/nowhere", "No such file"]),
        (["data.train_split=elsewhere"], ["data.root=", "images/elsewhere cannot be read"]),
        (["model.classes=4"], ["model.classes=4", "3 class folders", "set model.classes=3"]),
        (["weights=''"], ["weights is not set"]),
        (["weights=/nowhere.npz"], ["weights=/nowhere.npz does not exist"]),
        (["device=ipu"], ["device=ipu needs PopTorch"]),
        (["output=/dev/null/run"], ["output=/dev/null/run cannot be made a folder"]),
        (["output=/proc/run"], ["output=/proc/run cannot be made a folder"]),
    ],
)
def test_what_is_missing_is_named(
    preset: Path, overrides: List[str], words: List[str], capsys: pytest.CaptureFixture[str]
) -> None:
    said = complaint(capsys, preset, *overrides)
    for word in words:
        assert word in said
    assert not (preset.parent / "run").exists()


def test_empty_class_folder(preset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for image in (preset.parent / "images/train/bee").iterdir():
        image.unlink()
    assert "images/train/bee holds no image files" in complaint(capsys, preset)


def test_weights_that_are_none(preset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = preset.parent / "weights.npz"
    weights.write_bytes(b"PK\x03\x04 not weights at all")
    assert f"weights={weights}" in complaint(capsys, preset, f"weights={weights}")


DIVERGING = [
    (["optimizer.loss_scaling=1e30"], "the loss of update 2 is nan; no checkpoint had been saved"),
    (["optimizer.loss_scaling=1e30", "checkpoint.every=1"], "is no longer finite after update 1; no checkpoint"),
    (["schedule.lr=1e30", "schedule.warmup=3", "checkpoint.every=1", "precision=float32"], "of update 2 is kept"),
]


@pytest.mark.parametrize("overrides, words", DIVERGING)
def test_divergence_keeps_the_last_good_checkpoint(
    preset: Path, overrides: List[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = complaint(capsys, preset, "schedule.updates=20", *overrides)
    assert said.startswith("Training has diverged: ") and words in said
    assert "schedule.lr=" in said and "optimizer.loss_scaling=" in said
    kept = Checkpoints(preset.parent / "run/checkpoints", keep=3).latest()
    assert kept is None or all(torch.isfinite(tensor).all() for tensor in kept.model.values())


# --- a full disk -----------------------------------------------------------------------------------

# Starts a run that may write no file larger than argument 1.
SMALL_FILES = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
from ipu_vit.__main__ import main
sys.exit(main(sys.argv[2:]))
"""


def test_checkpoint_too_large_for_the_disk(preset: Path) -> None:
    assert main(["train", str(preset), "schedule.updates=2"]) == 0
    folder = preset.parent / "run"
    (folder / "settings.yml").write_text((folder / "settings.yml").read_text().replace("updates: 2", "updates: 4"))
    saved = contents(folder / "checkpoints")
    limit = max(map(len, saved.values())) - 1
    result = run([sys.executable, "-c", SMALL_FILES, str(limit), "train", str(preset)])
    assert result.returncode == 2, result.stderr
    said = sentence(result.stderr)
    assert "update-00000004.safetensors cannot be written: File too large" in said
    assert "earlier checkpoints are untouched" in said
    assert contents(folder / "checkpoints") == saved
    assert main(["train", str(preset)]) == 0
    assert len(losses(folder)) == 4


@pytest.mark.parametrize("spare", [0, 2000, 12_000])
def test_full_disk(preset: Path, spare: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever is the first that does not fit: one sentence, and what was saved is untouched."""
    disk = preset.parent / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=288k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    try:
        assert main(["train", str(preset), f"output={disk}/run", "schedule.updates=2"]) == 0
        settings = disk / "run/settings.yml"
        settings.write_text(settings.read_text().replace("updates: 2", "updates: 4"))
        saved = contents(disk / "run/checkpoints")
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize
        with (disk / "filler").open("wb") as filler:
            filler.write(bytes(max(0, free - spare)))
        said = complaint(capsys, preset, f"output={disk}/run")
        assert str(disk) in said and "No space left on device" in said
        assert contents(disk / "run/checkpoints") == saved
        (disk / "filler").unlink()
        assert main(["train", str(preset), f"output={disk}/run"]) == 0
        assert [line["update"] for line in losses(disk / "run")] == [1, 2, 3, 4]
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


# --- images that cannot be read --------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_training_images_are_left_out_and_named(
    preset: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    images = preset.parent / "images" / "train"
    truncate(images / "ant" / "1.JPEG")
    odd = os.fsencode(images / "bee") + b"/caf\xe9.JPEG"  # not UTF-8, as old archives have them
    os.rename(images / "bee" / "0.JPEG", odd)
    with open(odd, "wb"):
        pass
    assert main(["train", str(preset), f"data.workers={workers}", "schedule.updates=8"]) == 0
    said = capsys.readouterr().out
    assert "2 unreadable images were left out" in said
    assert str(images / "ant" / "1.JPEG") in said and "caf" in said
    assert len(losses(preset.parent / "run")) == 8


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_readable_stops_training(preset: Path, workers: int, capsys: pytest.CaptureFixture[str]) -> None:
    for name in CLASSES:
        for image in (preset.parent / "images" / "train" / name).iterdir():
            image.write_bytes(b"")
    said = complaint(capsys, preset, f"data.workers={workers}")
    assert "images that cannot be read" in said and "images/train" in said


# --- what a run leaves -----------------------------------------------------------------------------


def test_losses_are_written_per_host_step(preset: Path) -> None:
    overrides = ["pipeline.device_iterations=2", "schedule.updates=6", "schedule.lr=0.05", "schedule.warmup=0"]
    assert main(["train", str(preset), *overrides, "checkpoint.every=3"]) == 0
    lines = losses(preset.parent / "run")
    assert [line["update"] for line in lines] == [2, 4, 6]
    assert [line["lr"] for line in lines] == pytest.approx([0.025 * (1 + np.cos(np.pi * i / 6)) for i in (0, 2, 4)])
    assert all(0 < line["loss"] < 10 and 0 <= line["accuracy"] <= 1 for line in lines)
    # Every third update falls into a host step, which is saved once it has ended.
    assert Checkpoints(preset.parent / "run/checkpoints", keep=3).updates() == [4, 6]


def test_the_share_of_time_spent_waiting_for_data(preset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that is told: a batch of 4 images takes 3 s to come, and each of its 2 micro batches half a second."""
    now, loader_of = [100.0], ipu_vit.train.training_loader

    def pass_by(seconds: float) -> None:
        now[0] += seconds

    class Slow:
        def __init__(self, loader: Any) -> None:
            self.terminate, self.batches = loader.terminate, iter(loader)

        def __iter__(self) -> Any:
            for batch in self.batches:
                pass_by(3)
                yield batch

    monkeypatch.setattr(ipu_vit.train, "training_loader", lambda *arguments: Slow(loader_of(*arguments)))
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    with observe_micro_batches(lambda done, total: pass_by(0.5)):
        assert main(["train", str(preset), "evaluation.every=2"]) == 0
    steps = [line for line in read_figures(preset.parent / "run") if "train/loss" in line]
    assert [(s["train/data_wait"], s["train/seconds"], s["train/images_per_second"]) for s in steps] == [
        (0.75, 4, 1)
    ] * 4
    assert (preset.parent / "run/train.log").read_text().count("Mean data consumption ratio: 0.750") == 4


def test_training_learns(preset: Path) -> None:
    """Classes that differ in brightness are told apart."""
    overrides = ["schedule.updates=60", "schedule.lr=0.1", "model.dropout=0", "checkpoint.every=60"]
    assert main(["train", str(preset), *overrides]) == 0
    assert sum(line["loss"] for line in losses(preset.parent / "run")[-10:]) / 10 < 0.3  # from log 3
    result = json.loads((preset.parent / "run" / "result.json").read_text())
    assert (result["top1"], result["images"], result["update"]) == (1.0, 7, 60)
