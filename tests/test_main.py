"""The command line itself."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
import torch
from tiny_runs import command, losses, run, sentence, tiny_preset

from ipu_vit.__main__ import main
from ipu_vit.config import list_presets, load_settings
from ipu_vit.models import build


def test_help_lists_every_preset(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for name, text in list_presets():
        assert name in said and text in said


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["train"],
        ["fly", "quickstart"],
        ["plan", "quickstart", "--fast"],
        ["predict", "quickstart"],
        ["predict", "quickstart", "a.jpg", "--top", "3", "b.jpg", "--fast"],
        ["convert", "a", "b", "c", "--to", "timm"],
    ],
)
def test_wrong_use(arguments: list, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[type-arg]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: " in capsys.readouterr().err


@pytest.mark.parametrize("override", ["schedule.lr=fast", "data.root=/nowhere"])
def test_errors_are_a_sentence_in_a_real_process(tmp_path: Path, override: str) -> None:
    result = run(command(tiny_preset(tmp_path), override))
    assert result.returncode == 2 and result.stdout == ""
    assert override in sentence(result.stderr)


def test_plan_trains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tiny_preset(tmp_path)), "pipeline.layers_per_ipu=[2,2]", "pipeline.global_batch=6"]) == 0
    said = capsys.readouterr().out
    assert "embedding + layers 0-1" in said and "layers 2-3 + head" in said and "accumulation 3" in said
    assert not (tmp_path / "run").exists()


def test_reader_that_has_gone(tmp_path: Path) -> None:
    """As in `python -m ipu_vit --help | head -1`."""
    result = run(["bash", "-c", f"set -o pipefail; {sys.executable} -m ipu_vit --help | head -1"])
    assert result.stderr == "" and result.stdout.startswith("usage: ")


def accept_interrupts() -> None:
    """Shells have what they start in the background ignore interrupts, tests and their processes included."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_interrupted_run_says_how_to_go_on(tmp_path: Path) -> None:
    preset = tiny_preset(tmp_path)
    arguments = command(preset, "schedule.updates=100000")
    with subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=accept_interrupts
    ) as process:
        given_up = time.monotonic() + 120
        while len(losses(tmp_path / "run")) < 3:
            assert process.poll() is None and time.monotonic() < given_up
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 130, said
    assert said == "interrupted; the same command continues from the last checkpoint\n"


def test_interrupted_evaluation_promises_nothing(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "ipu_vit", "evaluate", str(tiny_preset(tmp_path)), "data=generated"]
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=accept_interrupts
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "weights: random initial values\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert (process.returncode, said) == (130, "interrupted\n")


def test_convert_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shipped = Path(__file__).parents[1] / "weights" / "vit_glyphs.npz"
    there, back = tmp_path / "vit", tmp_path / "back.npz"
    assert main(["convert", str(shipped), str(there), "--to", "huggingface"]) == 0
    assert str(there) in capsys.readouterr().out
    assert main(["convert", str(there), str(back), "--to", "google"]) == 0
    with numpy.load(shipped) as first, numpy.load(back) as second:
        assert first.files and set(first.files) == set(second.files)
        assert all((first[name].astype(second[name].dtype) == second[name]).all() for name in first.files)


def test_a_run_is_converted_by_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(tiny_preset(tmp_path))]) == 0
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "vit.pth"), "--to", "timm"]) == 0
    assert "checkpoints/best.safetensors (checkpoint) as timm: " in capsys.readouterr().out
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "vit"), "--to", "tensorflow"]) == 2
    assert "to=tensorflow is not a format that can be written; accepted: huggingface, " in capsys.readouterr().err


def test_convert_of_nothing_is_a_sentence(tmp_path: Path) -> None:
    result = run([sys.executable, "-m", "ipu_vit", "convert", "/nowhere", str(tmp_path / "x"), "--to", "timm"])
    assert result.returncode == 2 and "/nowhere does not exist" in sentence(result.stderr)


@pytest.mark.parametrize("chosen", ["ViT-Ti/16", "R+ViT-Ti/16", "Mixer-B/16"])
def test_listed_models_are_settings(chosen: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is printed, typed after a preset, makes a model with the printed number of parameters."""
    assert main(["models"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.split()[0] == chosen]
    _, millions, _, *overrides = line.split()
    settings = load_settings(
        "vit_b16_ft_4xb544", [*overrides, "weights=none", "model.dropout=0", "model.image_size=224"]
    )
    with torch.device("meta"):
        model = build(**settings.model.model_dump())
    assert abs(sum(parameter.numel() for parameter in model.parameters()) / 1e6 - float(millions)) < 0.006


def test_presets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [name for name, _ in list_presets()]
