"""The trace: a model's forward run once on fake tensors, recorded operator by operator.

PopTorch traces a model when it is compiled. So does the emulator: tensors without data flow through
the user's Python, every operator is noted under the pipeline stage that is active, and what cannot
be traced fails here. The record, a `Program`, says what runs on which IPU; the executor checks it
against the options, and tools may read it (`executor.program`).
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Dict, FrozenSet, Iterator, List, Optional, Tuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from ipu_vit.emulator import device
from ipu_vit.emulator.errors import Error
from ipu_vit.emulator.stages import Placement, Strategy

# Operators that neither compute nor move data on a device.
_FREE = {"detach", "alias", "view", "t", "transpose", "expand", "unsqueeze", "squeeze", "_unsafe_view", "lift_fresh"}


@dataclass
class StageRecord:
    """What one pipeline stage does for one micro batch, forward."""

    stage: int
    ipu: int
    blocks: List[str] = field(default_factory=list)
    #: operators, in order, by aten name
    operators: List[str] = field(default_factory=list)
    #: multiply-adds of matrix products and convolutions
    multiply_adds: int = 0
    #: names of the parameters first used here
    parameters: List[str] = field(default_factory=list)
    parameter_bytes: int = 0
    #: bytes of everything that operators produced
    activation_bytes: int = 0
    #: bytes of tensors marked by `recomputationCheckpoint`
    checkpoint_bytes: int = 0
    #: bytes that arrive from other IPUs
    received_bytes: int = 0


@dataclass
class Program:
    """The record of one trace."""

    stages: List[StageRecord] = field(default_factory=list)
    #: how often the active IPU changed, plus one (rule 5.8)
    forward_stages: int = 1
    uses_half: bool = False
    #: losses met, in order of their calls, and which of them is differentiated
    losses: int = 0
    final_losses: List[int] = field(default_factory=list)
    #: names of the parameters that the loss depends on
    trained: List[str] = field(default_factory=list)

    @property
    def ipus(self) -> int:
        """IPUs that one replica takes (rule 5.5)."""
        used = {stage.ipu for stage in self.stages}
        return max(max(used, default=0) + 1, len(used))

    @property
    def loss_index(self) -> int:
        """Which loss call is differentiated; Error unless there is exactly one (rule 2.1)."""
        if not self.final_losses:
            raise Error(
                "Couldn't find a loss in graph: return a loss made by a PyTorch loss function, or wrap the value to "
                "minimise in poptorch.identity_loss"
            )
        if len(self.final_losses) > 1:
            raise Error(
                "Multiple independent losses found in graph: combine them and wrap the result in poptorch.identity_loss"
            )
        return self.final_losses[0]


class Tracer(TorchDispatchMode, device.Context):
    """Records every operator that runs while it is active."""

    def __init__(self, strategy: Strategy, parameters: Dict[int, str]) -> None:
        super().__init__()
        self.program = Program()
        self.unnamed_blocks = 0
        self._strategy = strategy
        self._parameters = parameters
        self._home: Dict[str, int] = {}
        self._placement: Optional[Placement] = Placement("", 0, 0)
        self._last_ipu = 0
        self._records: Dict[int, StageRecord] = {}
        self._losses: List[Tensor] = []
        # Per tensor: the tensor itself (so that its id stays its own), the IPU it is on, and which
        # losses it depends on.
        self._seen: Dict[int, Tuple[Tensor, int, FrozenSet[int]]] = {}

    # Blocks -----------------------------------------------------------------------------------

    def begin_block(self, user_id: Optional[str], ipu_id: Optional[int]) -> None:
        if user_id is None:
            user_id = str(self.unnamed_blocks)
            self.unnamed_blocks += 1
        placement = self._strategy.place(user_id, ipu_id)
        if self._records and placement.stage < max(self._records):
            raise Error(
                f"Block {user_id!r} goes back to stage {placement.stage} after stage {max(self._records)}: stages must "
                "not decrease; use AutoStage.AutoIncrement or explicit stages to return to an IPU"
            )
        if placement.ipu != self._last_ipu:
            self.program.forward_stages += 1
            self._last_ipu = placement.ipu
        self._placement = placement

    def end_block(self) -> None:
        self._placement = None

    # Losses -----------------------------------------------------------------------------------

    def on_loss(self, loss: Tensor) -> None:
        index = self.program.losses
        self.program.losses += 1
        self._losses.append(loss)
        _, ipu, absorbed = self._seen.get(id(loss), (loss, self._last_ipu, frozenset()))
        # A loss that feeds this one is an ordinary reduction (rule 2.2).
        self.program.final_losses = [other for other in self.program.final_losses if other not in absorbed] + [index]
        self._seen[id(loss)] = (loss, ipu, frozenset([index]))

    def trace_backward(self, fake: FakeTensorMode, weights: List[Tensor]) -> None:
        """Note which of these fake weights the loss has gradients for."""
        loss = self._losses[self.program.loss_index]
        if loss.requires_grad:
            with fake:
                gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            for weight, gradient in zip(weights, gradients):
                if gradient is not None:
                    self.program.trained.append(self._parameters[id(weight)])

    def on_checkpoint(self, tensor: Tensor) -> None:
        self._record().checkpoint_bytes += _bytes(tensor)

    # Operators --------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        namespace, name = func._schema.name.split("::")
        if namespace == "prim":  # questions about a tensor, not operators
            return result
        inputs = [item for item in tree_flatten((args, kwargs))[0] if isinstance(item, Tensor)]
        outputs = [item for item in tree_flatten(result)[0] if isinstance(item, Tensor)]
        record = self._record()
        if name not in _FREE:
            record.operators.append(name)
            record.activation_bytes += sum(map(_bytes, outputs))
        record.multiply_adds += _multiply_adds(name, inputs, outputs)
        losses: FrozenSet[int] = frozenset()
        for tensor in inputs:
            losses |= self._use(tensor, record)
            self.program.uses_half |= tensor.dtype == torch.float16
        for tensor in outputs:
            self.program.uses_half |= tensor.dtype == torch.float16
            self._seen[id(tensor)] = (tensor, record.ipu, losses)
        return result

    def _record(self) -> StageRecord:
        placement = self._placement
        if placement is None:
            raise Error(
                "No active Block: an operator ran after a poptorch.Block ended and before another began; put it in a "
                "block, or use BeginBlock"
            )
        if placement.stage not in self._records:
            self._records[placement.stage] = StageRecord(placement.stage, placement.ipu)
            self.program.stages.append(self._records[placement.stage])
        record = self._records[placement.stage]
        if placement.block and placement.block not in record.blocks:
            record.blocks.append(placement.block)
        return record

    def _use(self, tensor: Tensor, record: StageRecord) -> FrozenSet[int]:
        name = self._parameters.get(id(tensor))
        if name is not None:
            self._use_parameter(name, tensor, record)
            return frozenset()
        if id(tensor) not in self._seen:
            return frozenset()
        _, ipu, losses = self._seen[id(tensor)]
        if ipu != record.ipu:
            record.received_bytes += _bytes(tensor)
            self._seen[id(tensor)] = (tensor, record.ipu, losses)
        return losses

    def _use_parameter(self, name: str, tensor: Tensor, record: StageRecord) -> None:
        home = self._home.setdefault(name, record.ipu)
        if home != record.ipu:
            raise Error(
                f"Parameter {name} is used on IPU {home} and on IPU {record.ipu}: a weight lives on one IPU; put all "
                "layers that share it there"
            )
        if name not in record.parameters:
            record.parameters.append(name)
            record.parameter_bytes += _bytes(tensor)


@contextmanager
def tracing(strategy: Strategy, parameters: Dict[int, str], fake: FakeTensorMode) -> Iterator[Tracer]:
    """Trace what runs inside; `parameters` names the fake parameters by id."""
    strategy.onStartTracing()
    tracer = Tracer(strategy, parameters)
    try:
        with device.context(tracer), fake, tracer:
            yield tracer
    except DataDependentOutputException as error:
        raise Error(
            f"{error.func} is only supported in eager mode: forward must not look at a tensor's value, as .item(), "
            "bool(tensor) and .tolist() do"
        ) from error
    except DynamicOutputShapeException as error:
        raise Error(f"{error.func} makes a tensor whose shape depends on data, which a device cannot have") from error
    finally:
        strategy.onEndTracing()


def fakes_of(structure: Any, fake: FakeTensorMode) -> Any:
    """The same structure with each tensor replaced by one that has no data."""
    return tree_map(lambda item: fake.from_tensor(item) if isinstance(item, Tensor) else item, structure)


def active() -> Optional[Tracer]:
    """The trace that is on in this thread, if any."""
    context = device.active()
    return context if isinstance(context, Tracer) else None


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _multiply_adds(name: str, inputs: List[Tensor], outputs: List[Tensor]) -> int:
    if name in ("mm", "addmm", "bmm", "baddbmm"):
        return outputs[0].numel() * inputs[-1].shape[-2]
    if name in ("convolution", "_convolution"):
        return outputs[0].numel() * inputs[1][0].numel()
    return 0
