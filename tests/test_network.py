"""What a run does to the network: nothing."""

from __future__ import annotations

import sys
from pathlib import Path

from tiny_runs import command, run, tiny_preset

# Python tells its hooks of every port that is opened and every connection, in forked workers too.
WATCHED = """
import socket, sys
log = open(sys.argv.pop(1), "a", buffering=1)
def watch(event, arguments):
    if event in ("socket.bind", "socket.connect") and arguments[0].family != socket.AF_UNIX:
        log.write(f"{event} {arguments[1]}\\n")
sys.addaudithook(watch)
if sys.argv[1] == "open":
    socket.socket().bind(("127.0.0.1", 0))
else:
    from ipu_vit.__main__ import main
    sys.exit(main(sys.argv[1:]))
"""


def test_training_opens_no_port(tmp_path: Path) -> None:
    log = tmp_path / "log"
    arguments = command(tiny_preset(tmp_path), "data.workers=2", "tracking.csv=true")[3:]
    done = run([sys.executable, "-c", WATCHED, str(log), *arguments])
    assert done.returncode == 0, done.stderr
    assert log.read_text() == ""


def test_hook_would_tell(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert run([sys.executable, "-c", WATCHED, str(log), "open"]).returncode == 0
    assert "socket.bind ('127.0.0.1', 0)" in log.read_text()
