"""Files with the names of classes."""

from __future__ import annotations

from pathlib import Path
from typing import List

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipu_vit.errors import UserError
from ipu_vit.labels import in_order, read_labels, write_labels


@pytest.mark.parametrize(
    "text", ["ant\nbee, wild\nü\n", '["ant", "bee, wild", "ü"]', '{"1": "bee, wild", "0": "ant", "2": "ü"}']
)
def test_lines_lists_and_objects(tmp_path: Path, text: str) -> None:
    (tmp_path / "labels").write_text(text, encoding="utf-8")
    assert read_labels(tmp_path / "labels", 3) == ["ant", "bee, wild", "ü"]


@given(names=st.lists(st.text()))
def test_what_is_written_is_read(names: List[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "labels.json"
    write_labels(names, path)
    assert read_labels(path, len(names)) == names


@pytest.mark.parametrize(
    "text, message",
    [
        ("ant\nbee", "has 2 names, but the model has 3 classes"),
        ('["ant", "bee", 3]', "holds no names of classes; accepted: a line for each class"),
        ('{"1": "ant", "2": "bee", "3": "cat"}', "holds no names of classes"),
        ("[", "cannot be read as JSON"),
    ],
)
def test_what_does_not_fit_is_a_sentence(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "labels").write_text(text)
    with pytest.raises(UserError, match=f"^labels={tmp_path}/labels {message}"):
        read_labels(tmp_path / "labels", 3)
    with pytest.raises(UserError, match="gone cannot be read: No such file"):
        read_labels(tmp_path / "gone", 3)


def test_numbers_must_count_from_zero() -> None:
    assert in_order({"10": "k", **{str(number): "abcdefghij"[number] for number in range(10)}}) == list("abcdefghijk")
    assert in_order({"00": "a"}) is None and in_order({"tench": 0}) is None
