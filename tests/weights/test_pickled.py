"""Files of `torch.save` that are broken or mean harm: refused with a sentence, never run."""

from __future__ import annotations

import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any, Callable, Dict

import pytest
import torch
from torch import Tensor

from ipu_vit.errors import UserError
from ipu_vit.models.vit import VisionTransformer
from ipu_vit.weights.load import load_weights
from ipu_vit.weights.pickled import Pickled, write_pickled
from ipu_vit.weights.table import to_format
from ipu_vit.weights.timm import TIMM

Make = Callable[..., VisionTransformer]


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __reduce__(self) -> Any:
        return open, (self.trace, "w")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_code_is_refused_and_not_run(vit: Make, tmp_path: Path, legacy: bool, wrapped: bool) -> None:
    trace = tmp_path / "trace"
    content: Dict[str, Any] = dict(to_format(TIMM, vit().state_dict()))
    content = {"state_dict": content, "args": Payload(trace)} if wrapped else {**content, "extra": Payload(trace)}
    path = str(tmp_path / "weights.pth")
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError) as caught:
        load_weights(vit(), path)
    assert not trace.exists()
    assert str(caught.value).startswith(f"weights={path} holds more than tensors (")
    assert str(caught.value).endswith("a file with nothing but the model's state_dict is accepted")
    assert "\n" not in str(caught.value)
    torch.load(path, weights_only=False)
    assert trace.exists(), "a file that does no harm would prove nothing"


def test_a_bare_pickle_is_never_opened(vit: Make, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path = tmp_path / f"weights{protocol}.pth"
        path.write_bytes(pickle.dumps({"cls_token": Payload(trace)}, protocol))
        with pytest.raises(UserError, match="is of no known format"):
            load_weights(vit(), str(path))
    assert not trace.exists()


def test_torchscript_is_refused(vit: Make, tmp_path: Path) -> None:
    path = str(tmp_path / "weights.pt")
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    with pytest.raises(UserError, match=r"^weights=.* is a TorchScript program; a state_dict is accepted$"):
        load_weights(vit(), path)


def test_a_tar_file_that_starts_as_torch_save_does_is_refused(vit: Make, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    (tmp_path / "storages").write_text("")
    member = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.".decode("latin-1")
    with tarfile.open(path, "w", encoding="latin-1", format=tarfile.USTAR_FORMAT) as file:
        file.add(tmp_path / "storages", arcname=member)
    with pytest.raises(UserError, match=r"^weights=.* is a tar file"):
        load_weights(vit(), str(path))


def test_an_archive_that_unpacks_is_refused(tmp_path: Path) -> None:
    torch.save({"cls_token": torch.zeros(1 << 16)}, tmp_path / "plain.pth")
    path = str(tmp_path / "weights.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for member in plain.infolist():
            packed.writestr(member.filename, plain.read(member))
    with pytest.raises(UserError, match=r"would unpack from .* to 26.,... bytes; torch.save does not compress"):
        Pickled(path)


def test_a_tensor_must_hold_its_numbers(tmp_path: Path) -> None:
    path = str(tmp_path / "weights.pth")
    torch.save({"cls_token": torch.zeros(1).expand(1 << 40)}, path)
    with pytest.raises(UserError, match=r"holds fewer numbers for cls_token than its shape \(1099511627776,\) needs"):
        Pickled(path)


def test_a_dictionary_that_holds_itself_ends(tmp_path: Path) -> None:
    content: Dict[str, Any] = {"epoch": 3}
    content["state_dict"] = content["other"] = content
    path = str(tmp_path / "weights.pth")
    torch.save(content, path)
    assert Pickled(path).others == ("epoch",)


@pytest.mark.parametrize("content", [torch.zeros(3), [torch.zeros(3)], 7, None])
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: Any) -> None:
    path = str(tmp_path / "weights.pth")
    torch.save(content, path)
    with pytest.raises(UserError, match=rf"weights=.* holds a {type(content).__name__}; a state_dict is accepted"):
        Pickled(path)


def test_integers_are_no_weights(vit: Make, tmp_path: Path) -> None:
    path = str(tmp_path / "weights.pth")
    write_pickled({name: tensor.int() for name, tensor in to_format(TIMM, vit().state_dict()).items()}, path)
    with pytest.raises(UserError, match="holds cls_token as int32; floating-point numbers are accepted"):
        load_weights(vit(), path)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float32])
def test_any_floating_point_is_read(tmp_path: Path, legacy: bool, dtype: torch.dtype) -> None:
    path = str(tmp_path / "weights.pth")
    numbers = torch.arange(6).reshape(2, 3).to(dtype)
    torch.save({"a": torch.nn.Parameter(numbers.T), "b": numbers[1:]}, path, _use_new_zipfile_serialization=not legacy)
    found = Pickled(path)
    for name, expected in (("a", numbers.T.float()), ("b", numbers[1:].float())):
        assert found.entries[name] == (tuple(expected.shape), str(dtype)[6:], True)
        assert found.read(name).dtype == torch.float32
        assert torch.equal(found.read(name), expected)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:-100],
        lambda content: content[:40],
        lambda content: content.replace(b"cls_token", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
    ],
    ids=["half", "end", "start", "names"],
)
def test_a_damaged_file_is_refused(vit: Make, tmp_path: Path, legacy: bool, spoil: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "weights.pth"
    state: Dict[str, Tensor] = to_format(TIMM, vit().state_dict())
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(UserError, match=r"^weights=.* cannot be read as a file of torch.save: .") as caught:
        load_weights(vit(), str(path))
    assert "\n" not in str(caught.value)
