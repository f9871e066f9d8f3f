"""big_vision's `.npz` layout, and what vit_jax's became with later versions of Flax."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, Callable, Dict

import numpy
import pytest
import torch
from reference_models import SIZES, difference, randomise, state_of, timm_vit

from ipu_vit.convert import convert
from ipu_vit.errors import UserError
from ipu_vit.models.positions import fixed_positions
from ipu_vit.models.vit import VisionTransformer
from ipu_vit.weights.formats import open_weights
from ipu_vit.weights.google import write_google
from ipu_vit.weights.load import load_weights

Arrays = Dict[str, numpy.ndarray]
Make = Callable[..., VisionTransformer]
OLD_POSITION = "Transformer/posembed_input/pos_embedding"
NUMBERS = (
    ("MultiHeadDotProductAttention_1", "MultiHeadDotProductAttention_0"),
    ("LayerNorm_2", "LayerNorm_1"),
    ("MlpBlock_3", "MlpBlock_0"),
)


def arrays_of(path: str, position: str = "pos_embedding") -> Arrays:
    """The arrays of a vit_jax file under big_vision's names."""
    renames = (*NUMBERS, (OLD_POSITION, position))
    arrays = {}
    with numpy.load(path) as file:
        for name in file:
            new = name
            for before, after in renames:
                new = new.replace(before, after)
            arrays[new] = file[name]
    return arrays


def stacked(arrays: Arrays) -> Arrays:
    """One array for all layers in the place of one for each, as `scan=True` has them."""
    found = {name: re.fullmatch(r"Transformer/encoderblock_(\d+)/(.*)", name) for name in arrays}
    stacks = {match[2] for match in found.values() if match}
    depth = len({match[1] for match in found.values() if match})
    layers = {
        f"Transformer/encoderblock/{end}": numpy.stack(
            [arrays[f"Transformer/encoderblock_{i}/{end}"] for i in range(depth)]
        )
        for end in stacks
    }
    return {**{name: arrays[name] for name, match in found.items() if not match}, **layers}


def without_class_token(arrays: Arrays) -> Arrays:
    """The same of a model that pools the mean."""
    rest = {name: array for name, array in arrays.items() if name != "cls"}
    return {**rest, "pos_embedding": arrays["pos_embedding"][:, 1:]}


def saved(arrays: Arrays, folder: Path, prefix: str = "") -> str:
    path = str(folder / "big_vision.npz")
    numpy.savez(path, **{prefix + name: array for name, array in arrays.items()})  # type: ignore[arg-type]
    return path


@pytest.fixture
def made(vit: Make, tmp_path: Path) -> Callable[..., Any]:
    """A model of ours, and its arrays under big_vision's names."""

    def make(position: str = "pos_embedding", **changes: Any) -> Any:
        model = vit(**changes)
        path = str(tmp_path / "vit_jax.npz")
        write_google(model.state_dict(), path, heads=3)
        return model, arrays_of(path, position)

    return make


@pytest.mark.parametrize("scan", [False, True], ids=["layer by layer", "stacked"])
@pytest.mark.parametrize("prefix", ["", "params/", "params/img/", "opt/target/"])
@pytest.mark.parametrize("position", ["pos_embedding", "Transformer/pos_embedding", OLD_POSITION])
def test_every_spelling_is_read(
    made: Callable[..., Any], tmp_path: Path, scan: bool, prefix: str, position: str
) -> None:
    model, arrays = made(position, representation=7)
    path = saved(stacked(arrays) if scan else arrays, tmp_path, prefix)
    found, expected = state_of(path), model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    file = open_weights(path)
    assert (file.format, file.heads, file.unused) == ("big_vision .npz", 3, ())


@pytest.mark.parametrize("scan", [False, True], ids=["layer by layer", "stacked"])
def test_timm_computes_the_same_from_the_mean(made: Callable[..., Any], vit: Make, tmp_path: Path, scan: bool) -> None:
    theirs = timm_vit(class_token=False, global_pool="avg", fc_norm=False).eval()
    arrays = without_class_token(made()[1])
    path = saved(stacked(arrays) if scan else arrays, tmp_path, "params/")
    theirs.load_pretrained(path)
    ours = vit(class_token=False, pooling="mean")
    randomise(ours)
    load_weights(ours, path)
    assert difference(ours, theirs) <= 1e-5


def test_a_class_token_without_a_position_has_that_of_zeros(
    made: Callable[..., Any], vit: Make, tmp_path: Path
) -> None:
    model, arrays = made()
    arrays["pos_embedding"] = arrays["pos_embedding"][:, 1:]
    ours = vit(image_size=12)
    randomise(ours)
    load_weights(ours, saved(arrays, tmp_path))
    with torch.no_grad():
        model.embedding.position[:, 0] = 0
    assert difference(ours, model) == 0


