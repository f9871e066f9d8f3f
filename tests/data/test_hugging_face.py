"""Hugging Face's image sets, written with pyarrow as `datasets` and the hub have them."""

from __future__ import annotations

import json
import pickle
import sys
from io import BytesIO
from pathlib import Path
from typing import Any, Callable, List, Optional

import numpy as np
import pytest
from pictures import photograph

from ipu_vit.data.decode import UnreadableImage
from ipu_vit.data.hugging_face import HuggingFaceImages
from ipu_vit.data.pack import Storing, pack
from ipu_vit.data.packed import PackedImages
from ipu_vit.errors import UserError

CLASSES = ["ant", "bee", "cat"]
ROWS = 10


def encoded(number: int) -> bytes:
    file = BytesIO()
    photograph(number, 20, 16).save(file, "PNG")
    return file.getvalue()


def table(numbers: List[int], label: Optional[str] = "label", noted: bool = True) -> Any:
    pa = pytest.importorskip("pyarrow")
    images = [{"bytes": encoded(number), "path": f"{number}.png"} for number in numbers]
    columns = {"id": numbers, "image": images, label or "other": [number % 3 for number in numbers]}
    found = pa.table(columns)
    if not noted:
        return found.drop_columns(["id"])
    features = {
        "id": {"dtype": "int64", "_type": "Value"},
        "image": {"_type": "Image"},
        label: {"names": CLASSES, "_type": "ClassLabel"},
    }
    return found.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def saved(root: Path, tables: List[Any]) -> None:
    """As `save_to_disk` writes: streams of batches."""
    import pyarrow as pa

    root.mkdir(parents=True)
    for number, content in enumerate(tables):
        with pa.OSFile(str(root / f"data-{number:05}-of-{len(tables):05}.arrow"), "wb") as file:
            with pa.ipc.new_stream(file, content.schema) as stream:
                stream.write_table(content, max_chunksize=2)
    (root / "state.json").write_text("{}")


def parquet(root: Path, tables: List[Any]) -> None:
    from pyarrow import parquet

    root.mkdir(parents=True)
    for number, content in enumerate(tables):
        parquet.write_table(content, root / f"train-{number:05}-of-{len(tables):05}.parquet", row_group_size=2)


def check(found: HuggingFaceImages) -> None:
    assert len(found) == ROWS and list(found.classes) == CLASSES
    for index in [*range(ROWS), *reversed(range(ROWS))]:
        assert np.array_equal(found.load(index), np.asarray(photograph(index, 20, 16)))
        assert found.label(index) == index % 3
        assert found.encoded(index) == encoded(index)


@pytest.mark.parametrize(
    "write, place", [(saved, "train"), (saved, "."), (parquet, "data"), (parquet, "train"), (parquet, "")]
)
def test_every_row_is_found(tmp_path: Path, write: Callable[..., None], place: str) -> None:
    tables = [table(list(range(7))), table(list(range(7, ROWS)))]
    write(tmp_path / "set" / place, tables)
    found = HuggingFaceImages(tmp_path / "set", "train")
    check(found)
    sent = pickle.dumps(found)
    assert len(sent) < 1000
    check(pickle.loads(sent))


def test_splits_are_kept_apart(tmp_path: Path) -> None:
    for split, numbers in (("train", [0, 1, 2]), ("test", [4, 5])):
        saved(tmp_path / split, [table(numbers)])
    assert [len(HuggingFaceImages(tmp_path, split)) for split in ("train", "test")] == [3, 2]
    with pytest.raises(UserError, match=r"holds no split val of a Hugging Face data set; expected val/\*.arrow as"):
        HuggingFaceImages(tmp_path, "val")


def test_other_names_of_columns_are_found_by_their_types(tmp_path: Path) -> None:
    saved(tmp_path / "train", [table(list(range(ROWS)), label="fine_label")])
    check(HuggingFaceImages(tmp_path, "train"))
    parquet(tmp_path / "plain", [table(list(range(ROWS)), noted=False)])
    plain = HuggingFaceImages(tmp_path / "plain", "train")
    assert plain.classes == ["0", "1", "2"] and [plain.label(index) for index in range(4)] == [0, 1, 2, 0]


def test_a_set_can_be_packed(tmp_path: Path) -> None:
    parquet(tmp_path / "data", [table(list(range(ROWS)))])
    source = HuggingFaceImages(tmp_path, "train")
    pack(source, tmp_path / "pack", Storing(), threads=2)
    packed = PackedImages(tmp_path / "pack", "data.root=/")
    assert packed.classes == CLASSES
    for index in range(ROWS):
        assert np.array_equal(packed.load(index), source.load(index)) and packed.label(index) == source.label(index)


def test_a_path_in_the_place_of_an_image_is_not_followed(tmp_path: Path) -> None:
    photograph(0).save(tmp_path / "private.png")
    rows = table([0, 1])
    images = [{"bytes": None, "path": str(tmp_path / "private.png")}, {"bytes": b"", "path": None}]
    import pyarrow as pa

    changed = rows.set_column(1, "image", pa.array(images, rows.schema.field("image").type))
    saved(tmp_path / "train", [changed.replace_schema_metadata(rows.schema.metadata)])
    found = HuggingFaceImages(tmp_path, "train")
    for index, reason in enumerate(("the data set holds a path instead of the image", "file is empty")):
        with pytest.raises(UnreadableImage, match=reason):
            found.load(index)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda file: file.write_bytes(b""), "the files of train cannot be used: "),
        (lambda file: file.write_bytes(file.read_bytes()[:900]), "the files of train cannot be used: "),
        (lambda file: file.write_bytes(b"x" * 1000), "the files of train cannot be used: "),
    ],
)
@pytest.mark.parametrize("write", [saved, parquet])
def test_damaged_files_are_a_sentence(tmp_path: Path, write: Callable[..., None], spoil: Any, message: str) -> None:
    write(tmp_path / "train", [table([0, 1, 2])])
    spoil(next(file for file in (tmp_path / "train").iterdir() if file.suffix != ".json"))
    with pytest.raises(UserError, match=message) as caught:
        HuggingFaceImages(tmp_path, "train")
    assert str(caught.value).startswith(f"data.root={tmp_path}: ") and "\n" not in str(caught.value)


def test_columns_that_are_no_images_and_labels_are_a_sentence(tmp_path: Path) -> None:
    rows = table([0, 1])
    saved(tmp_path / "train", [rows.drop_columns(["image"])])
    with pytest.raises(UserError, match="expected one column of images and one of labels among id, label"):
        HuggingFaceImages(tmp_path, "train")
    import pyarrow as pa

    saved(
        tmp_path / "test",
        [rows.set_column(2, "label", pa.array([0, None])).replace_schema_metadata(rows.schema.metadata)],
    )
    with pytest.raises(UserError, match="some images of test have no label"):
        HuggingFaceImages(tmp_path, "test")


def test_without_pyarrow_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="^data.source=hugging_face needs pyarrow, which is not installed$"):
        HuggingFaceImages(tmp_path, "train")
