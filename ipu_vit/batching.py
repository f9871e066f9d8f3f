"""How a global batch is cut up: micro batches, gradient accumulation, replicas.

The user states the images per weight update. The micro batch is what passes through the pipeline
at once; the accumulation follows from them and the number of replicas, and must keep the pipeline
full: PopTorch asks for at least 2·stages − 1 micro batches per update in training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator, List


@dataclass(frozen=True)
class BatchPlan:
    """A legal split: global batch = micro batch × accumulation × replicas."""

    global_batch: int
    micro_batch: int
    accumulation: int
    replicas: int
    device_iterations: int

    @property
    def host_batch(self) -> int:
        """Images that travel to the device in one call: `device_iterations` weight updates."""
        return self.global_batch * self.device_iterations

    @classmethod
    def of(
        cls, *, global_batch: int, micro_batch: int, replicas: int, stages: int, device_iterations: int = 1
    ) -> BatchPlan:
        """Find the accumulation; raises ValueError, naming values that work, if there is none."""
        least = least_accumulation(stages)
        step = micro_batch * replicas
        accumulation, rest = divmod(global_batch, step)
        if rest:
            lower = max(accumulation, least) * step
            near = sorted({lower, max(accumulation + 1, least) * step})
            raise ValueError(
                f"pipeline.global_batch={global_batch} does not divide by micro_batch={micro_batch} × "
                f"replicas={replicas} = {step}; nearest global batches that do: {' and '.join(map(str, near))}"
                f"{_micro_batches_hint(global_batch, micro_batch, replicas, stages)}"
            )
        if accumulation < least:
            hint = _micro_batches_hint(global_batch, micro_batch, replicas, stages)
            raise ValueError(
                f"pipeline.global_batch={global_batch} with micro_batch={micro_batch} and replicas={replicas} gives "
                f"{accumulation} accumulation steps, but {stages} pipeline stages need at least {least}"
                f"{hint or f'; the smallest global batch that does: {least * step}'}"
            )
        return cls(global_batch, micro_batch, accumulation, replicas, device_iterations)


def least_accumulation(stages: int) -> int:
    """Fewest micro batches per update that a training pipeline of that many stages accepts."""
    return 2 * stages - 1


def legal_micro_batches(global_batch: int, replicas: int, stages: int) -> Iterator[int]:
    """Every micro batch that splits the global batch legally, smallest first."""
    per_replica, rest = divmod(global_batch, replicas)
    if rest == 0:
        for micro_batch in range(1, per_replica // least_accumulation(stages) + 1):
            if per_replica % micro_batch == 0:
                yield micro_batch


def is_power_of_two(number: int) -> bool:
    """Is it 1, 2, 4, 8, ...? Only such numbers of IPUs can be attached to."""
    return number > 0 and number & (number - 1) == 0


def powers_of_two(limit: int) -> List[int]:
    """1, 2, 4, ... up to the limit."""
    return [1 << exponent for exponent in range(limit.bit_length())]


def near_micro_batches(global_batch: int, micro_batch: int, replicas: int, stages: int) -> List[int]:
    """The legal micro batches, nearest in ratio to one that is asked for first."""
    legal = legal_micro_batches(global_batch, replicas, stages)
    return sorted(legal, key=lambda size: max(size / micro_batch, micro_batch / size))


def _micro_batches_hint(global_batch: int, micro_batch: int, replicas: int, stages: int, most: int = 6) -> str:
    """The legal micro batches nearest to the one asked for, as the end of a sentence; empty if none."""
    near = sorted(near_micro_batches(global_batch, micro_batch, replicas, stages)[:most])
    return f"; micro batches that fit {global_batch}: {', '.join(map(str, near))}" if near else ""
