"""Several processes by HVD: what is refused, and that horovodrun really starts, watches and ends them."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Dict, List, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipu_vit.errors import UserError
from ipu_vit.launch import LOOPBACK, parse_hosts

ROOT = Path(__file__).parent.parent
STARTER = f"""
import sys
from ipu_vit.launch import launch, parse_hosts
sys.exit(launch(parse_hosts("2"), None, "{LOOPBACK}", sys.argv[1:]))
"""


def environment(**variables: str) -> Dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **variables}


def refusal(*arguments: str, **variables: str) -> str:
    """The one sentence that the launcher refuses a command with."""
    done = subprocess.run(
        [sys.executable, "-m", "ipu_vit.launch", *arguments],
        env=environment(**variables), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == "", done
    return done.stderr


# --- what is asked for ---------------------------------------------------------------------------

host_names = st.from_regex(r"[a-z0-9][a-z0-9.-]{0,10}", fullmatch=True)


@given(st.lists(st.tuples(host_names, st.integers(1, 99)), min_size=1, max_size=4))
def test_hosts_are_named_with_their_processes(hosts: List[Tuple[str, int]]) -> None:
    parsed = parse_hosts(",".join(f"{name}:{number}" for name, number in hosts))
    assert parsed.names == [name for name, _ in hosts]
    assert (parsed.total, parsed.most) == (sum(n for _, n in hosts), max(n for _, n in hosts))


@given(st.integers(1, 999))
def test_number_is_of_this_host(number: int) -> None:
    assert parse_hosts(str(number)) == (f"localhost:{number}", number, number)


@pytest.mark.parametrize(
    "text", ["", "two", "0", "-1", "1.5", "host", "host:", "host:0", "a:2,,b:2", "a:2 b:2", "a:2;rm"]
)
def test_everything_else_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=rf"^HVD={text} is neither a number of processes, such as 2, nor hosts"):
        parse_hosts(text)


def test_refusals_are_one_sentence() -> None:
    assert refusal("train", "quickstart", HVD="two").startswith("error: HVD=two is neither a number of processes")
    assert refusal("presets", HVD="2") == "error: HVD=localhost:2 is for train and evaluate, not for presets\n"


def test_missing_horovod_is_named_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "horovod.py").write_text("raise ImportError('not here')")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    told = refusal("train", "quickstart", HVD="2", PYTHONPATH=path)
    assert told == "error: HVD=2 needs Horovod; `./run.sh install-horovod` builds it for this environment\n"


# --- with Horovod --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def horovod() -> None:
    if importlib.util.find_spec("horovod") is None:
        assert os.environ.get("IPU_VIT_REQUIRE_HOROVOD") != "1", "Horovod is missing"
        pytest.skip("Horovod is missing; `./run.sh install-horovod` builds it")


def start(folder: Path, program: str, **variables: str) -> subprocess.Popen[str]:
    """Two processes of a program that the launcher has started."""
    (folder / "program.py").write_text(program)
    return subprocess.Popen(
        [sys.executable, "-c", STARTER, sys.executable, str(folder / "program.py"), str(folder)],
        env=environment(**variables), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


LOOK_AROUND = """
import json, os, sys
import psutil, torch
import horovod.torch as hvd
hvd.init()
own = psutil.Process()
family = own.parents()
while not any(word.startswith("\\nimport sys\\nfrom ipu_vit.launch") for word in family[0].cmdline()):
    family.pop(0)
family = [family[0], *family[0].children(recursive=True)]
connections = [connection for process in family for connection in process.net_connections("inet")]
found = {
    "sum": hvd.allreduce(torch.tensor([1.0 + hvd.rank()]), op=hvd.Sum).item(),
    "listening": [each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN],
    "connected": [each.laddr.ip for each in connections if each.status == psutil.CONN_ESTABLISHED],
    "commands": [process.cmdline() for process in family],
    "token": os.environ["SOME_TOKEN"],
}
with open(os.path.join(sys.argv[1], f"{hvd.rank()}.json"), "w") as file:
    json.dump(found, file)
hvd.allreduce(torch.zeros(1))  # nobody ends while another looks around
"""


def test_processes_add_on_the_loopback_only_and_secrets_stay_inside(horovod: None, tmp_path: Path) -> None:
    process = start(tmp_path, LOOK_AROUND, SOME_TOKEN="0123456789abcdef")
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["sum"] == 3.0
        assert set(found["listening"]) == {LOOPBACK}  # the launcher; processes only listen until they have met
        assert set(found["connected"]) == {LOOPBACK} and len(found["connected"]) >= 2
        assert found["token"] == "0123456789abcdef" and "0123456789abcdef" not in json.dumps(found["commands"])


def test_exit_code_of_the_first_that_fails(horovod: None, tmp_path: Path) -> None:
    process = start(
        tmp_path, "import os, signal, sys\nif os.environ['HOROVOD_RANK'] == '0': signal.pause()\nsys.exit(37)"
    )
    _, errors = process.communicate()
    assert process.returncode == 37 and "Traceback" not in errors, errors


SAVE_WHEN_TOLD = """
import signal, sys
def save(number, frame):
    print("saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
signal.pause()
"""


def test_sigterm_reaches_the_processes_which_end_by_themselves(horovod: None, tmp_path: Path) -> None:
    process = start(tmp_path, SAVE_WHEN_TOLD)
    assert process.stdout is not None
    for _ in range(2):
        assert process.stdout.readline().rstrip().endswith("ready")
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert output.count("saved") == 2


def test_command_that_the_processes_refuse(horovod: None) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ipu_vit.launch", "train", "no_such_preset"],
        env=environment(HVD="2"), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "no_such_preset" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("hosts", ["nohost.invalid:1,localhost:1", "localhost:1,nohost.invalid:1"])
def test_host_that_does_not_answer_is_named(horovod: None, hosts: str) -> None:
    import psutil

    interfaces = [
        name
        for name, addresses in psutil.net_if_addrs().items()
        if any(each.family == socket.AF_INET and each.address != LOOPBACK for each in addresses)
    ]
    if not interfaces:
        pytest.skip("this host has no network")
    done = subprocess.run(
        [sys.executable, "-m", "ipu_vit.launch", "train", "quickstart"],
        env=environment(HVD=hosts, HVD_INTERFACE=interfaces[0]), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2 and "nohost.invalid" in done.stdout
    assert done.stderr == f"error: HVD={hosts}: could not connect to some hosts via ssh, see above\n"
