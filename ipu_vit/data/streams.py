"""Random numbers that can be had from anywhere in a run.

Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") computes its numbers from a key
and a counter. With the seed as its key, and the number of a sample in its counter, a sample's numbers need
neither those before it nor a generator of its own, which takes thirty times as long to make.
"""

from __future__ import annotations

from typing import Any

import numpy as np


class Streams:
    """A stream of random numbers for each number below 2⁶⁴, independent of the streams of other seeds and uses."""

    def __init__(self, seed: int, use: int) -> None:
        self._key = seed, use
        self._philox = np.random.Philox(key=np.array(self._key, np.uint64))
        self._generator = np.random.Generator(self._philox)
        self._start: Any = self._philox.state

    def __reduce__(self) -> Any:
        return Streams, self._key

    def at(self, number: int) -> np.random.Generator:
        """The stream of that number, from its beginning; it ends where another one is asked for."""
        # The lowest of four words counts the numbers drawn.
        self._start["state"]["counter"][1] = number
        self._philox.state = self._start
        return self._generator
