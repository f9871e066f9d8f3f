"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) as they are distributed: for Python or as binary, packed or unpacked.

The files for Python are pickles, and a pickle is a program. Here one may make dictionaries, lists,
texts, numbers and arrays of bytes, and nothing else.
"""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

from ipu_vit.errors import UserError

SIDE = 32
PIXELS = 3 * SIDE * SIDE

Read = Callable[[Sequence[str]], Dict[str, bytes]]
"""The contents of files of the archive, by their names."""


@dataclass(frozen=True)
class Cifar:
    """Images in memory: 180 MB at most, which worker processes share."""

    pixels: np.ndarray
    """uint8 (images, 3072): the red plane, the green and the blue, each row by row."""
    labels: np.ndarray
    classes: Sequence[str]
    title: str

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int) -> np.ndarray:
        return np.ascontiguousarray(self.pixels[index].reshape(3, SIDE, SIDE).transpose(1, 2, 0))

    def label(self, index: int) -> int:
        return int(self.labels[index])

    def name(self, index: int) -> str:
        return f"{self.title}/{index:05}"


@dataclass(frozen=True)
class Layout:
    """Where an archive has what."""

    folder: str
    archive: str
    splits: Dict[str, List[str]]
    names: str
    label_bytes: int
    """Of a record of the binary files; the last of them is the label."""
    keys: Tuple[str, str]
    """Of the labels and of the classes' names in the pickles."""

    @property
    def is_binary(self) -> bool:
        return self.names.endswith(".txt")


_TEN = ("labels", "label_names")
_HUNDRED = ("fine_labels", "fine_label_names")
_BATCHES = [f"data_batch_{number}" for number in range(1, 6)]

LAYOUTS = {
    10: [
        Layout(
            "cifar-10-batches-bin",
            "cifar-10-binary.tar.gz",
            {"train": [f"{name}.bin" for name in _BATCHES], "test": ["test_batch.bin"]},
            "batches.meta.txt",
            1,
            _TEN,
        ),
        Layout(
            "cifar-10-batches-py",
            "cifar-10-python.tar.gz",
            {"train": _BATCHES, "test": ["test_batch"]},
            "batches.meta",
            1,
            _TEN,
        ),
    ],
    100: [
        Layout(
            "cifar-100-binary",
            "cifar-100-binary.tar.gz",
            {"train": ["train.bin"], "test": ["test.bin"]},
            "fine_label_names.txt",
            2,
            _HUNDRED,
        ),
        Layout(
            "cifar-100-python",
            "cifar-100-python.tar.gz",
            {"train": ["train"], "test": ["test"]},
            "meta",
            2,
            _HUNDRED,
        ),
    ],
}


def open_cifar(root: Path, split: str, classes: int) -> Cifar:
    """The images of `train` or `test`, in the order of the files.

    `root` is an archive, an unpacked one, or a folder with one of them in it. Raises UserError if
    there is none, or one that is damaged.
    """
    for layout in LAYOUTS[classes]:
        read = _reader(root, layout)
        if read is not None:
            try:
                return _open(read, layout, split, classes)
            except (OSError, EOFError, zlib.error, tarfile.TarError, _Refused) as error:
                reason = getattr(error, "strerror", None) or error
                raise UserError(f"data.root={root}: {layout.archive} cannot be used: {reason}") from error
    known = ", ".join(layout.archive for layout in LAYOUTS[classes])
    raise UserError(f"data.root={root} holds no CIFAR-{classes}; expected {known}, or one of them unpacked")


class _Refused(Exception):
    """Files that are not CIFAR's."""


def _open(read: Read, layout: Layout, split: str, classes: int) -> Cifar:
    wanted = [layout.names, *layout.splits[split]]
    files = read(wanted)
    missing = [name for name in wanted if name not in files]
    if missing:
        raise _Refused(f"{missing[0]} is missing")
    parts = [_records(files[name], layout, name) for name in layout.splits[split]]
    pixels, labels = (np.concatenate(several) for several in zip(*parts))
    names = _names(files[layout.names], layout)
    if len(names) != classes or labels.max() >= classes:
        raise _Refused(f"it has other classes than the {classes} of CIFAR-{classes}")
    return Cifar(pixels, labels, names, f"cifar{classes}/{split}")


