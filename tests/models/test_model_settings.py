"""Settings of models that do not fit are told so in a sentence, and the sentence's way out works."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from typing import List

import pytest
from tiny_runs import complaint

from ipu_vit.config import load_settings
from ipu_vit.models import NOT_OF_MIXERS, build
from ipu_vit.settings import ModelSettings

PRESET = "vit_b16_ft_4xb544"
MIXER = ["model.kind=mixer", "model.tokens_mlp_width=384", "model.pooling=mean", "model.class_token=false",
         "model.dropout=0"]  # fmt: skip


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["model.kind=cnn"], "model.kind=cnn is not vit or hybrid or mixer"),
        (["model.pooling=max"], "model.pooling=max is not class or mean"),
        (["model.drop_path=1"], "model.drop_path=1 is not a number at least 0 and below 1"),
        (["model.resnet_depths=3"], "model.resnet_depths=3 is not a list of whole numbers or none"),
        (["model.tokens_mlp_width=384"], "model.tokens_mlp_width=384 does not go with model.kind=vit"),
        (["model.resnet_depths=[3]"], "model.resnet_depths=[3] does not go with model.kind=vit"),
        (["model.kind=hybrid", "model.resnet_depths=[3,0]"], "model.resnet_depths=[3, 0] has a stage without units"),
    ],
)
def test_what_does_not_fit_is_named(overrides: List[str], said: str) -> None:
    assert said in complaint(PRESET, *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.kind=mixer", *MIXER[2:]],
        ["model.kind=hybrid", "model.patch_size=1"],
        MIXER[:2],
        ["model.tokens_mlp_width=384"],
        [*MIXER, "model.dropout=0.1", "model.representation=768"],
    ],
    ids=str,
)
def test_what_is_suggested_instead_fits(overrides: List[str]) -> None:
    words = shlex.split(complaint(PRESET, *overrides).rsplit("; use ", 1)[1])
    load_settings(PRESET, [*overrides, *(word for word in words if "=" in word)])


def test_class_pooling_needs_a_class_token() -> None:
    said = complaint(PRESET, "model.class_token=false")
    for way_out in re.findall(r"(?:use|or) (model\.\w+=\w+)", said):
        load_settings(PRESET, ["model.class_token=false", way_out])
    assert said.startswith("model.pooling=class needs the class token that model.class_token=false leaves out")


@pytest.mark.parametrize(
    "key, overrides",
    [
        ("model.image_size", ["model.kind=hybrid", "model.resnet_depths=[3,4,9]", "model.patch_size=1",
                              "model.image_size=200"]),
        ("model.image_size", [*MIXER, "model.image_size=200"]),
        ("model.resnet_width", ["model.kind=hybrid", "model.resnet_depths=[]", "model.patch_size=8",
                                "model.resnet_width=70"]),
    ],
)  # fmt: skip
def test_nearest_sizes_fit(key: str, overrides: List[str]) -> None:
    nearest = re.findall(r"\d+", complaint(PRESET, *overrides).rsplit("that do:", 1)[1])
    assert nearest
    for value in nearest:
        load_settings(PRESET, [*overrides, f"{key}={value}", "data.evaluation_resize=512"])


def test_mixers_refuse_all_that_means_nothing_to_them_but_heads() -> None:
    other = dict(representation=768, dropout=0.1, attention_dropout=0.1, class_token=True, pooling="class",
                 pool_norm="after", fixed_positions=True)  # fmt: skip
    assert set(other) | {"heads"} == set(NOT_OF_MIXERS)
    fitting = dict(kind="mixer", tokens_mlp_width=384, pooling="mean", class_token=False)
    for key, value in other.items():
        with pytest.raises(ValueError, match=rf"model.kind=mixer does not go with .*model.{key}="):
            ModelSettings(**{**fitting, key: value})
    assert ModelSettings(**fitting, heads=7).heads == 7


@pytest.mark.parametrize(
    "arguments, missing", [({"kind": "mixer"}, "tokens_mlp_width"), ({"kind": "hybrid"}, "resnet_depths")]
)
def test_building_says_what_a_kind_needs(arguments: dict[str, str], missing: str) -> None:
    with pytest.raises(ValueError, match=missing):
        build(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="vit, hybrid and mixer"):
        build(kind="cnn")


def test_sizes_and_costs_are_known_without_pytorch() -> None:
    program = (
        "import sys, ipu_vit.models.sizes, ipu_vit.models.costs, ipu_vit.balance; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
