"""Packs hold what the folder holds, survive interruptions, and tell of every damage."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any, List

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures import photograph
from PIL import Image

from ipu_vit.data.augment import TrainingTransform
from ipu_vit.data.crops import RandomResizedCrop
from ipu_vit.data.decode import UnreadableImage, decode
from ipu_vit.data.folder import ImageFolder
from ipu_vit.data.pack import Storing, pack
from ipu_vit.data.packed import PAGE, RECORD, PackedImages, checksum
from ipu_vit.data.samples import EvaluationSamples, TrainingSamples, check_readable
from ipu_vit.data.source import DamagedSource, Source
from ipu_vit.errors import UserError

SETTING = "data.root=/data"
SMALL = 5000
"""Bytes of a shard, for a few images each."""


@pytest.fixture
def folder(photographs: Path) -> ImageFolder:
    return ImageFolder(photographs, SETTING)


@pytest.fixture
def packed(folder: ImageFolder, tmp_path: Path) -> PackedImages:
    pack(folder, tmp_path / "pack", Storing(), shard_bytes=SMALL)
    return PackedImages(tmp_path / "pack", SETTING)


def training_samples(source: Source, log: Path) -> TrainingSamples:
    transform = TrainingTransform(24, RandomResizedCrop())
    return TrainingSamples(
        source, transform, image_size=24, seed=3, global_batch=6, first_update=0, last_update=5, unreadable_log=log
    )


def names(source: Source) -> List[str]:
    return [os.path.relpath(source.name(index), source.folder) for index in range(len(source))]  # type: ignore[attr-defined]


# What a pack holds


def test_training_sees_the_same_in_the_same_order(folder: ImageFolder, tmp_path: Path) -> None:
    """Also where a file is broken: the next image takes its place."""
    torso = tmp_path / "photographs" / "bee" / "1.JPEG"
    torso.write_bytes(torso.read_bytes()[:200])
    pack(folder, tmp_path / "pack", Storing(), shard_bytes=SMALL)
    packed = PackedImages(tmp_path / "pack", SETTING)
    assert len(list((tmp_path / "pack").glob("*.tar"))) > 2
    assert names(packed) == names(folder) and packed.classes == folder.classes
    assert [packed.label(index) for index in range(9)] == folder.labels.tolist()
    logs = [tmp_path / name for name in ("one", "other")]
    samples = [training_samples(source, log) for source, log in zip((folder, packed), logs)]
    assert len(samples[0]) == len(samples[1]) == 30
    for item in range(30):
        (image, label), (other, other_label) = samples[0][item], samples[1][item]
        assert torch.equal(image, other) and label == other_label
    assert "bee/1.JPEG: " in logs[0].read_text()
    assert logs[0].read_text().replace("photographs", "pack") == logs[1].read_text()


def test_files_are_kept_byte_by_byte_and_tar_unpacks_them(packed: PackedImages, tmp_path: Path) -> None:
    (tmp_path / "unpacked").mkdir()
    for shard in sorted((tmp_path / "pack").glob("*.tar")):
        subprocess.run(["tar", "xf", str(shard), "-C", str(tmp_path / "unpacked")], check=True)
    files = sorted((tmp_path / "photographs").rglob("*.JPEG"))
    assert len(files) == 9 == len(list((tmp_path / "unpacked").rglob("*.*")))
    for file in files:
        assert (tmp_path / "unpacked" / file.relative_to(tmp_path / "photographs")).read_bytes() == file.read_bytes()


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=8))
def test_any_pixels_come_back_decoded(tmp_path: Path, sizes: List[Any]) -> None:
    shutil.rmtree(tmp_path, ignore_errors=True)
    images = [
        np.random.default_rng(seed).integers(256, size=(*size, 3), dtype=np.uint8) for seed, size in enumerate(sizes)
    ]
    (tmp_path / "pictures/a").mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"pictures/a/{number}.png")
    pack(ImageFolder(tmp_path / "pictures", SETTING), tmp_path / "pack", Storing(decoded=True), shard_bytes=SMALL)
    found = PackedImages(tmp_path / "pack", SETTING)
    assert all(np.array_equal(found.load(index), image) for index, image in enumerate(images))
    with tarfile.open(tmp_path / "pack/shard-00000.tar") as tar:
        file = tar.extractfile(tar.getmembers()[0])
        assert file is not None and np.array_equal(np.load(BytesIO(file.read()))[..., :3], images[0])


@pytest.mark.parametrize("decoded", [False, True])
def test_larger_images_are_shrunk(folder: ImageFolder, tmp_path: Path, decoded: bool) -> None:
    pack(folder, tmp_path / "pack", Storing(resize=45, quality=100, decoded=decoded))
    found = PackedImages(tmp_path / "pack", SETTING)
    for index in range(len(folder)):
        image, shrunk = folder.load(index), found.load(index)
        height, width = image.shape[:2]
        if min(height, width) <= 45:
            assert np.array_equal(image, shrunk)
            continue
        assert min(shrunk.shape[:2]) == 45
        assert abs(shrunk.shape[0] / shrunk.shape[1] - height / width) < 0.03
        reference = Image.fromarray(image).resize(shrunk.shape[1::-1], Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(reference, np.int16) - shrunk).mean() <= (0 if decoded else 2.5)


def test_odd_files_stay_what_they_are(tmp_path: Path) -> None:
    """Nothing can be said of them but what is said without a pack."""
    classes = tmp_path / "odd" / "a"
    classes.mkdir(parents=True)
    (classes / "empty.jpg").write_bytes(b"")
    (classes / "text.jpg").write_text("no image")
    photograph(1).convert("L").save(classes / "grey.png")
    (classes / "\udcff").with_suffix(".jpg").write_bytes((classes / "grey.png").read_bytes())
    folder = ImageFolder(tmp_path / "odd", SETTING)
    for storing in (Storing(), Storing(resize=20), Storing(resize=20, decoded=True)):
        target = tmp_path / str(hash(storing))
        pack(folder, target, storing)
        found = PackedImages(target, SETTING)
        assert names(found) == names(folder)
        for index in range(len(folder)):
            if Path(folder.name(index)).stem in ("empty", "text"):
                reasons = []
                for source in (folder, found):
                    with pytest.raises(UnreadableImage) as caught:
                        source.load(index)
                    reasons.append(caught.value.reason)
                assert reasons[0] == reasons[1]
            else:
                assert (storing == Storing()) == np.array_equal(found.load(index), folder.load(index))


def test_validation_takes_the_training_classes(packed: PackedImages, tmp_path: Path) -> None:
    found = PackedImages(tmp_path / "pack", SETTING, classes=["cat", "dog", "ant", "bee"])
    assert [found.label(index) for index in range(9)] == [2] * 4 + [3] * 3 + [0] * 2
    with pytest.raises(UserError, match="pack holds bee, which the training images do not have"):
        PackedImages(tmp_path / "pack", SETTING, classes=["cat", "ant"])


def test_workers_get_a_path_and_not_the_images(packed: PackedImages, folder: ImageFolder) -> None:
    packed.load(0)
    sent = pickle.dumps(packed)
    assert len(sent) < 1000
    assert np.array_equal(pickle.loads(sent).load(8), folder.load(8))


# Interruptions


class Interrupted(Exception):
    pass


class Stops(ImageFolder):
    """A folder whose power fails at one image, and whose images nobody need decode."""

    def __init__(self, folder: ImageFolder, at: int) -> None:
        super().__init__(folder.folder, SETTING)
        self.at = at
        self.read: List[int] = []

    def load(self, index: int) -> np.ndarray:
        raise AssertionError("files are copied as they are")

    def encoded(self, index: int) -> bytes:
        self.read.append(index)
        if index == self.at:
            raise Interrupted
        return super().encoded(index)


@pytest.mark.parametrize("at", range(9))
def test_an_interrupted_packing_goes_on_and_ends_the_same(
    folder: ImageFolder, packed: PackedImages, tmp_path: Path, at: int
) -> None:
    part = tmp_path / "part"
    with pytest.raises(Interrupted):
        pack(Stops(folder, at), part, Storing(), shard_bytes=SMALL)
    finished = {file.name: file.stat().st_ino for file in part.glob("*.tar")}
    with pytest.raises(UserError, match="part is a pack that is not finished; the command that began it goes on"):
        PackedImages(part, SETTING)
    (part / "shard-00009.tar.123.part").write_bytes(b"left by a process that was killed")
    again = Stops(folder, -1)
    pack(again, part, Storing(), shard_bytes=SMALL)
    assert min(again.read) <= at and sorted(set(again.read)) == list(range(min(again.read), 9))
    assert bool(finished) == (min(again.read) > 0)
    assert {name: (part / name).stat().st_ino for name in finished} == finished, "finished shards are kept"
    assert {file.name: file.read_bytes() for file in part.iterdir()} == {
        file.name: file.read_bytes() for file in (tmp_path / "pack").iterdir()
    }


def test_a_finished_pack_is_not_written_again(folder: ImageFolder, packed: PackedImages, tmp_path: Path) -> None:
    again = Stops(folder, 0)
    assert pack(again, tmp_path / "pack", Storing()).recipe["images"] == 9 and again.read == []


@pytest.mark.parametrize("finished", [False, True])
def test_other_images_and_options_are_not_mixed_in(folder: ImageFolder, tmp_path: Path, finished: bool) -> None:
    target = tmp_path / "pack"
    with pytest.raises(Interrupted):
        pack(Stops(folder, 5), target, Storing(), shard_bytes=SMALL)
    if finished:
        pack(folder, target, Storing(), shard_bytes=SMALL)
    before = {file: file.read_bytes() for file in target.iterdir()}
    with pytest.raises(
        UserError, match=r"pack holds a pack of other images or other options \(resize\); pack into a new"
    ):
        pack(folder, target, Storing(resize=20), shard_bytes=SMALL)
    (tmp_path / "photographs/cat/1.JPEG").rename(tmp_path / "photographs/cat/2.JPEG")
    with pytest.raises(UserError, match=r"other images or other options \(listing\)"):
        pack(ImageFolder(tmp_path / "photographs", SETTING), target, Storing(), shard_bytes=SMALL)
    assert {file: file.read_bytes() for file in target.iterdir()} == before


def test_nothing_is_packed_over_something_else(folder: ImageFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="photographs is not empty; pack into a new folder"):
        pack(folder, tmp_path / "photographs", Storing())


def test_a_file_that_cannot_be_read_is_named(folder: ImageFolder, tmp_path: Path) -> None:
    (tmp_path / "photographs/bee/1.JPEG").unlink()
    with pytest.raises(UserError, match="photographs/bee/1.JPEG cannot be read: No such file"):
        pack(folder, tmp_path / "pack", Storing())


# Damage


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_of_an_image_or_its_record_is_found(
    packed: PackedImages, tmp_path: Path, data: st.DataObject
) -> None:
    index = data.draw(st.integers(0, 8))
    record = packed._index[index]
    in_record = data.draw(st.booleans())
    pack_folder = tmp_path / "pack"
    if in_record:
        file = pack_folder / "index.npy"
        start, size = file.stat().st_size - (9 - index) * record.dtype.itemsize, record.dtype.itemsize
    else:
        file = pack_folder / f"shard-{record['shard']:05}.tar"
        start, size = int(record["offset"]), int(record["size"])
    sound = file.read_bytes()
    content = bytearray(sound)
    content[start + data.draw(st.integers(0, size - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        file.write_bytes(content)
        with pytest.raises((DamagedSource, UserError)) as caught:
            found = PackedImages(pack_folder, SETTING)
            found.load(index)
        assert str(pack_folder) in str(caught.value)
        if not in_record:
            assert str(caught.value).startswith(f"{file} is damaged: image {index} does not match its checksum")
            for other in set(range(9)) - {index}:
                found.load(other)
    finally:
        file.write_bytes(sound)


def test_a_flipped_bit_of_the_index_s_header_makes_no_other_images(packed: PackedImages, tmp_path: Path) -> None:
    file = tmp_path / "pack/index.npy"
    sound = file.read_bytes()
    for place in range(len(sound) - 9 * RECORD.itemsize):
        content = bytearray(sound)
        content[place] ^= 1 << place % 8
        file.write_bytes(content)
        try:
            found = PackedImages(tmp_path / "pack", SETTING)
        except UserError as error:
            assert str(tmp_path / "pack") in str(error)
        else:  # a blank that has become another
            assert np.array_equal(found._index, packed._index)


@given(pages=st.integers(0, 5), rest=st.integers(0, 300), seed=st.integers(0, 99), data=st.data())
def test_checksums_hear_of_what_disks_do(pages: int, rest: int, seed: int, data: st.DataObject) -> None:
    size = pages * PAGE + rest
    sound = np.random.default_rng(seed).integers(256, size=size, dtype=np.uint8)
    record = bytes(RECORD.itemsize)
    expected = checksum(record, sound.tobytes())
    assert checksum(record, memoryview(b"x" + sound.tobytes())[1:]) == expected
    damaged = []
    if size:
        damaged.append(sound.copy())
        damaged[-1][data.draw(st.integers(0, size - 1))] ^= 1 << data.draw(st.integers(0, 7))
        damaged += [sound[:-1], np.append(sound, np.uint8(0))]
    if pages > 1:
        swapped = data.draw(st.permutations(range(pages)).filter(lambda order: order != list(range(pages))))
        damaged.append(
            np.concatenate([sound[: pages * PAGE].reshape(pages, PAGE)[swapped].ravel(), sound[pages * PAGE :]])
        )
        lost = sound.copy()
        lost[PAGE : 2 * PAGE] = 0
        damaged.append(lost)
    for found in damaged:
        assert checksum(record, found.tobytes()) != expected
    for place in range(len(record) - 4):
        other = bytearray(record)
        other[place] ^= 4
        assert checksum(bytes(other), sound.tobytes()) != expected


@pytest.mark.parametrize("evaluation", [False, True])
def test_a_damaged_shard_stops_training_and_evaluation_by_name(
    packed: PackedImages, tmp_path: Path, evaluation: bool
) -> None:
    shard, log = tmp_path / "pack/shard-00001.tar", tmp_path / "log"
    log.write_text("z.jpg: a bad photograph is no damage\n")
    content = bytearray(shard.read_bytes())
    content[600] ^= 16
    shard.write_bytes(content)
    samples: Any = training_samples(packed, log)
    if evaluation:
        samples = EvaluationSamples(
            packed, lambda image: image, image_size=24, skip_unreadable=True, unreadable_log=log
        )
    labels = torch.tensor([samples[item][1] for item in range(len(samples))])
    with pytest.raises(
        UserError, match=rf"^{shard} is damaged: image \d does not match its checksum; copy the pack again"
    ):
        check_readable(labels, log)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda pack: (pack / "shard-00001.tar").unlink(), r"shard-00001.tar cannot be read \(No such file"),
        (lambda pack: os.truncate(pack / "shard-00001.tar", 700), "shard-00001.tar has 700 bytes instead of"),
        (lambda pack: (pack / "index.npy").unlink(), r"index.npy cannot be read \(No such file"),
        (lambda pack: os.truncate(pack / "index.npy", 400), "index.npy is damaged"),
        (lambda pack: os.truncate(pack / "index.npy", 20), "index.npy is damaged"),
        (lambda pack: (pack / "index.npy").write_bytes(b""), "index.npy is damaged"),
        (lambda pack: np.save(pack / "index.npy", np.zeros(9)), "index.npy is not the index of 9 images"),
        (lambda pack: os.truncate(pack / "names.txt", 3), "names.txt has 3 bytes instead of 90"),
        (lambda pack: os.truncate(pack / "pack.json", 100), "pack.json is damaged"),
        (lambda pack: (pack / "pack.json").write_text("[]"), "pack.json is damaged"),
        (lambda pack: (pack / "pack.json").write_text('{"version": 1}'), "pack.json is damaged"),
        (lambda pack: (pack / "pack.json").write_text('{"version": 2}'), "pack.json is of version 2; version 1 is"),
    ],
)  # fmt: skip
def test_what_is_missing_or_cut_short_is_named(packed: PackedImages, tmp_path: Path, spoil: Any, message: str) -> None:
    spoil(tmp_path / "pack")
    with pytest.raises(UserError, match=message) as caught:
        PackedImages(tmp_path / "pack", SETTING)
    assert str(caught.value).startswith(f"{SETTING}: {tmp_path}/pack/") and "\n" not in str(caught.value)


def test_the_file_that_tells_of_the_pack_is_text(packed: PackedImages, tmp_path: Path) -> None:
    contents = json.loads((tmp_path / "pack/pack.json").read_text())
    assert contents["version"] == 1 and contents["classes"] == ["ant", "bee", "cat"]
    assert decode(tmp_path / "photographs/ant/0.JPEG").shape == packed.load(0).shape
