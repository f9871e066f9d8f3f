"""How several processes end when one of them is asked to, or is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Dict, List

import pytest
from launching import ENVIRONMENT, horovodrun
from tiny_runs import losses, tiny_preset

from ipu_vit.checkpoint import Checkpoints

psutil = pytest.importorskip("psutil")  # which comes with Horovod

LONG = ["schedule.updates=100000", "pipeline.replicas=2", "pipeline.global_batch=4", "data.workers=1"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_preset(tmp_path)
    return tmp_path


def started(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    """A run of two processes that has come to its third update."""
    command = horovodrun(2, "-m", "ipu_vit", "train", str(folder / "tiny.yml"), *LONG, *overrides)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **ENVIRONMENT}
    )
    given_up = time.monotonic() + 120
    while len(losses(folder / "run")) < 3:
        assert process.poll() is None and time.monotonic() < given_up, process.communicate()
        time.sleep(0.05)
    return process


def all_of(launcher: subprocess.Popen[str]) -> Dict[int, Any]:
    """The two processes of the run, by their number."""
    found = {}
    for process in psutil.Process(launcher.pid).children(recursive=True):
        command = process.cmdline()
        if command[1:4] == ["-m", "ipu_vit", "train"]:
            found[int(process.environ()["HOROVOD_RANK"])] = process
    return found


def family(launcher: subprocess.Popen[str]) -> List[Any]:
    return psutil.Process(launcher.pid).children(recursive=True)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_sigterm_to_one_saves_and_ends_all(folder: Path, rank: int) -> None:
    launcher = started(folder, "checkpoint.every=50000")
    all_of(launcher)[rank].send_signal(signal.SIGTERM)
    out, err = launcher.communicate(timeout=60)
    assert launcher.returncode == 0, err
    saved = Checkpoints(folder / "run" / "checkpoints", keep=3).updates()
    assert len(saved) == 1 and saved[0] == losses(folder / "run")[-1]["update"] >= 3
    assert out.count(f"ended by SIGTERM; the checkpoint of update {saved[0]} is kept") == 1


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_all(folder: Path, rank: int) -> None:
    """Soon, with a word from the other one, and no loader's worker left behind."""
    launcher = started(folder, "checkpoint.every=1")
    before = family(launcher)
    all_of(launcher)[rank].kill()
    began = time.monotonic()
    _, err = launcher.communicate(timeout=60)
    _, alive = psutil.wait_procs(before, timeout=30)
    assert launcher.returncode != 0 and not alive and time.monotonic() - began < 30
    assert "another process has ended; the checkpoint of update" in err and "stderr>:Traceback" not in err, err
