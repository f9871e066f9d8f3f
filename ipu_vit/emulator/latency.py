"""When micro batches came and went in the last call (`getPerfCounters`, `getLatency` and its parts)."""

from __future__ import annotations

from typing import Dict, List, Sequence, Tuple

from ipu_vit.emulator.errors import Error

#: shortest, longest and mean seconds
Spread = Tuple[float, float, float]


class Latency:
    """Seconds of an arbitrary clock, per micro batch of the last call."""

    def __init__(self) -> None:
        self.calls = 0
        self._times: List[Tuple[float, float, float]] = []
        self._tensors = (0, 0)

    def note(self, times: Sequence[Tuple[float, float, float]], inputs: int, outputs: int) -> None:
        """Keep what one call measured: (asked for input, computed, gave output) of each micro batch."""
        self.calls += 1
        self._times = list(times)
        self._tensors = (inputs, outputs)

    def counters(self) -> Dict[str, List[List[float]]]:
        """Times of events, by event, then tensor, then micro batch."""
        self._check()
        inputs, outputs = self._tensors
        started, computed, finished = (list(column) for column in zip(*self._times))
        return {
            "input": [started] * inputs,
            "input_complete": [started] * inputs,
            "output": [computed] * outputs,
            "output_complete": [finished] * outputs,
        }

    def host_to_ipu(self) -> Spread:
        self._check()
        return _spread([0.0 for _ in self._times])

    def compute(self) -> Spread:
        self._check()
        return _spread([computed - started for started, computed, _ in self._times])

    def ipu_to_host(self) -> Spread:
        self._check()
        return _spread([finished - computed for _, computed, finished in self._times])

    def whole(self) -> Spread:
        self._check()
        return _spread([finished - started for started, _, finished in self._times])

    def _check(self) -> None:
        if not self.calls:
            raise Error("The model has not run yet, so nothing was measured")


def _spread(seconds: List[float]) -> Spread:
    return min(seconds), max(seconds), sum(seconds) / len(seconds)
