"""What a second process brings: training in two processes of a core each against one process of one core.

    python benchmarks/scale_out.py [--json FILE] [--updates N] [--turns N]

ViT-S/16 (22 M parameters, 112 px, float32, generated images) is trained by the command line, alone on one core, and
by horovodrun, as HVD=2 calls it, in two processes that are tied to a core each and add up their gradients in every
update. The updates are the same in both: 256 images, in micro batches of 16. The two take turns, as the machine may
be faster at one time than at another; what counts is the median of all updates but each run's first.

    one_process, two_processes    images/s
    ratio                         of the second to the first; two would be perfect
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Dict, List

PROJECT = str(Path(__file__).resolve().parents[1])
# As run.sh sets it: keeps the memory of large tensors instead of paying page faults for it in every step.
MALLOC = "glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=8589934592:glibc.malloc.top_pad=268435456"
LAUNCHER = """
import sys
from ipu_vit.launch import LOOPBACK, launch, parse_hosts
sys.exit(launch(parse_hosts("2"), None, LOOPBACK, sys.argv[1:]))
"""

GLOBAL_BATCH = 256
PRESET = """\
device: cpu
rehearse: never
weights: none
precision: float32
output: {folder}
model: {{image_size: 112, width: 384, heads: 6, mlp_width: 1536, classes: 1000, dropout: 0.0}}
data: {{source: generated}}
pipeline: {{global_batch: {batch}, micro_batch: 16, replicas: 2, partials: float32}}
optimizer: {{loss_scaling: 1.0, accumulator_type: float32, velocity_type: float32}}
schedule: {{lr: 0.01, updates: {updates}}}
evaluation: {{pictures: 0, micro_batch: 50}}
checkpoint: {{every: {updates}}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--updates", type=int, default=4, help="weight updates of each run, at least 2")
    parser.add_argument("--turns", type=int, default=2, help="runs of each kind")
    parser.add_argument("--child", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        sys.exit(run_child(arguments.child))
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("two cores are needed, and this process may use one")
    if arguments.updates < 2 or arguments.turns < 1:
        parser.error("--updates takes a number from 2, --turns one from 1")
    starters = {"one_process": [], "two_processes": [sys.executable, "-c", LAUNCHER]}
    seconds: Dict[str, List[float]] = {name: [] for name in starters}
    for _ in range(arguments.turns):
        for name, starter in starters.items():
            seconds[name] += measure(starter, arguments.updates)
    figures = {name: GLOBAL_BATCH / statistics.median(times) for name, times in seconds.items()}
    figures["ratio"] = figures["two_processes"] / figures["one_process"]
    for name, value in figures.items():
        print(f"{name:15}{value:8.2f}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=2) + "\n")


def measure(starter: List[str], updates: int) -> List[float]:
    """Seconds of all updates but the first, of a run whose processes are started by that command."""
    with tempfile.TemporaryDirectory() as folder:
        preset, output = Path(folder, "preset.yml"), Path(folder, "run")
        preset.write_text(PRESET.format(folder=output, updates=updates, batch=GLOBAL_BATCH))
        command = [*starter, sys.executable, __file__, "--child", "train", str(preset)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLIBC_TUNABLES": MALLOC, "PYTHONPATH": PROJECT}
        subprocess.run(command, env=environment, check=True)
        lines = [json.loads(line) for line in (output / "figures.jsonl").read_text().splitlines()]
    return [line["train/seconds"] for line in lines if "train/seconds" in line][1:]


def run_child(arguments: List[str]) -> int:
    """The command line in a process that may use one core, another one for each process of this host."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ.get("HOROVOD_LOCAL_RANK", "0"))]})
    from ipu_vit.__main__ import main as command_line

    return command_line(arguments)


if __name__ == "__main__":
    main()
