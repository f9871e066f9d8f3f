"""Telling of loader workers that were killed, as the kernel does to whoever needs too much memory."""

from __future__ import annotations

import re
import signal
from contextlib import contextmanager
from typing import Iterator

from ipu_vit.errors import UserError

# What PopTorch's accessor says of its process, and torch's loader of its workers.
_DIED = re.compile(r"[^\n]*(killed by signal|exited unexpectedly|ended unexpectedly)[^\n]*")
# What a process gets that touches memory which a full or broken file system cannot back.
_BUS_ERROR = re.compile(rf"by signal:? ({signal.SIGBUS.value}\b|Bus error)")


class LostWorker(UserError):
    """A process that loads images is gone."""


@contextmanager
def naming_lost_workers(workers: int) -> Iterator[None]:
    """Raise LostWorker, with advice, in place of what loaders raise when a worker process is gone."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        died = _DIED.search(str(error))
        if died is None:
            raise
        raise LostWorker(
            f"data.workers={workers}: {died.group().strip().rstrip('.')}; checkpoints are untouched and the same "
            f"command continues from the last one; {_advice(died.group())}"
        ) from error


def _advice(died: str) -> str:
    """What to do about it; the signal that ended a worker comes too late to be told, at times."""
    memory = "if memory ran out, fewer workers or a smaller pipeline.prefetch_depth take less"
    shared = "a full /dev/shm shows so, which containers raise with --shm-size, or a disk that fails under a pack"
    if "by signal" not in died:
        return f"{memory}; {shared}"
    return shared if _BUS_ERROR.search(died) else memory
