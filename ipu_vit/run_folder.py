"""The folder of a run: its settings, its log, its losses, its checkpoints.

settings.yml       the resolved settings
train.log          what was printed
losses.jsonl       one line per host step: update, loss, accuracy, lr
unreadable.txt     images that could not be read
checkpoints/       see `ipu_vit.checkpoint`
result.json        the final scores
predictions.png    validation images with their predictions
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Dict, Iterator, Tuple

import yaml

from ipu_vit.config import save_settings
from ipu_vit.errors import UserError
from ipu_vit.settings import Settings

# Settings that may differ when a run is continued: they do not change what it computes, or only
# when it saves and reports.
_FREE = (
    "name",
    "device",
    "output",
    "fresh",
    "rehearse",
    "export",
    "export_precision",
    "data.root",
    "data.workers",
    "data.skip_unreadable",
    "evaluation",
    "checkpoint",
    "pipeline.available_memory_proportion",
    "pipeline.executable_cache",
    "pipeline.prefetch_depth",
    "pipeline.replicated_tensor_sharding",
)


class RunFolder:
    """An output folder, opened for a new run or to continue the one in it."""

    def __init__(self, settings: Settings) -> None:
        self.path = Path(settings.output)
        saved = self.path / "settings.yml"
        if settings.fresh and self.path.exists():
            self._put_aside()
        make_folder(self.path, "output")
        if saved.exists():
            _check_same_run(settings, saved)
        save_settings(settings, saved)

    @property
    def log(self) -> Path:
        return self.path / "train.log"

    @property
    def unreadable(self) -> Path:
        return self.path / "unreadable.txt"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def pictures(self) -> Path:
        return self.path / "predictions.png"

    def write_result(self, result: Dict[str, Any]) -> None:
        (self.path / "result.json").write_text(json.dumps(result, indent=2) + "\n")

    def _put_aside(self) -> None:
        """Rename the folder of an earlier run; nothing is ever deleted."""
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.{number}")).exists():
            number += 1
        os.rename(self.path, aside)


class LossFile:
    """The losses of a run, one JSON object a line, without gaps or repeats however often it was stopped."""

    def __init__(self, folder: Path, from_update: int) -> None:
        self._path = folder / "losses.jsonl"
        kept = [line for update, line in _lines(self._path) if update <= from_update]
        self._path.write_text("".join(kept))
        self._file = self._path.open("a", buffering=1)

    def add(self, **values: Any) -> None:
        self._file.write(json.dumps(values) + "\n")

    def close(self) -> None:
        self._file.close()


def make_folder(path: Path, setting: str) -> None:
    """Make a folder and its parents; raises UserError naming the setting."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{setting}={path} cannot be made a folder: {error.strerror}") from error


def _lines(path: Path) -> Iterator[Tuple[int, str]]:
    if path.exists():
        for line in path.read_text().splitlines(keepends=True):
            try:
                yield json.loads(line)["update"], line
            except ValueError:  # the last line, cut off by a kill
                return


def _check_same_run(settings: Settings, saved: Path) -> None:
    """Refuse to continue a run under settings that would make it another one."""
    old = _flat(yaml.safe_load(saved.read_text()))
    for name, value in _flat(json.loads(settings.model_dump_json())).items():
        free = any(name == known or name.startswith(known + ".") for known in _FREE)
        if not free and name in old and old[name] != value:
            raise UserError(
                f"output={settings.output} holds a run with {name}={old[name]}, not {value}: keep the old value to "
                "continue it, choose another output, or start over with fresh=true (the old run is put aside)"
            )


def _flat(table: Dict[str, Any], prefix: str = "") -> Dict[str, Any]:
    flat: Dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
