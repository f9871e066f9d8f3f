"""Google's `.npz` layout against Hugging Face's and timm's models, and as a round trip."""

from __future__ import annotations

import errno
import zipfile
from pathlib import Path
from typing import Any, Callable, Dict

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_models import difference, randomise, state_of, timm_vit, tiny_sizes

from ipu_vit.errors import UserError
from ipu_vit.models.vit import VisionTransformer
from ipu_vit.weights.formats import open_weights
from ipu_vit.weights.google import write_google

SIZES: Dict[str, Dict[str, Any]] = {
    "tiny": dict(image_size=8, patch_size=4, width=8, depth=1, heads=2, mlp_width=16, classes=3),
    "odd": dict(image_size=15, patch_size=5, width=21, depth=3, heads=3, mlp_width=10, classes=7),
    "one head": dict(image_size=6, patch_size=2, width=10, depth=2, heads=1, mlp_width=31, classes=1),
    "pre_logits": dict(
        image_size=12, patch_size=4, width=24, depth=2, heads=4, mlp_width=48, classes=9, representation=24
    ),
}
B16: Dict[str, Any] = dict(image_size=224, patch_size=16, width=768, depth=12, heads=12, mlp_width=3072, classes=1000)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_logits_equal_hugging_face_s(sizes: Dict[str, Any], huggingface: Callable[..., Any]) -> None:
    theirs, path = huggingface(sizes)
    ours = VisionTransformer(**sizes).eval()
    ours.load_state_dict(state_of(path))
    assert difference(ours, theirs, sizes["image_size"]) <= 1e-4


def test_b16_logits_equal_hugging_face_s(huggingface: Callable[..., Any]) -> None:
    theirs, path = huggingface(B16, std=0.02)
    state = state_of(path)
    assert sum(tensor.numel() for tensor in state.values()) == 86_567_656
    ours = VisionTransformer(**B16).eval()
    ours.load_state_dict(state)
    assert difference(ours, theirs, 224) <= 1e-4


def test_timm_reads_what_is_written(vit: Callable[..., VisionTransformer], tmp_path: Path) -> None:
    ours, theirs = vit(), timm_vit()
    path = str(tmp_path / "weights.npz")
    write_google(ours.state_dict(), path, heads=3)
    theirs.load_pretrained(path)
    assert difference(ours, theirs, 12) <= 1e-5


@settings(max_examples=25)
@given(sizes=tiny_sizes(), half=st.booleans())
def test_round_trip_is_exact(tmp_path_factory: Any, sizes: Dict[str, Any], half: bool) -> None:
    model = VisionTransformer(**sizes)
    randomise(model)
    state = model.half().state_dict() if half else model.state_dict()
    path = str(tmp_path_factory.mktemp("round") / "weights.npz")
    write_google(state, path, sizes["heads"], torch.float16 if half else torch.float32)
    found = state_of(path)
    assert found.keys() == state.keys()
    assert open_weights(path).heads == sizes["heads"]
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()
        assert torch.equal(tensor, state[name].float()), name
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == open_weights(path).shapes


def test_float16_files_are_accepted(huggingface: Callable[..., Any]) -> None:
    _, path = huggingface(SIZES["tiny"], dtype="float16")
    assert {tensor.dtype for tensor in state_of(path).values()} == {torch.float32}


def arrays_of(path: str) -> Dict[str, Any]:
    with numpy.load(path) as file:
        return dict(file)


@pytest.fixture
def written(vit: Callable[..., VisionTransformer], tmp_path: Path) -> str:
    path = str(tmp_path / "weights.npz")
    write_google(vit().state_dict(), path, heads=3)
    return path


def test_extra_entries_are_reported(written: str) -> None:
    arrays = arrays_of(written)
    arrays["Transformer/encoderblock_0/LayerNorm_9/scale"] = numpy.ones(12, numpy.float32)
    arrays["step"] = numpy.array(7)
    numpy.savez(written, **arrays)
    with zipfile.ZipFile(written, "a") as file:
        file.writestr("LICENSE", "text")
    assert open_weights(written).unused == ("Transformer/encoderblock_0/LayerNorm_9/scale", "step", "LICENSE")


def test_missing_entries_are_named(written: str) -> None:
    arrays = arrays_of(written)
    for name in ("cls", "head/bias", "Transformer/encoderblock_1/LayerNorm_0/scale", "embedding/bias"):
        del arrays[name]
    numpy.savez(written, **arrays)
    with pytest.raises(UserError, match=r"weights=.*lacks cls, embedding/bias, .*LayerNorm_0/scale and 1 more$"):
        open_weights(written)


def test_wrong_shapes_are_named(written: str) -> None:
    arrays = arrays_of(written)
    arrays["embedding/kernel"] = numpy.zeros((4, 4, 1, 12), numpy.float32)
    arrays["head/bias"] = numpy.zeros((5, 1), numpy.float32)
    for i in range(2):
        arrays[f"Transformer/encoderblock_{i}/LayerNorm_2/bias"] = numpy.zeros(13, numpy.float32)
    numpy.savez(written, **arrays)
    with pytest.raises(UserError) as caught:
        state_of(written)
    assert str(caught.value) == (
        f"weights={written} has shapes that do not fit each other: "
        "embedding/kernel is (4, 4, 1, 12) but (4, 4, 3, 12) is expected, "
        "Transformer/encoderblock_0/LayerNorm_2/bias is (13,) but (12,) is expected, "
        "Transformer/encoderblock_1/LayerNorm_2/bias is (13,) but (12,) is expected and 1 more"
    )


def test_heads_must_divide_the_width_in_the_file(written: str) -> None:
    arrays = arrays_of(written)
    for name in arrays:
        if "MultiHeadDotProductAttention_1" in name and not name.endswith("out/bias"):
            shape = {"kernel": (5, 2, 12) if "/out/" in name else (12, 5, 2), "bias": (5, 2)}[name.rsplit("/", 1)[1]]
            arrays[name] = numpy.zeros(shape, numpy.float32)
    numpy.savez(written, **arrays)
    with pytest.raises(UserError, match=r"query/kernel is \(12, 5, 2\) but \(12, 5, 12/5\) is expected"):
        state_of(written)


def test_a_file_without_layers_is_told_so(tmp_path: Path) -> None:
    path = str(tmp_path / "other.npz")
    numpy.savez(path, numbers=numpy.arange(3))
    with pytest.raises(UserError, match=r"is not a ViT in Google's layout: it lacks cls, .* and 19 more$"):
        state_of(path)


def test_heads_must_divide_the_width_when_writing(vit: Callable[..., VisionTransformer], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model.heads=5 does not divide the width of the weights, 12"):
        write_google(vit().state_dict(), str(tmp_path / "weights.npz"), heads=5)


def test_an_earlier_file_survives_a_full_disk(
    written: str, vit: Callable[..., VisionTransformer], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Path(written).read_bytes()

    def fail(file: Any, **arrays: numpy.ndarray) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(numpy, "savez_compressed", fail)
    with pytest.raises(UserError, match=r"cannot be written: No space left on device"):
        write_google(vit().state_dict(), written, heads=3)
    assert Path(written).read_bytes() == before
    assert [file.name for file in Path(written).parent.iterdir()] == ["weights.npz"]
