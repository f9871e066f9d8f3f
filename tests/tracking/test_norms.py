"""Norms from what the optimizer keeps, against the gradient that moved the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Tuple

import pytest
import torch
from tiny_runs import CPU, settings_of, tiny_preset

from ipu_vit.checkpoint import Checkpoint
from ipu_vit.settings import OptimizerSettings
from ipu_vit.tracking.norms import health
from ipu_vit.train import Trainer

FLOAT32 = ("precision=float32", "optimizer.accumulator_type=float32")
OTHERS = {
    "sgd": ("optimizer.momentum=0.7", "optimizer.velocity_type=float32"),
    "adam": ("optimizer.betas=[0.8,0.9]",),
    "adamw": ("optimizer.weight_decay=0.1",),
    "lamb": (),
    "rmsprop": ("optimizer.alpha=0.9",),
}


def first_update(preset: Path, *overrides: str) -> Tuple[Trainer, Dict[str, torch.Tensor], Checkpoint]:
    trainer = Trainer(settings_of(preset, "schedule.updates=1", *FLOAT32, *overrides), CPU)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.run()
    return trainer, before, trainer.checkpoint()


def test_gradient_of_every_optimizer(tmp_path: Path) -> None:
    """After one update all averages are the gradient, which plain SGD shows: it moves the weights by lr times it."""
    preset = tiny_preset(tmp_path)
    _, before, moved = first_update(preset, "optimizer.momentum=0", f"output={tmp_path}/plain")
    step = sum(float((moved.model[name] - before[name]).double().square().sum()) for name in before) ** 0.5
    for name, overrides in OTHERS.items():
        trainer, before, checkpoint = first_update(
            preset, f"optimizer.name={name}", *overrides, f"output={tmp_path}/{name}"
        )
        figures = health(checkpoint, before, trainer.settings.optimizer)
        assert figures["health/gradient"] == pytest.approx(step / 0.05, rel=1e-3), name
        assert figures["health/loss_scale"] == 256


def test_plain_sgd_keeps_no_gradient(tmp_path: Path) -> None:
    trainer, before, checkpoint = first_update(tiny_preset(tmp_path), "optimizer.momentum=0")
    figures = health(checkpoint, before, trainer.settings.optimizer)
    assert set(figures) == {"health/weights", "health/change", "health/loss_scale"}


def test_norms_of_known_tensors() -> None:
    """A velocity that constant gradients (3, 4) have filled over 5 updates: 5 long, however short the average."""
    momentum, updates, scale = 0.9, 5, 64.0
    velocity = torch.tensor([3.0, 4.0]) * scale * sum(momentum**age for age in range(updates))
    state = {"ipu_state": {"Accl1___w": velocity, "lossScaleUpdateFactor": torch.tensor(0.5)}}
    checkpoint = Checkpoint(updates, {"w": torch.tensor([6.0, 8.0]), "count": torch.tensor(7)}, state, [])
    optimizer = OptimizerSettings(momentum=momentum, loss_scaling=scale)
    assert health(checkpoint, {"w": torch.tensor([6.0, 5.0])}, optimizer) == pytest.approx(
        {"health/weights": 10.0, "health/change": 3.0, "health/gradient": 5.0, "health/loss_scale": 32.0}
    )
    assert "health/change" not in health(checkpoint, None, optimizer)
