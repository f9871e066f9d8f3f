"""Starting a model from a file: what is kept, adapted, left out and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ipu_vit.errors import UserError
from ipu_vit.models.vit import VisionTransformer
from ipu_vit.weights.google import write_google
from ipu_vit.weights.load import load_weights
from ipu_vit.weights.positions import resize_positions

Make = Callable[..., VisionTransformer]


def state_of(model: VisionTransformer) -> Dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.fixture(params=["google", "checkpoint"])
def save(request: Any, tmp_path: Path) -> Callable[[VisionTransformer], str]:
    """Writes a model's weights in each format; the name of the file must not matter."""

    def google(model: VisionTransformer) -> str:
        write_google(model.state_dict(), str(tmp_path / "weights"), heads=3)
        return str(tmp_path / "weights")

    def checkpoint(model: VisionTransformer) -> str:
        tensors = {f"model.{name}": tensor for name, tensor in state_of(model).items()}
        tensors["optimizer.embedding.position"] = torch.zeros(3)
        save_file(tensors, str(tmp_path / "weights"), metadata={"step": "7"})
        return str(tmp_path / "weights")

    return {"google": google, "checkpoint": checkpoint}[request.param]


@pytest.mark.parametrize("representation", [None, 7])
def test_a_model_of_the_same_sizes_is_copied_whole(vit: Make, save: Any, representation: Any) -> None:
    source, model = vit(representation=representation), vit(representation=representation)
    model.initialise()
    report = load_weights(model, save(source))
    for name, tensor in state_of(source).items():
        assert torch.equal(state_of(model)[name], tensor), name
    assert set(report.kept) == set(state_of(model))
    assert not (report.resized or report.replaced or report.dropped or report.unused)
    assert report.summary() == f"weights: {len(report.kept)} tensors from {report.path} ({report.format})"


def test_positions_are_resized_and_reported(vit: Make, save: Any) -> None:
    source, model = vit(), vit(image_size=20)
    report = load_weights(model, save(source))
    assert torch.equal(model.embedding.position, resize_positions(source.embedding.position, (5, 5)))
    assert report.resized == ((3, 3), (5, 5))
    assert report.summary().endswith("positions resized from 3×3 to 5×5")


def test_positions_are_resized_as_asked_for(vit: Make, save: Any) -> None:
    source, model = vit(), vit(image_size=20)
    load_weights(model, save(source), resize="bicubic")
    assert torch.equal(model.embedding.position, resize_positions(source.embedding.position, (5, 5), "bicubic"))


def without_class_token(model: VisionTransformer) -> VisionTransformer:
    model.embedding.class_token = None
    model.embedding.position = torch.nn.Parameter(model.embedding.position[:, 1:].detach())
    return model


