"""What shrinking leaves of a run's shape, and who may overrule it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Dict, Tuple

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import CPU

from ipu_vit.config import load_settings, save_settings
from ipu_vit.errors import UserError
from ipu_vit.settings import Settings
from ipu_vit.shrink import UPDATES
from ipu_vit.train import train


def both(tree: Dict[str, Any]) -> Tuple[Settings, Settings]:
    """The settings of a preset that holds this tree, as they are and shrunk."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mine.yml"
        path.write_text(yaml.dump(tree), encoding="utf-8")
        return load_settings(str(path), []), load_settings(str(path), ["shrink=true"])


def small(*overrides: str) -> Settings:
    return load_settings("vit_b16_ft_4xb544", ["shrink=true", *overrides])


@st.composite
def schedules(draw: Any) -> Dict[str, Any]:
    updates = draw(st.integers(1, 10**6))
    warmup = draw(st.integers(0, updates - 1))
    milestones = draw(st.sets(st.integers(warmup, updates - 1), min_size=1, max_size=6))
    cooldown = draw(st.integers(0, updates - warmup))
    return {"updates": updates, "warmup": warmup, "milestones": sorted(milestones), "cooldown": cooldown}


@given(schedules())
def test_schedule_keeps_its_shape(schedule: Dict[str, Any]) -> None:
    full, shrunk = (run.schedule for run in both({"schedule": {"curve": "warmup_then_steps", **schedule}}))
    assert shrunk.updates == min(full.updates, UPDATES)
    assert (shrunk.warmup > 0) == (full.warmup > 0 and shrunk.updates > 1)
    assert 1 <= len(shrunk.milestones) <= len(full.milestones)
    assert (shrunk.cooldown > 0) == (full.cooldown > 0)
    assert (shrunk.lr, shrunk.step_factor) == (full.lr, full.step_factor)
    if full.updates <= UPDATES:
        assert shrunk == full


def test_rsqrt_falls_as_far() -> None:
    tree = {"schedule": {"curve": "warmup_then_rsqrt", "updates": 1000, "timescale": 500}}
    full, shrunk = both(tree)
    assert shrunk.schedule.timescale / shrunk.schedule.updates == full.schedule.timescale / full.schedule.updates


@given(
    layers=st.sampled_from([[12], [0, 12], [12, 0], [5, 7], [1, 5, 5, 1], [0, 6, 6, 0], [2, 1, 2, 1, 2, 1, 2, 1]]),
    replicas=st.sampled_from([1, 2, 4, 8]),
    micro_batch=st.integers(1, 8),
    device_iterations=st.integers(1, 8),
    more=st.integers(0, 5),
)
def test_batches_are_the_smallest_legal_ones(
    layers: Any, replicas: int, micro_batch: int, device_iterations: int, more: int
) -> None:
    stages = len(layers)
    pipeline = {
        "layers_per_ipu": layers,
        "replicas": replicas,
        "micro_batch": micro_batch,
        "device_iterations": device_iterations,
        "global_batch": micro_batch * replicas * (2 * stages - 1 + more),
    }
    _, shrunk = both(
        {"model": {"depth": sum(layers)}, "pipeline": pipeline, "schedule": {"updates": 5 * device_iterations}}
    )
    assert [count > 0 for count in shrunk.pipeline.layers_per_ipu] == [count > 0 for count in layers]
    assert shrunk.model.depth == sum(shrunk.pipeline.layers_per_ipu) <= stages
    assert shrunk.pipeline.batch_plan().accumulation == 2 * stages - 1
    assert shrunk.pipeline.global_batch <= 4 * (2 * stages - 1)
    assert shrunk.schedule.updates % shrunk.pipeline.device_iterations == 0


