"""The weight update: accumulated gradients in, new weights out (rule 3.6).

The order is PopART's: gradients come multiplied by the loss scale, are accumulated so, reduced over
replicas and processes, divided by the scale and, for a mean, by their number; then the optimizer's own
mathematics (`sgd`, `adam`, `rmsprop`).
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Type

import torch
from torch import Tensor

from ipu_vit.emulator.buckets import Bucket, make_buckets
from ipu_vit.emulator.enums import MeanReductionStrategy, ReductionType
from ipu_vit.emulator.errors import Error
from ipu_vit.emulator.optim import SGD_KINDS, Attributes, Kind
from ipu_vit.emulator.options import Options
from ipu_vit.emulator.random import BitStream
from ipu_vit.emulator.update.accumulators import Accumulation, Accumulators
from ipu_vit.emulator.update.adam import LAMB, Adam
from ipu_vit.emulator.update.loss_scale import AutomaticLossScale
from ipu_vit.emulator.update.reduction import all_reduce
from ipu_vit.emulator.update.rmsprop import RMSprop
from ipu_vit.emulator.update.rule import Part, Rule
from ipu_vit.emulator.update.sgd import CombinedSGD, PlainSGD, SeparateSGD

# The name of the automatic loss scale's factor in an optimizer's state.
_FACTOR = "lossScaleUpdateFactor"
_SERIAL = 1  # of popart.AccumulateOuterFragmentSchedule


class WeightUpdate:
    """The update of some weights that the same replicas share."""

    def __init__(
        self,
        attributes: Attributes,
        options: Options,
        weights: Dict[str, Tensor],
        used: Sequence[str],
        uses_half: bool,
    ) -> None:
        """Raises Error for numbers and settings that PopART refuses when it compiles."""
        attributes.check()
        _check_clipping(attributes, options)
        self.attributes = attributes
        self._options = options
        self._steps: int = options.Training.gradient_accumulation
        self._mean = options.Training.accumulation_and_replication_reduction_type == ReductionType.Mean
        self._running = self._mean and _mean_strategy(options) == MeanReductionStrategy.Running
        self._rules = [
            _rule_class(attributes, bucket)(bucket, attributes, self._steps > 1)
            for bucket in make_buckets(attributes.groups, weights, used)
        ]
        self._automatic = (
            AutomaticLossScale(options, uses_half)
            if options._Popart.options.get("automaticLossScalingSettings.enabled", False)
            else None
        )

    @property
    def loss_scale(self) -> float:
        """What the loss gradient is to be multiplied by now."""
        loss_scaling = self.attributes.loss_scaling
        return loss_scaling if self._automatic is None else self._automatic.scale(loss_scaling)

    @property
    def watch(self) -> Optional[Callable[[Tensor], None]]:
        """Who wants to see the gradients of what forward computes in half precision."""
        return None if self._automatic is None else self._automatic.observe

    def replace(self, attributes: Attributes) -> None:
        """Use other attributes from now on; Error if what was compiled in would change (rule 4.12)."""
        attributes.check()
        self.attributes = attributes.replacing(self.attributes, self._options._relax_optimizer_checks)
        for rule in self._rules:
            rule.use(self.attributes)

    # One update -------------------------------------------------------------------------------

    def new_accumulators(self) -> Accumulators:
        """For one replica's gradients."""
        return Accumulators(self._accumulations())

    def begin(self, accumulators: Accumulators, bits: Optional[BitStream]) -> None:
        """Make accumulators ready for the gradients of one update."""
        accumulators.begin(self._accumulations(), bits)

    def _accumulations(self) -> List[Accumulation]:
        divisor = self.loss_scale * (self._steps if self._mean else 1)
        return [rule.accumulation(self._running, divisor) for rule in self._rules]

    def accumulate(self, accumulators: Accumulators, name: str, gradient: Tensor) -> None:
        """Take one weight's gradient of one micro batch, still multiplied by the loss scale."""
        if self._automatic is not None:
            self._automatic.observe(gradient)
        accumulators.add(name, gradient)

    @torch.no_grad()
    def apply(self, replicas: Sequence[Accumulators], bits: Optional[BitStream]) -> None:
        """Reduce over the replicas that share these weights, and update the weights in place."""
        sums = self._reduce(replicas, bits)
        divisor = self.loss_scale * (self._total(replicas) * self._steps if self._mean and not self._running else 1)
        factor = 1.0
        for rule in self._rules:
            rule.begin()
        clips = self.attributes.max_grad_norm != float("inf")
        if clips:
            factor = self._clip_factor(sums, divisor, bits)
        for rule, flat in zip(self._rules, sums):
            for part in _parts(rule, flat, divisor, bits):
                if not clips:
                    rule.absorb(part)
                rule.move(part, rule.clippable(part), factor)
        if self._automatic is not None:
            self._automatic.update(self.attributes.loss_scaling)

    def _reduce(self, replicas: Sequence[Accumulators], bits: Optional[BitStream]) -> List[Tensor]:
        """Each bucket's sums, or means, over all replicas of all processes."""
        means = [self._mean and (self._running or rule.accumulates_velocity) for rule in self._rules]
        totals = all_reduce([each.sums for each in replicas], means, self._options, bits)
        for rule, total, mean in zip(self._rules, totals, means):
            if rule.accumulates_velocity and not mean:
                # Every replica has started from the velocity, which belongs into the sum only once.
                total.sub_(rule.state["Accl"], alpha=self._total(replicas) - 1)
        return totals

    def _total(self, replicas: Sequence[Accumulators]) -> int:
        return len(replicas) * int(self._options.Distributed.numProcesses)

    def _clip_factor(self, sums: Sequence[Tensor], divisor: float, bits: Optional[BitStream]) -> float:
        """Let the rules absorb the gradients; one factor for all weights, at most 1 (rule 4.9)."""
        squares = 0.0
        for rule, flat in zip(self._rules, sums):
            scale = rule.clip_scale(self.loss_scale)
            for part in _parts(rule, flat, divisor, bits):
                rule.absorb(part)
                squares += float(torch.linalg.vector_norm(rule.clippable(part), dtype=torch.float64) * scale) ** 2
        bound = self.attributes.max_grad_norm
        return float(bound / max(bound, squares**0.5))

    # State ------------------------------------------------------------------------------------

    def state(self) -> Dict[str, Any]:
        """`ipu_state` and `ipu_param` of the optimizer's `state_dict`."""
        return {
            "ipu_state": {name: tensor.clone() for name, tensor in self._tensors().items()},
            "ipu_param": {"loss_scaling": self.attributes.loss_scaling},
        }

    def load(self, state: Dict[str, Any]) -> None:
        """Take over `state()`; RuntimeError for a tensor that belongs to no weight of that shape."""
        tensors = self._tensors()
        for name, value in state["ipu_state"].items():
            if name not in tensors or tensors[name].shape != value.shape:
                raise RuntimeError(f"The optimizer state {name} of shape {tuple(value.shape)} fits no parameter")
            tensors[name].copy_(value)

    def _tensors(self) -> Dict[str, Tensor]:
        """The optimizer's state, as views of what the rules keep; named after PopART's."""
        tensors = {} if self._automatic is None else {_FACTOR: self._automatic.factor}
        for rule in self._rules:
            for prefix, tensor in rule.state.items():
                views = rule.bucket.split(tensor) if tensor.dim() else dict.fromkeys(rule.bucket.names, tensor)
                tensors.update({f"{prefix}___{name}": view for name, view in views.items()})
        return tensors


