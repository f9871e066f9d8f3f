"""Checkpoints come back as they were, are whole or not there, and are never too many."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Callable, Dict, List

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.torch import save as encode
from test_resume import assert_equal
from tiny_runs import contents

from ipu_vit.checkpoint import Checkpoint, Checkpoints, read_checkpoint
from ipu_vit.errors import UserError


def checkpoint(update: int, **options: Any) -> Checkpoint:
    values: Dict[str, Any] = {"model": {"weight": torch.full((3,), float(update))}, "optimizer": {}, "rng_state": [1]}
    return Checkpoint(update, **{**values, **options})


# --- there and back ----------------------------------------------------------------------------------


@st.composite
def tensors(draw: Any) -> torch.Tensor:
    dtype = draw(st.sampled_from([torch.float16, torch.float32, torch.int64, torch.uint8]))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    return (100 * torch.rand(shape, generator=generator)).to(dtype)


numbers = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False), st.text(max_size=5)
)
keys = st.one_of(st.integers(-3, 3), st.sampled_from(["a", "b", "a.b", "0", "tensor", "dict", "list", "model.weight"]))
nested = st.recursive(
    st.one_of(numbers, tensors()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple), st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=12,
)


@hypothesis_settings(max_examples=150)
@given(optimizer=st.dictionaries(keys, nested, max_size=4), seed=st.integers(0, 2**63 - 1))
def test_there_and_back(tmp_path_factory: pytest.TempPathFactory, optimizer: Any, seed: int) -> None:
    """Whatever an optimizer keeps, in whatever nesting, to the last bit and of the same type."""
    model = {"a": torch.tensor([1e-7, 65504.0], dtype=torch.float16), "b.c": torch.zeros(2, 0)}
    before = Checkpoint(7, model, optimizer, [seed, 3], best_accuracy=0.1)
    path = Checkpoints(tmp_path_factory.mktemp("run"), keep=1).save(before)
    assert_equal(vars(read_checkpoint(path)), vars(before))


def test_keys_that_read_alike_are_told_apart(tmp_path: Path) -> None:
    one, two, three, four = (torch.full((2,), float(number)) for number in range(4))
    before = checkpoint(1, optimizer={"a": {"b": one}, "a.b": two, 0: three, "0": four})
    back = read_checkpoint(Checkpoints(tmp_path, keep=1).save(before))
    assert_equal(back.optimizer, before.optimizer)


def test_transposed_tensors_and_special_numbers(tmp_path: Path) -> None:
    special = torch.tensor([[float("inf"), -0.0], [1.0, 2.0]]).t()
    state = {"ipu_state": {"velocity": special}, "lr": float("inf")}
    back = read_checkpoint(Checkpoints(tmp_path, keep=1).save(checkpoint(1, optimizer=state))).optimizer
    assert back["lr"] == float("inf")
    assert back["ipu_state"]["velocity"].tolist() == [[float("inf"), 1.0], [-0.0, 2.0]]


# --- which are kept ----------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [1, 3])
def test_newest_and_best_are_kept(tmp_path: Path, keep: int) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep)
    assert checkpoints.latest() is None
    checkpoints.save_best(checkpoint(1))
    for update in (1, 5, 30, 200, 100_000_000 - 1):
        checkpoints.save(checkpoint(update))
    assert checkpoints.updates() == [5, 30, 200, 99_999_999][-keep:][-3:]
    latest = Checkpoints(tmp_path / "checkpoints", keep).latest()
    assert latest is not None and latest.update == 99_999_999
    assert read_checkpoint(checkpoints.best).update == 1
    assert len(contents(tmp_path)) == keep + 1


# --- when things go wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_failure_while_writing_leaves_everything_as_it_was(
    tmp_path: Path, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(checkpoint(1))
    checkpoints.save_best(checkpoint(1))
    before = contents(tmp_path)

    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, function, fail)
    for save in (checkpoints.save, checkpoints.save_best):
        for update in (1, 2):
            with pytest.raises(UserError, match="cannot be written: No space left on device; earlier checkpoints are"):
                save(checkpoint(update))
    assert contents(tmp_path) == before


def test_what_a_killed_process_left_is_ignored_and_removed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(checkpoint(1))
    (tmp_path / "update-00000002.safetensors.123.part").write_bytes(b"half")
    (tmp_path / "update-2.safetensors").write_bytes(b"not ours")
    assert checkpoints.updates() == [1]
    assert Checkpoints(tmp_path, keep=2).updates() == [1]
    assert sorted(contents(tmp_path)) == ["update-00000001.safetensors", "update-2.safetensors"]


@pytest.mark.parametrize("size", [0, 1, 8, 9, 100, -1])
def test_shortened_file_is_named(tmp_path: Path, size: int) -> None:
    path = Checkpoints(tmp_path, keep=1).save(checkpoint(1))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match="update-00000001.safetensors is not a checkpoint of ipu_vit, or is damaged"):
        read_checkpoint(path)


@pytest.mark.parametrize("old, new", [(b"rng_state", b"rng_stale"), (b"update", b"uptake"), (b"ipu_vit", b"ipu_bit")])
def test_header_of_another_program_is_refused(tmp_path: Path, old: bytes, new: bytes) -> None:
    path = Checkpoints(tmp_path, keep=1).save(checkpoint(1))
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(UserError, match="is not a checkpoint of ipu_vit, or is damaged"):
        read_checkpoint(path)


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """Wherever in the file: lengths, names, numbers, state, the checksum itself."""
    path = Checkpoints(tmp_path, keep=1).save(checkpoint(1))
    content = path.read_bytes()
    for position in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[position] ^= 1 << bit
            path.write_bytes(flipped)
            with pytest.raises(UserError, match="is not a checkpoint of ipu_vit, or is damaged"):
                read_checkpoint(path)
    path.write_bytes(content)
    assert read_checkpoint(path).update == 1


@hypothesis_settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1))
def test_bytes_that_differ_anywhere_are_noticed(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """A piece lost, doubled or overwritten, as disks and networks do it."""
    rng = np.random.default_rng(seed)
    path = Checkpoints(tmp_path_factory.mktemp("run"), keep=1).save(checkpoint(1, optimizer={"v": torch.ones(2000)}))
    content = path.read_bytes()
    start, end, other = np.sort(rng.integers(0, len(content), 3))
    damaged = content[:start] + [b"", bytes(end - start), content[other : other + 100]][seed % 3] + content[end:]
    path.write_bytes(damaged)
    if damaged != content:
        with pytest.raises(UserError, match="is not a checkpoint of ipu_vit, or is damaged"):
            read_checkpoint(path)


@pytest.mark.parametrize("damage", [lambda whole: whole[:-1], lambda whole: whole[:-3] + b"?" + whole[-2:]])
def test_the_one_before_a_damaged_one_is_used(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    for update in (1, 2, 3):
        path = checkpoints.save(checkpoint(update))
    path.write_bytes(damage(path.read_bytes()))
    said: List[str] = []
    content = path.read_bytes()
    latest = checkpoints.latest(said.append)
    assert latest is not None and latest.update == 2
    assert len(said) == 1 and "update-00000003" in said[0] and "the checkpoint of update 2 is used" in said[0]
    # It does not take the place of a good one, and is still there for whoever wants to look.
    assert checkpoints.updates() == [1, 2] and (tmp_path / "update-00000003.damaged").read_bytes() == content
    assert_equal(vars(checkpoints.latest(said.append)), vars(latest))
    assert len(said) == 1


def test_nothing_is_begun_anew_because_all_are_damaged(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    for update in (1, 2):
        checkpoints.save(checkpoint(update)).write_bytes(b"damaged")
    before = contents(tmp_path)
    with pytest.raises(UserError, match="update-00000002.*no other checkpoint.*fresh=true"):
        checkpoints.latest()
    assert contents(tmp_path) == before


def test_checkpoints_of_earlier_versions_have_no_checksum(tmp_path: Path) -> None:
    state = {"update": 3, "optimizer": {"dict": []}, "rng_state": [1, 2], "best_accuracy": None}
    path = tmp_path / "update-00000003.safetensors"
    path.write_bytes(encode({"model.weight": torch.ones(2)}, metadata={"ipu_vit": json.dumps(state)}))
    latest = Checkpoints(tmp_path, keep=1).latest()
    assert latest is not None and (latest.update, latest.rng_state, latest.layout) == (3, [1, 2], None)


def test_equal_checkpoints_are_equal_files(tmp_path: Path) -> None:
    files = {Checkpoints(tmp_path, keep=1).save(checkpoint(1)).read_bytes() for _ in range(20)}
    assert len(files) == 1


def test_checksum_is_the_one_described(tmp_path: Path) -> None:
    """SHA-256 of the file with zeros in the checksum's place, so that others can check it too."""
    path = Checkpoints(tmp_path, keep=1).save(checkpoint(1))
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    checksum = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["ipu_vit"])["sha256"].encode()
    assert hashlib.sha256(content.replace(checksum, b"0" * 64)).hexdigest().encode() == checksum


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="output=.*cannot be made a folder"):
        Checkpoints(tmp_path / "file" / "checkpoints", keep=1)
