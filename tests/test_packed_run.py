"""A run on a pack is the run on its folder, and a damaged pack ends it with a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import losses, sentence, tiny_preset

from ipu_vit.__main__ import main


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    found = tiny_preset(tmp_path)
    assert main(["pack", str(tmp_path / "images"), str(tmp_path / "packs")]) == 0
    return found


@pytest.mark.parametrize("workers", [0, 1])
def test_the_losses_are_those_of_the_folder(preset: Path, workers: int, tmp_path: Path) -> None:
    for name in ("images", "packs"):
        overrides = [f"data.root={tmp_path / name}", f"output={tmp_path / name}_run", f"data.workers={workers}"]
        assert main(["train", str(preset), *overrides]) == 0
    assert (
        [line["loss"] for line in losses(tmp_path / "images_run")]
        == [line["loss"] for line in losses(tmp_path / "packs_run")]
        != []
    )
    assert (tmp_path / "images_run/result.json").exists() and (tmp_path / "packs_run/result.json").exists()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("split", ["train", "val"])
def test_damage_ends_the_run_with_the_name_of_the_shard(
    preset: Path, split: str, workers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = tmp_path / "packs" / split / "shard-00000.tar"
    content = bytearray(shard.read_bytes())
    content[1024 - 200] ^= 1  # the first image's file starts at 512
    shard.write_bytes(content)
    overrides = [f"data.root={tmp_path / 'packs'}", f"data.workers={workers}", "data.skip_unreadable=true"]
    capsys.readouterr()
    assert main(["train", str(preset), *overrides, "schedule.updates=8"]) == 2
    assert sentence(capsys.readouterr().err) == (
        f"{shard} is damaged: image 0 does not match its checksum; copy the pack again, or pack the images anew"
    )


def test_a_rehearsal_says_that_a_data_set_is_missing(preset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["rehearse=always", "data.source=cifar10", "data.root=none", "data.generated_images=50"]
    pipeline = ["pipeline.layers_per_ipu=[1,1,1,1]", "pipeline.global_batch=14"]
    assert main(["train", str(preset), *overrides, *pipeline]) == 0
    assert "data.root is not set, so the images are generated" in capsys.readouterr().out


def test_synthetic_data_never_leave_the_device(preset: Path) -> None:
    images = ["data=synthetic", "data.root=none", "data.generated_images=50"]
    assert main(["train", str(preset), *images, "evaluation.micro_batch=100"]) == 0