def test_timm_reads_positions_without_the_class_token_s_alike(
    made: Callable[..., Any], vit: Make, tmp_path: Path
) -> None:
    theirs = timm_vit(no_embed_class=True).eval()
    arrays = made()[1]
    arrays["pos_embedding"] = arrays["pos_embedding"][:, 1:]
    path = saved(arrays, tmp_path)
    theirs.load_pretrained(path)
    ours = vit()
    load_weights(ours, path)
    assert difference(ours, theirs) <= 1e-5
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    load_weights(ours, str(tmp_path / "timm.pth"))
    assert difference(ours, theirs) <= 1e-5


@pytest.mark.parametrize("name", ["MAPHead_0/probe", "params/MAPHead_0/MlpBlock_0/Dense_0/bias", "params/img/probe"])
def test_attention_pooling_is_refused(made: Callable[..., Any], tmp_path: Path, name: str) -> None:
    path = saved({**made()[1], name: numpy.zeros((1, 1, 12), numpy.float32)}, tmp_path)
    with pytest.raises(UserError) as caught:
        open_weights(path)
    assert str(caught.value) == (
        f"weights={path} is of a model with attention pooling (MAP head) ({name}), which this package does not have"
    )


@pytest.mark.parametrize("scan", [False, True], ids=["layer by layer", "stacked"])
def test_lost_and_renamed_arrays_are_named(made: Callable[..., Any], tmp_path: Path, scan: bool) -> None:
    arrays = stacked(made()[1]) if scan else made()[1]
    layer = "Transformer/encoderblock" + ("" if scan else "_1")
    arrays["renamed"] = arrays.pop(f"{layer}/LayerNorm_1/bias")
    lost = "Transformer/encoderblock_0/LayerNorm_1/bias" if scan else f"{layer}/LayerNorm_1/bias"
    with pytest.raises(UserError, match=f"is not a ViT in big_vision's layout: it lacks {lost}"):
        open_weights(saved(arrays, tmp_path))


def test_the_optimizer_s_arrays_are_not_used(made: Callable[..., Any], vit: Make, tmp_path: Path) -> None:
    arrays = {f"params/{name}": array for name, array in made()[1].items()}
    moments = {f"opt/0/mu/{name}": array for name, array in made()[1].items()}
    ours = vit()
    randomise(ours)
    report = load_weights(ours, saved({**arrays, **moments}, tmp_path))
    assert report.unused == tuple(sorted(moments))
    assert difference(ours, made()[0]) == 0


# Fixed positions ------------------------------------------------------------------------------------


def test_fixed_positions_in_closed_form() -> None:
    positions = fixed_positions((1 + 9, 16))
    assert positions.shape == (1, 10, 16)
    assert not positions[:, 0].any()
    for row in range(3):
        for column in range(3):
            token = positions[0, 1 + 3 * row + column]
            for k in range(4):
                frequency = 10_000 ** (-k / 3)
                expected = [
                    math.sin(column * frequency),
                    math.cos(column * frequency),
                    math.sin(row * frequency),
                    math.cos(row * frequency),
                ]
                assert token[k::4].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("shape", [(10, 18), (9, 16)])
def test_fixed_positions_that_cannot_be(shape: Any) -> None:
    with pytest.raises(ValueError, match="are not a class token and a square grid, in multiples of 4"):
        fixed_positions(shape)


@pytest.mark.parametrize("image_size", [12, 20])
def test_a_file_without_positions_has_fixed_ones_for_any_grid(
    made: Callable[..., Any], vit: Make, tmp_path: Path, image_size: int
) -> None:
    arrays = without_class_token(made()[1])
    del arrays["pos_embedding"]
    path = saved(arrays, tmp_path)
    ours = vit(class_token=False, pooling="mean", image_size=image_size)
    report = load_weights(ours, path)
    assert "embedding.position" not in report.kept
    assert report.remarks == ("positions are fixed sines and cosines, which the file has no need to hold",)
    tokens = (image_size // 4) ** 2
    assert torch.equal(ours.embedding.position, fixed_positions((tokens, 12), class_token=False))
    with pytest.raises(UserError, match="cannot be converted: it has no embedding.position, so that its image size"):
        convert(path, str(tmp_path / "out.pth"), "timm")


@pytest.mark.parametrize("image_size", [12, 20])
def test_a_model_with_fixed_positions_keeps_its_own(
    made: Callable[..., Any], vit: Make, tmp_path: Path, image_size: int
) -> None:
    path = saved(without_class_token(made()[1]), tmp_path)
    ours = vit(class_token=False, pooling="mean", image_size=image_size, fixed_positions=True)
    report = load_weights(ours, path)
    assert report.dropped == {"embedding.position": "the model's are fixed"} and report.resized is None
    assert torch.equal(ours.embedding.position, fixed_positions(((image_size // 4) ** 2, 12), class_token=False))


def test_vit_jax_has_no_fixed_positions(vit: Make, tmp_path: Path) -> None:
    path = str(tmp_path / "vit_jax.npz")
    write_google(vit().state_dict(), path, heads=SIZES["heads"])
    with numpy.load(path) as file:
        arrays = {name: file[name] for name in file if "pos_embedding" not in name}
    with pytest.raises(UserError, match=f"is not a ViT in Google's layout: it lacks {OLD_POSITION}"):
        open_weights(saved(arrays, tmp_path))
