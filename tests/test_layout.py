"""A run goes on with other replicas, micro batches, device iterations or stages as if with the old ones.

What it is measured by is the run that kept its layout. Float32 sums are taken in another order, so what
may differ is rounding: 1e-6 of each tensor's largest number after four more updates.
"""

from __future__ import annotations

import shutil
from functools import lru_cache
from pathlib import Path
from typing import Callable, List, Tuple

import pytest
from tiny_runs import distance, losses, sentence, tensors, tiny_preset

from ipu_vit.__main__ import main
from ipu_vit.checkpoint import Checkpoint, Checkpoints

RUN = (
    "precision=float32",
    "optimizer.accumulator_type=float32",
    "pipeline.partials=float32",
    "model.dropout=0",
    "pipeline.global_batch=12",
    "pipeline.micro_batch=2",
    "schedule.updates=8",
    "schedule.lr=0.05",
    "schedule.curve=warmup_then_constant",
    "schedule.warmup=0",
    "averaging.decay=0.9",
    "averaging.every=2",
    "checkpoint.every=4",
)

LAYOUTS = {
    "replicas": ("pipeline.replicas=2",),
    "replicas and sharding": ("pipeline.replicas=2", "pipeline.replicated_tensor_sharding=true"),
    "no accumulation": ("pipeline.replicas=4", "pipeline.micro_batch=3"),
    "micro batch": ("pipeline.micro_batch=4",),
    "device iterations": ("pipeline.device_iterations=2",),
    "stages": ("pipeline.layers_per_ipu=[2,2]",),
    "all": ("pipeline.layers_per_ipu=[3,1]", "pipeline.replicas=2", "pipeline.micro_batch=1",
            "pipeline.device_iterations=2"),
}  # fmt: skip

# Attention has biases whose gradients are zero but for rounding, which Adam would make steps of: hence eps.
MOMENTS = (
    "optimizer.eps=0.001",
    "schedule.lr=0.001",
    "optimizer.first_moment_type=float32",
    "optimizer.second_moment_type=float32",
)

OPTIMIZERS = {
    "sgd": ("optimizer.momentum=0.9", "optimizer.velocity_type=float32"),
    "adamw": ("optimizer.name=adamw", *MOMENTS, "optimizer.max_grad_norm=1"),
    "lamb": ("optimizer.name=lamb", *MOMENTS),
}


def train(preset: Path, *overrides: str) -> int:
    return main(["train", str(preset), *RUN, *overrides])


def end_of(preset: Path) -> Checkpoint:
    checkpoint = Checkpoints(preset.parent / "run" / "checkpoints", keep=9).latest()
    assert checkpoint is not None and checkpoint.update == 8
    return checkpoint


def back_to_update_4(preset: Path) -> None:
    """Leave a run as it was after half of its updates."""
    checkpoints = Checkpoints(preset.parent / "run" / "checkpoints", keep=9)
    checkpoints.path(8).unlink()
    checkpoints.best.unlink()
    assert checkpoints.updates() == [4]


# Every change alone for one optimizer; for the others, which keep more state, the two that move most of it.
CASES = [("sgd", layout) for layout in LAYOUTS] + [
    (optimizer, layout) for optimizer in ("adamw", "lamb") for layout in ("replicas and sharding", "all")
]

Kept = Tuple[Path, List[str], Checkpoint]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Kept]:
    """Runs that kept their layout to the end: preset, settings of the optimizer and last checkpoint of each."""

    @lru_cache(maxsize=None)
    def of(optimizer: str) -> Kept:
        preset = tiny_preset(tmp_path_factory.mktemp("kept"))
        overrides = list(OPTIMIZERS[optimizer])
        assert train(preset, *overrides) == 0
        return preset, overrides, end_of(preset)

    return of


@pytest.mark.parametrize("optimizer, layout", CASES)
def test_same_run_on_another_layout(
    kept: Callable[[str], Kept], optimizer: str, layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, overrides, expected = kept(optimizer)
    preset = tmp_path / whole.name
    preset.write_text(whole.read_text().replace(f"{whole.parent}/run", f"{tmp_path}/run"))
    shutil.copytree(whole.parent / "run", tmp_path / "run")
    back_to_update_4(preset)
    assert train(preset, *overrides, *LAYOUTS[layout]) == 0
    said = capsys.readouterr().out
    for override in LAYOUTS[layout]:
        if "sharding" not in override:
            assert f"{override.replace(',', ', ')} in place of" in said
    assert "continuing after update 4 of 8" in said and "within rounding" in said
    found = end_of(preset)
    assert distance(tensors(found.model), tensors(expected.model)) <= 1e-6
    assert distance(tensors(found.average), tensors(expected.average)) <= 1e-6
    assert distance(tensors(found.optimizer), tensors(expected.optimizer)) <= 1e-5
    assert [line["update"] for line in losses(preset.parent / "run")][-1] == 8


def test_learning_rates_are_held_during_a_host_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """So with a curve, device iterations do change what is computed, and the user is told."""
    preset = tiny_preset(tmp_path)
    assert train(preset) == 0
    back_to_update_4(preset)
    assert train(preset, "pipeline.device_iterations=4") == 0
    assert "updates of one host call share a learning rate" in capsys.readouterr().out


def test_updates_that_are_left_have_to_divide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preset = tiny_preset(tmp_path)
    assert train(preset) == 0
    back_to_update_4(preset)
    capsys.readouterr()
    assert train(preset, "pipeline.device_iterations=8") == 2
    said = sentence(capsys.readouterr().err)
    assert "pipeline.device_iterations=8 does not divide the 4 updates that are left after the checkpoint" in said
    assert said.endswith("numbers that do: 1, 2, 4")


def test_same_layout_is_continued_to_the_last_bit(tmp_path: Path) -> None:
    """Dropout included: the random state counts where nothing has moved."""
    preset = tiny_preset(tmp_path)
    overrides = ["model.dropout=0.3", "pipeline.replicas=2"]
    assert train(preset, *overrides) == 0
    expected = end_of(preset)
    back_to_update_4(preset)
    assert train(preset, *overrides) == 0
    assert distance(tensors(end_of(preset).model), tensors(expected.model)) == 0


def test_other_layout_does_not_draw_the_numbers_of_the_beginning(tmp_path: Path) -> None:
    preset = tiny_preset(tmp_path)
    assert train(preset, "model.dropout=0.3") == 0
    beginning = Checkpoints(preset.parent / "run" / "checkpoints", keep=9).latest()
    back_to_update_4(preset)
    assert train(preset, "model.dropout=0.3", "pipeline.replicas=2") == 0
    assert beginning is not None and end_of(preset).rng_state[0] != beginning.rng_state[0]
