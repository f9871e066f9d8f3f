"""Two runs in one output folder: the second is refused, whatever became of the first."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, List

import pytest
from tiny_runs import command, contents, run, sentence, settings_of, tiny_preset

from ipu_vit.__main__ import main
from ipu_vit.errors import UserError
from ipu_vit.lock import FolderLock
from ipu_vit.run_folder import RunFolder

HOLD = """
import sys
from pathlib import Path
from ipu_vit.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def holding(folder: Path, arguments: List[str]) -> subprocess.Popen[str]:
    """Another process that has the folder."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([*arguments, str(folder)], stdin=pipe, stdout=pipe, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    return tiny_preset(tmp_path)


@pytest.mark.parametrize("overrides", [[], ["fresh=true"]])
def test_second_run_is_refused_by_the_name_of_the_first(preset: Path, overrides: List[str]) -> None:
    folder = preset.parent / "run"
    assert main(["train", str(preset)]) == 0
    with holding(folder, [sys.executable, "-c", HOLD]) as first:
        before = contents(folder)
        second = run(command(preset, *overrides))
        said = sentence(second.stderr)
        assert second.returncode == 2
        assert f"output={folder} is in use by process {first.pid} on {socket.gethostname()}" in said
        assert contents(folder) == before and not folder.with_name("run.1").exists()
        first.send_signal(signal.SIGKILL)
    assert main(["train", str(preset), *overrides]) == 0  # a killed run leaves nothing behind


def test_children_do_not_keep_the_lock(preset: Path) -> None:
    """Processes that a killed run has started may outlive it for a while."""
    folder = preset.parent / "run"
    folder.mkdir()
    outliving = HOLD.replace("print(", "import subprocess; subprocess.Popen(['sleep', '60'])\nprint(")
    with holding(folder, [sys.executable, "-c", outliving]) as first:
        child = int(Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text())
        first.send_signal(signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL
        os.kill(child, 0)  # is there
        FolderLock(folder).release()
        os.kill(child, signal.SIGKILL)


def test_released_once_closed_or_forgotten(preset: Path) -> None:
    folder = RunFolder(settings_of(preset))
    with pytest.raises(UserError, match=f"in use by process {os.getpid()} on"):
        RunFolder(settings_of(preset))
    folder.close()
    folder = RunFolder(settings_of(preset))
    del folder
    RunFolder(settings_of(preset)).close()


def test_file_system_without_locks(
    preset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As Lustre without `-o flock`: the run goes on, and says so."""

    def refuse(*arguments: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert main(["train", str(preset)]) == 0
    assert "this file system has no locks" in capsys.readouterr().out


def test_interrupted_run_lets_others_in(preset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that ends in an error, in a process that goes on."""
    assert main(["train", str(preset), "schedule.lr=1e30", "precision=float32", "schedule.updates=20"]) == 2
    assert main(["train", str(preset), "fresh=true"]) == 0
