"""Processes that are not alike, or cannot go on, end together: with code 2, and one sentence from one of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List

import pytest
from launching import Ended, run_jobs
from tiny_runs import contents, tiny_preset, truncate

from ipu_vit.__main__ import main

RUN = ["schedule.updates=4", "pipeline.replicas=2", "pipeline.global_batch=4", "model.dropout=0"]


def poprun(local: int, rank: int, ipus: int = 1) -> Dict[str, str]:
    """What PopRun tells the process of that number, of two with so many replicas each."""
    return {"POPDIST_NUM_TOTAL_REPLICAS": str(2 * local), "POPDIST_NUM_LOCAL_REPLICAS": str(local),
            "POPDIST_REPLICA_INDEX_OFFSET": str(rank * local), "POPDIST_NUM_IPUS_PER_REPLICA": str(ipus)}  # fmt: skip


def evaluation(folder: Path) -> List[str]:
    return ["evaluate", f"{folder}/process-0/good", "evaluation.worst_classes=3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agreement")
    tiny_preset(folder)
    tiny_preset(folder / "broken")
    truncate(folder / "broken" / "images/val/cat/0.JPEG")  # the last image, which is process 1's
    return folder


@pytest.fixture(scope="module")
def ended(folder: Path) -> Dict[str, List[Ended]]:
    """How each job has ended in two processes; they go on together after all that has failed."""
    train = ["train", f"{folder}/tiny.yml", *RUN]
    jobs: Dict[str, Any] = {
        "other settings": {"arguments": train, "extra": {"1": ["schedule.lr=0.06"]}},
        "other code": {"arguments": train, "other": {"1": ["code"]}},
        "other Python": {"arguments": train, "other": {"1": ["Python"]}},
        "other torch": {"arguments": train, "other": {"1": ["torch"]}},
        "unknown setting": {"arguments": [*train, "schedule.speed=1"]},
        "one replica": {"arguments": [*train, "pipeline.replicas=1"]},
        "good": {"arguments": [*train, "output=good"]},
        "rehearsal": {"arguments": [*train, "rehearse=always"]},
        "scores": {"arguments": [*evaluation(folder), "--scores", "scores.json"]},
        "other run": {"arguments": [*train, "output=good", "schedule.lr=0.01"]},
        "unreadable": {"arguments": ["train", f"{folder}/broken/tiny.yml", *RUN, "output=unreadable"]},
        "skipped": {"arguments": ["train", f"{folder}/broken/tiny.yml", *RUN, "output=skipped",
                                  "data.skip_unreadable=true"]},
        "poprun": {"arguments": [*train, "output=poprun"],
                   "environment": {str(rank): poprun(1, rank) for rank in range(2)}},
        "poprun's replicas": {"arguments": [*train, "output=poprun"],
                              "environment": {str(rank): poprun(2, rank) for rank in range(2)}},
        "poprun's IPUs": {"arguments": [*train, "output=poprun"],
                          "environment": {str(rank): poprun(1, rank, ipus=4) for rank in range(2)}},
    }  # fmt: skip
    return dict(zip(jobs, run_jobs(2, folder, list(jobs.values()))))


@pytest.mark.slow
@pytest.mark.parametrize("name, teller, words", [
    ("other settings", 0, "process 1 of 2 has schedule.lr=0.06, but process 0 has 0.05: start all"),
    ("other code", 0, "process 1 of 2 has code of ipu_vit=ffffffffffff, but process 0 has"),
    ("other Python", 0, "process 1 of 2 has Python=3.7.0, but process 0 has"),
    ("other torch", 0, "process 1 of 2 has torch=1.0.0, but process 0 has"),
    ("unknown setting", 0, "unknown setting 'schedule.speed'"),
    ("one replica", 0, "pipeline.replicas=1 of 1 IPUs do not go into 2 processes"),
    ("other run", 0, "holds a run with schedule.lr=0.05, not 0.01"),
    ("unreadable", 1, "in process 1 of 2: data.root holds images that cannot be read, for example "),
    ("poprun's replicas", 0, "pipeline.replicas=2, but poprun has been started with --num-replicas 4: write"),
    ("poprun's IPUs", 0, "pipeline.ipus=1, but poprun has been started with --ipus-per-replica 4: write"),
])  # fmt: skip
def test_all_end_and_one_tells_why(ended: Dict[str, List[Ended]], name: str, teller: int, words: str) -> None:
    told, silent = ended[name][teller], ended[name][1 - teller]
    assert told.code == silent.code == 2 and silent.err == ""
    assert told.err.startswith("error: ") and told.err.count("\n") == 1 and words in told.err


@pytest.mark.slow
def test_images_are_left_out_and_told_of_wherever_they_were(folder: Path, ended: Dict[str, List[Ended]]) -> None:
    assert [each.code for each in ended["skipped"]] == [0, 0], ended["skipped"]
    image = f"{folder}/broken/images/val/cat/0.JPEG"
    assert f"1 unreadable images were left out:\n  {image}" in ended["skipped"][0].out
    assert image in (folder / "process-0/skipped/unreadable.txt").read_text()
    assert json.loads((folder / "process-0/skipped/result.json").read_text())["images"] == 6


@pytest.mark.slow
def test_processes_rehearse_together(folder: Path, ended: Dict[str, List[Ended]]) -> None:
    first, second = ended["rehearsal"]
    assert first.code == second.code == 0 and second.out == first.err == second.err == ""
    assert "The rehearsal of tiny has passed" in first.out and "7 images scored" not in first.out
    assert "4 images scored" in first.out  # a host batch of 2 in each process


@pytest.mark.slow
def test_every_image_is_scored_once(folder: Path, ended: Dict[str, List[Ended]]) -> None:
    """The scores of two processes, with their confusions, are those of one."""
    assert [each.code for each in ended["scores"]] == [0, 0], ended["scores"]
    assert main([*evaluation(folder), "--scores", str(folder / "scores.json")]) == 0
    scores = (folder / "scores.json").read_text()
    assert (folder / "process-0/scores.json").read_text() == scores and json.loads(scores)["images"] == 7
    assert not (folder / "process-1/scores.json").exists()


@pytest.mark.slow
def test_popruns_processes_are_the_same_run(folder: Path, ended: Dict[str, List[Ended]]) -> None:
    assert [each.code for each in ended["poprun"]] == [0, 0], ended["poprun"]
    by_horovod, by_poprun = (contents(folder / "process-0" / name / "checkpoints") for name in ("good", "poprun"))
    assert by_horovod == by_poprun
