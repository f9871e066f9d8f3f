"""Files that are broken or mean harm: refused with a sentence, never run, never unpacked."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any, Callable

import numpy
import pytest
import torch

from ipu_vit.errors import UserError
from ipu_vit.weights.formats import open_weights
from ipu_vit.weights.npz import Npz


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def member(shape: Any, data: bytes, dtype: str = "<f4") -> bytes:
    stream = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    numpy.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + data


def archive(path: Path, **members: bytes) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return str(path)


def test_pickled_objects_are_refused_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    path = str(tmp_path / "weights.npz")
    numpy.savez(path, cls=numpy.array([Payload(trace)], dtype=object))
    with pytest.raises(UserError, match=r"weights=.*holds cls.npy as pickled Python objects"):
        open_weights(path)
    assert not trace.exists()


def test_a_zip_bomb_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "weights.npz", cls=member((1 << 22,), bytes(1 << 24)))
    with pytest.raises(UserError, match=r"would unpack from .* to 16,777,.* bytes"):
        Npz(path)


@pytest.mark.parametrize("shape", [(1 << 40,), (3,), (-1, -2), ()])
def test_a_header_must_tell_its_size(tmp_path: Path, shape: Any) -> None:
    path = archive(tmp_path / "weights.npz", cls=member(shape, bytes(16)))
    with pytest.raises(UserError, match=r"holds .* bytes for cls.npy but its shape"):
        Npz(path)


def test_integers_are_no_weights(tmp_path: Path) -> None:
    path = archive(tmp_path / "weights.npz", cls=member((4,), bytes(16), "<i4"))
    with pytest.raises(UserError, match=r"holds cls as int32; floating-point numbers are accepted"):
        Npz(path).read("cls")


def test_numbers_come_as_float32_in_any_order(tmp_path: Path) -> None:
    numbers = numpy.arange(6, dtype=">f8").reshape(2, 3)
    path = str(tmp_path / "weights.npz")
    numpy.savez(path, cls=numpy.asfortranarray(numbers))
    found = Npz(path).read("cls")
    assert found.dtype == torch.float32
    assert (found.numpy() == numbers).all()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: b"",
        lambda content: b"these are no weights",
        lambda content: content.replace(b"NUMPY", b"NUMPI"),
        lambda content: content.replace(b"'shape': (", b"'shape': {"),
    ],
    ids=["half", "last byte", "empty", "text", "magic", "header"],
)
def test_a_damaged_file_is_refused(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "weights.npz"
    numpy.savez(path, cls=numpy.ones((1, 1, 4), numpy.float32))
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(UserError, match=r"weights=.* cannot be read as .npz: ."):
        Npz(str(path))


def test_damaged_numbers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    numpy.savez(path, cls=numpy.full(1000, 1.5, numpy.float32))
    content = bytearray(path.read_bytes())
    content[2000] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read as .npz: Bad CRC-32"):
        Npz(str(path)).read("cls")
