"""Training on mixed images: what the pipeline computes of it, against plain PyTorch."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np
import poptorch
import pytest
import torch
import torch.nn.functional as F
from tiny_runs import CPU, losses, plain_model, random_weights, tiny_preset
from torch import Tensor, nn

from ipu_vit.__main__ import main
from ipu_vit.build import build_model
from ipu_vit.data.loader import training_loader
from ipu_vit.data.mixing import Mixing
from ipu_vit.data.ondevice import Mix
from ipu_vit.data.sources import open_sources
from ipu_vit.optim import build_optimizer
from ipu_vit.options import training_options
from ipu_vit.parallel import place
from ipu_vit.settings import Settings
from ipu_vit.steps import TrainingStep

LR, CLASSES, SIZE = 0.1, 5, 8
SIZES = {"patch_size": 4, "width": 16, "depth": 4, "heads": 2, "mlp_width": 32}


def settings_of(loss: Dict[str, Any], precision: str = "float32", **pipeline: Any) -> Settings:
    return Settings(
        precision=precision,
        model={**SIZES, "image_size": SIZE, "classes": CLASSES},
        data={"source": "generated", "generated_images": 40, "generated_size": None, "evaluation_resize": SIZE},
        augmentation={"mixup": 0.8, "cutmix": 1.0, "mix_probability": 0.9},
        pipeline={"layers_per_ipu": [1, 1, 1, 1], "stochastic_rounding": False, **pipeline},
        optimizer={"accumulator_type": precision, "velocity_type": precision},
        schedule={"updates": 4},
        loss=loss,
    )


def batch_of(images: int) -> Tuple[Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(images)
    draw = Mixing(SIZE, 0.8, 1.0, 0.9)
    return (
        torch.from_numpy(rng.integers(256, size=(images, 3, SIZE, SIZE), dtype=np.uint8)),
        torch.from_numpy(rng.integers(CLASSES, size=images)),
        torch.from_numpy(np.stack([draw(rng) for _ in range(images)])),
    )


def initial_model(settings: Settings) -> Any:
    model = build_model(settings).train()
    random_weights(model)
    return model


def mixed_one_by_one(batch: Tuple[Tensor, Tensor, Tensor], micro_batch: int) -> Tuple[Tensor, Tensor, Tensor]:
    """Normalised float64 images, targets, and the labels with the larger share, each image cut and pasted by itself."""
    pixels, labels, mixing = batch
    images = (pixels.double() - 127.5) / 127.5
    mixed, targets, larger = images.clone(), torch.zeros(len(labels), CLASSES).double(), labels.clone()
    for number, (amount, *box) in enumerate(mixing.tolist()):
        other = number + 1 if (number + 1) % micro_batch else number + 1 - micro_batch
        top, bottom, left, right = map(int, box)
        part = (number, slice(None), slice(top, bottom), slice(left, right))
        mixed[part] = torch.lerp(images[part], images[(other, *part[1:])], amount)
        share = amount * (bottom - top) * (right - left) / SIZE**2
        targets[number, labels[number]] += 1 - share
        targets[number, labels[other]] += share
        larger[number] = labels[other] if share > 0.5 else labels[number]
    return mixed, targets, larger


def smoothed(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, label_smoothing=0.1)


def sigmoid(logits: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1).mean()


LOSSES: Dict[str, Tuple[Dict[str, Any], Any]] = {
    "softmax": ({}, F.cross_entropy),
    "smoothed": ({"label_smoothing": 0.1}, smoothed),
    "sigmoid": ({"kind": "sigmoid"}, sigmoid),
}


@lru_cache(maxsize=None)
def updated_plainly(kind: str, images: int, micro_batch: int) -> Tuple[float, float, Dict[str, Tensor]]:
    """Loss, share of right predictions, and the weights after one update of plain PyTorch in float64."""
    loss_settings, loss_of = LOSSES[kind]
    settings = settings_of(loss_settings, global_batch=images, micro_batch=micro_batch)
    model = plain_model(settings, initial_model(settings).state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    mixed, targets, larger = mixed_one_by_one(batch_of(images), micro_batch)
    logits = model(mixed)
    loss = loss_of(logits, targets)
    loss.backward()
    optimizer.step()
    return loss.item(), float((logits.argmax(1) == larger).double().mean()), model.state_dict()


def updated(settings: Settings) -> Tuple[float, float, Dict[str, Tensor]]:
    """The same of the pipeline."""
    model = initial_model(settings)
    place(model, settings.pipeline)
    optimizer = build_optimizer(model, settings.optimizer, LR)
    executor = poptorch.trainingModel(TrainingStep(model, settings), training_options(settings, CPU), optimizer)
    loss, right = executor(*batch_of(settings.pipeline.global_batch))
    executor.copyWeightsToHost()
    return loss.mean().item(), right.mean().item(), model.state_dict()


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("micro_batch, replicas", [(2, 1), (3, 2), (4, 2)])
def test_update_is_that_of_images_mixed_one_by_one(kind: str, micro_batch: int, replicas: int) -> None:
    """Four IPUs, of which none may read what another reads, and gradients that begin at the mixed loss."""
    images = 7 * micro_batch * replicas
    settings = settings_of(LOSSES[kind][0], global_batch=images, micro_batch=micro_batch, replicas=replicas)
    (loss, right, weights), expected = updated(settings), updated_plainly(kind, images, micro_batch)
    assert loss == pytest.approx(expected[0], rel=1e-5)
    assert right == pytest.approx(expected[1], abs=1e-6)
    for name, tensor in expected[2].items():
        assert (weights[name].double() - tensor).abs().max() <= 2e-6 * tensor.abs().max(), name


def test_float16_is_near() -> None:
    settings = settings_of({}, "float16", global_batch=28, micro_batch=4)
    loss, _, weights = updated(settings)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert loss == pytest.approx(updated_plainly("softmax", 28, 4)[0], rel=0.02)


# Partners ------------------------------------------------------------------------------------------


class Shown(nn.Module):
    """Returns the mixed images, and a loss because training wants one."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = Mix(SIZE)
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor, labels: Tensor, mixing: Tensor) -> Tuple[Tensor, Any]:
        mixed = self.mix(images.float(), mixing)
        return mixed, poptorch.identity_loss((self.weight * mixed).mean(), "none")


