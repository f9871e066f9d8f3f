"""Memory for pixels that come and go."""

from __future__ import annotations

import math
import sys
import threading

import numpy as np

MOST_BYTES = 2**24
"""What is kept for the next image; larger ones are rare."""


class Memory(threading.local):
    """Bytes that are handed out again once nobody looks at them any more, by each thread for itself.

    The system hands out fresh memory page by page, each on first touch; for an image of 500 × 375 pixels that
    takes a good part of the time of decoding it.
    """

    def __init__(self) -> None:
        self._kept = np.empty(0, np.uint8)

    def take(self, *shape: int) -> np.ndarray:
        """An array, uint8, of any content, whose views may be kept as long as one likes."""
        size = math.prod(shape)
        if size > MOST_BYTES:
            return np.empty(shape, np.uint8)
        # Two references are this object's and the call's own; every array in the same memory has one more.
        if self._kept.size < size or sys.getrefcount(self._kept) > 2:
            self._kept = np.empty(size, np.uint8)
        return self._kept[:size].reshape(shape)
