"""The commands that pack a data set (`ipu_vit.data.pack`), and verify packs."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator, Optional, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ipu_vit.data.pack import Storing, pack
from ipu_vit.data.packed import PackedImages, is_pack
from ipu_vit.data.part import name_of
from ipu_vit.data.sources import DISTRIBUTED, open_split
from ipu_vit.errors import UserError
from ipu_vit.settings import DataSettings


def pack_splits(
    source: Path,
    destination: Path,
    kind: str = "folder",
    splits: Optional[Sequence[str]] = None,
    *,
    resize: Optional[int] = None,
    quality: Optional[int] = None,
    decoded: Optional[int] = None,
) -> None:
    """Pack each split of a data set into a folder of its name, or class folders without splits into `destination`.

    `kind` is what `data.source` calls such a data set. Raises UserError if there is nothing to pack,
    or something else than this pack where it should go.
    """
    storing = _storing(resize, quality, decoded)
    data = _settings(kind, source)
    console = Console(highlight=False, soft_wrap=True)
    for split in splits or _found(data, source):
        if name_of(split) != split:
            raise UserError(f"--splits={split} is a part of a split; pack the whole, of which runs may take parts")
        images = open_split(data, "--splits", split)
        folder = destination if split == "." else destination / split
        console.print(f"packing {len(images):,} images of {source / split} into {folder}", markup=False)
        with _bar(console, len(images)) as progress:
            contents = pack(images, folder, storing, progress, threads=os.cpu_count() or 1)
        size = sum(contents.shards.values()) / 1e6
        console.print(f"packed: {len(contents.shards)} shards, {size:,.1f} MB", markup=False)


def verify_packs(folder: Path) -> None:
    """Compare the pack in a folder, or those of its splits, with their checksums.

    Raises UserError for a folder without packs, and for the first damage that is found.
    """
    packs = [each for each in (folder, *sorted(folder.glob("*"))) if is_pack(each)]
    if not packs:
        raise UserError(f"{folder} holds no pack, nor folders of packs")
    console = Console(highlight=False, soft_wrap=True)
    for path in packs:
        images = PackedImages(path, "verify-pack")
        with _bar(console, len(images)) as progress:
            images.verify(progress)
        console.print(f"{path} is sound: {len(images):,} images", markup=False)


def _storing(resize: Optional[int], quality: Optional[int], decoded: Optional[int]) -> Storing:
    for name, value, most in (("resize", resize, None), ("decoded", decoded, None), ("quality", quality, 100)):
        if value is not None and not 1 <= value <= (most or value):
            accepted = f"from 1 to {most}" if most else "above 0"
            raise UserError(f"--{name}={value} is not a whole number {accepted}")
    if decoded is not None and (resize is not None or quality is not None):
        raise UserError("--decoded stores pixels of its own size; it goes without --resize and --quality")
    if quality is not None and resize is None:
        raise UserError("--quality is for images that are shrunk; it needs --resize")
    return Storing(resize or decoded, quality or Storing.quality, decoded is not None)


def _settings(kind: str, source: Path) -> DataSettings:
    kinds = ("folder", *DISTRIBUTED)
    if kind not in kinds:
        raise UserError(f"--format={kind} is no data set of files; accepted are {', '.join(kinds)}")
    return DataSettings.model_validate({"source": kind, "root": str(source)})


def _found(data: DataSettings, source: Path) -> Sequence[str]:
    """The splits of the settings, or those of them that are folders of class folders; `.` if there are none."""
    splits = [data.train_split, data.validation_split]
    if data.source != "folder":
        return splits
    return [split for split in splits if _holds_folders(source / split)] or ["."]


def _holds_folders(folder: Path) -> bool:
    return folder.is_dir() and any(entry.is_dir() for entry in folder.iterdir())


@contextmanager
def _bar(console: Console, images: int) -> Iterator[Callable[[int], None]]:
    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("images", total=images)

        def show(done: int) -> None:
            bar.update(task, completed=done)

        yield show
