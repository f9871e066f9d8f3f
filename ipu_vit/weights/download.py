"""One file over HTTP into a cache entry: resumed where it broke off, tried again, and checked.

A broken transfer goes on where it ended if the server can send a part of a file and tells the file's
version (RFC 9110: `Range` with `If-Range`); a file that has changed meanwhile comes anew, whole.
"""

from __future__ import annotations

import base64
import re
import time
from http.client import HTTPException, HTTPResponse, responses
from pathlib import Path
from typing import Any, Dict, Iterator, NamedTuple, Optional
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from ipu_vit.errors import UserError
from ipu_vit.weights.cache import Entry, Progress, digest
from ipu_vit.weights.lookalikes import LONGEST, lookalike

TIMEOUT = 30.0  # seconds without an answer or without a byte
PAUSES = (1.0, 2.0, 4.0)  # seconds before each new attempt; counted anew when one got further than all before

_CHUNK = 1 << 18
_BUSY = (408, 429, 500, 502, 503, 504)


class Interrupted(Exception):
    """A connection was lost or a server busy: worth another attempt."""


class Source(NamedTuple):
    """Where a file comes from."""

    url: str
    label: str  # what messages call it; it may hold no secrets
    sha256: Optional[str] = None  # the sum that the file must have
    token: Optional[str] = None  # sent to the server of the address only, wherever it redirects to


def obtain(source: Source, entry: Entry, progress: Progress) -> Path:
    """The file of `entry`, downloaded unless it is there as it should be.

    Of several processes one downloads, and the others wait. Raises UserError; what the entry held before
    stays, and so does what has arrived of a transfer that may yet be finished.
    """
    with entry.locked(progress):
        if not entry.find(source.sha256):  # another process may have got it meanwhile
            _download(source, entry, progress)
    return entry.file


def _download(source: Source, entry: Entry, progress: Progress) -> None:
    furthest, pauses = entry.part_size(), iter(PAUSES)
    while True:
        try:
            md5 = _transfer(source, entry, progress)
            break
        except Interrupted as error:
            arrived = entry.part_size()
            if arrived > furthest:
                furthest, pauses = arrived, iter(PAUSES)
            pause = next(pauses, None)
            if pause is None:
                raise UserError(
                    f"{source.label} was interrupted after {arrived:,} bytes: {error}; try again, to go on from there"
                ) from error
            time.sleep(pause)
    entry.accept_part(_checked(source, entry, md5))


def is_local(url: str) -> bool:
    """Whether the address is one of this machine."""
    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")


def _transfer(source: Source, entry: Entry, progress: Progress) -> Optional[str]:
    """Get what is missing of the file; returns the md5 sum that the server tells, if it does."""
    headers = {"User-Agent": "ipu-vit", "Accept-Encoding": "identity"}
    start, version = entry.part_size(), entry.part_version()
    if start and version:
        headers.update({"Range": f"bytes={start}-", "If-Range": version})
    with _open(source, headers, entry) as response:
        _refuse_pages(response, source.label)
        size, md5 = response.length, _md5(response)
        if response.status == 206:
            size = _size_from_range(response, entry, start)
        else:
            start = 0
        if size is None and not response.chunked and not (source.sha256 or md5):
            raise UserError(
                f"{source.label} comes without its size, so that a cut transfer would look whole; "
                "add #sha256= and the file's sum to the address"
            )
        arrived = start
        with entry.extending(start, _version(response)) as add:
            progress(arrived, size)
            for chunk in _chunks(response):
                add(chunk)
                arrived += len(chunk)
                progress(arrived, size)
    if size is not None and arrived < size:
        raise Interrupted(f"the connection was closed before the end, at {size:,} bytes")
    if size is not None and arrived > size:
        entry.discard_part()
        raise UserError(f"{source.label} was announced with {size:,} bytes but sent with {arrived:,}")
    return md5


