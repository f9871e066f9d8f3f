"""A web server on this machine that serves what a test tells it to, and notes what it was asked.

It speaks ranges and versions as RFC 9110 has them, can break off or stall in the middle of a file, and
knows the few calls of a Hugging Face hub that a download makes.
"""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Dict, Iterator, List, NamedTuple, Optional
from urllib.parse import unquote

import pytest

from ipu_vit.weights import download

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Served:
    """What one path answers."""

    body: bytes = b""
    status: int = 200
    headers: Dict[str, str] = field(default_factory=dict)
    etag: Optional[str] = '"1"'
    ranges: bool = True
    versions: bool = True  # whether If-Range is heeded
    length: bool = True  # whether the answer tells its size
    busy: int = 0  # so many requests are turned away first
    breaks: List[int] = field(default_factory=list)  # for each request, bytes after which the connection closes
    stall: Optional[Stall] = None


class Stall:
    """Holds back the rest of a file until it is let go."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.released = threading.Event()


class Asked(NamedTuple):
    """A request that was made."""

    method: str
    path: str
    range: Optional[str]
    version: Optional[str]
    token: Optional[str]


class LocalServer:
    """Serves `files`, by path, until it is closed."""

    def __init__(self) -> None:
        self.files: Dict[str, Served] = {}
        self.asked: List[Asked] = []
        server = self

        class Handler(_Handler):
            files, asked = server.files, server.asked

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def serve(self, path: str, body: bytes, **options: object) -> str:
        """Serve a file; returns its address."""
        self.files[path] = Served(body, **options)  # type: ignore[arg-type]
        return self.url + path

    def serve_model(self, name: str, files: Dict[str, bytes], storage: Optional[LocalServer] = None) -> None:
        """Serve a repository as a Hugging Face hub does: small files itself, others from a storage elsewhere."""
        siblings: List[Dict[str, object]] = []
        for file, body in files.items():
            path, sum_ = f"/{name}/resolve/{COMMIT}/{file}", hashlib.sha256(body).hexdigest()
            siblings.append({"rfilename": file, "size": len(body), "blobId": "0" * 40})
            if file.endswith(".json"):
                there = f"/api/resolve-cache/models/{name}/{COMMIT}/{file}"
                self.serve(there, body)
                self.serve(path, b"", status=307, headers={"X-Repo-Commit": COMMIT, "Location": there})
            else:
                siblings[-1]["lfs"] = {"sha256": sum_, "size": len(body), "pointerSize": 134}
                there = (storage or self).serve(f"/storage/{sum_}", body)
                self.serve(path, b"", status=302, headers={"X-Repo-Commit": COMMIT, "Location": there})
        info = {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
        for revision in ("main", COMMIT):
            self.serve(f"/api/models/{name}/revision/{revision}", json.dumps(info).encode())

    def refuse_model(self, name: str, code: str, revision: str = "main", status: int = 404) -> None:
        """Answer as the hub does for what it will not or cannot give."""
        path = f"/api/models/{name}/revision/{revision}"
        self.serve(path, b"", status=status, headers={"X-Error-Code": code})


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalServer]:
    """A server, in an environment that lets it be asked, and again without pauses."""
    for name in ("IPU_VIT_OFFLINE", "HF_HUB_OFFLINE", "HF_TOKEN", "IPU_VIT_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "PAUSES", (0.0, 0.0, 0.0))
    server = LocalServer()
    try:
        yield server
    finally:
        server.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    files: Dict[str, Served]
    asked: List[Asked]

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(self.path.partition("?")[0])
        fields = (self.headers[name] for name in ("Range", "If-Range", "Authorization"))
        self.asked.append(Asked(self.command, self.path, *fields))
        served = self.files.get(path, Served(b"no such file", 404))
        status, headers, body = served.status, dict(served.headers), served.body
        if served.busy:
            served.busy -= 1
            status, headers, body = 503, {}, b""
        elif status == 200 and served.etag:
            headers["ETag"] = served.etag
            version = self.headers["If-Range"]
            heeded = version in (None, served.etag) or not served.versions
            if served.ranges and self.headers["Range"] and heeded:
                first = int(self.headers["Range"][len("bytes=") : -1])
                if first >= len(body):
                    status, headers, body = 416, {"Content-Range": f"bytes */{len(body)}"}, b""
                else:
                    status = 206
                    headers.setdefault("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
                    body = body[first:]
        self.send_response(status)
        if served.length:
            headers.setdefault("Content-Length", str(len(body)))
        headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self._send(body, served)

    def _send(self, body: bytes, served: Served) -> None:
        if served.breaks:
            body = body[: served.breaks.pop(0)]
        if served.stall and len(body) > served.stall.after:
            stall, served.stall = served.stall, None
            self.wfile.write(body[: stall.after])
            stall.released.wait()
            body = body[stall.after :]
        with suppress(OSError):  # whoever asked may have gone
            self.wfile.write(body)
