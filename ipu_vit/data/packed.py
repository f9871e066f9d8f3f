"""A pack: a data set in a few large files that any of its images can be read from at once.

    shard-00000.tar   the images' files, or their pixels as RGBA in .npy, under their names: `tar` unpacks them
    shard-00001.tar   …
    index.npy         a RECORD for each image, in the order of the source
    names.txt         the images' names, one after the other
    pack.json         the classes, the shards with their sizes, and how images were stored

Everything but pack.json is mapped into memory and not read, so that opening takes no longer for more
images, and processes share what they read. `ipu_vit.data.pack` writes packs.
"""

from __future__ import annotations

import json
import mmap
import os
import zlib
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np

from ipu_vit.data.decode import EncodedImage
from ipu_vit.data.folder import found_among
from ipu_vit.data.picture import Picture, Pixels
from ipu_vit.data.source import DamagedSource
from ipu_vit.errors import UserError

VERSION = 1
CONTENTS, UNFINISHED, INDEX, NAMES = "pack.json", "unfinished.json", "index.npy", "names.txt"

RECORD = np.dtype(
    [
        ("offset", "<u8"),  # of the image's file in its shard, bytes
        ("name_end", "<u8"),  # in names.txt; a name starts where the one before ends
        ("size", "<u4"),  # bytes
        ("shard", "<u4"),
        ("label", "<u4"),
        ("height", "<u4"),  # both 0 if the image is encoded
        ("width", "<u4"),
        ("checksum", "<u4"),  # see `checksum`
    ]
)

_CURE = "copy the pack again, or pack the images anew"


PAGE = 4096
"""Bytes, the least that disks and memory mix up."""