def _reader(root: Path, layout: Layout) -> Optional[Read]:
    for folder in (root, root / layout.folder):
        if (folder / layout.names).is_file():
            return partial(_unpacked, folder)
    for archive in (root, root / layout.archive):
        if archive.name == layout.archive and archive.is_file():
            return partial(_packed, archive, layout.folder)
    return None


def _unpacked(folder: Path, names: Sequence[str]) -> Dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}


def _packed(archive: Path, folder: str, names: Sequence[str]) -> Dict[str, bytes]:
    """One pass, as finding a file means to decompress what comes before it."""
    found = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.rpartition("/")[2]
            if member.isfile() and member.name == f"{folder}/{name}" and name in names:
                found[name] = tar.extractfile(member).read()  # type: ignore[union-attr]  # as it is a file
    return found


def _names(content: bytes, layout: Layout) -> List[str]:
    if layout.is_binary:
        return content.decode("latin-1").split()
    (names,) = _unpickle(content, layout.names, layout.keys[1])
    if not isinstance(names, list):
        raise _Refused(f"{layout.names} does not hold the names of classes")
    return [name.decode("latin-1") if isinstance(name, bytes) else str(name) for name in names]


def _records(content: bytes, layout: Layout, name: str) -> Tuple[np.ndarray, np.ndarray]:
    """Pixels, uint8 (images, 3072), and labels, int64."""
    if layout.is_binary:
        if len(content) == 0 or len(content) % (layout.label_bytes + PIXELS):
            raise _Refused(f"{name} is cut short: its {len(content):,} bytes are no whole number of images")
        records = np.frombuffer(content, np.uint8).reshape(-1, layout.label_bytes + PIXELS)
        return records[:, layout.label_bytes :], records[:, layout.label_bytes - 1].astype(np.int64)
    pixels, labels = _unpickle(content, name, "data", layout.keys[0])
    if not isinstance(labels, list) or not all(isinstance(label, int) and 0 <= label < 100 for label in labels):
        raise _Refused(f"{name} does not hold a list of labels")
    if not isinstance(pixels, _Array) or not labels or pixels.values.shape != (len(labels), PIXELS):
        raise _Refused(f"{name} does not hold {PIXELS} bytes for each of its {len(labels)} labels")
    return pixels.values, np.array(labels, np.int64)


# --- pickles -------------------------------------------------------------------------------------


class _Array:
    """What the pickle of a NumPy array of bytes makes, with nothing of NumPy called by the pickle."""

    def __init__(self, *arguments: Any) -> None:
        self.values: np.ndarray = np.zeros(0, np.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, column_wise, content = state
        content = content.encode("latin-1") if isinstance(content, str) else content
        if not isinstance(kind, _Kind) or column_wise:
            raise ValueError("its array does not hold bytes row by row")
        self.values = np.frombuffer(content, np.uint8).reshape(shape)


class _Kind:
    """What the pickle of NumPy's uint8 makes."""

    def __init__(self, name: str, *arguments: Any) -> None:
        if name != "u1":
            raise ValueError(f"its array holds {name}; bytes are accepted")

    def __setstate__(self, state: Any) -> None:
        pass


_KNOWN: Dict[Tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Kind,
    ("_codecs", "encode"): lambda text, encoding: text.encode("latin-1"),  # bytes, as Python 3 writes them for 2
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}, which could run code") from None


def _unpickle(content: bytes, name: str, *keys: str) -> List[Any]:
    """The values of keys of a pickled dictionary."""
    try:
        # Texts of Python 2 are bytes of no known encoding; this one fits them all.
        found = _Unpickler(io.BytesIO(content), encoding="latin-1").load()
    except _Refused as error:
        raise _Refused(f"{name} asks for {error}, where CIFAR's holds only data") from error
    except Exception as error:  # a damaged pickle raises anything
        raise _Refused(f"{name} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise _Refused(f"{name} holds a {type(found).__name__}; a dictionary is accepted")
    values = {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in found.items()}
    lacking = [key for key in keys if key not in values]
    if lacking:
        raise _Refused(f"{name} lacks {lacking[0]}")
    return [values[key] for key in keys]
