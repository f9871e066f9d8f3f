"""A run of several processes with all that it has started, found by a mark in their environment."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest
from launching import ENVIRONMENT

psutil = pytest.importorskip("psutil")  # which comes with Horovod

MARK = "IPU_VIT_FAMILY"
START = 180  # seconds that a run may take to come to its first update, on a busy machine
PATIENCE = 30  # seconds that it has to end in


class Family:
    """`HVD=2 ./run.sh …` as a user starts it; what it prints is added to a log."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self.log = log
        self._mark = uuid.uuid4().hex
        with log.open("a") as file:
            self.launcher = subprocess.Popen(
                [sys.executable, "-m", "ipu_vit.launch", *arguments],
                stdout=file, stderr=file, env={**os.environ, **ENVIRONMENT, "HVD": "2", MARK: self._mark},
            )  # fmt: skip

    def members(self) -> Dict[int, Any]:
        """All that live, by their process ids, whoever has adopted them meanwhile."""
        self.launcher.poll()
        everybody = psutil.process_iter(["ppid", "cmdline", "environ"])
        return {each.pid: each for each in everybody if (each.info["environ"] or {}).get(MARK) == self._mark}

    def processes(self) -> Dict[int, Any]:
        """The processes of the run that there are so far, by their number."""
        members = self.members()
        found = [each for each in members.values() if _is_training(each)]
        found = [each for each in found if not _is_training(members.get(each.info["ppid"]))]  # no forks of theirs
        return {int(each.info["environ"]["HOROVOD_RANK"]): each for each in found}

    def helpers(self) -> List[Any]:
        """Horovod's processes that stand between the launcher and those of the run."""
        return [
            each
            for each in self.members().values()
            if each.info["ppid"] == self.launcher.pid and any("spawn_main" in word for word in each.info["cmdline"])
        ]

    def loaders(self) -> List[Any]:
        """Processes that load images, or join them to batches, or from which such ones are forked."""
        members = self.members()
        return [
            each
            for each in members.values()
            if any("resource_tracker" not in word and "forkserver" in word for word in each.info["cmdline"])
        ]

    def wait_until(self, moment: Callable[[], Any]) -> None:
        """Until then, or until it has ended."""
        given_up = time.monotonic() + START
        while self.launcher.poll() is None and not moment():
            assert time.monotonic() < given_up, self.log.read_text()
            time.sleep(0.01)

    def end(self) -> int:
        """The exit code, when nobody is left; it may not take long."""
        given_up = time.monotonic() + PATIENCE
        while self.members():
            assert time.monotonic() < given_up, [self.members(), self.log.read_text()]
            time.sleep(0.05)
        return self.launcher.wait()


def _is_training(process: Any) -> bool:
    return process is not None and (process.info["cmdline"] or [])[1:4] == ["-m", "ipu_vit", "train"]
