"""One run at a time in an output folder.

A lock of the kernel's on a file in the folder: it goes with the process that holds it, however that
ends, so nothing has to be cleaned up. `flock` is also what network file systems understand between
hosts (NFS as a lock of the whole file, hence open for writing). The file tells who holds the lock.
"""

from __future__ import annotations

import fcntl
import os
import socket
import weakref
from pathlib import Path

from ipu_vit.errors import UserError


class FolderLock:
    """Held from its making until `release`, or until nobody refers to it any more."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError, naming the other process and its host, if another run has the folder."""
        path = folder / "run.lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from error
        #: may be called more than once
        self.release = weakref.finalize(self, os.close, descriptor)
        #: False on a file system without locks, such as Lustre mounted without them
        self.held = _lock(descriptor, folder)
        if self.held:
            _sign(descriptor)


def _lock(descriptor: int, folder: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip() or "another process"
        raise UserError(
            f"output={folder} is in use by {holder}: wait for it or stop it, or choose another output"
        ) from error
    except OSError:
        return False
    return True


def _sign(descriptor: int) -> None:
    """Say who has the lock. A full disk is no reason to stop here: the run's own files will tell of it."""
    text = f"process {os.getpid()} on {socket.gethostname()}\n".encode()
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text, 0)
    except OSError:
        pass
