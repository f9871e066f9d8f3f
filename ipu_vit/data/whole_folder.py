"""A folder that appears complete or not at all."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Iterator


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target` that takes its place once the block has ended.

    After an error or an interruption `target` is as it was. If another process has meanwhile
    written it, that one's folder stays.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        folder = Path(scratch) / target.name  # inside, as the scratch folder is closed to other users
        folder.mkdir()
        yield folder
        try:
            os.rename(folder, target)
        except OSError:
            if not holds_files(target):
                raise


def holds_files(folder: Path) -> bool:
    """Whether the folder exists and has something in it."""
    return folder.is_dir() and any(folder.iterdir())
