"""The command that packs data sets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, List

import numpy as np
import pytest
from PIL import Image
from tiny_runs import sentence

from ipu_vit.__main__ import main
from ipu_vit.data.sources import open_sources
from ipu_vit.settings import Settings


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for name in ("ant", "bee"):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(256, size=(12, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "set" / split / name / f"{number}.png")
    return tmp_path / "set"


def sources(root: Path, **data: str) -> Settings:
    return Settings(data={"root": str(root), **data}, model={"classes": 2})


def test_both_splits_are_packed_and_found_again(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["pack", str(photographs), str(tmp_path / "packs")]
    assert main(arguments) == 0
    assert f"packing 12 images of {photographs}/train into {tmp_path}/packs/train" in capsys.readouterr().out
    for ours, theirs in zip(open_sources(sources(tmp_path / "packs")), open_sources(sources(photographs))):
        assert len(ours) == len(theirs)
        for index in range(len(ours)):
            assert ours.label(index) == theirs.label(index)
            assert np.array_equal(ours.load(index), theirs.load(index))
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "packs").rglob("*")}
    assert main(arguments) == 0
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "packs").rglob("*")} == before


def test_class_folders_without_splits_are_one_pack(photographs: Path, tmp_path: Path) -> None:
    assert main(["pack", str(photographs / "val"), str(tmp_path / "pack"), "--decoded", "8"]) == 0
    found = open_sources(sources(tmp_path / "pack", train_split=".", validation_split="."))
    assert len(found.training) == 4 and found.training.load(0).shape == (8, 13, 3)


def test_other_data_sets_are_packed_by_their_splits(tmp_path: Path) -> None:
    (tmp_path / "set" / "cifar-10-batches-bin").mkdir(parents=True)
    record = bytes([3]) + bytes(range(256)) * 12
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        (tmp_path / "set" / "cifar-10-batches-bin" / f"{name}.bin").write_bytes(record)
    (tmp_path / "set" / "cifar-10-batches-bin" / "batches.meta.txt").write_text(" ".join("abcdefghij"))
    assert main(["pack", str(tmp_path / "set"), str(tmp_path / "packs"), "--format", "cifar10"]) == 0
    data = {"root": str(tmp_path / "packs"), "validation_split": "test"}
    found = open_sources(Settings(data=data, model={"classes": 10}))
    assert [len(source) for source in found] == [5, 1]
    assert found.training.label(4) == 3
    assert np.array_equal(found.training.load(4).transpose(2, 0, 1).ravel(), np.frombuffer(record[1:], np.uint8))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--resize", "0"], "--resize=0 is not a whole number above 0"),
        (["--decoded", "-1"], "--decoded=-1 is not a whole number above 0"),
        (["--resize", "8", "--quality", "101"], "--quality=101 is not a whole number from 1 to 100"),
        (["--quality", "80"], "--quality is for images that are shrunk; it needs --resize"),
        (["--decoded", "8", "--resize", "8"], "--decoded stores pixels of its own size; it goes without --resize"),
        (["--format", "imagenet"], "--format=imagenet is no data set of files; accepted are folder, cifar10,"),
        (["--format", "generated"], "--format=generated is no data set of files; accepted are folder, cifar10,"),
        (["--format", "pets", "--splits", "val"], "--splits=val is no split of pets; accepted are train, test"),
        (["--splits", "a["], "'a[' is neither the name of a split nor a part of one"),
        (["--splits", "train[:9%]"], "--splits=train[:9%] is a part of a split; pack the whole"),
        (["--splits", "none"], "none cannot be read (No such file"),
    ],
)  # fmt: skip
def test_what_cannot_be_packed_is_a_sentence(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: List[str], message: str
) -> None:
    assert main(["pack", str(photographs), str(tmp_path / "pack"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "pack").exists()


# Verifying


@pytest.fixture
def packs(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["pack", str(photographs), str(tmp_path / "packs")]) == 0
    capsys.readouterr()
    return tmp_path / "packs"


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 4
    file.write_bytes(content)


def test_sound_packs_are_called_so(packs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify-pack", str(packs)]) == 0
    assert capsys.readouterr().out == f"{packs}/train is sound: 12 images\n{packs}/val is sound: 4 images\n"
    assert main(["verify-pack", str(packs / "val")]) == 0
    assert capsys.readouterr().out == f"{packs}/val is sound: 4 images\n"


def test_every_damaged_image_is_found(packs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the last to the first: the message names the first that is damaged."""
    shard = packs / "train" / "shard-00000.tar"
    for index, record in reversed(list(enumerate(np.load(packs / "train" / "index.npy")))):
        flip(shard, int(record["offset"]) + index * int(record["size"]) // 12)
        assert main(["verify-pack", str(packs)]) == 2
        assert sentence(capsys.readouterr().err) == (
            f"{shard} is damaged: image {index} does not match its checksum; copy the pack again, or pack the images "
            "anew"
        )


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda val: os.truncate(val / "shard-00000.tar", 700), "/val/shard-00000.tar has 700 bytes instead of"),
        (lambda val: (val / "shard-00000.tar").unlink(), "/val/shard-00000.tar cannot be read (No such file"),
        (lambda val: flip(val / "names.txt", 5), "/val/names.txt is damaged: it does not match its checksum"),
        (lambda val: flip(val / "index.npy", -4 * 40 + 24), "/val/shard-00000.tar is damaged: image 0 does not"),
        (lambda val: flip(val / "index.npy", 150), "/val/index.npy is damaged"),
        (lambda val: (val / "pack.json").rename(val / "unfinished.json"), "/val is a pack that is not finished"),
        (lambda val: (val / "pack.json").write_text("{}"), "/val/pack.json is damaged"),
        (lambda val: flip(val / "pack.json", -3), "/val/pack.json is damaged"),
    ],
)  # fmt: skip
def test_other_damage_is_named(packs: Path, spoil: Any, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(packs / "val")
    assert main(["verify-pack", str(packs)]) == 2
    assert message in sentence(capsys.readouterr().err)


def test_only_packs_are_verified(photographs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify-pack", str(photographs)]) == 2
    assert sentence(capsys.readouterr().err) == f"{photographs} holds no pack, nor folders of packs"


# Interruptions

PACKS = """
import os, sys
from pathlib import Path
from ipu_vit.data.folder import ImageFolder
from ipu_vit.data.pack import Storing, pack
source = ImageFolder(Path(sys.argv[1]) / "train", "data.root")
for pipe in map(Path, sys.argv[3:]):
    pipe.unlink()
    os.mkfifo(pipe)
pack(source, Path(sys.argv[2]), Storing(), progress=lambda done: print(done, flush=True), shard_bytes=6000)
"""


def test_a_killed_packing_leaves_no_shard_that_is_not_whole(photographs: Path, tmp_path: Path) -> None:
    """Killed while it waits for an image: a named pipe that nobody writes to."""
    pipe = photographs / "train" / "bee" / "9.png"
    pipe.write_bytes(b"")
    arguments = [sys.executable, "-c", PACKS, str(photographs), str(tmp_path / "pack")]
    process = subprocess.Popen([*arguments, str(pipe)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while process.stdout.readline().strip() != "11":
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    whole = {file.name: file.read_bytes() for file in (tmp_path / "pack").glob("*.tar")}
    assert len(whole) > 1 and list((tmp_path / "pack").glob("*.part"))
    pipe.unlink()
    pipe.write_bytes((photographs / "train" / "ant" / "0.png").read_bytes())
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
    assert (tmp_path / "pack" / "pack.json").exists() and not list((tmp_path / "pack").glob("*.part"))
    assert {name: (tmp_path / "pack" / name).read_bytes() for name in whole} == whole
