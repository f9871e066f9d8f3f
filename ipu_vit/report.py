"""What a user sees of a run: banners, tables, a progress bar, and one line per host step.

On a terminal the bar shows the lines' content; elsewhere the lines are printed, in the form that the
SDK's benchmark scripts read. The log file always has the lines.
"""

from __future__ import annotations

from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ipu_vit.data.samples import unreadable_files
from ipu_vit.distributed import ALONE, Processes
from ipu_vit.models.image_model import ImageModel
from ipu_vit.parallel import contents_of_ipus
from ipu_vit.run_folder import LineFile, writing
from ipu_vit.secrets import without_secrets
from ipu_vit.settings import Settings


class HostStep(NamedTuple):
    """The figures of one host call."""

    epoch: float
    update: int
    updates: int
    lr: float
    loss: float
    accuracy: float
    images_per_second: float
    seconds: float
    waiting: float  # share of the time that was spent waiting for data

    def figures(self) -> Dict[str, float]:
        """Everything but how far it is, by name."""
        return {
            "epoch": self.epoch,
            "lr": self.lr,
            "loss": self.loss,
            "accuracy": self.accuracy,
            "images_per_second": self.images_per_second,
            "seconds": self.seconds,
            "data_wait": self.waiting,
        }

    @property
    def line(self) -> str:
        return (
            f"Epoch: {self.epoch:.2f} Step: {self.update}/{self.updates} Lr: {self.lr:.6f} loss: {self.loss:.4f} "
            f"accuracy: {self.accuracy:.4f} throughput: {self.images_per_second:.2f} samples/sec "
            f"Mean step duration: {self.seconds:.3f} second Mean data consumption ratio: {self.waiting:.3f}"
        )


class Report:
    """Writes to the console and to a log file."""

    def __init__(self, log: Optional[Path] = None, console: Optional[Console] = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._log = LineFile(log) if log else None
        self._bar: Optional[Progress] = None

    @classmethod
    def silent(cls) -> Report:
        """Of a process that says nothing, as all but the first."""
        return cls(console=Console(quiet=True))

    def close(self) -> None:
        if self._log:
            self._log.close()

    def say(self, text: str) -> None:
        """Print a line, without the secrets in it, and log it with the time."""
        text = without_secrets(text)
        self.console.print(self._printable(text), markup=False)
        self._write(text)

    def table(self, title: str, columns: List[str], rows: List[List[str]], words: Sequence[int] = (1,)) -> None:
        """Print a table; the columns numbered in `words` are text, the others numbers."""
        table = Table(title=title, title_justify="left", title_style="bold")
        for position, column in enumerate(columns):
            table.add_column(column, justify="left" if position in words else "right")
        for row in rows:
            table.add_row(*(Text(self._printable(cell)) for cell in row))
            self._write(" | ".join(row))
        self.console.print(table)

    @contextmanager
    def progress(self, task: str, total: int, done: int = 0) -> Iterator[Progress]:
        """A progress bar with the time left; on a terminal only."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(compact=True),
        )
        with Progress(*columns, console=self.console, disable=not self.console.is_terminal) as bar:
            bar.add_task(task, total=total, completed=done, figures="")
            self._bar = bar
            try:
                yield bar
            finally:
                self._bar = None

    def advance(self, done: int, figures: str = "") -> None:
        """Move the bar that is shown."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, figures=figures)

    def host_step(self, step: HostStep) -> None:
        """One line to the log; to the console too unless a bar is there."""
        self._write(step.line)
        if self.console.is_terminal:
            figures = f"loss {step.loss:.3f} · lr {step.lr:.4f} · {step.images_per_second:.0f} images/s"
            self.advance(step.update, figures)
        else:
            self.console.print(step.line, markup=False)

    def _printable(self, text: str) -> str:
        """File names may hold bytes, and messages characters, that the terminal's encoding does not have."""
        encoding = self.console.encoding
        return text.encode(encoding, "backslashreplace").decode(encoding)

    def _write(self, text: str) -> None:
        if self._log:
            for line in text.splitlines():
                self._log.add(f"{datetime.now().isoformat(sep=' ', timespec='milliseconds')} {line}")


PIPELINE_COLUMNS = ["IPU", "holds", "parameters", "weights", "micro batches in flight"]


def pipeline_rows(model: ImageModel, layers_per_ipu: List[int]) -> List[List[str]]:
    """What sits on which IPU, under `PIPELINE_COLUMNS`."""
    contents = contents_of_ipus(model, layers_per_ipu)
    return [
        [
            str(ipu.ipu),
            ipu.description,
            f"{ipu.parameters / 1e6:.2f} M",
            f"{ipu.weight_bytes / 2**20:.1f} MiB",
            # A stage keeps what its micro batches need until their backward pass comes by.
            str(2 * (len(contents) - 1 - ipu.ipu) + 1),
        ]
        for ipu in contents
    ]


def show_plan(
    report: Report,
    settings: Settings,
    model: ImageModel,
    images: Optional[int] = None,
    processes: Processes = ALONE,
) -> None:
    """The table of what sits on which IPU, and how a global batch is cut."""
    plan, schedule = settings.pipeline.batch_plan(), settings.schedule
    report.table("Pipeline", PIPELINE_COLUMNS, pipeline_rows(model, settings.pipeline.layers_per_ipu))
    shared = f" in {processes.size} processes" if processes.size > 1 else ""
    text = (
        f"batch {plan.global_batch} = micro batch {plan.micro_batch} × accumulation {plan.accumulation} × replicas "
        f"{plan.replicas}{shared}; {schedule.updates:,} updates"
    )
    if images is not None:
        text += f" over {images:,} images are {schedule.updates * plan.global_batch / images:.1f} epochs"
    report.say(text)


def gather_unreadable(processes: Processes, log: Path) -> None:
    """Put the lines of all processes' logs of unreadable images into that of process 0."""
    lines = processes.gather(log.read_bytes() if log.exists() else b"")
    if processes.is_first and any(lines[1:]):
        with writing(log), log.open("ab") as file:
            file.write(b"".join(lines[1:]))


def show_unreadable(report: Report, log: Path) -> None:
    """The images that were left out, if any."""
    names = unreadable_files(log)
    if names:
        report.say(f"{len(names)} unreadable images were left out:\n  " + "\n  ".join(names))