def shown(**pipeline: Any) -> Tensor:
    """Every mixed image of a run, in order."""
    settings = settings_of({}, layers_per_ipu=[4], global_batch=16, **pipeline)
    options, model = training_options(settings, CPU), Shown()
    executor = poptorch.trainingModel(model, options, poptorch.optim.SGD(model.parameters(), lr=0.0))
    loader = training_loader(settings, options, open_sources(settings).training, 0)
    return torch.cat([executor(*batch)[0].clone() for batch in loader])


def test_partners_depend_on_the_micro_batch_alone() -> None:
    """However the rest is cut up: accumulation, replicas, device iterations."""
    reference = shown(micro_batch=4)
    assert reference.shape == (64, 3, SIZE, SIZE)
    for replicas, iterations in ((2, 1), (4, 1), (1, 4), (2, 2)):
        again = shown(micro_batch=4, replicas=replicas, device_iterations=iterations)
        assert torch.equal(again, reference), (replicas, iterations)
    assert not torch.equal(shown(micro_batch=2), reference)


# Runs ----------------------------------------------------------------------------------------------

MIXING = ("augmentation.mixup=0.8", "augmentation.cutmix=1.0", "augmentation.repeats=2")


def train(folder: Path, *overrides: str) -> List[Dict[str, float]]:
    """The losses of a tiny run."""
    assert main(["train", str(folder / "tiny.yml"), f"output={folder}/run", *overrides]) == 0
    return losses(folder / "run")


def test_a_run_learns_from_mixed_images(tmp_path: Path) -> None:
    """In float16; the classes differ in brightness, so even mixed ones can be told."""
    tiny_preset(tmp_path)
    lines = train(tmp_path, *MIXING, "model.dropout=0", "pipeline.global_batch=24", "pipeline.micro_batch=6",
                  "schedule.updates=30", "schedule.lr=0.1", "schedule.curve=warmup_then_constant",
                  "checkpoint.every=30")  # fmt: skip
    first, last = (np.mean([line["loss"] for line in part]) for part in (lines[:5], lines[-5:]))
    assert last < first - 0.1


def test_a_resumed_run_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    tiny_preset(tmp_path)
    expected = train(tmp_path, "data.workers=1", *MIXING)
    last = tmp_path / "run/checkpoints/update-00000004.safetensors"
    weights = last.read_bytes()
    last.unlink()
    assert train(tmp_path, *MIXING) == expected
    assert last.read_bytes() == weights


def test_a_rehearsal_mixes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(tiny_preset(tmp_path)), "rehearse=always", *MIXING]) == 0
    assert "The rehearsal of tiny has passed" in capsys.readouterr().out
