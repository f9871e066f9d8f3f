"""A run that averages its weights: what it keeps, continues from, and is scored by."""

from __future__ import annotations

from pathlib import Path
from typing import Dict

import pytest
import torch
from tiny_runs import settings_of, tiny_preset
from torch import Tensor

from ipu_vit.__main__ import main
from ipu_vit.build import build_model
from ipu_vit.checkpoint import read_checkpoint
from ipu_vit.weights.formats import open_weights

AVERAGING = ("averaging.decay=0.5", "averaging.every=1", "checkpoint.every=1", "checkpoint.keep=10")


def kept(folder: Path, update: int) -> Path:
    return folder / "run" / "checkpoints" / f"update-{update:08d}.safetensors"


def average_of(folder: Path, update: int) -> Dict[str, Tensor]:
    state = read_checkpoint(kept(folder, update)).average
    assert state is not None and state["update"] == update
    weights: Dict[str, Tensor] = state["weights"]
    return weights


def test_average_is_that_of_the_weights_after_each_update(tmp_path: Path) -> None:
    preset = tiny_preset(tmp_path)
    assert main(["train", str(preset), *AVERAGING]) == 0
    expected = {name: value.float() for name, value in build_model(settings_of(preset)).state_dict().items()}
    for update in range(1, 5):
        weights = read_checkpoint(kept(tmp_path, update)).model
        expected = {name: 0.5 * value + 0.5 * weights[name].float() for name, value in expected.items()}
        found = average_of(tmp_path, update)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value)
    assert any(not torch.equal(found[name], weights[name].float()) for name in found)


def test_continued_run_has_the_same_average(tmp_path: Path) -> None:
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        preset = tiny_preset(tmp_path / name)
        assert main(["train", str(preset), *AVERAGING]) == 0
        if name == "stopped":
            for update in (3, 4):
                kept(tmp_path / name, update).unlink()
            assert main(["train", str(preset), *AVERAGING]) == 0
    whole, stopped = (average_of(tmp_path / name, 4) for name in ("whole", "stopped"))
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


def test_what_is_read_from_its_checkpoint_is_the_average(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preset = tiny_preset(tmp_path)
    assert main(["train", str(preset), *AVERAGING]) == 0
    file, average = open_weights(str(kept(tmp_path, 4))), average_of(tmp_path, 4)
    assert file.shapes.keys() == average.keys()
    assert all(torch.equal(file.read(name), value) for name, value in average.items())

    [trained] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("After update 4: ")]
    assert main(["evaluate", str(preset), f"weights={kept(tmp_path, 4)}"]) == 0
    assert trained[len("After update 4: ") :] in capsys.readouterr().out
