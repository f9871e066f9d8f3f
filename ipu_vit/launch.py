"""Several processes: `HVD=2 python -m ipu_vit.launch COMMAND …`, started and watched by horovodrun.

`HVD` is a number of processes on this host, or hosts with theirs, `host1:4,host2:4`; these talk through the network
interface `HVD_INTERFACE`. Horovod's launcher does the work. What it leaves to be wished is changed here, which is why
this knows its insides (version 0.28.1, its last):

- the server where processes find each other listens on their interface, not on every one that there is;
- no secrets of the environment are written into command lines, which anybody on the host can read;
- SIGTERM and Ctrl-C go to the processes, which save; its own answer is to kill them after five seconds. Schedulers
  may send SIGTERM to all processes of the job;
- a process that has lost the helper or the shell between it and the launcher, by SIGKILL, is told to end; it would go
  on unseen, and the launcher wait for it;
- Horovod asks every 20 ms whether there is something to add up, not every 1 ms (`HOROVOD_CYCLE_TIME`, unless that is
  set already), which takes a tenth of a process's only core;
- the exit code is that of the process that failed first, and there is no traceback of the launcher;
- a host that does not answer is given up after ten seconds, not fifty.

Each process gets its share of the cores (`OMP_NUM_THREADS`, unless that is set already).
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import Any, Callable, Iterator, List, NamedTuple, Optional, Tuple

from ipu_vit.errors import UserError
from ipu_vit.secrets import names_secret

COMMANDS = ("train", "evaluate")
LOOPBACK = "127.0.0.1"
STARTED_BY = "IPU_VIT_LAUNCHER"
"""A variable of the environment of processes, by which their launcher knows them: its process id."""
SECONDS_BETWEEN_LOOKS = 5


class Hosts(NamedTuple):
    """Where processes are wanted, as horovodrun's option -H has it."""

    text: str
    total: int
    most: int
    """Processes of the host that has most."""

    @property
    def names(self) -> List[str]:
        return [host.split(":")[0] for host in self.text.split(",")]


def main(arguments: List[str]) -> int:
    """Run a command of the package in several processes; returns the exit code of the first that fails, else 0."""
    try:
        hosts = parse_hosts(os.environ.get("HVD", ""))
        if arguments[:1] not in ([command] for command in COMMANDS):
            raise UserError(f"HVD={hosts.text} is for {' and '.join(COMMANDS)}, not for {' '.join(arguments[:1])}")
        interface, address = find_interface(hosts, os.environ.get("HVD_INTERFACE"))
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // hosts.most)))
        return launch(hosts, interface, address, [sys.executable, "-m", "ipu_vit", *arguments])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def parse_hosts(text: str) -> Hosts:
    """The value of HVD; raises UserError if it is neither a number nor hosts with numbers."""
    hosts = f"localhost:{text}" if text.isdigit() else text
    if not re.fullmatch(r"[\w.-]+:[1-9][0-9]*(,[\w.-]+:[1-9][0-9]*)*", hosts, re.ASCII):
        raise UserError(
            f"HVD={text} is neither a number of processes, such as 2, nor hosts with theirs, such as host1:4,host2:4"
        )
    numbers = [int(host.split(":")[1]) for host in hosts.split(",")]
    return Hosts(hosts, sum(numbers), max(numbers))


