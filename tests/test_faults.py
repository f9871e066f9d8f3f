"""What goes wrong on machines, done to real runs: killed workers, jumping clocks, read-only disks, lost numbers."""

from __future__ import annotations

import datetime
import json
import os
import random
import re
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, List

import pytest
import torch
from test_resume import assert_equal
from tiny_runs import command, contents, losses, sentence, tiny_preset

import ipu_vit.report
import ipu_vit.train
from ipu_vit.__main__ import main
from ipu_vit.checkpoint import Checkpoints, read_checkpoint
from ipu_vit.data.lost_workers import naming_lost_workers


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    return tiny_preset(tmp_path)


def train(preset: Path, *overrides: str) -> int:
    return main(["train", str(preset), *overrides])


# --- loader workers ----------------------------------------------------------------------------------


def descendants(process: int) -> List[int]:
    """Processes that a process has started, and those that they have, eldest first."""
    children: List[int] = []
    for task in Path(f"/proc/{process}/task").iterdir():
        children += map(int, (task / "children").read_text().split())
    return children + [late for child in children for late in descendants(child)]


def is_loading(process: int) -> bool:
    """Whether a process is not just the one with which Python looks after shared memory."""
    return b"resource_tracker" not in Path(f"/proc/{process}/cmdline").read_bytes()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes as Linux lists them")
