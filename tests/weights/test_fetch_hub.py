"""Models on a Hugging Face hub, which a server on this machine plays."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Dict, Iterator, List

import pytest
from local_server import COMMIT, LocalServer, serving

from ipu_vit.errors import UserError
from ipu_vit.weights.fetch import fetch

WEIGHTS = os.urandom(300_000)
CONFIG = json.dumps({"model_type": "vit"}).encode()
INDEX = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, library_cache: Path) -> Iterator[LocalServer]:
    with serving(monkeypatch) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture
def library_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of Hugging Face's library."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "library"))
    return tmp_path / "library"


def names(folder: Path) -> List[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix not in (".sha256", ".lock"))


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (["config.json", "model.safetensors", "pytorch_model.bin"], ["config.json", "model.safetensors"]),
        (["config.json", "pytorch_model.bin", "tf_model.h5"], ["config.json", "pytorch_model.bin"]),
        (
            ["config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"],
            ["config.json", "model.safetensors", "preprocessor_config.json"],
        ),
        (
            ["README.md", "config.json", "model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors"],
            ["config.json", "model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json"],
        ),
    ],
)
def test_config_and_weights_are_fetched_once(
    hub: LocalServer, tmp_path: Path, files: List[str], chosen: List[str]
) -> None:
    contents = {name: {"config.json": CONFIG}.get(name, INDEX if "index" in name else name.encode()) for name in files}
    hub.serve_model("org/vit", contents)
    folder = fetch("hf:org/vit", tmp_path)
    assert names(folder) == chosen
    assert all((folder / name).read_bytes() == contents[name] for name in chosen)
    asked = len(hub.asked)
    assert fetch("hf:org/vit", tmp_path) == folder
    assert len(hub.asked) == asked


def test_one_file_of_a_model(hub: LocalServer, tmp_path: Path) -> None:
    hub.serve_model("org/vit", {"augreg/B_16.npz": WEIGHTS, "config.json": CONFIG})
    path = fetch("hf:org/vit@main/augreg/B_16.npz", tmp_path)
    assert path.read_bytes() == WEIGHTS
    assert path.name == "B_16.npz"
    assert names(path.parent.parent) == ["augreg"]


def test_offline_the_cache_serves_without_a_request(
    hub: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.serve_model("org/vit", {"config.json": CONFIG, "model.safetensors": WEIGHTS})
    folder = fetch("hf:org/vit", tmp_path)
    asked = len(hub.asked)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch("hf:org/vit", tmp_path) == folder
    with pytest.raises(UserError, match=r"weights=hf:org/other is not in the cache, and HF_HUB_OFFLINE=1 forbids"):
        fetch("hf:org/other", tmp_path)
    assert len(hub.asked) == asked


def test_a_cached_file_that_has_changed_is_downloaded_again(hub: LocalServer, tmp_path: Path) -> None:
    hub.serve_model("org/vit", {"config.json": CONFIG, "model.safetensors": WEIGHTS})
    path = fetch("hf:org/vit", tmp_path) / "model.safetensors"
    path.write_bytes(b"spoilt")
    assert (fetch("hf:org/vit", tmp_path) / "model.safetensors").read_bytes() == WEIGHTS


def test_a_file_under_the_sum_of_another_is_refused(hub: LocalServer, tmp_path: Path) -> None:
    hub.serve_model("org/vit", {"config.json": CONFIG, "model.safetensors": WEIGHTS})
    served = hub.files[f"/storage/{hashlib.sha256(WEIGHTS).hexdigest()}"]
    served.body = bytes(len(WEIGHTS))
    with pytest.raises(UserError, match=r"weights=hf:org/vit \(model.safetensors\) has the sha256 .*, not "):
        fetch("hf:org/vit", tmp_path)
    served.body = WEIGHTS
    assert (fetch("hf:org/vit", tmp_path) / "model.safetensors").read_bytes() == WEIGHTS


def test_a_broken_transfer_goes_on_where_it_ended(hub: LocalServer, tmp_path: Path) -> None:
    hub.serve_model("org/vit", {"config.json": CONFIG, "model.safetensors": WEIGHTS})
    hub.files[f"/storage/{hashlib.sha256(WEIGHTS).hexdigest()}"].breaks = [200_000, 0, 0, 0]
    with pytest.raises(UserError, match=r"\(model.safetensors\) was interrupted after 200,000 bytes"):
        fetch("hf:org/vit", tmp_path)
    assert (fetch("hf:org/vit", tmp_path) / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [asked.range for asked in hub.asked if asked.path.startswith("/storage/")]
    assert ranges == [None] + ["bytes=200000-"] * 4


def test_what_the_library_has_downloaded_is_used(hub: LocalServer, tmp_path: Path, library_cache: Path) -> None:
    from huggingface_hub import hf_hub_download

    for path, body in (("config.json", CONFIG), ("model.safetensors", WEIGHTS)):
        tag = hashlib.sha256(body).hexdigest()
        hub.serve(f"/org/vit/resolve/main/{path}", body, etag=f'"{tag}"', headers={"X-Repo-Commit": COMMIT})
        kept = hf_hub_download("org/vit", path, endpoint=hub.url, cache_dir=library_cache)
    asked = len(hub.asked)
    assert fetch("hf:org/vit", tmp_path) == Path(kept).parent
    assert len(hub.asked) == asked

    Path(kept).resolve().write_bytes(b"spoilt")
    hub.serve_model("org/vit", {"config.json": CONFIG, "model.safetensors": WEIGHTS})
    assert (fetch("hf:org/vit", tmp_path) / "model.safetensors").read_bytes() == WEIGHTS


def test_the_token_goes_to_the_hub_only(hub: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    storage = LocalServer()
    hub.serve_model("org/vit", {"config.json": CONFIG, "model.safetensors": WEIGHTS}, storage)
    assert (fetch("hf:org/vit", tmp_path) / "model.safetensors").read_bytes() == WEIGHTS
    storage.close()
    assert {asked.token for asked in hub.asked} == {"Bearer hf_secret"}
    assert {asked.token for asked in storage.asked} == {None}


@pytest.mark.parametrize(
    ("code", "status", "sentence"),
    [
        ("RepoNotFound", 404, "weights=hf:org/vit does not exist, or is private"),
        ("RepoNotFound", 401, "weights=hf:org/vit does not exist, or is private"),
        ("GatedRepo", 403, "is open only to those who accepted its terms"),
        ("RevisionNotFound", 404, "weights=hf:org/vit has no revision main"),
        ("", 500, "weights=hf:org/vit cannot be looked up on 127.0.0.1: .*500"),
    ],
)
def test_what_the_hub_will_not_give(hub: LocalServer, tmp_path: Path, code: str, status: int, sentence: str) -> None:
    hub.refuse_model("org/vit", code, status=status)
    with pytest.raises(UserError, match=sentence) as caught:
        fetch("hf:org/vit", tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "files", "sentence"),
    [
        (
            "hf:org/vit",
            {"config.json": CONFIG, "flax_model.msgpack": b""},
            "lacks config.json with model.safetensors or",
        ),
        ("hf:org/vit", {"model.safetensors": WEIGHTS}, "lacks config.json with .*; it has model.safetensors"),
        ("hf:org/vit/B.npz", {"A.npz": WEIGHTS}, "weights=hf:org/vit/B.npz lacks B.npz; it has A.npz"),
        ("hf:org/vit", {}, "it has no files"),
        (
            "hf:org/vit",
            {"config.json": CONFIG, "model.safetensors.index.json": b'{"weight_map": {"a": "../../a"}}'},
            "does not list the files of the weights",
        ),
    ],
)
def test_a_model_that_lacks_something(
    hub: LocalServer, tmp_path: Path, address: str, files: Dict[str, bytes], sentence: str
) -> None:
    hub.serve_model("org/vit", files)
    with pytest.raises(UserError, match=sentence):
        fetch(address, tmp_path)


def test_no_hub(hub: LocalServer, tmp_path: Path) -> None:
    hub.close()
    sentence = "weights=hf:org/vit cannot be looked up on 127.0.0.1: .*Connection refused$"
    with pytest.raises(UserError, match=sentence):
        fetch("hf:org/vit", tmp_path)


@pytest.mark.parametrize(
    "answer", [b"<html>welcome</html>", b"[]", b'{"id": "org/vit"}', b'{"id": "a", "sha": "../.."}']
)
def test_something_else_than_a_hub(hub: LocalServer, tmp_path: Path, answer: bytes) -> None:
    hub.serve("/api/models/org/vit/revision/main", answer)
    with pytest.raises(UserError, match="weights=hf:org/vit cannot be looked up: 127.0.0.1 does not"):
        fetch("hf:org/vit", tmp_path)


def test_a_cache_folder_that_cannot_be_written(hub: LocalServer, tmp_path: Path) -> None:
    hub.serve_model("org/vit", {"config.json": CONFIG, "model.safetensors": WEIGHTS})
    (tmp_path / "127.0.0.1").touch()
    with pytest.raises(UserError, match="the cache folder .* cannot be written: Not a directory"):
        fetch("hf:org/vit", tmp_path)


def test_the_commit_can_be_named(hub: LocalServer, tmp_path: Path) -> None:
    hub.serve_model("org/vit", {"config.json": CONFIG, "model.safetensors": WEIGHTS})
    folder = fetch("hf:org/vit", tmp_path)
    assert folder.name == COMMIT
    assert fetch(f"hf:org/vit@{COMMIT}", tmp_path) == folder
