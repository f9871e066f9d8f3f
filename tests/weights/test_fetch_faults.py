"""What can go wrong on the way: one sentence each, and a cache that is not broken by it."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Iterator

import pytest
from local_server import LocalServer, serving

from ipu_vit.errors import UserError
from ipu_vit.weights.fetch import fetch

BODY = os.urandom(600_000)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalServer]:
    with serving(monkeypatch) as server:
        yield server


def refused(address: str, folder: Path, sentence: str) -> None:
    """The address is refused with one such sentence, and leaves nothing in the folder."""
    with pytest.raises(UserError, match=sentence) as caught:
        fetch(address, folder)
    assert "\n" not in str(caught.value)
    assert not [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("ftp://example.org/w.npz", r"weights=ftp://example.org/w.npz is of no known kind; accepted: a path, hf:"),
        ("s3://bucket/w.npz", "is of no known kind"),
        ("http://example.org/w.npz", "is not encrypted; accepted: https"),
        ("http://localhost.example.org/w.npz", "is not encrypted"),
        ("https://example.org/", "names no file"),
        ("https://example.org", "names no file"),
        ("https:///w.npz", "names no file"),
        ("gs://vit_models", "names no file"),
        ("gs://vit_models/imagenet21k/", "names no file"),
        ("https://[::1/w.npz", "is no proper address"),
        ("https://example.org:port/w.npz", "is no proper address"),
        ("https://example..org/w.npz", "is no proper address"),
        ("https://example.org/w.npz#sha256=123", "accepted: #sha256= and 64 hexadecimal digits"),
        ("https://example.org/w.npz#md5=123", "ends in #md5=123"),
        ("hf:vit", "is not of the form hf:org/name"),
        ("hf:org/name/../../w.npz", "is not of the form"),
        ("hf:org/name@", "is not of the form"),
        ("hf:org/na..me", "is not of the form"),
        ("hf:org/name@../..", "is not of the form"),
        ("hf:org/name/w.npz#sha256=1", "is not of the form"),
    ],
)
def test_addresses_that_cannot_be_fetched(tmp_path: Path, address: str, sentence: str) -> None:
    refused(address, tmp_path, sentence)


@pytest.mark.parametrize(
    "address", ["https://me:secret@example.org/w.npz", "http://secret@localhost/w.npz", "gs://secret@b/w"]
)
def test_secrets_are_not_repeated(tmp_path: Path, address: str) -> None:
    with pytest.raises(UserError, match="weights has a user name or password in its address") as caught:
        fetch(address, tmp_path)
    assert "secret" not in str(caught.value)


def test_queries_may_be_signatures_and_are_not_repeated(server: LocalServer, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        fetch(f"{server.url}/w.npz?signature=secret", tmp_path)
    assert "secret" not in str(caught.value)
    assert server.asked[0].path == "/w.npz?signature=secret"


@pytest.mark.parametrize(("status", "words"), [(404, "404 Not Found"), (403, "403 Forbidden"), (418, "418")])
def test_what_the_server_will_not_give(server: LocalServer, tmp_path: Path, status: int, words: str) -> None:
    refused(
        server.serve("/w.npz", b"", status=status),
        tmp_path,
        f"weights=http.*/w.npz cannot be downloaded: the server answers {words}",
    )
    assert len(server.asked) == 1


def test_nobody_listens(server: LocalServer, tmp_path: Path) -> None:
    address = server.serve("/w.npz", BODY)
    server.close()
    refused(address, tmp_path, "weights=http.*/w.npz cannot be reached: Connection refused")


def test_no_such_host(server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As without a network; not left to the network that the tests run in."""

    def unknown(*arguments: Any, **options: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    refused(
        "https://weights.invalid/w.npz", tmp_path, "weights=https://.* cannot be reached: Name or service not known"
    )


@pytest.mark.parametrize(
    ("body", "headers", "sentence"),
    [
        (b"welcome", {"Content-Type": "text/html; charset=utf-8"}, "is no file of weights but a web page"),
        (b"\n <!DOCTYPE html><p>welcome", {}, "is no file of weights but a web page"),
        (b"<html>welcome", {"Content-Type": "application/octet-stream"}, "is no file of weights but a web page"),
        (b"<?xml version='1.0'?><Error/>", {}, "is no file of weights but an XML page"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3",
            {},
            "is no file of weights but a pointer of Git LFS",
        ),
        (b"weights", {"Content-Encoding": "gzip"}, "is sent with Content-Encoding gzip"),
    ],
)
def test_pages_are_no_weights(
    server: LocalServer, tmp_path: Path, body: bytes, headers: Dict[str, str], sentence: str
) -> None:
    refused(server.serve("/w.npz", body, headers=headers), tmp_path, sentence)


def test_a_sum_that_differs(server: LocalServer, tmp_path: Path) -> None:
    address = server.serve("/w.npz", BODY)
    found = hashlib.sha256(BODY).hexdigest()
    refused(f"{address}#sha256={'0' * 64}", tmp_path, f"has the sha256 {found}, not {'0' * 64}")
    assert fetch(f"{address}#sha256={found}", tmp_path).read_bytes() == BODY


def test_a_sum_that_the_server_tells_differs(server: LocalServer, tmp_path: Path) -> None:
    md5 = base64.b64encode(hashlib.md5(b"other").digest()).decode()
    refused(
        server.serve("/w.npz", BODY, headers={"x-goog-hash": f"md5={md5}"}), tmp_path, "has not arrived as it was sent"
    )


def test_a_transfer_that_stops_again_and_again(server: LocalServer, tmp_path: Path) -> None:
    address = server.serve("/w.npz", BODY, breaks=[400_000, 0, 0, 0])
    with pytest.raises(UserError, match=r"was interrupted after 400,000 bytes: .* at 600,000 bytes; try again"):
        fetch(address, tmp_path)
    assert fetch(address, tmp_path).read_bytes() == BODY
    assert server.asked[-1].range == "bytes=400000-"


def test_a_size_that_differs(server: LocalServer, tmp_path: Path) -> None:
    headers = {"Content-Range": "bytes 400000-599999/500000"}
    address = server.serve("/w.npz", BODY, breaks=[400_000], headers=headers)
    refused(address, tmp_path, "was announced with 500,000 bytes but sent with 600,000")


def test_without_size_or_sum_a_cut_would_not_show(server: LocalServer, tmp_path: Path) -> None:
    address = server.serve("/w.npz", BODY, length=False)
    refused(address, tmp_path, "comes without its size, .* add #sha256=")
    assert fetch(f"{address}#sha256={hashlib.sha256(BODY).hexdigest()}", tmp_path).read_bytes() == BODY


@pytest.mark.parametrize(
    ("to", "sentence"),
    [
        ("http://example.org/w.npz", "is redirected to http://example.org; only https:// is followed"),
        ("ftp://example.org/w.npz", "is redirected to ftp://example.org; only https:// is followed"),
        ("file:///etc/passwd", "the server answers 302 Found"),
        ("/w.npz", "the server answers 302 Found"),  # in a circle
    ],
)
def test_redirects_that_are_not_followed(server: LocalServer, tmp_path: Path, to: str, sentence: str) -> None:
    refused(server.serve("/w.npz", b"", status=302, headers={"Location": to}), tmp_path, sentence)


def test_a_cache_folder_that_cannot_be_written(server: LocalServer, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(
        UserError, match=r"the cache folder .*/file/.* cannot be written: Not a directory; IPU_VIT_CACHE"
    ):
        fetch(server.serve("/w.npz", BODY), file)


def test_a_cache_that_may_only_be_read_is_enough(server: LocalServer, tmp_path: Path) -> None:
    address = server.serve("/w.npz", BODY)
    path = fetch(address, tmp_path)
    for each in (path.parent, tmp_path):
        each.chmod(0o555)
    try:
        assert fetch(address, tmp_path) == path
    finally:
        for each in (tmp_path, path.parent):
            each.chmod(0o755)


FULL_DISK = """
import resource, sys
from ipu_vit.errors import UserError
from ipu_vit.weights.fetch import fetch
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
try:
    fetch(sys.argv[1], sys.argv[2])
except UserError as error:
    print(error)
"""


def test_a_disk_without_room(server: LocalServer, tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: it, too, ends a write in the middle."""
    address = server.serve("/w.npz", BODY)
    ran: Any = subprocess.run(
        [sys.executable, "-c", FULL_DISK, address, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert "cannot be written: File too large" in ran.stdout, ran.stderr
    assert fetch(address, tmp_path).read_bytes() == BODY
    assert server.asked[-1].range == "bytes=300000-"
