"""Images as strangers have them, in whole runs: decoded, or left out by name; and folders that change meanwhile."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any, Callable, Dict

import numpy as np
import pytest
from PIL import Image
from tiny_runs import losses, sentence, tiny_preset

from ipu_vit.__main__ import main
from ipu_vit.data.sources import open_split
from ipu_vit.report import HostStep, Report
from ipu_vit.settings import DataSettings

PIXELS = np.random.default_rng(0).integers(256, size=(4, 5, 3), dtype=np.uint8)
PHOTOGRAPH = Image.fromarray(PIXELS).resize((48, 40), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def animated(format: str) -> bytes:
    return encoded(PHOTOGRAPH, format, save_all=True, append_images=[Image.new("RGB", PHOTOGRAPH.size)], duration=40)


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(PHOTOGRAPH, "JPEG", exif=exif)


def bomb() -> bytes:
    """A PNG of some hundred bytes that claims 3.6 thousand million pixels."""
    png = bytearray(encoded(Image.new("L", (1, 1)), "PNG"))
    png[16:24] = struct.pack(">II", 60_000, 60_000)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    return bytes(png)


JPEG = encoded(PHOTOGRAPH, "JPEG")
DEEP = Image.fromarray((np.asarray(PHOTOGRAPH.convert("L")).astype(np.uint16) << 8) + 77)

READABLE: Dict[str, bytes] = {
    "cmyk.jpg": encoded(PHOTOGRAPH.convert("CMYK"), "JPEG"),
    "grey.jpg": encoded(PHOTOGRAPH.convert("L"), "JPEG"),
    "progressive.jpg": encoded(PHOTOGRAPH, "JPEG", progressive=True),
    "rotated.jpg": rotated(),
    "palette.png": encoded(PHOTOGRAPH.quantize(256), "PNG"),
    "transparent.png": encoded(PHOTOGRAPH.convert("RGBA"), "PNG"),
    "deep.png": encoded(DEEP, "PNG"),
    "deep.tiff": encoded(DEEP, "TIFF"),
    "animated.gif": animated("GIF"),
    "animated.png": animated("PNG"),
    "animated.webp": animated("WEBP"),
    "a-png.jpg": encoded(PHOTOGRAPH, "PNG"),
    "a-jpeg.png": JPEG,
}
BROKEN: Dict[str, bytes] = {
    "cut.jpg": JPEG[: len(JPEG) // 2],
    "cut-with-an-end.jpg": JPEG[: len(JPEG) // 2] + b"\xff\xd9",
    "cut.png": READABLE["a-png.jpg"][:-200],
    "empty.jpg": b"",
    "text.jpg": b"<html>404 Not Found</html>",
    "bomb.png": bomb(),
    "32-bit.tiff": encoded(Image.new("F", (4, 4)), "TIFF"),
}
GREY = ("grey.jpg", "deep.png", "deep.tiff")


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    """A tiny preset whose `ant` folders hold the corpus, too."""
    preset = tiny_preset(tmp_path)
    for split in ("train", "val"):
        for name, content in {**READABLE, **BROKEN}.items():
            (tmp_path / "images" / split / "ant" / name).write_bytes(content)
    return preset


@pytest.mark.parametrize("name", READABLE)
def test_readable_images_show_the_photograph(preset: Path, name: str) -> None:
    """Within what JPEG, palettes and grey lose; the second frame of an animation is black."""
    source = open_split(DataSettings(root=str(preset.parent / "images")), "data.val", "val")
    index = next(index for index in range(len(source)) if source.name(index).endswith(f"/{name}"))
    expected = np.asarray((PHOTOGRAPH.convert("L") if name in GREY else PHOTOGRAPH).convert("RGB")).astype(int)
    assert np.abs(source.load(index) - expected).mean() < 12


def test_training_leaves_out_what_is_broken_and_counts_it(preset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(preset.parent / "images" / "val" / "ant")
    assert main(["train", str(preset), "schedule.updates=9"]) == 0  # every image at least once
    said = capsys.readouterr().out.partition(f"{len(BROKEN)} unreadable images were left out:\n")[2]
    folder = preset.parent / "images/train/ant"
    listed = sorted(line.strip().partition(": ")[0] for line in said.splitlines() if line.startswith("  "))
    assert listed == sorted(str(folder / name) for name in BROKEN)


def test_evaluation_refuses_or_counts_what_is_broken(preset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = preset.parent / "scores.json"
    assert main(["evaluate", str(preset)]) == 2
    assert "images/val/ant/" in sentence(capsys.readouterr().err)
    assert main(["evaluate", str(preset), "data.skip_unreadable=true", "--scores", str(scores)]) == 0
    said = capsys.readouterr().out
    assert f"{len(BROKEN)} unreadable images were left out" in said
    assert all(f"images/val/ant/{name}: " in said for name in BROKEN)
    assert json.loads(scores.read_text())["images"] == 7 + len(READABLE)


# --- folders that change -----------------------------------------------------------------------------


def lose_images(folder: Path) -> None:
    (folder / "ant/1.JPEG").unlink()
    (folder / "bee/0.JPEG").write_bytes(JPEG[:300])
    shutil.rmtree(folder / "cat")


def gain_images(folder: Path) -> None:
    (folder / "dog").mkdir()
    for name in ("ant", "dog"):
        (folder / name / "9.JPEG").write_bytes(JPEG)


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    return tiny_preset(tmp_path)


def change_after_the_first_update(
    monkeypatch: pytest.MonkeyPatch, preset: Path, change: Callable[[Path], None]
) -> None:
    """Have runs call `change` with the folder of training images once update 1 is told."""
    told = Report.host_step

    def host_step(report: Report, step: HostStep) -> None:
        told(report, step)
        if step.update == 1:
            change(preset.parent / "images" / "train")

    monkeypatch.setattr(Report, "host_step", host_step)


def test_images_that_are_lost_meanwhile_are_left_out_by_name(
    clean: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change_after_the_first_update(monkeypatch, clean, lose_images)
    assert main(["train", str(clean), "schedule.updates=12"]) == 0
    said = capsys.readouterr().out
    assert "6 unreadable images were left out" in said
    for name in (
        "ant/1.JPEG: No such file",
        "bee/0.JPEG: ",
        *(f"cat/{number}.JPEG: No such file" for number in "0123"),
    ):
        assert f"images/train/{name}" in said
    assert [line["update"] for line in losses(clean.parent / "run")] == list(range(1, 13))


def test_images_that_are_added_meanwhile_are_not_seen(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = clean.parent / "undisturbed"
    assert main(["train", str(clean), "schedule.updates=8", f"output={undisturbed}"]) == 0
    change_after_the_first_update(monkeypatch, clean, gain_images)
    assert main(["train", str(clean), "schedule.updates=8"]) == 0
    assert (clean.parent / "images/train/dog").exists()
    assert losses(clean.parent / "run") == losses(undisturbed)


def test_a_folder_that_is_gone_ends_the_run_with_a_sentence(
    clean: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change_after_the_first_update(monkeypatch, clean, shutil.rmtree)
    assert main(["train", str(clean), "schedule.updates=8"]) == 2
    said = sentence(capsys.readouterr().err)
    assert "data.root holds images that cannot be read" in said and "No such file" in said
