"""A rehearsal does everything once, says what is missing, and leaves nothing behind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tiny_runs import CLASSES, contents, sentence, tiny_preset

from ipu_vit.__main__ import main


@pytest.fixture
def preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A preset; scratch folders are made beside it, where they would be seen."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    return tiny_preset(tmp_path)


def rehearse(preset: Path, *overrides: str) -> int:
    return main(["train", str(preset), "rehearse=always", "pipeline.layers_per_ipu=[1,1,1,1]",
                 "pipeline.global_batch=14", *overrides])  # fmt: skip


@pytest.mark.parametrize("workers", [0, 1])
def test_verdict(preset: Path, workers: int, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(preset.parent / "images")
    assert rehearse(preset, f"data.workers={workers}") == 0
    said = capsys.readouterr().out
    checked = said[said.index("checked:") :]
    for words in (
        "settings: every value",
        f"data: 13 training and 7 validation images found in {preset.parent}/images",
        "weights: random initial values",
        "4 stages, accumulation 7",
        "training: one update of 14 images",
        "evaluation: 7 images scored",
        "MiB saved and read back, equal to the last bit",
        "only IPUs can tell:",
        "The rehearsal of tiny has passed",
    ):
        assert words in checked, words
    assert "missing:" not in said
    assert "micro batch 7 of 7" in said
    assert "throughput:" not in said and "Valid Accuracy" not in said
    loss = re.search(r"one update of 14 images in \d+ s, loss (\d+\.\d+)", said)
    assert loss and float(loss.group(1)) == pytest.approx(1.0986, abs=1e-3)  # log 3: the head starts with zeros
    # Nothing is left, in the output folder or elsewhere.
    assert contents(preset.parent / "images") == before
    assert not (preset.parent / "run").exists()
    assert [path.name for path in (preset.parent / "scratch").iterdir() if path.name.startswith("ipu_vit")] == []


def test_what_is_missing(preset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rehearse(preset, "data.root=none", "weights=''", "data.generated_images=50") == 0
    said = capsys.readouterr().out
    missing = said[said.index("missing:") : said.index("only IPUs can tell:")]
    assert "data: data.root is not set" in missing and "weights: not set" in missing
    assert "images found" not in said and "data:" not in said[said.index("checked:") : said.index("missing:")]
    assert "The rehearsal of tiny has passed" in said


def test_without_ipus_a_run_is_rehearsed(preset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(preset), "rehearse=auto"]) == 0
    assert "The rehearsal of tiny has passed" in capsys.readouterr().out
    assert not (preset.parent / "run").exists()


@pytest.mark.parametrize(
    "override, words",
    [
        ("data.root=/nowhere", "data.root=/nowhere"),
        ("model.classes=5", "set model.classes=3"),
        ("weights=/nowhere.npz", "weights=/nowhere.npz does not exist"),
        ("optimizer.loss_scaling=1e30", "no longer finite after the first update; try a value below optimizer.loss_sc"),
    ],
)
def test_what_would_stop_the_run_stops_the_rehearsal(
    preset: Path, override: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rehearse(preset, override) == 2
    output = capsys.readouterr()
    assert words in sentence(output.err)
    assert "has passed" not in output.out


@pytest.mark.parametrize("split", ["train", "val"])
def test_unreadable_images(preset: Path, split: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in CLASSES:
        for image in (preset.parent / "images" / split / name).iterdir():
            image.write_bytes(b"")
    assert rehearse(preset) == 2
    assert "data.root holds images that cannot be read" in sentence(capsys.readouterr().err)
