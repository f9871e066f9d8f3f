"""The folder of a run: continued only by the same run, and never damaged."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import torch
from tiny_runs import contents, settings_of, tiny_preset

from ipu_vit.checkpoint import Checkpoint, Checkpoints
from ipu_vit.errors import UserError
from ipu_vit.run_folder import LineFile, RunFolder
from ipu_vit.settings import Settings


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    return tiny_preset(tmp_path)


def begin(settings: Settings) -> Path:
    """A run that has come as far as its first checkpoint."""
    with closing(RunFolder(settings)) as folder:
        Checkpoints(folder.checkpoints, keep=1).save(Checkpoint(1, {"weight": torch.ones(1)}, {}, [1]))
        return folder.path


@pytest.mark.parametrize(
    "override",
    [
        "precision=float32",
        "seed=1",
        "weights=/some/file.npz",
        "model.dropout=0.2",
        "data.crop_area=[0.5,1]",
        "data.train_split=other",
        "data.mean=[1,2,3]",
        "pipeline.global_batch=8",
        "pipeline.stochastic_rounding=false",
        "pipeline.partials=float32",
        "optimizer.momentum=0.5",
        "optimizer.max_grad_norm=1",
        "schedule.updates=6",
        "schedule.warmup=1",
        "loss.label_smoothing=0.1",
    ],
)
def test_what_changes_the_numbers_is_refused_by_name(preset: Path, override: str) -> None:
    folder = begin(settings_of(preset))
    before = contents(folder)
    name = override.split("=")[0]
    with pytest.raises(UserError, match=f"{name}=.*fresh=true") as caught:
        RunFolder(settings_of(preset, override))
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    assert contents(folder) == before
    RunFolder(settings_of(preset))


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "device=auto",
        "data.root=/elsewhere",
        "data.workers=3",
        "data.skip_unreadable=true",
        "evaluation.every=7",
        "evaluation.pictures=3",
        "checkpoint.every=7",
        "checkpoint.keep=9",
        "pipeline.available_memory_proportion=[0.2]",
        "pipeline.prefetch_depth=3",
        "pipeline.replicas=2",
        "pipeline.micro_batch=1",
        "pipeline.device_iterations=2",
        "pipeline.replicated_tensor_sharding=true",
        "pipeline.executable_cache=/tmp/cache",
        "export=/tmp/weights.npz",
    ],
)
def test_what_changes_no_number_may_change(preset: Path, override: str) -> None:
    begin(settings_of(preset))
    folder = RunFolder(settings_of(preset, override, f"output={preset.parent}/run"))
    assert (folder.path / "settings.yml").read_text()
    folder.close()
    RunFolder(settings_of(preset, override, f"output={preset.parent}/run")).close()


def test_mixed_images_keep_their_micro_batch(preset: Path) -> None:
    """Each is mixed with another of its micro batch: other ones would be other images."""
    mixed = "augmentation.mixup=0.2"
    begin(settings_of(preset, mixed))
    with pytest.raises(UserError, match="pipeline.micro_batch=2, not 4"):
        RunFolder(settings_of(preset, mixed, "pipeline.micro_batch=4"))


@pytest.mark.parametrize("name", ["2012-01-01", "1:30", "010", "1e3", "'yes'", "'none'"])
def test_settings_are_compared_as_they_were_read(preset: Path, name: str) -> None:
    """YAML readers differ in what they take for a date or a number."""
    settings = settings_of(preset, f"data.train_split={name}")
    begin(settings)
    RunFolder(settings)


def test_damaged_settings_are_a_sentence(preset: Path) -> None:
    folder = begin(settings_of(preset))
    (folder / "settings.yml").write_text("model: {width: [")
    with pytest.raises(UserError, match="settings.yml.* is not valid YAML"):
        RunFolder(settings_of(preset))


def test_without_a_checkpoint_there_is_nothing_to_continue(preset: Path) -> None:
    RunFolder(settings_of(preset)).close()
    folder = RunFolder(settings_of(preset, "schedule.lr=0.5"))
    assert "lr: 0.5" in (folder.path / "settings.yml").read_text()


def test_fresh_needs_no_earlier_run(preset: Path) -> None:
    assert RunFolder(settings_of(preset, "fresh=true")).path == preset.parent / "run"
    assert not (preset.parent / "run.1").exists()


def test_fresh_in_the_folder_one_is_in(preset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = preset.parent / "here"
    here.mkdir()
    (here / "notes").write_text("mine")
    monkeypatch.chdir(here)
    RunFolder(settings_of(preset, "fresh=true", "output=."))
    assert (preset.parent / "here.1" / "notes").read_text() == "mine"


def test_a_file_in_the_way_is_put_aside_too(preset: Path) -> None:
    (preset.parent / "run").write_text("a file")
    with pytest.raises(UserError, match="output=.*/run cannot be made a folder"):
        RunFolder(settings_of(preset))
    RunFolder(settings_of(preset, "fresh=true"))
    assert (preset.parent / "run.1").read_text() == "a file"


# --- lines -------------------------------------------------------------------------------------------


def test_lines_are_there_at_once(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "lines")
    file.add("caf\udce9 ×")
    assert (tmp_path / "lines").read_text(encoding="utf-8") == "caf\\udce9 ×\n"
    file.close()


def test_full_disk_is_a_sentence() -> None:
    with pytest.raises(UserError, match="/dev/full cannot be written: No space left on device"):
        LineFile(Path("/dev/full")).add("a line")
