"""Running a compiled model: host batches cut into micro batches, forward, backward, weight updates.

A pipeline's stages hold different micro batches at a time but compute the same numbers as one micro
batch after the other, so that is what a run does; and replicas take turns.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from functools import partial
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from ipu_vit.emulator.arithmetic import Arithmetic
from ipu_vit.emulator.batches import HostBatch, Layout, Outputs
from ipu_vit.emulator.enums import OutputMode
from ipu_vit.emulator.errors import Error
from ipu_vit.emulator.options import Options
from ipu_vit.emulator.program import Program
from ipu_vit.emulator.random import BitStream, DeviceRandom
from ipu_vit.emulator.tape import Slot
from ipu_vit.emulator.update import WeightUpdate
from ipu_vit.emulator.weights import DeviceWeights

# Called after every micro batch with (done, of one host call); see `observe_micro_batches`.
_observers: List[Callable[[int, int], None]] = []


@contextmanager
def observe_micro_batches(observer: Callable[[int, int], None]) -> Iterator[None]:
    """Call `observer(done, total)` after every micro batch, for progress inside a long call."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


class SharedUpdate(NamedTuple):
    """The update of the weights that some replicas share."""

    replicas: Tuple[int, ...]
    names: List[str]
    update: WeightUpdate


class Anchor(NamedTuple):
    """A tensor of the model's inside that the host wants to see: one of a slot, or a weight's gradient."""

    slot: Optional[int]
    gradient_of: Optional[str]
    mode: OutputMode
    period: int


_GRADIENT = "Gradient___"


def tensor_names(program: Program) -> List[str]:
    """Weights by their names, results as `function:count`, gradients as PopART calls them."""
    return [*program.tape.weights, *program.tape.names, *(_GRADIENT + name for name in program.trained)]


def _anchors(program: Program, options: Options) -> Dict[str, Anchor]:
    slots = {**program.tape.names, **program.tape.weights}
    gradients = {_GRADIENT + name: name for name in program.trained}
    anchors: Dict[str, Anchor] = {}
    for short_name, (name, mode, period) in options.anchors().items():
        if name not in slots and name not in gradients:
            raise Error(f"There is no tensor {name!r} to anchor: getTensorNames() lists them")
        anchors[short_name] = Anchor(slots.get(name), gradients.get(name), mode, period)
    return anchors


def _taking(weight: Tensor, take: Callable[[Tensor], None]) -> Callable[[Tensor], Tensor]:
    """A hook that takes a weight's gradient, and hands on something of its shape that takes no memory."""
    stand_in = torch.zeros((), dtype=weight.dtype).expand(weight.shape)

    def hook(gradient: Tensor) -> Tensor:
        take(gradient)
        return stand_in

    return hook


def _detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


class MicroBatchTimes(NamedTuple):
    """When a micro batch came and went, in seconds of one clock."""

    started: float
    computed: float
    finished: float


