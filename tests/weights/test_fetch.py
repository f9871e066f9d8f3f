"""Addresses, the cache, and files that arrive whole, in pieces, or for several processes at once."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterator, List, Optional, Tuple
from urllib.parse import unquote

import pytest
from local_server import LocalServer, Stall, serving

from ipu_vit.errors import UserError
from ipu_vit.weights import cache, download, fetch

BODY = os.urandom(3_000_000)
SUM = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalServer]:
    with serving(monkeypatch) as server:
        yield server


def files_of(folder: Path) -> List[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


@pytest.mark.parametrize("path", ["weights.npz", "/data/a b.npz", "../x", "C", "with:colon.npz"])
def test_a_path_is_taken_as_it_is(path: str) -> None:
    assert fetch.is_path(path)
    assert fetch.fetch(path) == Path(path)


def test_a_file_is_downloaded_once(server: LocalServer, tmp_path: Path) -> None:
    address = server.serve("/a/ViT-B_16.npz", BODY)
    path = fetch.fetch(address, tmp_path)
    assert path.read_bytes() == BODY
    assert path.name == "ViT-B_16.npz"
    assert fetch.fetch(address, tmp_path) == path
    assert len(server.asked) == 1
    assert files_of(tmp_path) == ["ViT-B_16.npz", "ViT-B_16.npz.sha256"]
    check = subprocess.run(["sha256sum", "--check", "ViT-B_16.npz.sha256"], cwd=path.parent, capture_output=True)
    assert check.returncode == 0


def test_addresses_that_differ_have_files_that_differ(server: LocalServer, tmp_path: Path) -> None:
    paths = [
        fetch.fetch(server.serve("/a/w.npz", b"one"), tmp_path),
        fetch.fetch(server.serve("/b/w.npz", b"two"), tmp_path),
        fetch.fetch(server.serve("/b/w.npz", b"three") + "?version=3", tmp_path),
    ]
    assert [path.read_bytes() for path in paths] == [b"one", b"two", b"three"]
    assert fetch.fetch(f"{server.url}/a/w.npz#sha256={hashlib.sha256(b'one').hexdigest()}", tmp_path) == paths[0]
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    "path", ["/%2e%2e/%2e%2e", "/a/..%2F..%2Fetc", "/.hidden", "/" + "n" * 300, "/ä ö.npz", "/a%2Fb"]
)
def test_no_address_leads_out_of_its_folder(server: LocalServer, tmp_path: Path, path: str) -> None:
    server.serve(unquote(path), b"weights")
    found = fetch.fetch(server.url + path, tmp_path)
    assert found.resolve().parent.parent == tmp_path.resolve()
    assert found.read_bytes() == b"weights"


def test_google_storage_is_plain_https(monkeypatch: pytest.MonkeyPatch, server: LocalServer, tmp_path: Path) -> None:
    md5 = base64.b64encode(hashlib.md5(BODY).digest()).decode()
    server.serve("/vit_models/augreg/B 16%.npz", BODY, headers={"x-goog-hash": f"crc32c=AAAAAA==,md5={md5}"})
    assert fetch.GOOGLE_STORAGE == "https://storage.googleapis.com"
    monkeypatch.setattr(fetch, "GOOGLE_STORAGE", server.url)
    assert fetch.fetch("gs://vit_models/augreg/B 16%.npz", tmp_path).read_bytes() == BODY


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IPU_VIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache.default_folder() == Path("/home/somebody/.cache/ipu_vit")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert cache.default_folder() == Path("/var/cache/ipu_vit")
    monkeypatch.setenv("IPU_VIT_CACHE", "~/weights")
    assert cache.default_folder() == Path("/home/somebody/weights")


def test_progress_tells_bytes_that_grow_to_the_size(server: LocalServer, tmp_path: Path) -> None:
    told: List[Tuple[int, Optional[int]]] = []
    fetch.fetch(server.serve("/w.npz", BODY), tmp_path, lambda done, total: told.append((done, total)))
    assert told[0] == (0, len(BODY))
    assert told[-1] == (len(BODY), len(BODY))
    assert told == sorted(told)


def test_offline_the_cache_serves_without_a_request(
    server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = server.serve("/w.npz", BODY)
    path = fetch.fetch(address, tmp_path)
    monkeypatch.setenv("IPU_VIT_OFFLINE", "1")
    assert fetch.fetch(address, tmp_path) == path
    with pytest.raises(UserError, match=r"weights=http.*/x.npz is not in the cache, and IPU_VIT_OFFLINE=1 forbids"):
        fetch.fetch(f"{server.url}/x.npz", tmp_path)
    assert len(server.asked) == 1


def test_a_cached_file_that_has_changed_is_downloaded_again(server: LocalServer, tmp_path: Path) -> None:
    address = server.serve("/w.npz", BODY)
    path = fetch.fetch(address, tmp_path)
    spoilt = bytearray(BODY)
    spoilt[1_500_000] ^= 1
    path.write_bytes(spoilt)
    assert fetch.fetch(address, tmp_path).read_bytes() == BODY
    assert len(server.asked) == 2


def test_a_cached_file_is_summed_up_only_if_its_size_or_time_has_changed(server: LocalServer, tmp_path: Path) -> None:
    address = server.serve("/weights.npz", BODY)
    path = fetch.fetch(address, tmp_path)
    arrived = path.stat().st_mtime_ns
    os.utime(path, ns=(arrived, arrived + 1))
    assert fetch.fetch(address, tmp_path) == path
    assert len(server.asked) == 1  # the sum is still right
    path.write_bytes(BODY[::-1])
    os.utime(path, ns=(arrived, arrived))
    assert fetch.fetch(address, tmp_path).read_bytes() == BODY[::-1]  # so nothing has been read to find out
    assert len(server.asked) == 1
    os.utime(path, ns=(arrived, arrived + 1))
    assert fetch.fetch(address, tmp_path).read_bytes() == BODY
    assert len(server.asked) == 2


def test_a_known_sum_replaces_a_file_of_another(server: LocalServer, tmp_path: Path) -> None:
    old = fetch.fetch(server.serve("/w.npz", b"old"), tmp_path)
    with pytest.raises(UserError, match="has the sha256"):
        fetch.fetch(f"{server.url}/w.npz#sha256={SUM}", tmp_path)
    assert old.read_bytes() == b"old"
    assert files_of(tmp_path) == ["w.npz", "w.npz.sha256"]
    address = server.serve("/w.npz", BODY, etag='"2"')
    assert fetch.fetch(f"{address}#sha256={SUM.upper()}", tmp_path) == old
    assert old.read_bytes() == BODY


def test_a_broken_transfer_goes_on_where_it_ended(server: LocalServer, tmp_path: Path) -> None:
    address = server.serve("/w.npz", BODY, breaks=[1_000_000, 1_500_000])
    assert fetch.fetch(address, tmp_path).read_bytes() == BODY
    assert [asked.range for asked in server.asked] == [None, "bytes=1000000-", "bytes=2500000-"]
    assert [asked.version for asked in server.asked] == [None, '"1"', '"1"']


def test_attempts_are_counted_anew_when_one_gets_further(server: LocalServer, tmp_path: Path) -> None:
    address = server.serve("/w.npz", BODY, breaks=[0, 0, 700_000, 0, 0, 700_000, 0, 0])
    assert fetch.fetch(address, tmp_path).read_bytes() == BODY
    assert len(server.asked) == 9


@pytest.mark.parametrize(
    ("options", "asked_for"), [({"ranges": False}, "bytes=1000000-"), ({"etag": None}, None), ({"etag": 'W/"1"'}, None)]
)
def test_without_ranges_or_version_it_starts_anew(
    server: LocalServer, tmp_path: Path, options: Any, asked_for: Optional[str]
) -> None:
    address = server.serve("/w.npz", BODY, breaks=[1_000_000], **options)
    assert fetch.fetch(address, tmp_path).read_bytes() == BODY
    assert [asked.range for asked in server.asked] == [None, asked_for]


def test_a_file_that_changed_meanwhile_comes_whole(server: LocalServer, tmp_path: Path) -> None:
    address = server.serve("/w.npz", os.urandom(2_000_000), breaks=[1_000_000] + [0] * 3)
    with pytest.raises(UserError, match="interrupted after 1,000,000 bytes"):
        fetch.fetch(address, tmp_path)
    server.serve("/w.npz", BODY, etag='"2"')
    assert fetch.fetch(address, tmp_path).read_bytes() == BODY
    assert server.asked[-1].range == "bytes=1000000-"


def test_a_server_that_heeds_no_version_gives_no_mixture(server: LocalServer, tmp_path: Path) -> None:
    address = server.serve("/w.npz", os.urandom(2_000_000), breaks=[1_000_000] + [0] * 3)
    with pytest.raises(UserError, match="interrupted"):
        fetch.fetch(address, tmp_path)
    server.serve("/w.npz", BODY, etag='"2"', versions=False)
    assert fetch.fetch(address, tmp_path).read_bytes() == BODY


def test_a_part_longer_than_the_file_is_dropped(server: LocalServer, tmp_path: Path) -> None:
    address = server.serve("/w.npz", BODY, breaks=[2_000_000] + [0] * 3)
    with pytest.raises(UserError, match="interrupted"):
        fetch.fetch(address, tmp_path)
    server.serve("/w.npz", b"short")  # under the same version, as it must not
    assert fetch.fetch(address, tmp_path).read_bytes() == b"short"


def test_a_range_that_was_not_asked_for_is_not_used(server: LocalServer, tmp_path: Path) -> None:
    address = server.serve(
        "/w.npz", BODY, breaks=[1_000_000], headers={"Content-Range": f"bytes 7-{len(BODY) - 1}/{len(BODY)}"}
    )
    assert fetch.fetch(address, tmp_path).read_bytes() == BODY


def test_a_busy_server_is_asked_again(server: LocalServer, tmp_path: Path) -> None:
    assert fetch.fetch(server.serve("/w.npz", BODY, busy=3), tmp_path).read_bytes() == BODY
    with pytest.raises(UserError, match="the server answers 503 Service Unavailable"):
        fetch.fetch(server.serve("/x.npz", BODY, busy=4), tmp_path)


def test_a_server_that_falls_silent_is_asked_again(
    server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    stall = Stall(after=2_000_000)
    assert fetch.fetch(server.serve("/w.npz", BODY, stall=stall), tmp_path).read_bytes() == BODY
    stall.released.set()
    assert server.asked[-1].range is not None


@pytest.mark.parametrize("step", [0, 1])
def test_an_end_at_any_step_leaves_no_half_file(
    server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """A file and its sum cannot be renamed at once; the process may end before either."""
    old = fetch.fetch(server.serve("/w.npz", b"old"), tmp_path)
    address = f"{server.serve('/w.npz', BODY, etag='2')}#sha256={SUM}"
    renames = iter(range(2))

    def replace(source: Any, target: Any) -> None:
        if next(renames) == step:
            raise KeyboardInterrupt
        os.rename(source, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "replace", replace)
        fetch.fetch(address, tmp_path)
    assert fetch.fetch(address, tmp_path).read_bytes() == BODY
    assert fetch.fetch(f"{server.url}/w.npz", tmp_path) == old
    assert files_of(tmp_path) == ["w.npz", "w.npz.sha256"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed_on_this_machine(server: LocalServer, tmp_path: Path, status: int) -> None:
    server.serve("/there.npz", BODY)
    address = server.serve("/w.npz", b"", status=status, headers={"Location": "/there.npz"})
    assert fetch.fetch(address, tmp_path).read_bytes() == BODY


FETCH = """
import sys
from ipu_vit.weights.fetch import fetch
print(fetch(sys.argv[1], sys.argv[2], lambda done, total: print(done, flush=True)))
"""


def start(*arguments: object) -> subprocess.Popen:
    """A process that fetches, printing how far it is and in the end the path."""
    command = [sys.executable, "-c", FETCH, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_process_leaves_a_part_that_the_next_one_ends(server: LocalServer, tmp_path: Path) -> None:
    stall = Stall(after=2_000_000)
    address = server.serve("/w.npz", BODY, stall=stall)
    process = start(address, tmp_path)
    assert any(int(line) > 1_000_000 for line in process.stdout)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    stall.released.set()
    [part] = tmp_path.rglob("*.part")
    kept = part.stat().st_size
    assert 1_000_000 < kept <= 2_000_000
    assert fetch.fetch(address, tmp_path).read_bytes() == BODY
    assert server.asked[-1].range == f"bytes={kept}-"
    assert files_of(tmp_path) == ["w.npz", "w.npz.sha256"]


def test_who_waits_goes_on_for_who_was_killed(server: LocalServer, tmp_path: Path) -> None:
    stall = Stall(after=2_000_000)
    address = server.serve("/w.npz", BODY, stall=stall)
    first = start(address, tmp_path)
    assert any(int(line) > 1_000_000 for line in first.stdout)
    second = start(address, tmp_path)
    assert int(second.stdout.readline()) > 1_000_000  # it shows how far the first one is
    assert len(server.asked) == 1
    first.kill()
    first.communicate()
    stall.released.set()
    output, _ = second.communicate(timeout=60)
    assert Path(output.splitlines()[-1]).read_bytes() == BODY
    assert [asked.range is None for asked in server.asked] == [True, False]


def test_processes_that_want_the_same_file_download_it_once(server: LocalServer, tmp_path: Path) -> None:
    stall = Stall(after=1_000_000)
    address = server.serve("/w.npz", BODY, stall=stall)
    processes = [start(address, tmp_path) for _ in range(3)]
    assert all(process.stdout.readline() for process in processes)  # each downloads, or waits
    stall.released.set()
    results = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], results
    [path] = {output.splitlines()[-1] for output, _ in results}
    assert Path(path).read_bytes() == BODY
    assert len(server.asked) == 1