@pytest.mark.parametrize("image_size", [12, 20])
def test_a_class_token_that_the_file_lacks_starts_anew(vit: Make, save: Any, image_size: int) -> None:
    source, model = without_class_token(vit()), vit(image_size=image_size)
    before = state_of(model)
    report = load_weights(model, save(source))
    assert report.replaced == {"embedding.class_token": "the file has none"}
    grid = (image_size // 4, image_size // 4)
    patches = resize_positions(source.embedding.position, grid, class_token=False)
    assert torch.equal(model.embedding.class_token, before["embedding.class_token"])
    assert torch.equal(model.embedding.position, torch.cat([before["embedding.position"][:, :1], patches], dim=1))
    assert bool(report.resized) == (image_size == 20)


@pytest.mark.parametrize("image_size", [12, 20])
def test_a_class_token_that_the_model_lacks_is_dropped(vit: Make, save: Any, image_size: int) -> None:
    source, model = vit(), without_class_token(vit(image_size=image_size))
    report = load_weights(model, save(source))
    assert report.dropped == {"embedding.class_token": "the model has none"}
    assert not report.unused
    grid = (image_size // 4, image_size // 4)
    assert torch.equal(model.embedding.position, resize_positions(source.embedding.position, grid)[:, 1:])


def test_another_number_of_classes_leaves_the_head(vit: Make, save: Any) -> None:
    source, model = vit(classes=9), vit()
    model.initialise()
    report = load_weights(model, save(source))
    assert not model.head.classify.weight.any()
    assert torch.equal(model.head.norm.weight, source.head.norm.weight)
    assert report.replaced == {"head.classify": "9 classes in the file, 5 in the model"}
    assert "head.classify.weight" not in report.kept
    assert report.summary().endswith("head.classify starts anew (9 classes in the file, 5 in the model)")


@pytest.mark.parametrize("classes", [5, 9])
def test_fine_tuning_drops_pre_logits(vit: Make, save: Any, classes: int) -> None:
    model = vit()
    model.initialise()
    report = load_weights(model, save(vit(representation=7, classes=classes)))
    assert report.dropped == {"head.representation": "the model has none"}
    assert not model.head.classify.weight.any()
    assert set(report.replaced) == {"head.classify"}
    assert not report.unused


def test_fine_tuning_drops_pre_logits_of_the_head_s_own_shape(vit: Make, save: Any) -> None:
    model = vit()
    model.initialise()
    report = load_weights(model, save(vit(representation=12)))
    assert report.replaced == {"head.classify": "it follows head.representation only in the file"}
    assert not model.head.classify.weight.any()


def test_a_representation_that_the_file_lacks_starts_anew(vit: Make, save: Any) -> None:
    model = vit(representation=7)
    before = state_of(model)
    report = load_weights(model, save(vit()))
    assert set(report.replaced) == {"head.representation", "head.classify"}
    for name in ("head.representation.weight", "head.representation.bias", "head.classify.weight"):
        assert torch.equal(state_of(model)[name], before[name])


def test_a_float16_model_takes_float32_weights(vit: Make, save: Any) -> None:
    source, model = vit(), vit(image_size=20).half()
    load_weights(model, save(source))
    assert model.embedding.position.dtype == torch.float16
    assert torch.equal(model.head.classify.weight, source.head.classify.weight.half())


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        (dict(width=24), "model.width=24 would fit"),
        (dict(depth=3), "model.depth=3 would fit"),
        (dict(depth=1), "model.depth=1 would fit"),
        (dict(patch_size=2), "model.patch_size=2 would fit"),
        (dict(mlp_width=21), "model.mlp_width=21 would fit"),
        (dict(width=24, depth=3), "model.width=24 model.depth=3 would fit"),
    ],
)
def test_a_file_that_does_not_fit_names_the_setting(vit: Make, save: Any, changes: Any, hint: str) -> None:
    model = vit()
    before = state_of(model)
    with pytest.raises(UserError, match=rf"^weights=.* does not fit the model: .*; {hint}$"):
        load_weights(model, save(vit(**changes)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in state_of(model).items())


def test_a_representation_of_another_size_names_the_setting(vit: Make, save: Any) -> None:
    with pytest.raises(UserError, match=r"head.representation.weight is .*; model.representation=8 would fit"):
        load_weights(vit(representation=7), save(vit(representation=8)))


def test_the_first_three_misfits_are_named(vit: Make, save: Any) -> None:
    path = save(vit(mlp_width=21))
    with pytest.raises(UserError) as caught:
        load_weights(vit(), path)
    assert str(caught.value) == (
        f"weights={path} does not fit the model: "
        "layers.0.mlp.expand.weight is (21, 12) in the file but (20, 12) in the model, "
        "layers.0.mlp.expand.bias is (21,) in the file but (20,) in the model, "
        "layers.0.mlp.contract.weight is (12, 21) in the file but (12, 20) in the model and 3 more; "
        "model.mlp_width=21 would fit"
    )


def test_another_number_of_heads_is_refused(vit: Make, tmp_path: Path) -> None:
    path = str(tmp_path / "weights.npz")
    write_google(vit(heads=4).state_dict(), path, heads=4)
    with pytest.raises(UserError, match=r"has 4 heads in the file but 3 in the model; model.heads=4 would fit"):
        load_weights(vit(), path)


def test_a_model_without_positions_and_attention(tmp_path: Path) -> None:
    def make() -> Any:
        model: Any = torch.nn.Module()
        model.embedding, model.head = torch.nn.Module(), torch.nn.Module()
        model.embedding.patch, model.head.classify = torch.nn.Conv2d(3, 4, 2), torch.nn.Linear(4, 5)
        return model

    source, model = make(), make()
    path = str(tmp_path / "weights.safetensors")
    save_file({f"model.{name}": tensor for name, tensor in state_of(source).items()}, path)
    report = load_weights(model, path)
    assert all(torch.equal(tensor, state_of(model)[name]) for name, tensor in state_of(source).items())
    assert not (report.resized or report.replaced or report.dropped)


def test_strange_tensors_of_a_checkpoint_are_reported(vit: Make, tmp_path: Path) -> None:
    path = str(tmp_path / "weights.safetensors")
    tensors = {f"model.{name}": tensor for name, tensor in state_of(vit()).items()}
    save_file({**tensors, "model.extra": torch.zeros(2)}, path)
    report = load_weights(vit(), path)
    assert report.unused == ("extra",)
    assert report.summary().endswith("not used: extra")


def test_positions_that_are_no_square_cannot_be_resized(vit: Make, tmp_path: Path) -> None:
    path = str(tmp_path / "weights.npz")
    state = state_of(vit())
    state["embedding.position"] = torch.zeros(1, 8, 12)
    write_google(state, path, heads=3)
    with pytest.raises(UserError, match=r"weights=.* has 8 position embeddings"):
        load_weights(vit(), path)


def test_a_missing_tensor_is_named(vit: Make, tmp_path: Path) -> None:
    path = str(tmp_path / "weights.safetensors")
    tensors = {f"model.{name}": tensor for name, tensor in state_of(vit()).items()}
    for name in ("embedding.position", "head.classify.bias"):
        del tensors[f"model.{name}"]
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"embedding.position is missing in the file but"):
        load_weights(vit(), path)


def test_integers_in_a_checkpoint_are_refused(vit: Make, tmp_path: Path) -> None:
    path = str(tmp_path / "weights.safetensors")
    save_file({f"model.{name}": tensor.int() for name, tensor in state_of(vit()).items()}, path)
    with pytest.raises(UserError, match=r"weights=.* as I32; floating-point numbers are accepted"):
        load_weights(vit(), path)


def test_a_truncated_file_is_refused(vit: Make, save: Any) -> None:
    path = Path(save(vit()))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"weights=.* cannot be read as"):
        load_weights(vit(), str(path))


def test_what_is_no_file_of_weights_is_refused(vit: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"weights=.*absent.npz does not exist"):
        load_weights(vit(), str(tmp_path / "absent.npz"))
    with pytest.raises(UserError, match=r"weights=.* is not a file, and a directory without weights"):
        load_weights(vit(), str(tmp_path))
    text = tmp_path / "notes.npz"
    for content, guess in (
        (b"", ": it is empty"),
        (b"PK", ""),
        (b"these are no weights", ""),
        (b"\x80\x02pickle", ": it is a pickle, which could run code"),
        (b"\n<!DOCTYPE html><html>Not found</html>", ": it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", ": it is a pointer of Git LFS, .*"),
    ):
        text.write_bytes(content)
        with pytest.raises(UserError, match=rf"is of no known format{guess}; accepted: Google .npz, big_vision .npz, "):
            load_weights(vit(), str(text))
