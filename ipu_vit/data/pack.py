"""Writes packs (`ipu_vit.data.packed`).

Shards are written one after the other, each under another name until it is whole. A file of its
records lies beside each finished shard, so that an interrupted packing goes on after the last one;
once there are all shards, the records become the index.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Callable, Deque, Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np
import simplejpeg
from PIL import Image

from ipu_vit.data.decode import UnreadableImage
from ipu_vit.data.packed import CONTENTS, INDEX, NAMES, RECORD, UNFINISHED, VERSION, Contents, checksum, listing
from ipu_vit.data.source import Encoded, Source
from ipu_vit.errors import UserError
from ipu_vit.weights.atomic import replacing

SHARD_BYTES = 4 * 2**30
"""A shard ends with the image that reaches this: 35 of them hold ImageNet, 350 ImageNet-21k."""


@dataclass(frozen=True)
class Storing:
    """How images are stored: as their files are, unless something is set."""

    resize: Optional[int] = None
    """Longest shorter side, pixels; larger images are shrunk."""
    quality: int = 90
    """JPEG's, for images that are shrunk."""
    decoded: bool = False
    """As pixels."""


class Stored(NamedTuple):
    """An image as its shard has it."""

    name: str
    data: bytes
    height: int = 0
    width: int = 0
    suffix: str = ""
    """Of the file in the shard, after its name."""


def pack(
    source: Source,
    folder: Path,
    storing: Storing,
    progress: Callable[[int], None] = lambda images: None,
    shard_bytes: int = SHARD_BYTES,
    threads: int = 1,
) -> Contents:
    """Write the images of a source to a folder, or what is missing there; `progress` hears how many are done.

    Images that cannot be decoded stay the files they are, to be met in training as they would be
    without a pack. Raises UserError if the folder holds something else.
    """
    if len(source) == 0:
        raise UserError(f"{folder} cannot be packed: there are no images")
    recipe = {"images": len(source), "listing": _listing(source), **asdict(storing)}
    if (folder / CONTENTS).exists():
        contents = Contents.read(folder, "pack")
        _check_recipe(folder, contents.recipe, recipe)
        return contents
    _begin(folder, recipe)
    parts = _finished(folder)
    done = sum(len(part["records"]) for part in parts)
    while done < len(source):
        with ThreadPoolExecutor(threads) as pool:
            images = _ahead(pool, partial(_stored, source, storing), range(done, len(source)), 4 * threads)
            parts.append(_write_shard(folder, parts, _labelled(source, images, done, progress), shard_bytes))
        done += len(parts[-1]["records"])
    progress(done)
    return _finish(folder, list(source.classes), parts, recipe)


# --- one image -----------------------------------------------------------------------------------


def _stored(source: Source, storing: Storing, index: int) -> Stored:
    name, encoded = _member(source, index), b""
    try:
        if isinstance(source, Encoded):
            encoded = source.encoded(index)
            if storing.resize is None and not storing.decoded:
                return Stored(name, encoded)
        image = source.load(index)
    except OSError as error:
        raise UserError(f"{source.name(index)} cannot be read: {error.strerror or error}") from error
    except UnreadableImage:
        return Stored(name, encoded)
    pixels = _shrunk(image, storing.resize)
    if storing.decoded or not isinstance(source, Encoded):
        height, width, _ = pixels.shape
        return Stored(name, _as_npy(pixels), height, width, ".npy")
    if pixels is image:
        return Stored(name, encoded)
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), storing.quality, colorsubsampling="420")
    return Stored(name, data, suffix="" if name.lower().endswith((".jpg", ".jpeg")) else ".jpg")


def _labelled(
    source: Source, images: Iterator[Stored], first: int, progress: Callable[[int], None]
) -> Iterator[Tuple[int, Stored]]:
    for index, image in enumerate(images, first):
        progress(index)
        yield source.label(index), image


def _member(source: Source, index: int) -> str:
    if isinstance(source, Encoded):
        return source.path(index)
    return f"{source.classes[source.label(index)]}/{index:08}"


def _shrunk(image: np.ndarray, shorter_side: Optional[int]) -> np.ndarray:
    height, width = image.shape[:2]
    if shorter_side is None or min(height, width) <= shorter_side:
        return image
    factor = shorter_side / min(height, width)
    size = max(shorter_side, round(width * factor)), max(shorter_side, round(height * factor))
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.BICUBIC))