def _open(source: Source, headers: Dict[str, str], entry: Entry) -> HTTPResponse:
    request = Request(source.url, headers=headers)
    if source.token:
        request.add_unredirected_header("Authorization", f"Bearer {source.token}")
    try:
        response: HTTPResponse = build_opener(_Redirects(source.label)).open(request, timeout=TIMEOUT)
        return response
    except HTTPError as error:
        error.close()
        answer = f"{error.code} {responses.get(error.code, '')}".rstrip()
        if error.code == 416:  # the part is as long as the file or longer
            entry.discard_part()
        if error.code == 416 or error.code in _BUSY:
            raise Interrupted(f"the server answers {answer}") from error
        raise UserError(f"{source.label} cannot be downloaded: the server answers {answer}") from error
    except URLError as error:
        reason = getattr(error.reason, "strerror", None) or error.reason
        raise UserError(f"{source.label} cannot be reached: {reason}") from error
    except (OSError, HTTPException) as error:
        raise Interrupted(str(error) or type(error).__name__) from error


class _Redirects(HTTPRedirectHandler):
    """Follows only to encrypted addresses; one on this machine may lead to another on it."""

    def __init__(self, label: str) -> None:
        self._label = label

    def redirect_request(self, request: Request, file: Any, code: int, message: str, headers: Any, url: str) -> Any:
        parts = urlsplit(url)
        if parts.scheme != "https" and not (is_local(url) and is_local(request.full_url)):
            file.close()
            raise UserError(
                f"{self._label} is redirected to {parts.scheme}://{parts.hostname}; only https:// is followed"
            )
        # Up to Python 3.10, urllib does not know 308, which differs from 307 only in being permanent.
        new = super().redirect_request(request, file, 307 if code == 308 else code, message, headers, url)
        token = request.get_header("Authorization")
        if new is not None and token and parts[:2] == urlsplit(request.full_url)[:2]:
            new.add_unredirected_header("Authorization", token)
        return new

    http_error_308 = HTTPRedirectHandler.http_error_302


def _refuse_pages(response: HTTPResponse, label: str) -> None:
    if response.headers.get_content_type() == "text/html":
        raise UserError(f"{label} is no file of weights but a web page; give the address of the file itself")
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise UserError(f"{label} is sent with Content-Encoding {encoding}; only plain files are accepted")


def _size_from_range(response: HTTPResponse, entry: Entry, start: int) -> int:
    """The whole file's size, of an answer that goes on with our version at `start`."""
    content_range = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", content_range)
    # Some servers send the rest of a newer version in spite of If-Range.
    if match and int(match[1]) == start and _version(response) in (None, entry.part_version()):
        return int(match[2])
    entry.discard_part()
    raise Interrupted(f"the server sends the range '{content_range}', which does not go on from what has arrived")


def _chunks(response: HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            chunk = response.read(_CHUNK)
        except (OSError, HTTPException) as error:
            raise Interrupted(str(error) or type(error).__name__) from error
        if not chunk:
            return
        yield chunk


def _version(response: HTTPResponse) -> Optional[str]:
    """What tells this version of the file from others, byte for byte."""
    tag = response.headers.get("ETag", "")
    if tag:
        return None if tag.startswith("W/") else tag
    return response.headers.get("Last-Modified")


def _md5(response: HTTPResponse) -> Optional[str]:
    """Google storage's sum of the file as stored, in base64."""
    if response.headers.get("x-goog-stored-content-encoding", "identity") != "identity":
        return None
    for field in response.headers.get_all("x-goog-hash", []):
        for entry in field.split(","):
            name, _, value = entry.strip().partition("=")
            if name == "md5":
                return value
    return None


def _checked(source: Source, entry: Entry, md5: Optional[str]) -> str:
    """The sha256 of the part, which is whole; one that is not what it should be is discarded."""
    with entry.part.open("rb") as file:
        other = lookalike(file.read(LONGEST))
    fault = f"is no file of weights but {other}" if other else None
    found = digest(entry.part)
    if fault is None and source.sha256 not in (None, found):
        fault = f"has the sha256 {found}, not {source.sha256}"
    if fault is None and md5 is not None and _base64(digest(entry.part, "md5")) != md5:
        fault = f"has not arrived as it was sent: its md5 is not {md5} (base64)"
    if fault is not None:
        entry.discard_part()
        raise UserError(f"{source.label} {fault}")
    return found


def _base64(digits: str) -> str:
    return base64.b64encode(bytes.fromhex(digits)).decode()
