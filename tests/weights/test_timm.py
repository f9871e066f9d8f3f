"""timm's weights: its own models' state dicts as they are saved, and files for it to load."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import pytest
import torch
from reference_models import randomise, timm_vit
from safetensors.torch import load_file, save_file

from ipu_vit.errors import UserError
from ipu_vit.models.vit import VisionTransformer
from ipu_vit.weights.load import load_weights
from ipu_vit.weights.table import to_format
from ipu_vit.weights.timm import TIMM

pytest.importorskip("timm")
Make = Callable[..., VisionTransformer]


@pytest.fixture
def theirs() -> Callable[..., Any]:
    def make(**changes: Any) -> Any:
        model = timm_vit(**changes).eval()
        randomise(model)
        return model

    return make


@pytest.mark.parametrize("saving", ["bare", "state_dict", "model", "ddp", "legacy", "safetensors"])
def test_what_timm_s_users_save(
    theirs: Callable[..., Any], vit: Make, same_logits: Any, tmp_path: Path, saving: str
) -> None:
    model = theirs()
    path = str(tmp_path / "weights.bin")
    state = model.state_dict()
    if saving == "safetensors":
        save_file(state, path)
    elif saving == "ddp":
        torch.save({"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, path)
    elif saving in ("state_dict", "model"):
        torch.save({"epoch": 3, saving: state}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=saving == "bare")
    ours = vit()
    report = load_weights(ours, path)
    same_logits(ours, model)
    assert report.summary() == f"weights: {len(report.kept)} tensors from {path} (timm)"


def test_fc_norm_after_the_class_token(theirs: Callable[..., Any], vit: Make, same_logits: Any, tmp_path: Path) -> None:
    model = theirs(global_pool="token", fc_norm=True)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    ours = vit()
    report = load_weights(ours, str(tmp_path / "weights.pth"))
    same_logits(ours, model)
    [remark] = report.remarks
    assert "model.pool_norm=after" in remark


def test_a_model_without_a_head(theirs: Callable[..., Any], vit: Make, tmp_path: Path) -> None:
    torch.save(theirs(num_classes=0).state_dict(), tmp_path / "weights.pth")
    report = load_weights(vit(), str(tmp_path / "weights.pth"))
    assert report.replaced == {"head.classify": "the file has none"}


def test_timm_loads_what_is_written(theirs: Callable[..., Any], vit: Make, same_logits: Any, tmp_path: Path) -> None:
    ours, model = vit(), theirs()
    save_file(to_format(TIMM, ours.state_dict()), tmp_path / "weights.safetensors")
    model.load_state_dict(load_file(tmp_path / "weights.safetensors"), strict=True)
    same_logits(ours, model)


def test_a_representation_is_refused(vit: Make) -> None:
    with pytest.raises(UserError, match=r"^head.representation.bias, head.representation.weight cannot be written: "):
        to_format(TIMM, vit(representation=7).state_dict())


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (dict(init_values=0.1), r"layer scale \(blocks.0.ls1.gamma\)"),
        (dict(qk_norm=True), r"norms of queries and keys \(blocks.0.attn.k_norm.bias\)"),
        (dict(pre_norm=True), r"a norm before the first layer \(norm_pre.bias\)"),
        (dict(global_pool="map"), r"attention pooling \(attn_pool.kv.bias\)"),
        (dict(reg_tokens=3), r"register tokens \(reg_token\)"),
    ],
)
def test_parts_that_ours_lacks_are_refused(
    theirs: Callable[..., Any], vit: Make, tmp_path: Path, changes: Any, what: str
) -> None:
    torch.save(theirs(**changes).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(UserError, match=rf"is of a model with {what}, which this package does not have$"):
        load_weights(vit(), str(tmp_path / "weights.pth"))
