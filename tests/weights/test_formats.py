"""All formats alike: round trips, what is told of files that do not fit, what a file is recognised by."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_models import randomise, tiny_sizes
from torch import Tensor

from ipu_vit.errors import UserError
from ipu_vit.models.image_model import ImageModel
from ipu_vit.models.mixer import Mixer
from ipu_vit.models.vit import VisionTransformer
from ipu_vit.weights.formats import FLAX, NAMED, open_weights
from ipu_vit.weights.huggingface import HUGGING_FACE
from ipu_vit.weights.load import load_weights
from ipu_vit.weights.parameters import CLASS_TOKEN, POSITION, REPRESENTATION, SHAPES, STEM, within
from ipu_vit.weights.pickled import write_pickled
from ipu_vit.weights.safetensors_file import write_safetensors
from ipu_vit.weights.table import Format, to_format
from ipu_vit.weights.timm import TIMM
from ipu_vit.weights.torchvision import TORCHVISION

Make = Callable[..., ImageModel]
FORMATS = [format for format, _ in NAMED]
VITS = [format for format in FORMATS if format.model == "ViT"]
# What only a Mixer has, and what only the others have.
OF_MIXERS = ("layers.{i}.tokens_mlp", "layers.{i}.tokens_norm")
OF_OTHERS = (CLASS_TOKEN, POSITION, "layers.{i}.attention", "layers.{i}.attention_norm", REPRESENTATION)
each_format = pytest.mark.parametrize("format", FORMATS, ids=[format.title for format in FORMATS])
each_vit = pytest.mark.parametrize("format", VITS, ids=[format.title for format in VITS])


@pytest.fixture
def model(vit: Callable[..., VisionTransformer]) -> Make:
    """Makes a small model of the kind that a format is for."""

    def make(format: Format, **changes: Any) -> ImageModel:
        if format.model == "ViT":
            return vit(**changes)
        sizes: Any = dict(image_size=12, patch_size=4, width=12, depth=2, mlp_width=20, classes=5)
        mixer = Mixer(tokens_mlp_width=7, **{**sizes, **changes})
        randomise(mixer)
        return mixer

    return make


def write(format: Format, tensors: Dict[str, Tensor], folder: Path) -> str:
    """Write in one of the two kinds of file, which hold tensors of any format."""
    path = str(folder / "weights")
    (write_safetensors if len(format.name) % 2 else write_pickled)(tensors, path)
    return path


@pytest.mark.parametrize("format", [*FORMATS, *FLAX], ids=lambda format: format.title)
def test_a_table_has_every_parameter_once(format: Format) -> None:
    foreign = OF_MIXERS if format.model == "ViT" else (*OF_OTHERS, STEM)
    has_stem = any(within(row.ours, [STEM]) for row in format.table)
    expected = [name for name in SHAPES if not within(name, foreign) and (has_stem or not within(name, [STEM]))]
    assert sorted(row.ours for row in format.table) == sorted(expected)
    names = [name for row in format.table for spelling in row.spellings() for name in spelling]
    assert len(names) == len(set(names))


@settings(max_examples=25)
@given(format=st.sampled_from(FORMATS), sizes=tiny_sizes())
def test_round_trip_is_exact(tmp_path_factory: Any, format: Format, sizes: Dict[str, Any]) -> None:
    model: ImageModel
    if format.model == "Mixer":
        del sizes["representation"]
        model = Mixer(tokens_mlp_width=sizes.pop("heads"), **sizes)
    else:
        if format is TIMM:
            sizes["representation"] = None
        model = VisionTransformer(**sizes)
    randomise(model)
    state = model.state_dict()
    path = write(format, to_format(format, state), tmp_path_factory.mktemp("round"))
    file = open_weights(path)
    assert file.format == format.title
    assert not file.unused
    assert file.shapes == {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert all(torch.equal(file.read(name), tensor) for name, tensor in state.items())


@each_format
@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        (dict(width=24), "model.width=24 would fit"),
        (dict(depth=3), "model.depth=3 would fit"),
        (dict(patch_size=2), "model.patch_size=2 would fit"),
        (dict(mlp_width=21), "model.mlp_width=21 would fit"),
    ],
)
def test_a_model_of_other_sizes_is_named(model: Make, tmp_path: Path, format: Format, changes: Any, hint: str) -> None:
    path = write(format, to_format(format, model(format, **changes).state_dict()), tmp_path)
    with pytest.raises(UserError, match=rf"^weights=.* does not fit the model: .*; {hint}$"):
        load_weights(model(format), path)


@each_format
def test_another_number_of_classes_leaves_the_head(model: Make, tmp_path: Path, format: Format) -> None:
    path = write(format, to_format(format, model(format, classes=9).state_dict()), tmp_path)
    assert load_weights(model(format), path).replaced == {"head.classify": "9 classes in the file, 5 in the model"}


@each_vit
def test_a_model_without_a_class_token(model: Make, tmp_path: Path, format: Format) -> None:
    state = dict(model(format).state_dict())
    del state["embedding.class_token"]
    state["embedding.position"] = state["embedding.position"][:, 1:]
    if format in (HUGGING_FACE, TORCHVISION):
        with pytest.raises(UserError, match="needs embedding.class_token, which the weights lack"):
            to_format(format, state)
    else:
        file = open_weights(write(format, to_format(format, state), tmp_path))
        assert set(file.shapes) == set(state)
        assert all(torch.equal(file.read(name), tensor) for name, tensor in state.items())


@each_vit
def test_a_class_token_that_has_a_position_is_missed(model: Make, tmp_path: Path, format: Format) -> None:
    tensors = to_format(format, model(format).state_dict())
    lost = next(name for name in tensors if name.endswith(("cls_token", "class_token")))
    del tensors[lost]
    with pytest.raises(UserError, match=f"it lacks {lost}$"):
        load_weights(model(format), write(format, tensors, tmp_path))


@each_format
def test_renamed_tensors_are_named(model: Make, tmp_path: Path, format: Format) -> None:
    tensors = to_format(format, model(format).state_dict())
    lost = next(name for name in tensors if name.endswith("1.bias") or "layernorm_after.bias" in name)
    tensors["renamed"] = tensors.pop(lost)
    path = write(format, tensors, tmp_path)
    with pytest.raises(UserError) as caught:
        load_weights(model(format), path)
    assert str(caught.value) == f"weights={path} is not a {format.model} in {format.name}'s layout: it lacks {lost}"


@each_format
def test_shapes_that_contradict_each_other_are_named(model: Make, tmp_path: Path, format: Format) -> None:
    tensors = to_format(format, model(format).state_dict())
    spoilt = next(name for name, tensor in tensors.items() if tensor.shape == (20,))
    tensors[spoilt] = torch.zeros(19)
    with pytest.raises(UserError, match=rf"do not fit each other: {spoilt} is \(19,\) but \(20,\) is expected$"):
        load_weights(model(format), write(format, tensors, tmp_path))


def test_tensors_of_another_kind_of_model_are_refused(tmp_path: Path) -> None:
    for i, module in enumerate((torch.nn.Conv2d(3, 4, 3), torch.nn.TransformerEncoderLayer(8, 2), torch.nn.Identity())):
        path = str(tmp_path / f"weights{i}")
        write_pickled(module.state_dict(), path)
        with pytest.raises(UserError, match="is of no known format, with tensors such as .*; accepted: Google .npz, "):
            open_weights(path)