def _parts(rule: Rule, flat: Tensor, divisor: float, bits: Optional[BitStream]) -> Iterator[Part]:
    """A bucket's parts, with fresh gradients. Velocities of the combined variant are divided already."""
    for start, length in rule.cuts():
        gradient = flat.narrow(0, start, length).float() / (1 if rule.accumulates_velocity else divisor)
        weights = rule.bucket.flat.narrow(0, start, length)
        yield Part(weights, gradient, rule.slices(start, length), bits)


def _rule_class(attributes: Attributes, bucket: Bucket) -> Type[Rule]:
    group = attributes.groups[bucket.group]
    if attributes.kind in SGD_KINDS:
        if not group["momentum"] and "momentum" in group.constants:
            return PlainSGD
        return CombinedSGD if attributes.kind == Kind.SGD_COMBINED else SeparateSGD
    if attributes.kind in (Kind.RMSPROP, Kind.RMSPROP_CENTERED):
        return RMSprop
    return LAMB if attributes.kind in (Kind.LAMB, Kind.LAMB_NO_BIAS) else Adam


def _mean_strategy(options: Options) -> MeanReductionStrategy:
    chosen = options.Training.meanAccumulationAndReplicationReductionStrategy
    if chosen not in (MeanReductionStrategy.Running, MeanReductionStrategy.Post):
        raise Error(
            f"meanAccumulationAndReplicationReductionStrategy {int(chosen)} is out of range: PopART knows Running (0) "
            "and Post (1) only"
        )
    return MeanReductionStrategy(chosen)


def _check_clipping(attributes: Attributes, options: Options) -> None:
    """Clipping needs all IPUs' gradients before any weight moves, which a serial schedule rules out (rule 4.9)."""
    schedule = options._Popart.options.get("accumulateOuterFragmentSettings.schedule")
    if attributes.max_grad_norm != float("inf") and schedule == _SERIAL and options._strategy.pipelined:
        raise Error(
            "max_grad_norm in a pipelined program cannot go with accumulateOuterFragmentSettings.schedule Serial (1): "
            "leave the schedule out"
        )
