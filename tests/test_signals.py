"""SIGTERM ends a run well: the host step at hand is finished, saved and told, and a resumed run has lost nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Callable, Iterator, List

import pytest
from test_resume import RANDOM_RUN, UPDATES, assert_same_end
from tiny_runs import command, losses, tiny_preset

from ipu_vit.__main__ import main
from ipu_vit.checkpoint import Checkpoints
from ipu_vit.evaluate import Evaluator
from ipu_vit.report import Report
from ipu_vit.signals import Terminated, Termination


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    return tiny_preset(tmp_path)


def started(arguments: List[str], moment: Callable[[], bool]) -> subprocess.Popen[str]:
    """A run, in a group of its own with its workers, at the moment that is awaited."""
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    given_up = time.monotonic() + 120
    while not moment():
        assert process.poll() is None and time.monotonic() < given_up, process.communicate()
        time.sleep(0.005)
    return process


@pytest.mark.parametrize("whole_group", [False, True])
def test_sigterm_saves_the_step_at_hand(preset: Path, whole_group: bool) -> None:
    """To the process alone, or to its loader workers too, as Slurm does it."""
    folder = preset.parent / "run"
    arguments = command(preset, "schedule.updates=100000", "checkpoint.every=50000", "data.workers=1")
    process = started(arguments, lambda: len(losses(folder)) >= 3)
    (os.killpg if whole_group else os.kill)(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "error:" not in err, err  # torch's own workers may grumble
    saved = Checkpoints(folder / "checkpoints", keep=3).updates()
    assert len(saved) == 1 and saved[0] == losses(folder)[-1]["update"] >= 3
    last = out.splitlines()[-1]
    assert last == f"ended by SIGTERM; the checkpoint of update {saved[0]} is kept; the same command continues the run"
    assert not (folder / "result.json").exists()


@pytest.mark.parametrize("owner, name, count, kept", [
    (Report, "host_step", 3, 3), (Evaluator, "score", 1, 4),
    (Checkpoints, "save", 2, 4), (Evaluator, "score", 3, UPDATES),
], ids=["in a step", "in an evaluation", "in saving", "at the end"])  # fmt: skip
def test_resumed_run_is_the_same_to_the_last_bit(
    preset: Path, uninterrupted: Path, owner: Any, name: str, count: int, kept: int,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    whole, calls = getattr(owner, name), []

    def warned(*arguments: Any, **options: Any) -> Any:
        calls.append(name)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(*arguments, **options)

    monkeypatch.setattr(owner, name, warned)
    arguments = ["train", str(preset), *RANDOM_RUN, "checkpoint.keep=20"]
    assert main(arguments) == 0
    assert f"ended by SIGTERM; the checkpoint of update {kept} is kept" in capsys.readouterr().out
    assert Checkpoints(preset.parent / "run" / "checkpoints", keep=20).updates()[-1] == kept
    assert main(arguments) == 0
    assert_same_end(preset.parent / "run", uninterrupted)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    preset = tiny_preset(tmp_path_factory.mktemp("tiny"))
    assert main(["train", str(preset), *RANDOM_RUN]) == 0
    return preset.parent / "run"


# --- the room itself ---------------------------------------------------------------------------------


@pytest.fixture
def handler() -> Iterator[Any]:
    before = signal.getsignal(signal.SIGTERM)
    yield before
    signal.signal(signal.SIGTERM, before)


def test_terminated_once_however_often_it_is_asked_to(handler: Any) -> None:
    done = []
    with pytest.raises(Terminated):
        with Termination() as termination:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                done.append(termination.heard)
    os.kill(os.getpid(), signal.SIGTERM)  # by a launcher that was slow to pass it on
    assert done == [True]


def test_terminated_at_once_or_when_what_is_deferred_is_done(handler: Any) -> None:
    done = []
    with pytest.raises(Terminated):
        with Termination() as termination:
            with termination.deferred():
                os.kill(os.getpid(), signal.SIGTERM)
                done.append(termination.agreed())
    assert done == [True]
    with pytest.raises(Terminated):
        with Termination():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append(False)
    assert done == [True]


def test_nothing_is_left_behind_where_nobody_asked(handler: Any) -> None:
    with Termination() as termination, termination.deferred():
        assert signal.getsignal(signal.SIGTERM) != handler
    assert signal.getsignal(signal.SIGTERM) == handler


def test_an_error_in_what_is_deferred_goes_before(handler: Any) -> None:
    with pytest.raises(ValueError, match="full disk"):
        with Termination() as termination:
            with termination.deferred():
                os.kill(os.getpid(), signal.SIGTERM)
                raise ValueError("full disk")


def test_other_threads_do_without() -> None:
    results: List[bool] = []

    def work() -> None:
        with Termination() as termination, termination.deferred():
            results.append(termination.agreed())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == [False]
