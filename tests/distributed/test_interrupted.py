"""A run of two processes that is killed, or told to end, and started again ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import List

import pytest
from families import Family
from test_resume import RANDOM_RUN, UPDATES, assert_same_end
from tiny_runs import losses, tiny_preset

from ipu_vit.checkpoint import Checkpoints

# Kills at random moments; docs/resuming.md has the command for many.
KILLS = int(os.environ.get("KILLS", "4"))
VICTIMS = ["process 0", "process 1", "launcher", "helper", "loader", "anybody"]
EVERY = 2  # updates between checkpoints

RUN = [*RANDOM_RUN, "pipeline.replicas=2", "pipeline.global_batch=12", "data.workers=1", f"checkpoint.every={EVERY}"]


class Runs:
    """The same run again and again, in whatever folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.preset = tiny_preset(folder)
        self.log = folder / "log"

    def start(self, name: str, *overrides: str) -> Family:
        return Family(self.log, "train", str(self.preset), *RUN, f"output={self.folder / name}", *overrides)

    def to_its_end(self, name: str) -> None:
        family = self.start(name)
        family.wait_until(lambda: (self.folder / name / "result.json").exists())
        assert family.end() == 0, self.log.read_text()

    def done(self, name: str) -> int:
        """The last update that a run has told of."""
        figures = losses(self.folder / name)
        return int(figures[-1]["update"]) if figures else 0

    def saved(self, name: str) -> int:
        return [0, *Checkpoints(self.folder / name / "checkpoints", keep=3).updates()][-1]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def undisturbed(runs: Runs) -> Path:
    runs.to_its_end("undisturbed")
    return runs.folder / "undisturbed"


def find(family: Family, victim: str) -> List[int]:
    """Process ids that may be meant, as soon as there are any."""
    if victim == "launcher":
        return [family.launcher.pid]
    if victim == "helper":
        return [each.pid for each in family.helpers()]
    if victim == "loader":
        return [each.pid for each in family.loaders()]
    if victim == "anybody":
        return list(family.members())
    number = int(victim.split()[1])
    return [each.pid for rank, each in family.processes().items() if rank == number]


def kill_once(runs: Runs, name: str, victim: str, starting: bool) -> None:
    """Start a run and kill somebody: in whatever it does before it trains, or after some update."""
    family = runs.start(name)
    if not starting:
        update = min(runs.saved(name) + random.randint(1, 4), UPDATES)
        family.wait_until(lambda: runs.done(name) >= update and find(family, "process 1"))
    family.wait_until(lambda: find(family, victim))
    time.sleep(random.uniform(0, 5 if starting else 0.3))
    victims = find(family, victim)
    if victims:
        with suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(random.choice(victims), signal.SIGKILL)
    code = family.end()
    assert code != 0 or victim == "anybody" or (runs.folder / name / "result.json").exists(), runs.log.read_text()
    assert runs.saved(name) >= (runs.done(name) - 1) // EVERY * EVERY


@pytest.mark.slow
def test_killed_at_random_moments(runs: Runs, undisturbed: Path) -> None:
    """Whoever it is, all others end soon, and no update is lost that a checkpoint has."""
    name = "killed"
    for number in range(KILLS):
        kill_once(runs, name, VICTIMS[number % len(VICTIMS)], starting=number % 4 == 1)
        if (runs.folder / name / "result.json").exists():  # it has come to its end in spite of them
            assert_same_end(runs.folder / name, undisturbed)
            (runs.folder / name).rename(runs.folder / f"{name}-{number}")
    saved = runs.saved(name)
    runs.to_its_end(name)
    assert_same_end(runs.folder / name, undisturbed)
    assert saved in (0, UPDATES) or f"continuing after update {saved} of" in runs.log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("told", ["launcher", "all"])
def test_told_to_end(runs: Runs, undisturbed: Path, told: str) -> None:
    """By SIGTERM as it comes from a job's script, to the launcher, or from a scheduler, to all: the step is saved."""
    name, before = f"told {told}", len(runs.log.read_text())
    family = runs.start(name)
    family.wait_until(lambda: runs.done(name) > 2)
    for process in list(family.members()) if told == "all" else [family.launcher.pid]:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)
    assert family.end() == 0, runs.log.read_text()
    saved = runs.saved(name)
    assert saved == runs.done(name)
    said = f"ended by SIGTERM; the checkpoint of update {saved} is kept; the same command continues the run"
    assert runs.log.read_text()[before:].count(said) == 1
    runs.to_its_end(name)
    assert f"continuing after update {saved} of" in runs.log.read_text()
    assert_same_end(runs.folder / name, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("between", ["helper", "shell"])
def test_killed_between(runs: Runs, between: str) -> None:
    """Nobody would notice the end of a process that is cut off from its launcher: all are told to end, and save."""
    name = f"{between} killed"
    family = runs.start(name, "schedule.updates=1000000")
    family.wait_until(lambda: runs.done(name) > 2)
    victim = family.helpers()[0].pid if between == "helper" else family.processes()[0].ppid()
    os.kill(victim, signal.SIGKILL)
    assert family.end() == 128 + signal.SIGKILL, runs.log.read_text()
    assert runs.saved(name) == runs.done(name)
