"""What a user sees of a download."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import Callable, Iterator, Optional

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn


@contextmanager
def show_download(address: str) -> Iterator[Callable[[int, Optional[int]], None]]:
    """What to tell of the bytes of a download: a bar on a terminal, a line elsewhere, nothing if there is none."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    name = re.split("[?#]", address)[0]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:

        def show(done: int, total: Optional[int]) -> None:
            if not bar.task_ids:
                console.print(f"weights: downloading {name}", markup=False)
                bar.add_task(name.rpartition("/")[2])
            bar.update(bar.task_ids[0], completed=done, total=total)

        yield show