@pytest.mark.parametrize("place, kind, advice", [
    (-1, signal.SIGKILL, "fewer workers"), (-2, signal.SIGKILL, "fewer workers"),
    (-1, signal.SIGBUS, "a full /dev/shm"), (-2, signal.SIGBUS, "a full /dev/shm"),
])  # fmt: skip
def test_killed_loader_worker_is_named(
    preset: Path, place: int, kind: signal.Signals, advice: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Torch's worker, or the process that joins its batches: the last that were started."""
    folder, ended = preset.parent / "run", threading.Event()

    def kill() -> None:
        while len(losses(folder)) < 5:
            if ended.wait(0.01):
                return
        os.kill([one for one in descendants(os.getpid()) if is_loading(one)][place], kind)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        assert train(preset, "schedule.updates=100000", "checkpoint.every=2", "data.workers=1") == 2
    finally:
        ended.set()
        killer.join()
    err = capfd.readouterr().err
    said = sentence(err[err.index("error: ") :])
    assert said.startswith("data.workers=1: ") and re.search(r"killed by signal|exited unexpectedly", said)
    assert "checkpoints are untouched and the same command continues" in said and advice in said
    latest = Checkpoints(folder / "checkpoints", keep=3).latest()
    assert latest is not None and latest.update >= 4


def test_faults_of_ours_are_not_called_a_killed_worker() -> None:
    with pytest.raises(AssertionError, match="a fault of ours"):
        with naming_lost_workers(2):
            raise AssertionError("The data loader's worker process failed: ZeroDivisionError: a fault of ours")


# --- clocks ------------------------------------------------------------------------------------------


def test_clock_that_jumps_changes_nothing(preset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By years, both ways, at every look; and what is newest is told by its number, not by its date."""
    folder = preset.parent / "run"
    assert train(preset, "schedule.updates=8", f"output={preset.parent}/steady") == 0
    years = random.Random(1)

    class Jumping(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(years.randint(1970, 2100), 1, 1, tzinfo=tz)

    monkeypatch.setattr(time, "time", lambda: years.uniform(0, 4e9))
    monkeypatch.setattr(time, "time_ns", lambda: years.randint(0, 4 * 10**18))
    monkeypatch.setattr(ipu_vit.report, "datetime", Jumping)
    assert train(preset, "schedule.updates=8") == 0
    Checkpoints(folder / "checkpoints", keep=3).path(8).unlink()
    for age, path in enumerate(sorted((folder / "checkpoints").iterdir())):
        os.utime(path, (4e9 - 1e8 * age, 4e9 - 1e8 * age))  # the newest looks oldest
    assert train(preset, "schedule.updates=8") == 0
    assert "continuing after update 6 of 8" in (folder / "train.log").read_text()
    ours, theirs = (Checkpoints(preset.parent / name / "checkpoints", keep=3).latest() for name in ("run", "steady"))
    assert ours is not None and theirs is not None
    assert_equal(ours.model, theirs.model)
    assert losses(folder) == losses(preset.parent / "steady")


# --- checkpoints -------------------------------------------------------------------------------------


def test_run_goes_on_from_the_checkpoint_before_a_damaged_one(preset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(preset, "schedule.updates=6") == 0
    folder = preset.parent / "run"
    newest = folder / "checkpoints" / "update-00000006.safetensors"
    expected = read_checkpoint(newest)
    flipped = bytearray(newest.read_bytes())
    flipped[len(flipped) // 2] ^= 4
    newest.unlink()  # tensors may be read from it as they are needed
    newest.write_bytes(flipped)
    (folder / "result.json").unlink()
    capsys.readouterr()
    assert train(preset, "schedule.updates=6") == 0
    said = capsys.readouterr().out
    assert "update-00000006.safetensors is not a checkpoint" in said and "the checkpoint of update 4 is used" in said
    assert "continuing after update 4 of 6" in said
    assert newest.with_suffix(".damaged").read_bytes() == flipped
    assert_equal(vars(read_checkpoint(newest)), vars(expected))
    assert [line["update"] for line in losses(folder)] == list(range(1, 7))


# --- disks -------------------------------------------------------------------------------------------


def test_output_on_a_disk_that_has_become_read_only(preset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disk = preset.parent / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("only root can mount a disk")
    try:
        assert train(preset, f"output={disk}/run", "schedule.updates=4") == 0
        saved = contents(disk)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        capsys.readouterr()
        for overrides in ([], ["fresh=true"]):
            assert train(preset, f"output={disk}/run", "schedule.updates=4", *overrides) == 2
            said = sentence(capsys.readouterr().err)
            assert "Read-only file system" in said and str(disk) in said
        assert train(preset, f"output={disk}/another") == 2
        said = sentence(capsys.readouterr().err)
        assert f"output={disk}/another cannot be made a folder: Read-only file system" in said
        assert contents(disk) == saved
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_executable_cache_is_made_and_shared(preset: Path) -> None:
    cache = preset.parent / "deep" / "cache"
    arguments = [
        command(preset, f"output={preset.parent}/{name}", f"pipeline.executable_cache={cache}") for name in "ab"
    ]
    runs = [subprocess.Popen(each, stdout=subprocess.DEVNULL) for each in arguments]
    assert [each.wait(120) for each in runs] == [0, 0] and cache.is_dir()
    ours, theirs = (json.loads((preset.parent / name / "result.json").read_text()) for name in "ab")
    assert ours == theirs


def test_executable_cache_that_cannot_be_made(preset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(preset, "pipeline.executable_cache=/dev/null/cache") == 2
    assert "pipeline.executable_cache=/dev/null/cache cannot be made a folder" in sentence(capsys.readouterr().err)


# --- divergence --------------------------------------------------------------------------------------


def test_collapse_of_the_loss_scale_stops_the_run(
    preset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every gradient counts as one that overflows: the scale is halved by each update, 16, 8, ... 1/8, 1/16."""
    options_of = ipu_vit.train.training_options

    def options(*arguments: Any) -> Any:
        made = options_of(*arguments)
        made._Popart.set("automaticLossScalingSettings.binEdgeLocation", 0.0)
        return made

    monkeypatch.setattr(ipu_vit.train, "training_options", options)
    scaling = ["optimizer.automatic_loss_scaling=true", "optimizer.loss_scaling=16", "checkpoint.every=1"]
    assert train(preset, *scaling, "schedule.updates=50", "checkpoint.keep=20") == 2
    said = sentence(capsys.readouterr().err)
    assert "the automatic loss scale has fallen to 0.062 after update 8; the checkpoint of update 7 is kept" in said
    latest = Checkpoints(preset.parent / "run" / "checkpoints", keep=20).latest()
    assert latest is not None and latest.update == 7
    assert all(torch.isfinite(value).all() for value in latest.model.values())


def test_automatic_loss_scale_that_works_is_left_alone(preset: Path) -> None:
    assert (
        train(preset, "optimizer.automatic_loss_scaling=true", "optimizer.loss_scaling=16", "checkpoint.every=1") == 0
    )