def find_interface(hosts: Hosts, name: Optional[str]) -> Tuple[Optional[str], str]:
    """Name and IPv4 address of the interface that processes talk through; no name for processes of one host.

    Raises UserError where Horovod is missing, or there is no such interface.
    """
    try:
        import psutil
        from horovod.runner.util.network import filter_local_addresses
    except ImportError:
        raise UserError(
            f"HVD={os.environ['HVD']} needs Horovod; `./run.sh install-horovod` builds it for this environment"
        ) from None
    others = filter_local_addresses(hosts.names)
    if not others:
        return None, LOOPBACK
    addresses = {
        key: address.address
        for key, values in psutil.net_if_addrs().items()
        for address in values
        if address.family.name == "AF_INET" and address.address != LOOPBACK
    }
    if name not in addresses:
        raise UserError(
            f"HVD_INTERFACE={name or ''} has to name the network interface that leads to {', '.join(others)}; "
            f"here there are: {', '.join(sorted(addresses)) or 'none'}"
        )
    return name, addresses[name]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def launch(hosts: Hosts, interface: Optional[str], address: str, command: List[str]) -> int:
    """Start the command on the hosts by horovodrun, and wait for its end; returns an exit code."""
    from horovod.runner import gloo_run
    from horovod.runner import launch as horovodrun
    from horovod.runner.common.util import safe_shell_exec
    from horovod.runner.http import http_server

    os.environ.setdefault("HOROVOD_CYCLE_TIME", "20")
    os.environ[STARTED_BY] = str(os.getpid())
    exportable = gloo_run.env_util.is_exportable
    gloo_run.env_util.is_exportable = lambda name: exportable(name) and not names_secret(name)
    http_server.find_port = lambda make: _listen(make, address)
    horovodrun.SSH_ATTEMPTS = 1  # of ten seconds each
    gloo_run.register_shutdown_event = lambda: _pass_signals_on(command)
    safe_shell_exec._exec_middleman = _stand_between
    threading.Thread(target=_end_strays, args=(command,), daemon=True).start()
    options = ["--gloo", "--disable-cache", "-np", str(hosts.total), "-H", hosts.text]
    if interface is not None:
        options += ["--network-interfaces", interface]
    sys.argv = ["horovodrun", *options, *command]
    try:
        horovodrun.run_commandline()
    except RuntimeError as error:
        failed = re.search(r"^Exit code: (-?\d+)$", str(error), re.MULTILINE)
        if failed is None:  # before there were processes: a host that does not answer, which has been named
            raise UserError(f"HVD={os.environ['HVD']}: {error}, see above") from None
        code = int(failed[1])
        return code if code > 0 else 128 - code  # as shells have it: negative if a signal has ended horovodrun's part
    return 0


def _listen(make: Callable[[Tuple[str, int]], Any], address: str) -> Tuple[Any, int]:
    """A server on a free port of one address."""
    server = make((address, 0))
    return server, server.server_address[1]


def _stand_between(command: str, *others: Any) -> None:
    """In a process between launcher and process, with a shell: both outlive SIGTERM, to tell how that process ends."""
    from horovod.runner.common.util.safe_shell_exec import _exec_middleman

    # Neither is the same as to ignore the signal, which would be passed on.
    signal.signal(signal.SIGTERM, lambda *_: None)
    # The shell's own words for how it ended, such as "Terminated", would follow the sentence that tells why.
    _exec_middleman(f"exec 3>&2 2>/dev/null; trap : TERM; ({command}) 2>&3 3>&-", *others)


def _pass_signals_on(command: List[str]) -> threading.Event:
    """SIGTERM and Ctrl-C now go to the processes of this host; returns what tells horovodrun to end them itself.

    Processes agree to save and end when one is told to, so that those of other hosts need no signal. A second signal,
    or one that meets no process, is horovodrun's.
    """
    end = threading.Event()

    def tell(number: int, frame: Optional[FrameType]) -> None:
        processes = list(_processes(command))
        for process in processes:
            process.send_signal(number)
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, lambda *_: end.set())
        if not processes:
            end.set()

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, tell)
    return end


def _end_strays(command: List[str]) -> None:
    """Send SIGTERM to processes without the helper in between, which began their session."""
    import psutil

    while True:
        time.sleep(SECONDS_BETWEEN_LOOKS)
        for process in _processes(command):
            with suppress(ProcessLookupError, psutil.NoSuchProcess):  # just ended
                if not psutil.pid_exists(os.getsid(process.pid)):
                    process.terminate()


def _processes(command: List[str]) -> Iterator[Any]:
    """Processes of this host that we started with the command, without those that they have forked."""
    import psutil

    for process in psutil.process_iter():
        with suppress(psutil.Error):  # just ended, or another user's
            if process.cmdline() == command and process.environ().get(STARTED_BY) == str(os.getpid()):
                parent = process.parent()
                if parent is None or parent.cmdline() != command:
                    yield process


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
