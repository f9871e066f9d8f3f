"""The folder of downloaded files: each is there whole, as it was when it arrived, or not at all.

FOLDER/HOST-HASH/   one folder for each address
    NAME            the file
    NAME.sha256     its sum, as `sha256sum --check` reads it, and a remark with its size and time of change
    NAME.part       what has arrived of an unfinished download
    NAME.version    which version of the file that part belongs to
    NAME.lock       locked by the process that downloads
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator, Optional
from urllib.parse import unquote, urlsplit

from ipu_vit.errors import UserError
from ipu_vit.weights.atomic import replacing

Progress = Callable[[int, Optional[int]], None]
"""Told now and then how many bytes of a file are there, and of how many, if that is known."""

_POLL = 0.2  # seconds between two looks at a lock that another process holds


def default_folder() -> Path:
    """`$IPU_VIT_CACHE`, else `ipu_vit` in `$XDG_CACHE_HOME`, else in `~/.cache`."""
    if os.environ.get("IPU_VIT_CACHE"):
        return Path(os.environ["IPU_VIT_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ipu_vit"


def digest(path: Path, algorithm: str = "sha256") -> str:
    """The sum of a file's content, in hexadecimal digits."""
    found = hashlib.new(algorithm)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            found.update(chunk)
    return found.hexdigest()


def place_of(url: str, folder: Path) -> Path:
    """Where in the cache the file at `url` goes."""
    parts = urlsplit(url)
    # The name is the server's: no folders, nothing hidden, and room for our endings.
    name = re.sub(r"[^\w.-]", "_", unquote(parts.path).rpartition("/")[2]).lstrip(".")[-100:] or "file"
    return folder / f"{parts.hostname}-{hashlib.sha256(url.encode()).hexdigest()[:16]}" / name


class Entry:
    """A file of the cache, whether it is there already or not."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.part = file.with_name(f"{file.name}.part")
        self._sum = file.with_name(f"{file.name}.sha256")
        self._version = file.with_name(f"{file.name}.version")
        self._lock = file.with_name(f"{file.name}.lock")

    def find(self, sha256: Optional[str] = None) -> Optional[Path]:
        """The file, if it is there as it arrived, and has the given sum if there is one."""
        try:
            sum_line, *remarks = self._sum.read_text().splitlines()
            remembered = sum_line.split()[0]
            if sha256 not in (None, remembered):
                return None
            # Summing up takes a second for each gigabyte or two: only where the file may have changed.
            if _remark(self.file) in remarks or digest(self.file) == remembered:
                return self.file
        except (OSError, ValueError, IndexError):
            pass
        return None

    @contextmanager
    def locked(self, progress: Progress) -> Iterator[None]:
        """Keep other processes from downloading the same; while one of them does, show how far it is."""
        with self._writing():
            self.file.parent.mkdir(parents=True, exist_ok=True)
            file = self._lock.open("ab")
        with file:
            while not self._try_lock(file.fileno()):
                progress(self.part_size(), None)
                time.sleep(_POLL)
            yield

    def part_size(self) -> int:
        """Bytes that have arrived of an unfinished download."""
        try:
            return self.part.stat().st_size
        except FileNotFoundError:
            return 0

    def part_version(self) -> Optional[str]:
        """What `extending` was told of the part's version."""
        try:
            return self._version.read_text() or None
        except (OSError, ValueError):
            return None

    @contextmanager
    def extending(self, start: int, version: Optional[str]) -> Iterator[Callable[[bytes], None]]:
        """A function that adds bytes to the part from `start` on; at the end they are on the disk."""
        with self._writing():
            if start == 0:
                self.part.unlink(missing_ok=True)  # first, or it would count as of the new version
                self._version.write_text(version or "")
            file = self.part.open("r+b" if start else "wb", buffering=0)
        with file:

            def add(data: bytes) -> None:
                with self._writing():
                    rest = memoryview(data)
                    while rest:
                        rest = rest[file.write(rest) :]

            with self._writing():
                file.seek(start)
                file.truncate()
            yield add
            with self._writing():
                os.fsync(file.fileno())

    def discard_part(self) -> None:
        """Forget what has arrived."""
        with self._writing():
            self.part.unlink(missing_ok=True)
            self._version.unlink(missing_ok=True)

    def accept_part(self, sha256: str) -> None:
        """Make the part, which has this sum, the file."""
        # The sum first: if this ends between the two, the file and its sum differ and it is downloaded again.
        with replacing(str(self._sum)) as file:
            file.write(f"{sha256}  {self.file.name}\n{_remark(self.part)}\n".encode())
        with self._writing():
            os.replace(self.part, self.file)
            self._version.unlink(missing_ok=True)

    def _try_lock(self, descriptor: int) -> bool:
        with self._writing():  # some file systems have no locks
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"the cache folder {self.file.parent} cannot be written: {error.strerror or error}; "
                "IPU_VIT_CACHE names another one"
            ) from error


def _remark(file: Path) -> str:
    """What would be otherwise if the file had been changed, as a line that `sha256sum --check` passes over."""
    status = file.stat()
    return f"# {status.st_size} bytes, changed {status.st_mtime_ns} ns after the epoch"