@pytest.mark.parametrize(
    "overrides, read",
    [
        ("schedule.lr=0.5", lambda s: s.schedule.lr == 0.5),
        ("schedule.updates=10 schedule.warmup=4", lambda s: (s.schedule.updates, s.schedule.warmup) == (10, 4)),
        ("schedule.updates=4000", lambda s: (s.schedule.updates, s.schedule.warmup) == (4000, 3200)),
        ("pipeline.ipus=2", lambda s: s.pipeline.layers_per_ipu == [1, 1] and s.pipeline.global_batch == 6),
        ("pipeline.layers_per_ipu=[6,6]", lambda s: s.pipeline.layers_per_ipu == [6, 6] and s.model.depth == 12),
        ("pipeline.replicas=4", lambda s: s.pipeline.replicas == 4 and s.pipeline.global_batch == 56),
        ("pipeline.micro_batch=34", lambda s: s.pipeline.global_batch == 34 * 7),
        ("pipeline.global_batch=544", lambda s: s.pipeline.batch_plan().accumulation == 272),
        ("model.heads=3", lambda s: (s.model.heads, s.model.width) == (3, 48)),
        ("model.width=60", lambda s: (s.model.heads, s.model.width) == (2, 60)),
        ("model.patch_size=8", lambda s: s.model.image_size == 16),
        ("model.image_size=32", lambda s: s.data.evaluation_resize == 32),
        ("weights=mine.npz", lambda s: s.weights == "mine.npz"),
        ("output=here", lambda s: s.output == "here"),
        ("name=other", lambda s: (s.name, s.output) == ("other", "runs/other_shrunk")),
        ("data.source=folder", lambda s: s.data.source == "folder" and s.model.classes == 1000),
    ],
)
def test_command_line_overrules(overrides: str, read: Any) -> None:
    assert read(small(*overrides.split()))


def test_contradictions_are_named() -> None:
    """Micro batches of 17 fit 527 images, those of 2 do not."""
    with pytest.raises(UserError, match=r"pipeline.global_batch=527 does not divide by micro_batch=2"):
        small("pipeline.global_batch=527")


def test_what_stands_beside_shrink_stays(tmp_path: Path) -> None:
    path = tmp_path / "mine.yml"
    path.write_text("base: vit_b16_ft_4xb544\nshrink: true\nschedule: {updates: 7, warmup: 2}\n", encoding="utf-8")
    settings = load_settings(str(path), ["seed=7"])
    assert (settings.schedule.updates, settings.schedule.warmup, settings.seed) == (7, 2, 7)
    assert (settings.model.depth, settings.name) == (4, "mine_shrunk")


def test_settings_of_a_shrunk_run_are_read_back(tmp_path: Path) -> None:
    settings = small("model.width=60", "schedule.updates=9", "schedule.warmup=1")
    save_settings(settings, tmp_path / "settings.yml")
    assert load_settings(str(tmp_path / "settings.yml"), []) == settings


def test_shrunk_run_goes_on_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = load_settings("quickstart", ["shrink=true", f"output={tmp_path}/run"])
    train(settings, CPU)
    assert (tmp_path / "run" / "predictions.png").exists()
    (tmp_path / "run" / "checkpoints" / "update-00000004.safetensors").unlink()
    train(settings, CPU)
    assert "continuing after update 2 of 4" in capsys.readouterr().out


def test_shrunk_run_needs_neither_images_nor_weights_and_exports_nothing() -> None:
    full, shrunk = load_settings("pretrain_glyphs", []), load_settings("pretrain_glyphs", ["shrink=true"])
    assert full.export and full.data.prepare and not (shrunk.export or shrunk.data.prepare or shrunk.data.root)
    assert small().weights is None and load_settings("vit_b16_ft_4xb544", []).weights == ""


@pytest.mark.parametrize("depths", [[], [3, 4, 9], [2, 2, 2, 2]])
def test_hybrids_keep_their_stages(depths: Any) -> None:
    model = {"kind": "hybrid", "patch_size": 1, "resnet_depths": depths}
    full, shrunk = both({"model": model})
    assert shrunk.model.resnet_depths == [1] * len(depths)
    assert shrunk.model.image_size < full.model.image_size
