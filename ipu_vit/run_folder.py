"""The folder of a run: its settings, its log, its figures, its checkpoints.

settings.yml       the resolved settings
labels.json        the names of the classes
train.log          what was printed
figures.jsonl, steps.csv, tensorboard/, about.json: see `ipu_vit.tracking`
unreadable.txt     images that could not be read
checkpoints/       see `ipu_vit.checkpoint`
result.json        the final scores
run.lock           the process that writes here, see `ipu_vit.lock`
report.html        the page of it all, see `ipu_vit.page`
predictions.png    validation images with their predictions
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence

from ipu_vit.config import load_settings, save_settings
from ipu_vit.errors import UserError
from ipu_vit.labels import write_labels
from ipu_vit.layout import is_free
from ipu_vit.lock import FolderLock
from ipu_vit.secrets import without_secrets
from ipu_vit.settings import Settings
from ipu_vit.weights.atomic import replacing

# Settings that may differ when a run is continued: they do not change what it computes, or only
# when it saves and reports. The layout may too, see `ipu_vit.layout`.
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
    "tracking",
    "pipeline.available_memory_proportion",
    "pipeline.executable_cache",
    "pipeline.prefetch_depth",
    "pipeline.replicated_tensor_sharding",
)


class RunFolder:
    """An output folder, opened for a new run or to continue the one in it, and locked until it is closed.

    Raises UserError if another run is in it, or it holds one that these settings are not of.
    """

    def __init__(self, settings: Settings) -> None:
        self.path = Path(settings.output).absolute()
        saved = self.path / "settings.yml"
        self._locks: List[FolderLock] = []
        if settings.fresh and self.path.exists():
            if self.path.is_dir():
                self._locks.append(FolderLock(self.path))  # also of who is about to put it aside as well
            self._put_aside()
        make_folder(self.path, "output")
        self._locks.append(FolderLock(self.path))
        try:
            if saved.exists() and any(self.checkpoints.glob("update-*")):  # else there is nothing to continue
                _check_same_run(settings, saved)
            with writing(saved):
                save_settings(settings, saved)
        except BaseException:
            self.close()
            raise

    @property
    def locked(self) -> bool:
        """Whether other runs are kept out: not every file system can."""
        return all(lock.held for lock in self._locks)

    def close(self) -> None:
        """Let other runs in."""
        for lock in self._locks:
            lock.release()

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

    def write_labels(self, names: Sequence[str]) -> None:
        write_labels(names, self.path / "labels.json")

    def write_result(self, result: Dict[str, Any]) -> None:
        with replacing(str(self.path / "result.json")) as file:
            file.write(json.dumps(result, indent=2).encode() + b"\n")

    def _put_aside(self) -> None:
        """Rename the folder of an earlier run; nothing is ever deleted."""
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.{number}")).exists():
            number += 1
        with writing(aside):
            os.rename(self.path, aside)


class LineFile:
    """A file that lines are added to; each is in it, whole, when `add` returns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with writing(path):
            self._file = path.open("ab", buffering=0)  # a buffer would try again, and fail again, at the end

    def add(self, line: str) -> None:
        rest = line.encode("utf-8", "backslashreplace") + b"\n"
        with writing(self._path):
            while rest:
                rest = rest[self._file.write(rest) :]

    def close(self) -> None:
        self._file.close()


def make_folder(path: Path, setting: str) -> None:
    """Make a folder and its parents; raises UserError naming the setting."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{setting}={path} cannot be made a folder: {error.strerror}") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say what cannot be written, and why, when the disk is full or the folder closed."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def _check_same_run(settings: Settings, saved: Path) -> None:
    """Refuse to continue a run under settings that would make it another one."""
    old = load_settings(str(saved), []).flat()
    for name, value in without_secrets(settings.flat()).items():
        free = is_free(name, settings) or any(name == known or name.startswith(known + ".") for known in _FREE)
        if not free and old[name] != value:
            raise UserError(
                f"output={settings.output} holds a run with {name}={old[name]}, not {value}: keep the old value to "
                "continue it, choose another output, or start over with fresh=true (the old run is put aside)"
            )