class Runner:
    """A program with its weights, options and random numbers, ready for host batches."""

    def __init__(
        self,
        program: Program,
        options: Options,
        layout: Layout,
        weights: DeviceWeights,
        random: DeviceRandom,
        updates: Sequence[SharedUpdate],
    ) -> None:
        self.updates = list(updates)
        self._accumulators = [[shared.update.new_accumulators() for _ in shared.replicas] for shared in updates]
        self.anchored: Dict[str, Tensor] = {}
        self.times: List[MicroBatchTimes] = []
        self._arithmetic = Arithmetic(program.uses_half)
        self._anchors = _anchors(program, options)
        self._wanted = [anchor.slot for anchor in self._anchors.values() if anchor.slot is not None]
        #: anchored gradients of the micro batch that runs, by their weights' names
        self._gradients: Dict[str, Tensor] = {}
        self._tape = self._arithmetic.tape(program.tape).keeping(set(self._wanted))
        #: how many tensors a micro batch returns
        self.outputs = sum(isinstance(leaf, Slot) for leaf in program.tape.results)
        self._trained = program.trained
        self._options = options
        self._layout = layout
        self._weights = weights
        self._random = random
        # Replicas are numbered through all processes, for random numbers not to depend on how they are spread.
        distributed = options.Distributed
        self._first_replica: int = distributed.processId * layout.replicas
        self._all_replicas: int = distributed.numProcesses * layout.replicas

    def __call__(self, batch: HostBatch) -> Any:
        """Run one host batch and return what forward returned, for the micro batches the output mode keeps."""
        mode, period = OutputMode(self._options.output_mode), self._options.output_return_period
        outputs = Outputs(mode, period, self._layout)
        anchored = {name: Outputs(anchor.mode, anchor.period, self._layout) for name, anchor in self._anchors.items()}
        self.times = []
        with torch.set_grad_enabled(bool(self.updates)):
            for iteration in range(self._layout.device_iterations):
                self._run_iteration(batch, iteration, outputs, anchored)
        self.anchored = {name: kept.gather()[0] for name, kept in anchored.items()}
        return self._tape.structure.build(outputs.gather())

    def _run_iteration(self, batch: HostBatch, iteration: int, outputs: Outputs, anchored: Dict[str, Outputs]) -> None:
        """One device iteration: a weight update in training, one micro batch per replica in inference."""
        layout = self._layout
        for shared, its in zip(self.updates, self._accumulators):
            for replica, accumulators in zip(shared.replicas, its):
                shared.update.begin(accumulators, self._rounding_bits(shared, self._first_replica + replica))
        for replica in range(layout.replicas):
            weights = self._arithmetic.weights(self._weights.replicas[replica], self._tape.written_weights)
            with self._collecting_gradients(replica, weights):
                for step in range(layout.accumulation):
                    started = time.perf_counter()
                    index = layout.input_index(iteration, step, replica)
                    with self._inputs(batch.micro_batch(index, layout.micro_batches)) as inputs:
                        with self._arithmetic.mode(), self._random.micro_batch(self._first_replica + replica, step):
                            results, wanted = self._run_micro_batch(inputs, weights)
                    computed = time.perf_counter()
                    outputs.add(iteration, step, replica, results)
                    for kept, tensor in zip(anchored.values(), wanted):
                        kept.add(iteration, step, replica, [tensor])
                    self.times.append(MicroBatchTimes(started, computed, time.perf_counter()))
                    self._report_progress(iteration, replica, step)
            self._arithmetic.put_back(weights, self._weights.replicas[replica], self._tape.written_weights)
        for shared, its in zip(self.updates, self._accumulators):
            shared.update.apply(its, self._rounding_bits(shared, self._all_replicas))
        self._random.advance(layout.accumulation)

    @contextmanager
    def _inputs(self, micro_batch: List[Tensor]) -> Iterator[List[Tensor]]:
        """A micro batch as forward takes it; what that writes into inputs, the caller's tensors have afterwards."""
        written = self._tape.written_inputs
        inputs = [tensor.clone() if at in written else tensor for at, tensor in enumerate(micro_batch)]
        inputs = self._arithmetic.inputs(inputs)
        yield inputs
        for at in written:
            micro_batch[at].copy_(inputs[at].detach())

    def _run_micro_batch(self, inputs: Sequence[Tensor], weights: Dict[str, Tensor]) -> Tuple[List[Any], List[Tensor]]:
        """Forward and, in training, backward: the results, and the anchored tensors."""
        watch = self.updates[0].update.watch if self.updates else None
        results, loss, wanted = self._tape.run(inputs, weights, self._wanted, watch)
        if not self.updates:
            return results, wanted
        assert loss is not None
        if self._trained:
            scale = torch.full_like(loss, self.updates[0].update.loss_scale)
            torch.autograd.grad(loss, [weights[name] for name in self._trained], scale)
        # Without their graph, whose many small objects would split up the memory for the next micro batch's tensors.
        found = iter(wanted)
        anchored = [
            next(found) if anchor.gradient_of is None else self._gradients[anchor.gradient_of]
            for anchor in self._anchors.values()
        ]
        return [_detached(leaf) for leaf in results], [_detached(leaf) for leaf in anchored]

    @contextmanager
    def _collecting_gradients(self, replica: int, weights: Dict[str, Tensor]) -> Iterator[None]:
        """Accumulate a replica's gradients, times the loss scale, while backward passes compute them."""
        anchored = {anchor.gradient_of for anchor in self._anchors.values()} - {None}
        hooks = [weights[name].register_hook(partial(self._gradients.__setitem__, name)) for name in anchored if name]
        for shared, its in zip(self.updates, self._accumulators):
            if replica in shared.replicas:
                accumulate = partial(shared.update.accumulate, its[shared.replicas.index(replica)])
                hooks += [
                    weights[name].register_hook(_taking(weights[name], partial(accumulate, name)))
                    for name in shared.names
                ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _rounding_bits(self, shared: SharedUpdate, replica: int) -> Optional[BitStream]:
        """Random bits for what a replica of all stores for an update, or after the last one the update itself."""
        if not self._options.Precision.enable_stochastic_rounding:
            return None
        return self._random.rounding(self.updates.index(shared) * (self._all_replicas + 1) + replica)

    def _report_progress(self, iteration: int, replica: int, step: int) -> None:
        layout = self._layout
        done = (iteration * layout.replicas + replica) * layout.accumulation + step + 1
        for observer in _observers:
            observer(done, layout.device_iterations * layout.replicas * layout.accumulation)