def _as_npy(pixels: np.ndarray) -> bytes:
    """Pixels with an alpha of 255: four bytes are what can be resized without being copied."""
    file = BytesIO()
    np.save(file, np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("RGBA")), allow_pickle=False)
    return file.getvalue()


def _ahead(
    pool: ThreadPoolExecutor, make: Callable[[int], Stored], indices: Iterable[int], most: int
) -> Iterator[Stored]:
    """What `make` makes of each index, in order, made by threads that are at most so many ahead."""
    waiting: Deque[Future[Stored]] = deque()
    try:
        for index in indices:
            waiting.append(pool.submit(make, index))
            if len(waiting) > most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


# --- one shard -----------------------------------------------------------------------------------

Part = Dict[str, np.ndarray]
"""The `records` of a shard and the bytes of its images' `names`."""


def _shard(number: int) -> str:
    return f"shard-{number:05}.tar"


def _part(number: int) -> str:
    return f"shard-{number:05}.npz"


def _write_shard(folder: Path, parts: List[Part], images: Iterator[Tuple[int, Stored]], shard_bytes: int) -> Part:
    """Write pairs of a label and an image to the next shard until it is full."""
    number = len(parts)
    name_end = int(parts[-1]["records"][-1]["name_end"]) if parts else 0
    records, names = [], []
    with replacing(str(folder / _shard(number))) as file:
        for label, image in images:
            names.append(os.fsencode(image.name))
            name_end += len(names[-1])
            offset = _write_member(file, image)
            record = np.array((offset, name_end, len(image.data), number, label, image.height, image.width, 0), RECORD)
            record["checksum"] = checksum(record.tobytes(), image.data)
            records.append(record)
            if file.tell() >= shard_bytes:
                break
        file.write(bytes(2 * tarfile.BLOCKSIZE))
        part = {"records": np.stack(records), "names": np.frombuffer(b"".join(names), np.uint8)}
        with replacing(str(folder / _part(number))) as beside:
            np.savez(beside, records=part["records"], names=part["names"])
    return part


def _write_member(file: BinaryIO, image: Stored) -> int:
    """Append an image to a tar file; returns where its data starts."""
    header = tarfile.TarInfo(image.name + image.suffix)
    header.size = len(image.data)
    file.write(header.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
    offset = file.tell()
    file.write(image.data)
    file.write(bytes(-len(image.data) % tarfile.BLOCKSIZE))
    return offset


# --- the whole -----------------------------------------------------------------------------------


def _listing(source: Source) -> int:
    found = 0
    for index in range(len(source)):
        found = listing(_member(source, index), source.label(index), found)
    return found


def _begin(folder: Path, recipe: Dict[str, Any]) -> None:
    """Note what is packed, or check that the same was begun, and remove what was not finished."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / UNFINISHED).exists():
            _check_recipe(folder, json.loads((folder / UNFINISHED).read_text()), recipe)
        elif any(folder.iterdir()):
            raise UserError(f"{folder} is not empty; pack into a new folder")
        for file in folder.glob("*.part"):
            file.unlink()
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} cannot be packed into: {error}") from error
    _write_json(folder / UNFINISHED, recipe)


def _check_recipe(folder: Path, found: Dict[str, Any], wanted: Dict[str, Any]) -> None:
    different = [key for key in wanted if found.get(key) != wanted[key]]
    if different:
        raise UserError(
            f"{folder} holds a pack of other images or other options ({', '.join(different)}); pack into a new folder"
        )


def _finished(folder: Path) -> List[Part]:
    parts: List[Part] = []
    while (folder / _shard(len(parts))).exists():
        with np.load(folder / _part(len(parts)), allow_pickle=False) as part:
            parts.append({"records": part["records"], "names": part["names"]})
    return parts


def _finish(folder: Path, classes: List[str], parts: List[Part], recipe: Dict[str, Any]) -> Contents:
    with replacing(str(folder / INDEX)) as file:
        np.save(file, np.concatenate([part["records"] for part in parts]))
    with replacing(str(folder / NAMES)) as file:
        for part in parts:
            file.write(part["names"].tobytes())
    shards = {_shard(number): (folder / _shard(number)).stat().st_size for number in range(len(parts))}
    contents = Contents(classes, shards, recipe)
    _write_json(folder / CONTENTS, {"version": VERSION, **contents._asdict()})
    for number in range(len(parts)):
        (folder / _part(number)).unlink()
    (folder / UNFINISHED).unlink()
    return contents


def _write_json(path: Path, content: Any) -> None:
    with replacing(str(path)) as file:
        file.write(json.dumps(content, indent=1, ensure_ascii=True).encode())
