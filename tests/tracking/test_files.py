"""The file of figures goes on where a checkpoint is, whatever has happened to it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Iterable

import pytest
from tiny_runs import contents

from ipu_vit.tracking.files import FIGURES, FiguresFile, read_figures


def write(folder: Path, after: int, updates: Iterable[int]) -> None:
    file = FiguresFile(folder, after)
    for update in updates:
        file.figures(update, {"train/loss": 1 / update})
    file.close()


def test_figures_go_on_without_gap_or_repeat(tmp_path: Path) -> None:
    write(tmp_path, 0, range(1, 6))
    with (tmp_path / FIGURES).open("a") as file:
        file.write('{"update": 6, "train/lo')  # a kill
    write(tmp_path, 3, range(4, 8))
    assert read_figures(tmp_path) == [{"update": update, "train/loss": 1 / update} for update in range(1, 8)]


def test_figures_survive_a_kill_while_they_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 0, [1])
    before = contents(tmp_path)

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        FiguresFile(tmp_path, 1)
    assert contents(tmp_path)[FIGURES] == before[FIGURES]
