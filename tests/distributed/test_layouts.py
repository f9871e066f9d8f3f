"""The same global batches on 1 process with 4 replicas, 2 with 2, 4 with 1: the same run; so are 3 with 1 and 1 alone.

What they are measured by is the single process, which other tests compare with plain PyTorch. Sums are
taken in another order, so float32 weights may differ by 1e-6 of their length after 20 updates, dropout
and mixing included. Of float16 weights one or the other may be rounded to its neighbour, 1e-3 away; mostly
none is, as the sum of a few halves is exact in float32.
"""

from __future__ import annotations

import shutil
from itertools import product
from pathlib import Path
from typing import Dict, List
from unittest.mock import ANY

import pytest
from launching import Ended, run_jobs
from tiny_runs import contents, distance, tensors, tiny_preset

from ipu_vit.__main__ import main
from ipu_vit.checkpoint import Checkpoint, Checkpoints
from ipu_vit.tracking.files import read_figures

UPDATES = 20
SGD = ["optimizer.velocity_type=float32"]
PLAIN = [
    "precision=float32", "optimizer.accumulator_type=float32", "pipeline.partials=float32", "schedule.updates=20",
    "schedule.warmup=2", "checkpoint.every=5", "checkpoint.keep=9", "pipeline.replicas=4",
]  # fmt: skip


CASES = {
    "no accumulation": [*PLAIN, *SGD, "pipeline.global_batch=8", "model.attention_dropout=0.1"],
    "accumulation": [
        *PLAIN, *SGD, "pipeline.global_batch=24", "pipeline.device_iterations=2", "augmentation.mixup=0.3",
        "augmentation.repeats=2", "averaging.decay=0.9", "averaging.every=2", "evaluation.every=10",
    ],
    "sharding": [
        *PLAIN, "pipeline.global_batch=16", "pipeline.replicated_tensor_sharding=true", "optimizer.name=adamw",
        "optimizer.max_grad_norm=1", "optimizer.eps=0.001", "schedule.lr=0.001",
        "optimizer.first_moment_type=float32", "optimizer.second_moment_type=float32",
    ],
    "halves": [
        "precision=float16", "schedule.updates=20", "pipeline.replicas=4", "pipeline.global_batch=16",
        "optimizer.loss_scaling=16", "pipeline.stochastic_rounding=true",
    ],
}  # fmt: skip
# Replicas whose number divides few of the tensors that they share; one process has no 3 IPUs, but may have 1.
ODD = [*CASES["sharding"], "pipeline.replicas=3", "pipeline.global_batch=12", "model.dropout=0"]
TOLERANCE = {"halves": 1e-3}
ELASTIC = [*PLAIN, *SGD, "pipeline.global_batch=8", "model.dropout=0"]


def end_of(folder: Path) -> Checkpoint:
    checkpoint = Checkpoints(folder / "checkpoints", keep=9).latest()
    assert checkpoint is not None and checkpoint.update == UPDATES
    return checkpoint


def cut(folder: Path, update: int) -> None:
    """Leave a run as it was after an update."""
    checkpoints = Checkpoints(folder / "checkpoints", keep=9)
    for later in checkpoints.updates():
        if later > update:
            checkpoints.path(later).unlink()
    assert checkpoints.updates()[-1] == update


class Runs:
    """Every case with 1, 2 and 4 processes, and a run that is continued by the one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.preset = tiny_preset(folder)
        self.own = folder / "process-0"
        self.own.mkdir()
        self.ended: Dict[int, List[List[Ended]]] = {}
        for name, overrides in {**CASES, "odd": [*ODD, "pipeline.replicas=1"]}.items():
            assert main(self.train(*overrides, f"output={self.own}/{name} 1")) == 0
        assert main(self.train(*ELASTIC, f"output={self.own}/elastic")) == 0
        shutil.copytree(self.own / "elastic", self.own / "uninterrupted")
        cut(self.own / "elastic", 5)
        self.several(2)
        cut(self.own / "elastic", 10)
        self.several(4)
        shutil.copytree(self.own / "no accumulation 2", self.own / "resumed")
        cut(self.own / "resumed", 10)
        assert run_jobs(3, folder, [{"arguments": self.train(*ODD, "output=odd 3")}]) == [[Ended(0, ANY, "")] * 3]
        again = [self.train(*CASES["no accumulation"], f"output={output}") for output in ("resumed", "again")]
        run_jobs(2, folder, [{"arguments": arguments} for arguments in again])

    def train(self, *overrides: str) -> List[str]:
        return ["train", str(self.preset), *overrides]

    def several(self, count: int) -> None:
        jobs = [{"arguments": self.train(*CASES[name], f"output={name} {count}")} for name in CASES]
        sharding = f"pipeline.replicated_tensor_sharding={count == 2}".lower()
        jobs.append({"arguments": self.train(*ELASTIC, sharding, "output=elastic")})
        self.ended[count] = run_jobs(count, self.folder, jobs)
        assert [[each.code for each in job] for job in self.ended[count]] == [[0] * count] * (len(CASES) + 1), (
            self.ended[count]
        )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("layouts"))


@pytest.mark.slow
@pytest.mark.parametrize("name, processes", [*product(CASES, (2, 4)), ("odd", 3)])
def test_any_layout_is_the_same_run(runs: Runs, name: str, processes: int) -> None:
    one, several = runs.own / f"{name} 1", runs.own / f"{name} {processes}"
    ours, theirs = end_of(several), end_of(one)
    tolerance = TOLERANCE.get(name, 1e-6)
    assert distance(ours.model, theirs.model) <= tolerance
    assert distance(tensors(ours.average), tensors(theirs.average)) <= tolerance if theirs.average else True
    assert distance(tensors(ours.optimizer), tensors(theirs.optimizer)) <= 30 * tolerance
    for our, their in zip(read_figures(several), read_figures(one)):
        assert our.keys() == their.keys() and our["update"] == their["update"]
        for key in set(our) & {"train/loss", "train/accuracy", "train/lr", "train/epoch"}:
            assert our[key] == pytest.approx(their[key], abs=3 * tolerance)
    if name not in TOLERANCE:
        assert (several / "result.json").read_text() == (one / "result.json").read_text()


@pytest.mark.slow
def test_a_run_goes_on_in_any_layout(runs: Runs) -> None:
    """After 5 updates of one process 5 of two whose replicas share out optimizer state, then 10 of four that do not."""
    ours, theirs = end_of(runs.own / "elastic"), end_of(runs.own / "uninterrupted")
    assert distance(ours.model, theirs.model) <= 1e-6
    log = (runs.own / "elastic" / "train.log").read_text()
    assert "with 2 processes in place of 1: the same run within rounding" in log
    assert "with 4 processes in place of 2: the same run within rounding" in log
    assert [line["update"] for line in read_figures(runs.own / "elastic") if "train/loss" in line] == list(range(1, 21))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resumed", "again"])
def test_in_the_same_layout_it_is_the_same_to_the_last_bit(runs: Runs, name: str) -> None:
    """With dropout, and continued after half of the updates."""
    before, after = (contents(runs.own / folder / "checkpoints") for folder in ("no accumulation 2", name))
    last = "update-00000020.safetensors"
    assert before[last] == after[last]


@pytest.mark.slow
def test_only_process_0_writes_and_tells(runs: Runs) -> None:
    for count, jobs in runs.ended.items():
        for job in jobs:
            assert "Valid Accuracy" in job[0].out
            assert all(each.out == each.err == "" for each in job[1:])
        for rank in range(1, count):
            assert list((runs.folder / f"process-{rank}").iterdir()) == []
