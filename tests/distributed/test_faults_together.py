"""What goes wrong on machines, done to runs of two processes: both end with code 2, and one of them says why."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest
from launching import Ended, run_jobs
from test_resume import assert_equal
from tiny_runs import contents, losses, sentence, tiny_preset

from ipu_vit.__main__ import main
from ipu_vit.checkpoint import Checkpoints
from ipu_vit.lock import FolderLock

DISKS = {"read-only": "size=1m", "full": "size=20k", "filling": "size=300k"}
RUN = ["schedule.updates=8", "checkpoint.every=1", "checkpoint.keep=20", "pipeline.replicas=2"]


class Faults:
    """Jobs of two processes, with disks that cannot take all of it, and how they have ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.preset = tiny_preset(folder)
        self.disks = {name: folder / name for name in DISKS}
        self.mounted = all(self._mount(name) for name in DISKS)
        self.ended: Dict[str, List[Ended]] = {}

    def _mount(self, name: str) -> bool:
        self.disks[name].mkdir()
        command = ["mount", "-t", "tmpfs", "-o", DISKS[name], "tmpfs", str(self.disks[name])]
        return subprocess.run(command, capture_output=True).returncode == 0

    def remount(self, name: str, option: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{option}", str(self.disks[name])], check=True)

    def unmount(self) -> None:
        for disk in self.disks.values():
            subprocess.run(["umount", "--lazy", str(disk)], capture_output=True)

    def train(self, *overrides: str) -> List[str]:
        return ["train", str(self.preset), *RUN, *overrides]

    def run(self) -> None:
        jobs: Dict[str, Any] = {
            "steady": {"arguments": self.train("output=steady", f"pipeline.executable_cache={self.folder}/deep/cache")},
            "clock": {"arguments": self.train("output=clock"), "other": {"0": ["clock"], "1": ["clock"]}},
            "in use": {"arguments": self.train(f"output={self.folder}/used")},
        }
        if self.mounted:
            self.remount("read-only", "ro")
            jobs.update({name: {"arguments": self.train(f"output={self.disks[name]}/run")} for name in DISKS})
        (self.folder / "used").mkdir()
        lock = FolderLock(self.folder / "used")
        self.ended = dict(zip(jobs, run_jobs(2, self.folder, list(jobs.values()))))
        lock.release()

    def refusal(self, name: str) -> str:
        """The one sentence that is told of a job that failed."""
        first, second = self.ended[name]
        assert first.code == second.code == 2 and second.err == "", self.ended[name]
        return sentence(first.err)


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faults]:
    faults = Faults(tmp_path_factory.mktemp("faults"))
    try:
        faults.run()
        yield faults
    finally:
        faults.unmount()


@pytest.fixture
def disks(faults: Faults) -> Faults:
    if not faults.mounted:
        pytest.skip("only root can mount a disk")
    return faults


@pytest.mark.slow
@pytest.mark.parametrize("name, words", [("read-only", "Read-only file system"), ("full", "No space left on device")])
def test_disk_that_takes_nothing(disks: Faults, name: str, words: str) -> None:
    said = disks.refusal(name)
    assert words in said and str(disks.disks[name]) in said


@pytest.mark.slow
def test_disk_that_becomes_full(disks: Faults) -> None:
    """What has been saved before is whole, and the run goes on where there is room."""
    said, run = disks.refusal("filling"), disks.disks["filling"] / "run"
    assert "No space left on device" in said and str(run) in said
    saved = Checkpoints(run / "checkpoints", keep=20).updates()
    assert 0 < len(saved) < 8
    disks.remount("filling", "size=20m")
    assert main(disks.train(f"output={run}")) == 0
    assert f"continuing after update {saved[-1]} of 8" in (run / "train.log").read_text()
    assert [line["update"] for line in losses(run)] == list(range(1, 9))


@pytest.mark.slow
def test_second_run_in_one_folder_is_refused(faults: Faults) -> None:
    assert f"output={faults.folder}/used is in use by process" in faults.refusal("in use")
    assert list(contents(faults.folder / "used")) == ["run.lock"]


@pytest.mark.slow
def test_clock_that_jumps_and_cache_that_is_shared_change_nothing(faults: Faults) -> None:
    assert [each.code for name in ("steady", "clock") for each in faults.ended[name]] == [0] * 4, faults.ended
    assert (faults.folder / "deep" / "cache").is_dir()
    steady, jumping = (faults.folder / "process-0" / name for name in ("steady", "clock"))
    assert_equal(contents(steady / "checkpoints"), contents(jumping / "checkpoints"))
    assert losses(steady) == losses(jumping) and len(losses(steady)) == 8
    assert (steady / "result.json").read_text() == (jumping / "result.json").read_text()
