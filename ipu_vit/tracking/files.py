"""The figures of a run in files of lines, without gaps or repeats however often the run was stopped."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any, Dict, List

from ipu_vit.run_folder import LineFile
from ipu_vit.tracking.sink import Sink
from ipu_vit.weights.atomic import replacing

FIGURES = "figures.jsonl"
PREFIX = "train/"  # of the figures that every host step has


class FiguresFile(Sink):
    """`figures.jsonl`, a JSON object for each time that figures come: what `report` draws."""

    def __init__(self, folder: Path, from_update: int) -> None:
        kept = [line for line in read_figures(folder) if line["update"] <= from_update]
        with replacing(str(folder / FIGURES)) as file:
            file.write("".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = LineFile(folder / FIGURES)

    def figures(self, update: int, values: Dict[str, float]) -> None:
        self._file.add(json.dumps({"update": update, **values}))

    def close(self) -> None:
        self._file.close()


def read_figures(folder: Path) -> List[Dict[str, Any]]:
    """The lines of `figures.jsonl` but for one in the making or cut off by a kill; none if there is no such file."""
    path = folder / FIGURES
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def is_scored(folder: Path, update: int) -> bool:
    """Whether the weights after that update have been evaluated."""
    return any(line["update"] == update and "validation/top1" in line for line in read_figures(folder))


class CsvFile(Sink):
    """`steps.csv`: a row for each host step, under the names of its figures."""

    def __init__(self, folder: Path, from_update: int) -> None:
        path = folder / "steps.csv"
        kept = _complete_rows(path, from_update)
        self._empty = not kept
        with replacing(str(path)) as file:
            file.write("".join(kept).encode())
        self._file = LineFile(path)

    def figures(self, update: int, values: Dict[str, float]) -> None:
        row = {"update": update, **{name[len(PREFIX) :]: v for name, v in values.items() if name.startswith(PREFIX)}}
        if len(row) == 1:
            return
        if self._empty:
            self._file.add(_line(list(row)))
            self._empty = False
        self._file.add(_line(list(row.values())))

    def close(self) -> None:
        self._file.close()


def _complete_rows(path: Path, until: int) -> List[str]:
    """The header and the rows of updates up to `until`; not the last one if a kill has cut it off."""
    if not path.exists():
        return []
    header, *rows = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] or [""]
    kept = [row for row in rows if int(row.partition(",")[0]) <= until]
    return [header, *kept] if kept else []


def _line(cells: List[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()
