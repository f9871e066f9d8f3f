"""Starting several processes with horovodrun, as a user does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence

HERE = Path(__file__).parent
# Horovod's own time for others to follow, which would hide that somebody hangs.
ENVIRONMENT = {"HOROVOD_STALL_CHECK_TIME_SECONDS": "20", "PYTHONPATH": f"{HERE.parent.parent}:{HERE.parent}"}


def horovodrun(count: int, *arguments: str) -> List[str]:
    """The command that starts a Python program as that many processes on this machine."""
    hosts = ["--gloo", "-np", str(count), "-H", f"localhost:{count}", "--network-interfaces", "lo"]
    return [sys.executable, "-m", "horovod.runner.launch", *hosts, sys.executable, *arguments]


def launch(count: int, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a Python program as that many processes, to its end."""
    result = subprocess.run(
        horovodrun(count, *arguments), capture_output=True, text=True, timeout=300, env={**os.environ, **ENVIRONMENT}
    )
    assert result.returncode == code, result.stdout + result.stderr
    return result


class Ended(NamedTuple):
    """How a command has ended in one process."""

    code: int
    out: str
    err: str


def run_jobs(count: int, folder: Path, jobs: Sequence[Dict[str, Any]]) -> List[List[Ended]]:
    """Run commands of the package, one after the other, in that many processes; for each job how it ended in each.

    A job has the `arguments`, and by the process's number others that follow them (`extra`), variables of the
    `environment`, or names of what it has otherwise than the rest (`other`). Process N works in the folder `process-N`.
    """
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs))
    launch(count, "-m", "ipu_vit.emulator", str(HERE / "run_jobs.py"), str(folder))
    results = [json.loads((folder / f"results-{rank}.json").read_text()) for rank in range(count)]
    return [[Ended(*result[number]) for result in results] for number in range(len(jobs))]
