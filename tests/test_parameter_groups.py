"""Which weights decay, and what share of the learning rate each layer gets."""

from __future__ import annotations

from typing import Any, Dict

from torch import nn

from ipu_vit.build import build_model
from ipu_vit.parameter_groups import parameter_groups
from ipu_vit.settings import OptimizerSettings, Settings


def tiny_model() -> Any:
    return build_model(Settings(model={"image_size": 8, "patch_size": 4, "width": 16, "depth": 12, "heads": 2,
                                       "mlp_width": 32, "classes": 3}, data={"evaluation_resize": 8}))  # fmt: skip


def by_name(model: nn.Module, key: str, **settings: Any) -> Dict[str, float]:
    """What each parameter's group has under a key; every parameter is in one group."""
    groups = parameter_groups(model, OptimizerSettings(**settings))
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {names.pop(parameter): group[key] for group in groups for parameter in group["params"]}
    assert not names
    return found


def test_class_token_and_positions_do_not_decay() -> None:
    for name, found in by_name(tiny_model(), "weight_decay", weight_decay=0.25).items():
        assert found == (0.0 if name in ("embedding.class_token", "embedding.position") else 0.25), name


def test_everything_decays_if_no_name_is_left_out() -> None:
    assert len(parameter_groups(tiny_model(), OptimizerSettings(no_decay=[]))) == 1


def test_norms_and_biases_are_what_has_one_axis() -> None:
    """As MAE's fine-tuning has it: no decay for tensors of one axis, nor for the class token and the positions."""
    model = tiny_model()
    decay = by_name(model, "weight_decay", weight_decay=0.25, no_decay=["class_token", "position", "norm", "bias"])
    for name, parameter in model.named_parameters():
        undecayed = parameter.dim() == 1 or name in ("embedding.class_token", "embedding.position")
        assert decay[name] == (0.0 if undecayed else 0.25), name


def test_norms_are_known_by_their_kind() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.GroupNorm(2, 4), nn.Linear(4, 4), nn.BatchNorm2d(4)])

    decay = by_name(Odd(), "weight_decay", weight_decay=0.25, no_decay=["norm"])
    assert {name for name, found in decay.items() if found} == {"layers.1.weight", "layers.1.bias"}


def test_layer_decay_is_maes() -> None:
    """The head keeps the learning rate, and each layer below it gets a factor less, the embedding the least."""
    scale = by_name(tiny_model(), "lr_scale", layer_decay=0.75)
    assert scale["head.classify.weight"] == scale["head.norm.bias"] == 1.0
    for layer in range(12):
        assert scale[f"layers.{layer}.mlp.expand.weight"] == 0.75 ** (12 - layer)
    for name in ("embedding.class_token", "embedding.position", "embedding.patch.weight"):
        assert scale[name] == 0.75**13


def test_groups_are_few() -> None:
    """One for the head and each layer, two for the embedding, part of which does not decay."""
    assert len(parameter_groups(tiny_model(), OptimizerSettings(layer_decay=0.75))) == 1 + 12 + 2
