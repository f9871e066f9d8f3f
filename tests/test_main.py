"""The command line itself."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_runs import command, losses, run, sentence, tiny_preset

from ipu_vit.__main__ import main
from ipu_vit.config import list_presets


def test_help_lists_every_preset(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for name, text in list_presets():
        assert name in said and text in said


@pytest.mark.parametrize("arguments", [[], ["train"], ["fly", "quickstart"]])
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
