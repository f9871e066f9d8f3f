"""Processes that PopRun has told who they are, without the SDK: each case in one that has not chosen a device yet."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from tiny_runs import command, run, sentence, tiny_preset


def start(preset: Path, total: int, local: int, *overrides: str) -> subprocess.CompletedProcess[str]:
    """The first instance of `poprun --num-replicas total`, which has so many of them."""
    told = {"NUM_TOTAL_REPLICAS": total, "NUM_LOCAL_REPLICAS": local, "REPLICA_INDEX_OFFSET": 0,
            "NUM_IPUS_PER_REPLICA": 1}  # fmt: skip
    variables = {f"POPDIST_{name}": str(number) for name, number in told.items()}
    return run(command(preset, *overrides), env={**os.environ, **variables})


def test_one_instance_has_all_replicas(tmp_path: Path) -> None:
    """It is the run that it would be without PopRun."""
    preset, layout = tiny_preset(tmp_path), ["pipeline.replicas=2", "pipeline.global_batch=12", "schedule.updates=2"]
    ended = start(preset, 2, 2, *layout, f"output={tmp_path}/poprun")
    assert ended.returncode == 0, ended.stderr
    assert run(command(preset, *layout, f"output={tmp_path}/alone")).returncode == 0
    ours, theirs = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("poprun", "alone"))
    assert ours == theirs


@pytest.mark.parametrize("total, local, words", [
    (4, 4, "pipeline.replicas=1, but poprun has been started with --num-replicas 4: write pipeline.replicas=4, or"),
    (2, 1, "this is process 0 of 2, "),
])  # fmt: skip
def test_what_poprun_tells_counts(tmp_path: Path, total: int, local: int, words: str) -> None:
    """Replicas of its own are not enough; and instances that Horovod does not bring together do not train alone."""
    ended = start(tiny_preset(tmp_path), total, local)
    assert ended.returncode == 2 and sentence(ended.stderr).startswith(words)
