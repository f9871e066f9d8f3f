"""What the C library does with memory that tensors have given up (glibc; others are left as they are)."""

from __future__ import annotations

import ctypes
import os
from typing import Any

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> None:
    """Have it keep the memory of large tensors for the next ones, unless the environment says what it is to do.

    By itself it hands that back to the system each time, and gets it anew page by page: a tenth of the time of a
    training step of large tensors.
    """
    mallopt = _function("mallopt")
    if mallopt is None or any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_TOP_PAD, 2**28)


def return_free_memory() -> None:
    """Have it give freed memory back once.

    Otherwise it keeps what a model's tensors had, in pieces of their sizes, which fit few others.
    """
    trim = _function("malloc_trim")
    if trim is not None:
        trim(0)


def _function(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None)
