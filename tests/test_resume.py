"""A run that is killed, at whatever moment, and started again ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest
import torch
from tiny_runs import command, contents, losses, run, sentence, tiny_preset

from ipu_vit.__main__ import main
from ipu_vit.checkpoint import Checkpoint, Checkpoints, read_checkpoint

UPDATES = 10

# Kills at random moments, without loader workers and with one; docs/resuming.md has the command for many.
KILLS = int(os.environ.get("KILLS", "4"))

# Everything that is random: the order of images, augmentation, dropout, rounding; and two stages.
RANDOM_RUN = (
    f"schedule.updates={UPDATES}",
    "schedule.warmup=3",
    "evaluation.every=4",
    "model.dropout=0.2",
    "model.attention_dropout=0.1",
    "precision=float16",
    "pipeline.stochastic_rounding=true",
    "pipeline.layers_per_ipu=[2,2]",
    "pipeline.global_batch=6",
    "data.crop_area=[0.3,1.0]",
)


def train(preset: Path, *overrides: str) -> int:
    return main(["train", str(preset), *overrides])


def end_of(folder: Path) -> Tuple[Checkpoint, Checkpoint, List[Dict[str, float]]]:
    """The last checkpoint, the best one, and the losses of a run."""
    checkpoints = Checkpoints(folder / "checkpoints", keep=3)
    last = checkpoints.latest()
    assert last is not None
    return last, read_checkpoint(checkpoints.best), losses(folder)


def assert_equal(left: Any, right: Any) -> None:
    """Equal to the last bit, in whatever nesting."""
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype and torch.equal(left, right)
    elif isinstance(left, dict):
        assert list(left) == list(right)
        for key in left:
            assert_equal(left[key], right[key])
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for ours, theirs in zip(left, right):
            assert_equal(ours, theirs)
    else:
        assert left == right


def assert_same_end(folder: Path, reference: Path) -> None:
    for ours, theirs in zip(end_of(folder)[:2], end_of(reference)[:2]):
        assert_equal(vars(ours), vars(theirs))
    assert end_of(folder)[2] == end_of(reference)[2]
    assert [line["update"] for line in losses(folder)] == list(range(1, UPDATES + 1))
    assert (folder / "result.json").read_text() == (reference / "result.json").read_text()


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_preset(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def uninterrupted(preset: Path) -> Path:
    """The output folder of a run that nobody disturbed."""
    folder = preset.parent / "uninterrupted"
    assert train(preset, *RANDOM_RUN, f"output={folder}") == 0
    return folder


def compilations(folder: Path) -> int:
    """How often a run has come so far as to train, in its life."""
    log = folder / "train.log"
    return log.read_text().count("compiled in") if log.exists() else 0


def kill_once(arguments: List[str], log: Path, folder: Path, loading: bool) -> None:
    """Start a command and kill it at random: while it loads, or in what it does after compiling."""
    before = compilations(folder)
    with log.open("a") as file, subprocess.Popen(arguments, stdout=file, stderr=file) as process:
        while not loading and process.poll() is None and compilations(folder) == before:
            time.sleep(0.005)
        time.sleep(random.uniform(0, 3) if loading else random.uniform(0, 0.8))
        process.send_signal(signal.SIGKILL)
        assert process.wait() in (0, -signal.SIGKILL), log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_killed_at_random_moments(preset: Path, uninterrupted: Path, workers: int) -> None:
    """Wherever a kill finds it: loading, compiling, training, saving, evaluating."""
    folder = preset.parent / f"killed-{workers}"
    arguments = command(preset, *RANDOM_RUN, f"output={folder}", f"data.workers={workers}")
    log = preset.parent / f"killed-{workers}.log"
    for number in range(KILLS):
        kill_once(arguments, log, folder, loading=number % 4 == 3)
        if (folder / "result.json").exists():  # it has come to its end in spite of them: the next is another run
            assert_same_end(folder, uninterrupted)
            folder.rename(folder.with_name(f"{folder.name}-{number}"))
    left_over = folder / "checkpoints" / "update-00000099.safetensors.1.part"
    left_over.parent.mkdir(parents=True, exist_ok=True)
    left_over.write_bytes(b"half a checkpoint")
    assert main(arguments[3:]) == 0
    assert not left_over.exists()
    assert_same_end(folder, uninterrupted)


# Kills its own process while it saves the checkpoint of update 4, at a moment that is argument 1.
SUICIDE = """
import os, signal, sys
from ipu_vit.__main__ import main

moment, replace, fsync = sys.argv[1], os.replace, os.fsync

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def deadly_fsync(file):
    path = os.readlink(f"/proc/self/fd/{file}")
    if moment == "half written" and "update-00000004" in path:
        os.truncate(path, os.path.getsize(path) // 2)
        die()
    fsync(file)

def deadly_replace(source, target):
    last = "update-00000004" in str(target)
    if last and moment == "before it is renamed":
        die()
    replace(source, target)
    if last:
        die()

os.fsync, os.replace = deadly_fsync, deadly_replace
main(sys.argv[2:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment, continues_after", [
    ("half written", 2), ("before it is renamed", 2), ("after it is renamed", 4),
])  # fmt: skip
def test_killed_while_saving(
    preset: Path, uninterrupted: Path, moment: str, continues_after: int, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = preset.parent / moment.replace(" ", "-")
    arguments = command(preset, *RANDOM_RUN, f"output={folder}")
    killed = run([sys.executable, "-c", SUICIDE, moment, *arguments[3:]])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert main(arguments[3:]) == 0
    assert f"continuing after update {continues_after} of {UPDATES}" in capsys.readouterr().out
    assert_same_end(folder, uninterrupted)


# --- going on with other settings, or starting over --------------------------------------------------


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A preset that has been run to its end."""
    preset = tiny_preset(tmp_path)
    assert train(preset) == 0
    return preset


def test_other_settings_are_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(finished.parent)
    capsys.readouterr()
    assert train(finished, "schedule.lr=0.06") == 2
    assert "holds a run with schedule.lr=0.05, not 0.06" in sentence(capsys.readouterr().err)
    assert contents(finished.parent) == before


def test_finished_run_is_not_trained_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preset = tiny_preset(tmp_path)
    assert train(preset) == 0
    first, before = capsys.readouterr().out, contents(tmp_path / "run")
    assert train(preset) == 0
    again, after = capsys.readouterr().out, contents(tmp_path / "run")
    assert "throughput:" in first and "throughput:" not in again
    assert "all 4 updates are done already" in again
    assert first.splitlines()[-1] == again.splitlines()[-1]
    for name in before:
        if name != "train.log":
            assert after[name] == before[name], name


def test_fresh_puts_the_old_run_aside(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = finished.parent / "run"
    first, first_losses = contents(folder), losses(folder)
    assert train(finished, "fresh=true", "schedule.lr=0.06") == 0
    second, second_losses = contents(folder), losses(folder)
    assert "continuing" not in capsys.readouterr().out
    assert contents(folder.with_name("run.1")) == first
    assert second_losses != first_losses
    assert train(finished, "fresh=true") == 0
    assert contents(folder.with_name("run.1")) == first
    assert contents(folder.with_name("run.2")) == second
    assert losses(folder) == first_losses


def test_what_only_changes_the_speed_may_change(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(finished, "data.workers=1", "evaluation.micro_batch=3", "checkpoint.keep=5") == 0
    assert "all 4 updates are done already" in capsys.readouterr().out
