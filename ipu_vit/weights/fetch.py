"""Weights from wherever they are: a path, a model on the Hugging Face hub, an address on the web.

| address | what it means |
|---|---|
| `FILE` or `FOLDER` | taken as it is |
| `hf:org/name`, `hf:org/name@revision`, `hf:org/name/file` | a model on the Hugging Face hub, or one of its files |
| `https://host/file`; `http://` only to this machine | a file on the web |
| `gs://bucket/file` | a public file in Google's storage, such as those of `vit_models` |

`#sha256=…` after either of the last two says what sum the file must have. What is downloaded stays in a
cache (see `ipu_vit.weights.cache`), and no further request is made for it.
"""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import Callable, Optional, Union
from urllib.parse import quote, urlsplit, urlunsplit

from ipu_vit.errors import UserError
from ipu_vit.weights.cache import Entry, Progress, default_folder, place_of
from ipu_vit.weights.download import Source, is_local, obtain
from ipu_vit.weights.hub import HubModel

GOOGLE_STORAGE = "https://storage.googleapis.com"
ACCEPTED = "a path, hf:org/name[@revision][/file], https://… or gs://bucket/file"


def is_path(address: str) -> bool:
    """Whether an address is a path on this machine, where nothing is to be fetched."""
    return not re.match(r"hf:|[A-Za-z][A-Za-z0-9+.-]*://", address)


def fetch(address: str, cache_folder: Optional[Union[str, Path]] = None, progress: Optional[Progress] = None) -> Path:
    """The file or folder on this machine that `address` stands for, downloaded if it is not in the cache.

    May be called by several processes at once: one downloads, the others wait for it. `progress` is
    called with the bytes of a file that have arrived, and with their number in all or None. With
    `IPU_VIT_OFFLINE=1` or `HF_HUB_OFFLINE=1` only the cache is used.

    Raises UserError, one sentence; whatever happens, the cache holds whole files only.
    """
    if is_path(address):
        return Path(address)
    folder = Path(cache_folder).expanduser() if cache_folder else default_folder()
    download: Callable[[Progress], Path]
    if address.startswith("hf:"):
        model = HubModel(address, folder)
        label, cached, download = model.label, model.cached(), model.download
    else:
        source = _source(address)
        entry = Entry(place_of(source.url, folder))
        label, cached, download = source.label, entry.find(source.sha256), partial(obtain, source, entry)
    forbidden = _forbidden_by()
    if cached is None and forbidden:
        raise UserError(f"{label} is not in the cache, and {forbidden} forbids to download it")
    return cached or download(progress or _unseen)


def _source(address: str) -> Source:
    """An address on the web or in Google's storage, taken apart and checked."""
    if re.match(r"[^:]*://[^/?#]*@", address):
        raise UserError(
            "weights has a user name or password in its address, where logs would show it; "
            "download the file by other means and give its path"
        )
    location, _, fragment = address.partition("#")
    label = f"weights={location.partition('?')[0]}"
    try:
        parts = urlsplit(location)
        host, _ = (parts.hostname or "").encode("idna").decode(), parts.port
    except ValueError as error:
        raise UserError(f"{label} is no proper address: {error}") from error
    if parts.scheme not in ("https", "http", "gs"):
        raise UserError(f"{label} is of no known kind; accepted: {ACCEPTED}")
    if not host or parts.path.strip("/") == "" or parts.path.endswith("/"):
        raise UserError(f"{label} names no file; accepted: {ACCEPTED}")
    if parts.scheme == "gs":
        url = f"{GOOGLE_STORAGE}/{parts.netloc}{quote(parts.path)}"
    elif parts.scheme == "http" and not is_local(location):
        raise UserError(f"{label} is not encrypted; accepted: https://…, and http:// to this machine only")
    else:
        # What is quoted already stays so.
        path, query = (quote(part, safe="%/:@!$&'()*+,;=~?") for part in (parts.path, parts.query))
        url = urlunsplit((parts.scheme, parts.netloc.lower(), path, query, ""))
    return Source(url, label, _sum(fragment, label) if fragment else None)


def _sum(fragment: str, label: str) -> str:
    match = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    if match is None:
        raise UserError(f"{label} ends in #{fragment}; accepted: #sha256= and 64 hexadecimal digits")
    return match[1].lower()


def _forbidden_by() -> Optional[str]:
    """The environment variable that forbids requests, as it is set."""
    for name in ("IPU_VIT_OFFLINE", "HF_HUB_OFFLINE"):
        value = os.environ.get(name, "")
        if value.upper() in ("1", "ON", "YES", "TRUE"):  # as huggingface_hub reads it
            return f"{name}={value}"
    return None


def _unseen(done: int, total: Optional[int]) -> None:
    """Progress that nobody watches."""
