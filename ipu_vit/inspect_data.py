"""The `inspect-data` command: what the model is going to see, of how many, and how fast it comes.

The contact sheet shows images of the run's first micro batches as the device has them after mixing. The
loader is timed by itself; what training on the hardware eats is a published figure, for comparison.
"""

from __future__ import annotations

import math
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any, List, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ipu_vit.data.decode import UnreadableImage
from ipu_vit.data.loader import training_loader
from ipu_vit.data.ondevice import Mix, Normalise, partners, partners_share
from ipu_vit.data.samples import unreadable_files, worker_init
from ipu_vit.data.source import Source
from ipu_vit.data.sources import open_sources
from ipu_vit.device import Device
from ipu_vit.options import training_options
from ipu_vit.report import Report
from ipu_vit.run_folder import writing
from ipu_vit.settings import Settings

SHOWN = 32

PUBLISHED = {"Mk2": 5600 / 4, "Bow": 7319 / 4}
"""Images/s that a replica on four IPUs trains ViT-B/16 on at 224 px: mmclassification's run, Graphcore's example."""

SECONDS = 10.0
"""How long the loader is timed."""


def inspect_data(settings: Settings, device: Device, picture: Path, read_all: bool = False) -> None:
    """Print what the data are and how fast they come, and draw a contact sheet; `read_all` decodes every image once.

    Raises UserError when there are no data, or the picture cannot be written.
    """
    report = Report()
    sources = open_sources(settings)
    for split, source in (("training", sources.training), ("validation", sources.validation)):
        show_classes(report, split, source)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "unreadable.txt"
        loader = training_loader(settings, training_options(settings, device), sources.training, 0, log)
        with closing(_Ending(loader)):
            batches = iter(loader)
            batch = next(batches)
            draw_contact_sheet(settings, sources.training.classes, batch, picture)
            report.say(f"what the model sees of {min(SHOWN, len(batch[1]))} images is drawn in {picture}")
            show_speed(report, settings, *_timed(batches))
        names = unreadable_files(log)
    if read_all:
        names = [name for source in sources for name in unreadable(report, source, settings.data.workers)]
    looked_at = "all images" if read_all else "the training images that were read for this"
    report.say(f"{len(names)} of {looked_at} cannot be read" + "".join(f"\n  {name}" for name in names))


class _Ending:
    """A loader whose processes end with `close`."""

    def __init__(self, loader: Any) -> None:
        self.close = loader.terminate


# --- classes -------------------------------------------------------------------------------------


def show_classes(report: Report, split: str, source: Source) -> None:
    """How many images there are, and how they are shared out among the classes."""
    counts = np.bincount([source.label(index) for index in range(len(source))], minlength=len(source.classes))
    fewest, most = int(counts.argmin()), int(counts.argmax())
    shared = f"{counts[fewest]:,} each"
    if counts[fewest] < counts[most]:
        shared = (
            f"from {counts[fewest]:,} ({source.classes[fewest]}) to {counts[most]:,} ({source.classes[most]}), "
            f"{np.median(counts):,.0f} in the median"
        )
    report.say(f"{split}: {len(source):,} images of {len(counts):,} classes, {shared}")
    if counts[fewest] == 0:
        report.say(f"  {np.count_nonzero(counts == 0):,} classes have no image")


# --- the picture ---------------------------------------------------------------------------------


def draw_contact_sheet(settings: Settings, classes: Sequence[str], batch: Sequence[Tensor], path: Path) -> None:
    """Write a PNG of the first images of a host batch, each under its label, or the shares of its two."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    images, titles = as_the_model_sees_them(settings, classes, batch)
    columns = min(8, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.7 * columns, 2.0 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (image, title) in enumerate(zip(images, titles)):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.set_axis_off()
        axes.imshow(image)
        axes.set_title(title.replace("$", r"\$"), fontsize=7)
    with writing(path):
        figure.savefig(path, dpi=110, format="png")


def as_the_model_sees_them(
    settings: Settings, classes: Sequence[str], batch: Sequence[Tensor]
) -> Tuple[np.ndarray, List[str]]:
    """Up to SHOWN images, uint8 (N, S, S, 3), mixed if they are to be, and what they are, in words."""
    data, size, micro_batch = settings.data, settings.model.image_size, settings.pipeline.micro_batch
    normalise, mix = Normalise(data.mean, data.std, torch.float32), Mix(size)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (data.mean, data.std))
    images, titles = [], []
    for start in range(0, min(SHOWN, len(batch[1])), micro_batch):
        part = [tensor[start : start + micro_batch] for tensor in batch]
        seen, labels = normalise(part[0]), part[1]
        shares = torch.zeros(len(labels))
        if settings.augmentation.mixes:
            seen, shares = mix(seen, part[2]), partners_share(part[2], size)
        images.append((seen * std + mean).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy())
        for label, partner, share in zip(labels.tolist(), partners(labels).tolist(), shares.tolist()):
            mixed = f"{1 - share:.0%} {classes[label]}\n{share:.0%} {classes[partner]}"
            titles.append(mixed if share else classes[label])
    return np.concatenate(images)[:SHOWN], titles[:SHOWN]


# --- speed ---------------------------------------------------------------------------------------


def _timed(batches: Any) -> Tuple[int, float]:
    """Images that came, and the seconds they took."""
    images, started = 0, time.perf_counter()
    for batch in batches:
        images += len(batch[1])
        if time.perf_counter() - started > SECONDS:
            break
    return images, time.perf_counter() - started


def show_speed(report: Report, settings: Settings, images: int, seconds: float) -> None:
    """What the loader delivers, and what hardware would eat by published figures."""
    if images == 0:
        report.say("the run has too few updates to time its loader")
        return
    speed, workers = images / seconds, max(1, settings.data.workers)
    report.say(f"the loader delivers {speed:,.0f} images/s by itself with data.workers={settings.data.workers}")
    for generation, eaten in PUBLISHED.items():
        wanted = eaten * settings.pipeline.replicas
        report.say(
            f"  ViT-B/16 at 224 px on {4 * settings.pipeline.replicas} {generation} IPUs eats {wanted:,.0f} images/s "
            f"(published): {math.ceil(wanted * workers / speed)} such workers"
        )


# --- files ---------------------------------------------------------------------------------------


class _Faults(Dataset[str]):
    """For each image of a source what is wrong with its file, or nothing."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> str:
        try:
            self.source.load(index)
        except UnreadableImage as error:
            return f"{self.source.name(index)}: {error.reason}"
        return ""


def unreadable(report: Report, source: Source, workers: int) -> List[str]:
    """The images that cannot be decoded, by decoding all."""
    names: List[str] = []
    loader = DataLoader(_Faults(source), 64, num_workers=workers, collate_fn=list, worker_init_fn=worker_init)
    with report.progress("reading", len(source)):
        for number, faults in enumerate(loader):
            names += filter(None, faults)
            report.advance(min(64 * (number + 1), len(source)), f"{len(names)} unreadable")
    return names
