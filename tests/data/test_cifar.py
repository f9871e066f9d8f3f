"""CIFAR's archives in all their forms, made small and in the documented layouts."""

from __future__ import annotations

import hashlib
import pickle
import struct
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np
import pytest

from ipu_vit.data.cifar import open_cifar
from ipu_vit.errors import UserError

IMAGES = 7
"""In each file."""

Files = Dict[str, Tuple[np.ndarray, np.ndarray]]


def names(classes: int) -> List[str]:
    return [f"class_{number}" for number in range(classes)]


def content(classes: int) -> Files:
    """Pixels and labels of each file, named as in the archives for Python."""
    files = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"] if classes == 10 else ["train", "test"]
    rng = np.random.default_rng(classes)
    return {
        file: (rng.integers(256, size=(IMAGES, 3072), dtype=np.uint8), rng.integers(classes, size=IMAGES))
        for file in files
    }


def pickled_by_python_2(values: Dict[str, Any]) -> bytes:
    """Protocol 2 as Python 2 and its NumPy wrote it: texts and arrays are byte strings."""

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(value)) + value

    def item(value: Any) -> bytes:
        if isinstance(value, bytes):
            return text(value)
        if isinstance(value, int):
            return b"J" + struct.pack("<i", value)
        if isinstance(value, list):
            return b"](" + b"".join(map(item, value)) + b"e"
        shape = b"".join(item(size) for size in value.shape)
        empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR"
        kind = (
            b"cnumpy\ndtype\n("
            + text(b"u1")
            + b"K\x00K\x01tR(K\x03"
            + text(b"|")
            + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        )
        return empty + b"(K\x01(" + shape + b"t" + kind + b"\x89" + text(value.tobytes()) + b"tb"

    return b"\x80\x02}(" + b"".join(text(key.encode()) + item(value) for key, value in values.items()) + b"u."


def for_python(files: Files, classes: int, dumps: Any) -> Dict[str, bytes]:
    label, meta = ("labels", "batches.meta") if classes == 10 else ("fine_labels", "meta")
    written = {
        name: dumps({"batch_label": b"some", label: [int(value) for value in labels], "data": pixels})
        for name, (pixels, labels) in files.items()
    }
    key = "label_names" if classes == 10 else "fine_label_names"
    return {**written, meta: dumps({key: [name.encode() for name in names(classes)]})}


def binary(files: Files, classes: int) -> Dict[str, bytes]:
    coarse = b"\x05" if classes == 100 else b""
    written = {
        f"{name}.bin": b"".join(coarse + bytes([label]) + row.tobytes() for row, label in zip(pixels, labels))
        for name, (pixels, labels) in files.items()
    }
    meta = "batches.meta.txt" if classes == 10 else "fine_label_names.txt"
    return {**written, meta: ("\n".join(names(classes)) + "\n").encode()}


FOLDERS = {
    (10, "python"): "cifar-10-batches-py",
    (10, "binary"): "cifar-10-batches-bin",
    (100, "python"): "cifar-100-python",
    (100, "binary"): "cifar-100-binary",
}


def write(root: Path, classes: int, kind: str, files: Dict[str, bytes], packed: bool) -> Path:
    """Returns the archive or the unpacked folder."""
    folder = FOLDERS[classes, kind]
    if packed:
        archive = root / f"cifar-{classes}-{kind}.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            for name, data in files.items():
                member = tarfile.TarInfo(f"{folder}/{name}")
                member.size = len(data)
                tar.addfile(member, BytesIO(data))
        return archive
    (root / folder).mkdir()
    for name, data in files.items():
        (root / folder / name).write_bytes(data)
    return root / folder


def of_kind(classes: int, kind: str) -> Dict[str, bytes]:
    files = content(classes)
    return binary(files, classes) if kind == "binary" else for_python(files, classes, pickled_by_python_2)


