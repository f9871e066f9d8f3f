"""The lines that the SDK's benchmark scripts read, and the log."""

from __future__ import annotations

import io
import json
import re
import time
from pathlib import Path
from typing import List

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tiny_runs import settings_of, tiny_preset

from ipu_vit.__main__ import main
from ipu_vit.build import build_model
from ipu_vit.report import HostStep, Report, show_plan
from ipu_vit.scores import Score

# The regular expressions of the SDK's benchmark specifications.
THROUGHPUT = r"throughput: *(.*?) samples\/sec"
LOSS = r"loss: *(\d*\.\d*)"
ACCURACY = r"Valid Accuracy: *(\d+\.\d+)"


def figures(pattern: str, text: str) -> List[float]:
    return [float(found) for line in text.splitlines() for found in re.findall(pattern, line)]


@given(loss=st.floats(0, 1e4), rate=st.floats(1e-3, 1e5), lr=st.floats(1e-9, 10), seconds=st.floats(1e-4, 1e4))
def test_host_step_reads_as_it_was(loss: float, rate: float, lr: float, seconds: float) -> None:
    """One throughput and one loss a line, without exponents, which the expressions would cut off."""
    step = HostStep(1.5, 3, 10, lr, loss, 0.25, rate, seconds, 0.125)
    (found,) = figures(THROUGHPUT, step.line)
    assert found == pytest.approx(rate, abs=0.005)
    (found,) = figures(LOSS, step.line)
    assert found == pytest.approx(loss, abs=5e-5)
    assert "Step: 3/10 " in step.line and not figures(ACCURACY, step.line)


def test_score_reads_as_it_was() -> None:
    score = Score(0.981234, 0.99951, 50_000, np.zeros(0))
    assert "Valid Accuracy: 0.98123" in str(score)
    assert figures(ACCURACY, str(score)) == [0.98123]
    assert not figures(LOSS, str(score)) and not figures(THROUGHPUT, str(score))


def test_time_left_is_told_by_a_clock_that_never_jumps() -> None:
    with Report(console=Console(file=io.StringIO(), force_terminal=True)).progress("training", total=2) as bar:
        before = time.monotonic()
        told = bar.get_time()
        assert before <= told <= time.monotonic()


def test_output_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exactly one figure per host step, whatever else is printed; the accuracy is the last one."""
    preset = tiny_preset(tmp_path)
    assert main(["train", str(preset), "evaluation.every=2"]) == 0
    said = capsys.readouterr().out
    assert len(figures(THROUGHPUT, said)) == len(figures(LOSS, said)) == 4
    assert len(figures(ACCURACY, said)) == 2
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert figures(ACCURACY, said)[-1] == pytest.approx(result["top1"], abs=5e-6)
    log = (tmp_path / "run" / "train.log").read_text(encoding="utf-8")
    assert figures(THROUGHPUT, log) == figures(THROUGHPUT, said)
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} ", line) for line in log.splitlines())


def test_terminal_has_a_bar_instead_of_lines(tmp_path: Path) -> None:
    screen = io.StringIO()
    report = Report(tmp_path / "log", Console(file=screen, force_terminal=True, width=120))
    with report.progress("training", 10):
        report.host_step(HostStep(1.5, 7, 10, 0.1, 2.5, 0.25, 100.0, 0.1, 0.1))
    report.close()
    assert "7/10" in screen.getvalue() and "loss 2.500" in screen.getvalue()
    assert "throughput" not in screen.getvalue()
    assert "throughput: 100.00 samples/sec" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_text_can_be_said(tmp_path: Path, encoding: str) -> None:
    """File names of other encodings, and terminals that know few characters, stop no run."""
    screen = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    report = Report(tmp_path / "log", Console(file=screen))
    report.say("micro batch 2 × 8 in caf\udce9/[bold]x")
    settings = settings_of(tiny_preset(tmp_path))
    show_plan(report, settings, build_model(settings), 13)
    screen.flush()
    said = screen.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert "micro batch 2 " in said and "[bold]x" in said and "embedding + layers 0-3" in said
    assert "×" in (tmp_path / "log").read_text(encoding="utf-8")


def test_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Micro batches in flight: a stage's forward pass waits for its backward pass, there and back again."""
    settings = settings_of(tiny_preset(tmp_path), "pipeline.layers_per_ipu=[1,1,1,1]", "pipeline.global_batch=14")
    report = Report(tmp_path / "log")
    show_plan(report, settings, build_model(settings), 28)
    log = (tmp_path / "log").read_text()
    assert [line.split(" | ")[-1] for line in log.splitlines() if " | " in line] == ["7", "5", "3", "1"]
    assert "batch 14 = micro batch 2 × accumulation 7 × replicas 1; 4 updates over 28 images are 2.0 epochs" in log
