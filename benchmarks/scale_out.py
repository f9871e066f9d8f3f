"""What a second process brings: training in two processes of a core each against one process of one core.

    python benchmarks/scale_out.py [--json FILE] [--updates N] [--limit]

ViT-S/16 (22 M parameters, 112 px, float32, generated images) is trained alone on one core, and by horovodrun, as
HVD=2 calls it, in two processes that are tied to a core each and add up their gradients in every update. Updates are
the same in both: 256 images, in micro batches of 16. Both runs are there from the beginning to the end, and take turns
of one update, so that a change of the machine's speed meets them both; the one that waits is stopped, threads and
all. What counts is the median of all updates but each run's first.

    one_process, two_processes    images/s
    ratio                         of the second to the first; two would be perfect
    two_runs                      images/s of two runs of a process each at once, with --limit: what cores leave each
                                  other where nothing is exchanged
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Dict, List, TextIO

PROJECT = str(Path(__file__).resolve().parents[1])
# As run.sh sets it: keeps the memory of large tensors instead of paying page faults for it in every step.
MALLOC = "glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=8589934592:glibc.malloc.top_pad=268435456"
LAUNCHER = """
import sys
from ipu_vit.launch import LOOPBACK, launch, parse_hosts
sys.exit(launch(parse_hosts("2"), None, LOOPBACK, sys.argv[1:]))
"""
HOROVODRUN = [sys.executable, "-c", LAUNCHER]

GLOBAL_BATCH = 256
PRESET = f"""\
device: cpu
weights: none
precision: float32
model: {{image_size: 112, width: 384, heads: 6, mlp_width: 1536, classes: 1000, dropout: 0.0}}
data: {{source: generated}}
pipeline: {{global_batch: {GLOBAL_BATCH}, micro_batch: 16, replicas: 2, partials: float32}}
optimizer: {{loss_scaling: 1.0, accumulator_type: float32, velocity_type: float32}}
schedule: {{lr: 0.01, updates: 1000000}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--updates", type=int, default=5, help="weight updates of each run that count")
    parser.add_argument("--limit", action="store_true", help="measure two runs that do not train together too")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        run_child(*arguments.child)
        return
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("two cores are needed, and this process may use one")
    if arguments.updates < 1:
        parser.error("--updates takes a number from 1")
    with ExitStack() as stack:
        one = stack.enter_context(Run([], 1))
        turns = {"one_process": [one], "two_processes": [stack.enter_context(Run(HOROVODRUN, 2))]}
        if arguments.limit:
            turns["two_runs"] = [one, stack.enter_context(Run([], 1, core=1))]
        speeds: Dict[str, List[float]] = {name: [] for name in turns}
        for _ in range(arguments.updates):
            for name, runs in turns.items():
                speeds[name].append(len(runs) * GLOBAL_BATCH / update(runs))
    figures = {name: statistics.median(each) for name, each in speeds.items()}
    figures["ratio"] = figures["two_processes"] / figures["one_process"]
    for name, value in figures.items():
        print(f"{name:15}{value:8.2f}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=2) + "\n")


def update(runs: List[Run]) -> float:
    """Seconds of an update of each run, at the same time, until the last process is done."""
    for run in runs:
        run.go_on()
    started = time.perf_counter()
    for run in runs:
        run.begin()
    for run in runs:
        run.end()
    seconds = time.perf_counter() - started
    for run in runs:
        run.stop()
    return seconds


class Run:
    """A training run of some processes on as many cores, stopped except while it makes an update."""

    def __init__(self, starter: List[str], size: int, core: int = 0) -> None:
        """Starts the processes, by that command if there is one, and waits for their first update."""
        self._folder = tempfile.TemporaryDirectory()
        preset, address = Path(self._folder.name, "preset.yml"), f"{self._folder.name}/socket"
        preset.write_text(PRESET + f"output: {self._folder.name}/run\n")
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "GLIBC_TUNABLES": MALLOC,
            "PYTHONPATH": PROJECT,
            "HOROVOD_GLOO_TIMEOUT_SECONDS": "600",  # by the clock, which goes on while they are stopped
        }
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen()
            listener.settimeout(1)
            command = [*starter, sys.executable, __file__, "--child", str(preset), address, str(core)]
            self._process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
            self._lines = [self._accept(listener).makefile("rw") for _ in range(size)]
        self._ids = [int(self._answer(lines)) for lines in self._lines]
        self.stop()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on()
        for lines in self._lines:
            lines.close()
        self._process.wait()
        self._folder.cleanup()

    def stop(self) -> None:
        self._tell(signal.SIGSTOP)

    def go_on(self) -> None:
        self._tell(signal.SIGCONT)

    def begin(self) -> None:
        """Ask for an update."""
        for lines in self._lines:
            print(file=lines, flush=True)

    def end(self) -> None:
        """Wait until it is done."""
        for lines in self._lines:
            self._answer(lines)

    def _tell(self, number: int) -> None:
        for process in self._ids:
            with suppress(ProcessLookupError):  # it has ended, which is what its answer tells
                os.kill(process, number)

    def _accept(self, listener: socket.socket) -> socket.socket:
        while self._process.poll() is None:
            try:
                return listener.accept()[0]
            except socket.timeout:
                pass
        sys.exit("a run has ended before its first update")

    def _answer(self, lines: TextIO) -> str:
        return lines.readline() or sys.exit("a run has ended too early")


def run_child(preset: str, address: str, core: str) -> None:
    """Train on that core, in a run's further processes on those that follow: an update for every line that comes."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(core) + int(os.environ.get("HOROVOD_LOCAL_RANK", "0"))]})
    from ipu_vit import device
    from ipu_vit.config import load_settings
    from ipu_vit.distributed import together

    with together() as processes, socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        settings = load_settings(preset, [])
        chosen = device.select("cpu", settings.pipeline.ipus)
        from ipu_vit.train import Trainer

        steps = Trainer(settings, chosen, processes).host_steps()
        next(steps)
        lines = connection.makefile("rw")
        print(os.getpid(), file=lines, flush=True)
        for _ in lines:
            next(steps)
            print(file=lines, flush=True)


if __name__ == "__main__":
    main()