@pytest.mark.parametrize("packed", [False, True], ids=["unpacked", "packed"])
@pytest.mark.parametrize("classes, kind", FOLDERS)
def test_every_form_holds_the_same(tmp_path: Path, classes: int, kind: str, packed: bool) -> None:
    files = content(classes)
    place = write(tmp_path, classes, kind, of_kind(classes, kind), packed)
    for split, batches in (("train", [name for name in files if "test" not in name]), ("test", [list(files)[-1]])):
        for root in (tmp_path, place):
            found = open_cifar(root, split, classes)
            assert list(found.classes) == names(classes)
            assert len(found) == IMAGES * len(batches)
            for index in range(len(found)):
                pixels, labels = files[batches[index // IMAGES]]
                planes = pixels[index % IMAGES].reshape(3, 32, 32)
                assert found.label(index) == labels[index % IMAGES]
                assert np.array_equal(found.load(index), np.stack(list(planes), axis=-1))


@pytest.mark.parametrize("protocol", [2, 4])
def test_pickles_of_python_3_are_read(tmp_path: Path, protocol: int) -> None:
    files = for_python(content(10), 10, lambda values: pickle.dumps(values, protocol))
    write(tmp_path, 10, "python", files, packed=False)
    assert np.array_equal(open_cifar(tmp_path, "test", 10).pixels, content(10)["test_batch"][0])


@pytest.mark.parametrize("classes", [10, 100])
def test_torchvision_reads_the_same(tmp_path: Path, classes: int) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    files = of_kind(classes, "python")
    write(tmp_path, classes, "python", files, packed=False)
    sums = {name: hashlib.md5(data).hexdigest() for name, data in files.items()}
    published = datasets.CIFAR10 if classes == 10 else datasets.CIFAR100

    class Small(published):  # type: ignore[misc, valid-type]
        train_list = [[name, sums[name]] for name, _ in published.train_list]
        test_list = [[name, sums[name]] for name, _ in published.test_list]
        meta = {**published.meta, "md5": sums[published.meta["filename"]]}

    for split in ("train", "test"):
        theirs, ours = Small(tmp_path, train=split == "train"), open_cifar(tmp_path, split, classes)
        assert list(ours.classes) == [name if isinstance(name, str) else name.decode() for name in theirs.classes]
        assert len(ours) == len(theirs)
        for index in range(len(ours)):
            image, label = theirs[index]
            assert np.array_equal(np.asarray(image), ours.load(index)) and label == ours.label(index)


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __reduce__(self) -> Any:
        return open, (self.trace, "w")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    trace = tmp_path / "trace"
    files = of_kind(10, "python")
    files["test_batch"] = pickle.dumps({"labels": [1], "data": Payload(trace)}, protocol)
    write(tmp_path, 10, "python", files, packed=False)
    with pytest.raises(UserError, match=r"test_batch asks for \w+\.open, which could run code, where"):
        open_cifar(tmp_path, "test", 10)
    assert not trace.exists()
    pickle.loads(files["test_batch"])
    assert trace.exists(), "a file that does no harm would prove nothing"


def test_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    files = of_kind(10, "python")
    for array in (np.array([[1]], object), np.zeros((1, 3072)), np.asfortranarray(np.zeros((2, 3072), np.uint8))):
        files["test_batch"] = pickle.dumps({"labels": [1] * len(array), "data": array}, 2)
        (tmp_path / str(array.dtype) / str(len(array))).mkdir(parents=True)
        write(tmp_path / str(array.dtype) / str(len(array)), 10, "python", files, packed=False)
        with pytest.raises(UserError, match="test_batch is damaged: its array"):
            open_cifar(tmp_path / str(array.dtype) / str(len(array)), "test", 10)


@pytest.mark.parametrize(
    "kind, name, spoil, message",
    [
        ("binary", "test_batch.bin", lambda data: data[:-1], "test_batch.bin is cut short: its 21,510 bytes"),
        ("binary", "test_batch.bin", lambda data: b"\x0a" + data[1:], "has other classes than the 10"),
        ("binary", "batches.meta.txt", lambda data: data[:-9], "has other classes than the 10"),
        ("python", "test_batch", lambda data: data[:-9], "test_batch is damaged"),
        ("python", "test_batch", lambda data: b"", "test_batch is damaged"),
        ("python", "test_batch", lambda data: b"\x80\x02}.", "test_batch lacks data"),
        ("python", "test_batch", lambda data: b"\x80\x02].", "test_batch holds a list; a dictionary is accepted"),
        ("python", "test_batch", lambda data: pickle.dumps({"data": 3, "labels": [3]}, 2), "does not hold 3072 bytes"),
        ("python", "test_batch", lambda data: pickle.dumps({"data": 3, "labels": 3}, 2), "does not hold a list of"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("packed", [False, True])
def test_damaged_files_are_a_sentence(
    tmp_path: Path, kind: str, name: str, spoil: Any, message: str, packed: bool
) -> None:
    files = of_kind(10, kind)
    write(tmp_path, 10, kind, {**files, name: spoil(files[name])}, packed)
    with pytest.raises(UserError, match=message) as caught:
        open_cifar(tmp_path, "test", 10)
    assert str(caught.value).startswith(f"data.root={tmp_path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["python", "binary"])
def test_missing_files_are_a_sentence(tmp_path: Path, kind: str, packed: bool) -> None:
    with pytest.raises(UserError, match="holds no CIFAR-10; expected cifar-10-binary.tar.gz, cifar-10-python"):
        open_cifar(tmp_path, "test", 10)
    files = of_kind(10, kind)
    del files["test_batch" if kind == "python" else "test_batch.bin"]
    place = write(tmp_path, 10, kind, files, packed)
    with pytest.raises(UserError, match="cifar-10-.*.tar.gz cannot be used: test_batch.* is missing"):
        open_cifar(tmp_path, "test", 10)
    if packed:
        place.write_bytes(place.read_bytes()[:3000])
        with pytest.raises(UserError, match="cifar-10-.*.tar.gz cannot be used: "):
            open_cifar(tmp_path, "train", 10)
