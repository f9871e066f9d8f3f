"""Image sets of Hugging Face's `datasets`, from the disk: what `save_to_disk` wrote, or Parquet files of the hub.

    dataset_dict.json           ROOT/<split>/*.arrow        saved with its splits
    state.json                  ROOT/*.arrow                saved without
    data/train-00000-of-00002.parquet                       Parquet: <split>*.parquet, in ROOT or below

Images are structs of the encoded `bytes` and a `path`; labels are whole numbers, whose names stand in the
files' metadata. Arrow files are mapped into memory. Parquet files are compressed in groups of rows, one
of which is kept: good to read in order and to pack (`python -m ipu_vit pack`), slow to shuffle.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from ipu_vit.data.decode import EncodedImage, UnreadableImage
from ipu_vit.errors import UserError


class HuggingFaceImages:
    """The images of one split, in the order of its files and rows. Raises UserError if there are none."""

    def __init__(self, root: Path, split: str) -> None:
        self._arguments = root, split
        self.title = f"{root}/{split}"
        try:
            import pyarrow
        except ImportError as error:
            raise UserError("data.source=hugging_face needs pyarrow, which is not installed") from error
        files = _files(root, split)
        if not files:
            raise UserError(
                f"data.root={root} holds no split {split} of a Hugging Face data set; expected {split}/*.arrow as "
                f"save_to_disk writes them, or {split}*.parquet"
            )
        try:
            self._groups = [group for file in files for group in _groups_of(file)]
            schema = _schema(files[0])
            self._image, label, names = _columns(schema)
            labels = [group.labels(label) for group in self._groups]
        except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"data.root={root}: the files of {split} cannot be used: {reason}") from error
        self._ends = list(accumulate(map(len, labels)))
        self._labels = np.concatenate([*labels, np.zeros(0, np.int64)])
        if len(self._labels) == 0:
            raise UserError(f"data.root={root}: the files of {split} hold no images")
        self.classes: Sequence[str] = names or [str(number) for number in range(int(self._labels.max()) + 1)]
        if self._labels.min() < 0 or self._labels.max() >= len(self.classes):
            raise UserError(f"data.root={root}: some images of {split} have no label")
        self._kept: Tuple[int, Any] = (-1, None)

    def __reduce__(self) -> Tuple[Any, ...]:
        return HuggingFaceImages, self._arguments

    def __len__(self) -> int:
        return len(self._labels)

    def load(self, index: int) -> np.ndarray:
        return self.open(index).pixels()

    def open(self, index: int) -> EncodedImage:
        return EncodedImage(self.encoded(index), self.name(index))

    def label(self, index: int) -> int:
        return int(self._labels[index])

    def name(self, index: int) -> str:
        return f"{self.title}/{self.path(index)}"

    def path(self, index: int) -> str:
        return f"{self.classes[self.label(index)]}/{index:08}"

    def encoded(self, index: int) -> bytes:
        number = bisect_right(self._ends, index)
        if self._kept[0] != number:
            self._kept = number, self._groups[number].images(self._image)
        row = index - (self._ends[number - 1] if number else 0)
        data = self._kept[1].field("bytes")[row].as_py()
        if data is None:
            raise UnreadableImage(self.name(index), "the data set holds a path instead of the image")
        return bytes(data)


class _ArrowBatch:
    """A batch of rows of a mapped Arrow file: nothing is read until it is looked at."""

    def __init__(self, batch: Any) -> None:
        self._batch = batch

    def labels(self, column: str) -> np.ndarray:
        return _numbers(self._batch.column(column))

    def images(self, column: str) -> Any:
        return self._batch.column(column)


class _RowGroup:
    """A group of rows of a Parquet file, decompressed when it is asked for."""

    def __init__(self, file: Any, number: int) -> None:
        self._file = file
        self._number = number

    def labels(self, column: str) -> np.ndarray:
        return _numbers(self._column(column))

    def images(self, column: str) -> Any:
        return self._column(column)

    def _column(self, name: str) -> Any:
        return self._file.read_row_group(self._number, columns=[name], use_threads=False).column(name).combine_chunks()


def _files(root: Path, split: str) -> List[Path]:
    for folder in (root / split, root):
        arrow = sorted(folder.glob("*.arrow"))
        if arrow:
            return arrow
    return sorted((root / split).glob("*.parquet")) or sorted(root.rglob(f"{split}*.parquet"))


def _groups_of(file: Path) -> List[Any]:
    import pyarrow.ipc
    import pyarrow.parquet

    if file.suffix == ".arrow":
        return [_ArrowBatch(batch) for batch in pyarrow.ipc.open_stream(pyarrow.memory_map(str(file)))]
    parquet = pyarrow.parquet.ParquetFile(file)
    return [_RowGroup(parquet, number) for number in range(parquet.num_row_groups)]


def _schema(file: Path) -> Any:
    import pyarrow.ipc
    import pyarrow.parquet

    if file.suffix == ".arrow":
        return pyarrow.ipc.open_stream(pyarrow.memory_map(str(file))).schema
    return pyarrow.parquet.read_schema(file)


def _columns(schema: Any) -> Tuple[str, str, Optional[List[str]]]:
    """The names of the columns of images and labels, and of the classes: by the types that `datasets` noted."""
    import pyarrow

    notes = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features: Dict[str, Any] = notes.get("info", {}).get("features", {})
    kinds = {name: note.get("_type") for name, note in features.items() if isinstance(note, dict)}
    images = [name for name in schema.names if kinds.get(name, _kind(schema.field(name).type)) == "Image"]
    labels = [name for name in schema.names if kinds.get(name) == "ClassLabel"] or [
        name for name in schema.names if pyarrow.types.is_integer(schema.field(name).type)
    ]
    if len(images) != 1 or not labels:
        raise ValueError(f"expected one column of images and one of labels among {', '.join(schema.names)}")
    return images[0], labels[0], features.get(labels[0], {}).get("names")


def _kind(column: Any) -> Optional[str]:
    import pyarrow

    is_image = pyarrow.types.is_struct(column) and {"bytes", "path"} <= {field.name for field in column}
    return "Image" if is_image else None


def _numbers(column: Any) -> np.ndarray:
    """Labels as int64, −1 where there is none."""
    return column.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
