"""How a process that decodes images keeps its memory."""

from __future__ import annotations

import ctypes

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3

LARGEST = 2**25
"""Bytes; glibc accepts no more for the last of these."""


def keep_freed_memory() -> None:
    """Have malloc keep what is freed, up to a few tens of megabytes, for the next image.

    By itself glibc hands the memory of whole images back to the system and gets it anew, page by page as each is
    first touched, which takes a third of the time of an image. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD):
            mallopt(parameter, LARGEST)
