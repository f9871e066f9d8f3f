"""When micro batches came and went in the last call (`getPerfCounters`, `getLatency` and its parts)."""

from __future__ import annotations

from typing import Dict, List, Sequence, Tuple

#: shortest, longest and mean seconds
Spread = Tuple[float, float, float]


class Latency:
    """Seconds of an arbitrary clock, per micro batch of the last call."""

    def __init__(self) -> None:
        self._times: List[Tuple[float, float, float]] = []
        self._tensors = (0, 0)

    def note(self, times: Sequence[Tuple[float, float, float]], inputs: int, outputs: int) -> None:
        """Keep what one call measured: (asked for input, computed, gave output) of each micro batch."""
        self._times = list(times)
        self._tensors = (inputs, outputs)

    def counters(self) -> Dict[str, List[List[float]]]:
        """Times of events, by event, then tensor, then micro batch."""
        if not self._times:
            return {event: [[]] for event in ("input", "input_complete", "output", "output_complete")}
        inputs, outputs = self._tensors
        started, computed, finished = (list(column) for column in zip(*self._times))
        return {
            "input": [started] * inputs,
            "input_complete": [started] * inputs,
            "output": [computed] * outputs,
            "output_complete": [finished] * outputs,
        }

    def host_to_ipu(self) -> Spread:
        return _spread([0.0 for _ in self._times])

    def compute(self) -> Spread:
        return _spread([computed - started for started, computed, _ in self._times])

    def ipu_to_host(self) -> Spread:
        return _spread([finished - computed for _, computed, finished in self._times])

    def whole(self) -> Spread:
        return _spread([finished - started for started, _, finished in self._times])


def _spread(seconds: List[float]) -> Spread:
    return (min(seconds), max(seconds), sum(seconds) / len(seconds)) if seconds else (0.0, 0.0, 0.0)
