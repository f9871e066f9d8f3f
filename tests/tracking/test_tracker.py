"""What a run leaves for those who watch it: TensorBoard, CSV, Weights & Biases."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any, Dict, List

import pytest
from event_files import read_events, scalars, text
from tiny_runs import contents, losses, sentence, tiny_preset

from ipu_vit.__main__ import main
from ipu_vit.tracking.files import read_figures

# A stand-in that writes down what it is told; the real one would ask for an account.
WANDB = """
import json
class Image:
    def __init__(self, picture):
        self.size = picture.size
class Run:
    def __init__(self, **options):
        self.summary, self.told = {}, []
        self.path = options["dir"] + "/wandb.json"
        self.told.append(options)
    def log(self, values, step):
        self.told.append({k: v.size if isinstance(v, Image) else v for k, v in {**values, "step": step}.items()})
    def finish(self):
        with open(self.path, "w") as file:
            json.dump([*self.told, self.summary], file)
def init(**options):
    return Run(**options)
"""
OPTIONS = ("tracking.csv=true", "evaluation.every=2", "evaluation.pictures=2")


def train(preset: Path, *overrides: str) -> Path:
    assert main(["train", str(preset), *OPTIONS, *overrides]) == 0
    return preset.parent / "run"


def rows(folder: Path) -> List[Dict[str, str]]:
    with (folder / "steps.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def timeless(lines: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """Lines without what is different each time."""
    changing = ("images_per_second", "seconds", "data_wait")
    return [{key: value for key, value in line.items() if not key.endswith(changing)} for line in lines]


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_preset(tmp_path_factory.mktemp("tracked"))


@pytest.fixture(scope="module")
def folder(preset: Path) -> Path:
    """A run from start to end."""
    return train(preset)


def test_tensorboard(folder: Path) -> None:
    curves = scalars(folder / "tensorboard")
    assert [step for step, _ in curves["train/loss"]] == [1, 2, 3, 4]
    for name in ("loss", "accuracy", "lr"):
        told = [line[name] for line in losses(folder)]
        assert [value for _, value in curves[f"train/{name}"]] == pytest.approx(told)
    assert all(value > 0 for _, value in curves["train/images_per_second"])
    assert all(0 <= value <= 1 for _, value in curves["train/data_wait"])
    assert [step for step, _ in curves["validation/top1"]] == [2, 4]
    assert curves["validation/top1"][-1][1] == pytest.approx(json.loads((folder / "result.json").read_text())["top1"])
    assert [step for step, _ in curves["health/gradient"]] == [2, 4]
    assert [step for step, _ in curves["health/change"]] == [4]  # since the checkpoint before
    (picture,) = read_events(folder / "tensorboard").Images("predictions")
    assert picture.encoded_image_string == (folder / "predictions.png").read_bytes()
    (split,) = text(folder / "tensorboard", "pipeline")
    assert "| 0 | embedding + layers 0-3 + head |" in split


def test_csv(folder: Path) -> None:
    assert [int(row["update"]) for row in rows(folder)] == [1, 2, 3, 4]
    for row, line in zip(rows(folder), losses(folder)):
        assert [float(row[name]) for name in ("loss", "accuracy", "lr")] == [line["loss"], line["accuracy"], line["lr"]]


@pytest.mark.parametrize("lost", [1, 2], ids=["one checkpoint", "all checkpoints"])
def test_what_is_computed_again_is_told_once(preset: Path, folder: Path, lost: int) -> None:
    """As after a kill: files that are ahead of the checkpoints, and cut off in the middle of a line."""
    killed = preset.parent / f"killed-{lost}"
    shutil.copytree(folder, killed)
    for checkpoint in sorted((killed / "checkpoints").glob("update-*"))[-lost:]:
        checkpoint.unlink()
    for name, torn in (("steps.csv", "5,1.0"), ("figures.jsonl", '{"update": 5, "tr')):
        with (killed / name).open("a") as file:
            file.write(torn)
    train(preset, f"output={killed}")
    assert timeless(read_figures(killed)) == timeless(read_figures(folder))
    assert timeless(rows(killed)) == timeless(rows(folder))  # type: ignore[arg-type]
    curves, reference = scalars(killed / "tensorboard"), scalars(folder / "tensorboard")
    for name in reference:
        if not name.endswith(("images_per_second", "seconds", "data_wait")):
            assert curves[name] == reference[name]


def test_finished_run_tells_nothing_new(preset: Path, folder: Path) -> None:
    again = preset.parent / "again"
    shutil.copytree(folder, again)
    before = scalars(again / "tensorboard"), read_figures(again), rows(again), (again / "about.json").read_bytes()
    train(preset, f"output={again}")
    assert before == (
        scalars(again / "tensorboard"),
        read_figures(again),
        rows(again),
        (again / "about.json").read_bytes(),
    )


def test_wandb(preset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(str(tmp_path))
    train(preset, "tracking.wandb=flowers", f"output={tmp_path}/run")
    options, *told, summary = json.loads((tmp_path / "run" / "wandb.json").read_text())
    assert (options["project"], options["name"], options["resume"]) == ("flowers", "tiny", "allow")
    assert options["config"]["schedule"]["lr"] == 0.05
    steps = [line["step"] for line in told]
    assert steps == sorted(steps)  # it drops what comes late
    assert [line["train/loss"] for line in told if "train/loss" in line] == [
        line["loss"] for line in losses(tmp_path / "run")
    ]
    assert "embedding" in summary["pipeline"] and "predictions" in told[-1]
    train(preset, "tracking.wandb=flowers", f"output={tmp_path}/run")
    again, *told, _ = json.loads((tmp_path / "run" / "wandb.json").read_text())
    assert again["id"] == options["id"] and not told
    monkeypatch.delitem(sys.modules, "wandb")


def test_wandb_is_missing(preset: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as Python marks what cannot be imported
    assert main(["train", str(preset), "tracking.wandb=flowers", f"output={preset.parent}/missing"]) == 2
    assert "tracking.wandb=flowers needs the package wandb" in sentence(capsys.readouterr().err)


def test_about_and_all_files_keep_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file of the run holds a secret that was in a path, an address or the environment; and it continues."""
    secret = "correct-horse-battery"
    home = tmp_path / secret
    home.mkdir()
    preset = tiny_preset(home)
    monkeypatch.setenv("STORAGE_PASSWORD", secret)
    monkeypatch.setenv("POPLAR_TOKEN", "abc")
    monkeypatch.setenv("POPLAR_ENGINE_OPTIONS", "{}")
    output = f"output={tmp_path}/run"
    assert main(["train", str(preset), *OPTIONS, output]) == 0
    assert main(["train", str(preset), *OPTIONS, output]) == 0
    assert main(["report", str(tmp_path / "run")]) == 0
    for name, content in contents(tmp_path / "run").items():
        assert secret.encode() not in content, name
    about = json.loads((tmp_path / "run" / "about.json").read_text())["environment"]
    assert about["POPLAR_TOKEN"] == "***" and about["POPLAR_ENGINE_OPTIONS"] == "{}"
    assert "STORAGE_PASSWORD" not in about
