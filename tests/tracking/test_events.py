"""Event files, read back by TensorBoard."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Dict

import numpy as np
import pytest
from event_files import read_events, scalars, text
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event

from ipu_vit.errors import UserError
from ipu_vit.tracking.events import EventFile


@given(
    update=st.integers(0, 2**62),
    values=st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=300), st.floats(width=32), min_size=1),
)
def test_any_figures_come_back(tmp_path_factory: pytest.TempPathFactory, update: int, values: Dict[str, float]) -> None:
    """Every length of text and size of number, and the sums over them, as TensorBoard's own parser has them."""
    folder = tmp_path_factory.mktemp("events")
    file = EventFile(folder, 0)
    file.figures(update, values)
    file.close()
    (path,) = folder.iterdir()
    version, _, event = [Event.FromString(record) for record in RawEventFileLoader(str(path)).Load()]
    assert version.file_version == "brain.Event:2"
    assert event.step == update
    assert [value.tag for value in event.summary.value] == list(values)
    np.testing.assert_equal([value.simple_value for value in event.summary.value], list(values.values()))


def test_text_and_picture(tmp_path: Path) -> None:
    file = EventFile(tmp_path, 0)
    file.text("pipeline", "| IPU | ×|")
    png = io.BytesIO()
    Image.new("RGB", (31, 17), "red").save(png, "png")
    file.picture(7, "predictions", png.getvalue())
    file.close()
    assert text(tmp_path, "pipeline") == ["| IPU | ×|"]
    (picture,) = read_events(tmp_path).Images("predictions")
    assert (picture.step, picture.width, picture.height) == (7, 31, 17)
    assert picture.encoded_image_string == png.getvalue()


def test_sums_find_a_flipped_bit(tmp_path: Path) -> None:
    """That TensorBoard checks the sums, so that reading our files back proves them."""
    file = EventFile(tmp_path, 0)
    file.figures(1, {"loss": 1.0})
    file.close()
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(content)
    assert "loss" not in scalars(tmp_path)


def test_continued_run_has_each_point_once(tmp_path: Path) -> None:
    """Killed after update 5 without a checkpoint, then after 5 with one of 3, and started again when it was done."""
    for start, end in ((0, 5), (0, 5), (3, 8), (8, 8)):
        file = EventFile(tmp_path, start)
        if not start:
            file.text("pipeline", "split")
        for update in range(start + 1, end + 1):
            file.figures(update, {"loss": update + start / 10})
        file.close()
    assert [step for step, _ in scalars(tmp_path)["loss"]] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [round(value % 1, 1) for _, value in scalars(tmp_path)["loss"]] == [0, 0, 0, 0.3, 0.3, 0.3, 0.3, 0.3]
    assert text(tmp_path, "pipeline") == ["split"]


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("a file")
    with pytest.raises(UserError, match="tensorboard cannot be made a folder"):
        EventFile(tmp_path / "tensorboard", 0)
