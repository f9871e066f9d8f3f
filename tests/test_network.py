"""What a run does to the network: nothing."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import List, Sequence

import pytest
from tiny_runs import command, run, tiny_preset

# Python tells its hooks of every port that is taken and every connection; every Python process starts with this.
WATCH = """
import os, socket, sys
log = open(os.environ["WATCH_LOG"], "a", buffering=1)
log.write(f"process {os.getpid()}\\n")
def watch(event, arguments):
    if event in ("socket.bind", "socket.connect") and arguments[0].family != socket.AF_UNIX:
        log.write(f"{event} {arguments[1]}\\n")
sys.addaudithook(watch)
"""
# urllib3 asks so, when it is imported, whether there is IPv6; nothing listens there.
QUESTION = "socket.bind ('::1', 0)"


@pytest.fixture
def watched(tmp_path: Path) -> Path:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WATCH)
    return tmp_path


def network_of(arguments: Sequence[str], folder: Path) -> List[str]:
    """Runs a command; every process it has started, and what these did to the network."""
    path = os.pathsep.join([str(folder / "site"), os.environ.get("PYTHONPATH", "")])
    done = run(arguments, env={**os.environ, "WATCH_LOG": str(folder / "log"), "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    return [line for line in (folder / "log").read_text().splitlines() if line != QUESTION]


def test_training_opens_no_port(watched: Path) -> None:
    told = network_of(command(tiny_preset(watched), "data.workers=2", "tracking.csv=true"), watched)
    assert len(told) > 1  # the workers' server too
    assert all(line.startswith("process ") for line in told), told


def test_hook_tells(watched: Path) -> None:
    program = "import socket; socket.socket().bind(('127.0.0.1', 0))"
    assert network_of([sys.executable, "-c", program], watched)[1:] == ["socket.bind ('127.0.0.1', 0)"]