def checksum(record: bytes, data: Union[bytes, memoryview]) -> int:
    """Of a record's other fields and the image's file, so that a label is as safe as pixels are.

    Pages of the file count as the sums of their 64-bit words, because CRC-32 takes a quarter of the
    time of what else is done to an image that is stored as pixels. A sum hears of every flipped bit,
    and a CRC-32 of the sums and of what follows the last page of pages in another order.
    """
    whole = len(data) // PAGE * PAGE
    sums = np.add.reduce(np.frombuffer(data, "<u8", whole // 8).reshape(-1, PAGE // 8), axis=1)
    return zlib.crc32(memoryview(data)[whole:], zlib.crc32(sums, zlib.crc32(record[:-4])))


def listing(path: str, label: int, before: int = 0) -> int:
    """A checksum of the paths and labels of images: of one, and those `before` it."""
    return zlib.crc32(os.fsencode(f"{path}\n{label}\n"), before)


def is_pack(folder: Path) -> bool:
    """Whether a folder holds a pack, finished or not."""
    return (folder / CONTENTS).exists() or (folder / UNFINISHED).exists()


class Contents(NamedTuple):
    """What pack.json says."""

    classes: List[str]
    shards: Dict[str, int]
    """Bytes of each shard, by file name."""
    recipe: Dict[str, Any]
    """What was packed, and how."""

    @staticmethod
    def read(folder: Path, setting: str) -> Contents:
        """Raises UserError if the pack is unfinished, of another version or damaged."""
        path = folder / CONTENTS
        if not path.exists() and (folder / UNFINISHED).exists():
            raise UserError(f"{setting}: {folder} is a pack that is not finished; the command that began it goes on")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["version"] == VERSION:
                recipe = {"images": int(found["recipe"]["images"]), "listing": int(found["recipe"]["listing"])}
                return Contents(list(found["classes"]), dict(found["shards"]), {**found["recipe"], **recipe})
        except OSError as error:
            raise UserError(f"{setting}: {path} cannot be read ({error.strerror})") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{setting}: {path} is damaged; {_CURE}") from error
        raise UserError(f"{setting}: {path} is of version {found['version']}; version {VERSION} is accepted")


class PackedImages:
    """The images of a pack, in the order that they were packed in.

    `setting` and `classes` are as `ImageFolder` has them. An image that does not match its checksum
    raises DamagedSource with the name of its shard, because the disk or a copy is at fault then, and
    no one knows what else.
    """

    def __init__(self, folder: Path, setting: str, classes: Optional[Sequence[str]] = None) -> None:
        self._arguments = folder, setting, classes
        self.folder = folder
        contents = Contents.read(folder, setting)
        numbers = found_among(contents.classes, classes, f"{setting}: {folder}")
        self.classes: List[str] = contents.classes if classes is None else list(classes)
        self._label_of = np.array(numbers)
        self._shards = [folder / name for name in contents.shards]
        self._maps: List[Optional[mmap.mmap]] = [None] * len(self._shards)
        self._index = _index(folder / INDEX, setting, contents.recipe["images"])
        self._listing = contents.recipe["listing"]
        names = int(self._index[-1]["name_end"])
        for file, size in {**contents.shards, NAMES: names}.items():
            _check_size(folder / file, setting, size)
        self._names = np.asarray(np.memmap(folder / NAMES, np.uint8, "r"))

    def verify(self, progress: Callable[[int], None] = lambda images: None) -> None:
        """Read everything, in the order it has on the disk; `progress` hears how many images are done.

        Raises DamagedSource with the first image, and its shard, that does not match its checksum.
        """
        found = 0
        for index in range(len(self)):
            self._data(index)
            found = listing(self.path(index), int(self._index[index]["label"]), found)
            progress(index + 1)
        if found != self._listing:
            raise DamagedSource(str(self.folder / NAMES), f"it does not match its checksum; {_CURE}")

    def __reduce__(self) -> Tuple[Any, ...]:
        return PackedImages, self._arguments

    def __len__(self) -> int:
        return len(self._index)

    def load(self, index: int) -> np.ndarray:
        """Images that are stored as pixels are read-only, and on the disk until they are looked at."""
        return self.open(index).pixels()

    def open(self, index: int) -> Picture:
        data = self._data(index)
        *_, height, width, _ = self._index[index].item()
        if height == 0:
            return EncodedImage(bytes(data), self.name(index))
        return Pixels(np.ndarray((height, width, 4), np.uint8, data[-4 * height * width :])[..., :3])

    def label(self, index: int) -> int:
        return int(self._label_of[self._index[index]["label"]])

    def name(self, index: int) -> str:
        return os.path.join(self.folder, self.path(index))

    def path(self, index: int) -> str:
        start = self._index[index - 1]["name_end"] if index else 0
        return os.fsdecode(self._names[start : self._index[index]["name_end"]].tobytes())

    def _data(self, index: int) -> memoryview:
        """The image's file."""
        record = self._index[index]
        offset, _, size, number, *_, expected = record.item()
        if number < len(self._shards):
            shard = self._map(number)
            # Asked for as a whole; else a disk would be asked for a few pages at a time.
            page = offset % mmap.PAGESIZE
            if hasattr(shard, "madvise") and offset + size <= len(shard):
                shard.madvise(mmap.MADV_WILLNEED, offset - page, size + page)
            data = memoryview(shard)[offset : offset + size]
            if checksum(record.tobytes(), data) == expected:
                return data
        file = self._shards[number] if number < len(self._shards) else self.folder / INDEX
        raise DamagedSource(str(file), f"image {index} does not match its checksum; {_CURE}")

    def _map(self, number: int) -> mmap.mmap:
        found = self._maps[number]
        if found is None:
            try:
                with open(self._shards[number], "rb") as file:
                    found = self._maps[number] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError as error:
                raise DamagedSource(str(self._shards[number]), f"it cannot be read ({error.strerror})") from error
        return found


def _index(path: Path, setting: str, images: int) -> np.ndarray:
    try:
        index = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except OSError as error:
        raise UserError(f"{setting}: {path} cannot be read ({error.strerror or error}); {_CURE}") from error
    except Exception as error:  # NumPy's parser of headers lets all kinds of exceptions through
        raise UserError(f"{setting}: {path} is damaged; {_CURE}") from error
    if index.dtype != RECORD or index.shape != (images,):
        raise UserError(f"{setting}: {path} is not the index of {images} images; {_CURE}")
    return index


def _check_size(path: Path, setting: str, expected: int) -> None:
    """A file that is shorter than what is mapped of it would end the process without a word."""
    try:
        found = path.stat().st_size
    except OSError as error:
        raise UserError(f"{setting}: {path} cannot be read ({error.strerror}); {_CURE}") from error
    if found != expected:
        raise UserError(f"{setting}: {path} has {found:,} bytes instead of {expected:,}; {_CURE}")
