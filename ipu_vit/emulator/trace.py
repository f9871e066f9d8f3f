"""The trace: a model's forward run once on fake tensors, recorded and checked.

PopTorch traces a model when it is compiled. So does the emulator: tensors without data flow through
the user's Python; a `Recorder` notes the torch functions for replay, and below it a `Tracer` notes
every operator under the pipeline stage that is active. What cannot be traced fails here.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import Any, Dict, FrozenSet, Iterable, Iterator, List, NamedTuple, Optional

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from ipu_vit.emulator import device, handlers
from ipu_vit.emulator.enums import OverlapMode
from ipu_vit.emulator.errors import Error
from ipu_vit.emulator.half import MOVES
from ipu_vit.emulator.log import logger
from ipu_vit.emulator.program import Program, StageRecord
from ipu_vit.emulator.recorder import Recorder
from ipu_vit.emulator.stages import Placement, Strategy
from ipu_vit.emulator.structure import flatten
from ipu_vit.emulator.substitutes import substitutes
from ipu_vit.emulator.tape import is_fake, is_opaque
from ipu_vit.emulator.user_code import current_line, line_of

# Operators that neither compute nor move data on a device.
_FREE = {
    "detach", "alias", "view", "t", "transpose", "expand", "unsqueeze", "squeeze", "_unsafe_view", "lift_fresh",
    "permute", "select", "split", "unbind", "slice", "_reshape_alias", "as_strided",
}  # fmt: skip


# In an IPU's place, for what comes from the host.
_HOST = -1


# Newer versions of PyTorch log a traceback of their own when an operator refuses its arguments.
logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)


class _Origin(NamedTuple):
    """What is known of a tensor that the trace has met."""

    tensor: Tensor  # kept, so that its id stays its own
    ipu: int
    #: the losses that it depends on
    losses: FrozenSet[int]
    #: the operator that made it from a loss, and where
    after_loss: str = ""


class Tracer(TorchDispatchMode, device.Context):
    """Records every operator that runs while it is active."""

    def __init__(self, strategy: Strategy, parameters: Dict[int, str], recorder: Recorder, training: bool) -> None:
        super().__init__()
        self.program = Program()
        self.training = training
        self.unnamed_blocks = 0
        self.losses: List[Tensor] = []
        #: names of the input tensors, by id
        self.inputs: Dict[int, str] = {}
        self._strategy = strategy
        self._parameters = parameters
        self.recorder = recorder
        self._home: Dict[str, int] = {}
        self._placement: Optional[Placement] = Placement("", 0, 0)
        self._last_ipu = 0
        self._records: Dict[int, StageRecord] = {}
        self._seen: Dict[int, _Origin] = {}
        # Operators that a device cannot run, with the line that calls them.
        self._unsupported: Dict[str, str] = {}
        self._computing = False

    def is_program(self) -> bool:
        """Whether forward's own Python runs now: not PyTorch's inside one of its calls, nor what the host computes."""
        ours = device.active() is self and torch._C._is_torch_function_mode_enabled()
        return ours and self.recorder.calling is None and not self._computing

    # Blocks -----------------------------------------------------------------------------------

    def begin_block(self, user_id: str, ipu_id: Optional[int]) -> None:
        placement = self._strategy.place(user_id, ipu_id)
        order = self._strategy.order
        if order(placement.stage) < max(map(order, self._records), default=0):
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
        self.losses.append(loss)
        origin = self._seen.get(id(loss))
        absorbed = origin.losses if origin is not None else frozenset()
        # A loss that feeds this one is an ordinary reduction (rule 2.2).
        self.program.final_losses = [other for other in self.program.final_losses if other not in absorbed] + [index]
        self._seen[id(loss)] = _Origin(loss, self._last_ipu if origin is None else origin.ipu, frozenset([index]))

    def trace_backward(self, fake: FakeTensorMode, weights: List[Tensor]) -> None:
        """Note which of these fake weights the loss has gradients for."""
        loss = self.losses[self.program.loss_index]
        if loss.requires_grad:
            with _refusing(), fake, _Tried():
                gradients = torch.autograd.grad(loss, weights, torch.ones_like(loss), allow_unused=True)
            for weight, gradient in zip(weights, gradients):
                if gradient is not None:
                    self.program.trained.append(self._parameters[id(weight)])

    def on_checkpoint(self, tensor: Tensor) -> None:
        self._record().checkpoint_bytes += _bytes(tensor)

    def on_overlap(self, mode: OverlapMode) -> None:
        self.program.overlaps_io |= mode != OverlapMode.NoOverlap

    # Operators --------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        namespace, name = func._schema.name.split("::")
        if namespace == "prim" or not _has_tensors(func):  # questions about tensors or dtypes, not operators
            return func(*args, **kwargs)
        self._check_support(func, f"{namespace}::{name}", args, kwargs)
        self._computing = True
        try:
            result = _call(func, args, kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            raise
        except RuntimeError as error:
            if self._unsupported:  # which some versions of PyTorch cannot even call without data
                raise self._refusal() from error
            raise
        finally:
            self._computing = False
        inputs = [item for item in tree_flatten((args, kwargs))[0] if isinstance(item, Tensor)]
        outputs = [item for item in tree_flatten(result)[0] if isinstance(item, Tensor)]
        if any(tensor.dtype == torch.bfloat16 for tensor in (*inputs, *outputs)):
            raise Error(f"{name}: a device has no bfloat16; use half() or float() ({current_line()})")
        record = self._record()
        if name not in _FREE:
            record.operators.append(name)
            record.activation_bytes += sum(map(_bytes, outputs))
        record.multiply_adds += _multiply_adds(name, inputs, outputs)
        origins = [origin for origin in (self._use(tensor, record) for tensor in inputs) if origin is not None]
        losses = frozenset().union(*(origin.losses for origin in origins)) if origins else frozenset()
        after = next((origin.after_loss for origin in origins if origin.after_loss), "")
        if losses and name not in MOVES:
            after = f"{name} ({current_line()})"
        for tensor in outputs:
            self._seen[id(tensor)] = _Origin(tensor, record.ipu, losses, after)
        self.program.uses_half |= any(tensor.dtype == torch.float16 for tensor in (*inputs, *outputs))
        return result

    def _check_support(self, func: Any, name: str, args: Any, kwargs: Any) -> None:
        calling = self.recorder.calling
        if calling is None or is_opaque(calling):
            return
        refused = handlers.restriction(func, args, kwargs)
        if refused is not None:
            raise Error(f"{name}: {refused} ({current_line()})")
        function = getattr(calling, "__name__", "")
        if function in handlers.WHOLE:
            self._unsupported.setdefault(f"aten::{function}", current_line())
        elif not handlers.is_handled(function) and not handlers.is_handled(name.split("::")[1]):
            self._unsupported.setdefault(name, current_line())

    def _record(self) -> StageRecord:
        placement = self._placement
        if placement is None:
            raise Error(
                "No active Block: an operator ran after a poptorch.Block ended and before another began; put it in a "
                f"block, or use BeginBlock ({current_line()})"
            )
        if placement.stage not in self._records:
            self._records[placement.stage] = StageRecord(placement.stage, placement.ipu)
            self.program.stages.append(self._records[placement.stage])
        record = self._records[placement.stage]
        if placement.block and placement.block not in record.blocks:
            record.blocks.append(placement.block)
        return record

    def _use(self, tensor: Tensor, record: StageRecord) -> Optional[_Origin]:
        """Note that a stage uses a tensor."""
        name = self._parameters.get(id(tensor))
        if name is not None:
            self._use_parameter(name, tensor, record)
            return None
        if id(tensor) in self.inputs and self._strategy.pipelined:
            self._settle(self.inputs[id(tensor)], record, "an input is streamed to one IPU; pass on what is made of it")
        origin = self._seen.get(id(tensor))
        if origin is None and id(tensor) in self.inputs:
            origin = _Origin(tensor, _HOST, frozenset())
        if origin is not None and origin.ipu != record.ipu:
            record.received_bytes += _bytes(tensor)
            self._seen[id(tensor)] = origin._replace(ipu=record.ipu)
        return origin

    def _use_parameter(self, name: str, tensor: Tensor, record: StageRecord) -> None:
        self._settle(f"Parameter {name}", record, "a weight lives on one IPU; put all layers that share it there")
        if name not in record.parameters:
            record.parameters.append(name)
            record.parameter_bytes += _bytes(tensor)

    def _settle(self, name: str, record: StageRecord, rule: str) -> None:
        """Raise Error for what two IPUs need and only one can have (rule 5.10)."""
        home = self._home.setdefault(name, record.ipu)
        if home != record.ipu:
            raise Error(f"{name} is used on IPU {home} and on IPU {record.ipu}: {rule} ({current_line()})")

    # The end ----------------------------------------------------------------------------------

    def _refusal(self) -> Error:
        found = "; ".join(f"{name} at {line}" for name, line in self._unsupported.items())
        return Error(f"Unsupported ops found in compiled model: {found}. PopTorch has no lowering for them")

    def check(self, result: Any) -> None:
        """Raise Error for what only shows once all of forward has run; warn of what is easily overlooked."""
        if self._unsupported:
            raise self._refusal()
        leaves = flatten(result)[0]
        for leaf in leaves:
            if not isinstance(leaf, Tensor) and any(map(_is_tensor_of_trace, _inside(leaf))):
                raise Error(
                    f"forward returns tensors inside a {type(leaf).__name__}, where nobody finds them: return them in "
                    "a tuple, list, dictionary or named tuple, or call poptorch.registerCustomArgParser for the type"
                )
        if not self.training:
            return
        final = self.program.loss_index
        for leaf in leaves:
            origin = self._seen.get(id(leaf))
            if origin is not None and origin.after_loss and final in origin.losses:
                logger.warning(
                    "The loss goes through %s after its loss operator: gradients start at the loss operator, so this "
                    "arithmetic has no part in them; wrap the last value in poptorch.identity_loss(value, 'none')",
                    origin.after_loss,
                )


@contextmanager
def tracing(tracer: Tracer, recorder: Recorder, strategy: Strategy, fake: FakeTensorMode) -> Iterator[None]:
    """Trace what runs inside."""
    strategy.onStartTracing()
    try:
        # PyTorch 2.0 would compile scripts for data that there is none of, and crash.
        with torch.jit.optimized_execution(False), substitutes(tracer.is_program), _refusing():
            with device.context(tracer), fake, tracer, recorder:
                yield
    finally:
        strategy.onEndTracing()


@contextmanager
def _refusing() -> Iterator[None]:
    """Say of what only data could answer that a device cannot do it."""
    try:
        yield
    except DataDependentOutputException as error:
        raise Error(
            f"{_item(error)} is only supported in eager mode: forward must not look at a tensor's value, as .item(), "
            f"bool(tensor) and .tolist() do ({line_of(error.__traceback__)})"
        ) from error
    except DynamicOutputShapeException as error:
        line = line_of(error.__traceback__)
        raise Error(
            f"{error.func} makes a tensor whose shape depends on data, which a device cannot have ({line})"
        ) from error


def active() -> Optional[Tracer]:
    """The trace that is on in this thread, if any."""
    context = device.active()
    return context if isinstance(context, Tracer) else None


def _call(func: Any, args: Any, kwargs: Any) -> Any:
    """Call an operator on fake tensors.

    Some versions of PyTorch try operators out to learn the types of their results, and have few in half; nor can they
    pass a number to these operators.
    """
    if func._schema.name.rstrip("_") in ("aten::bitwise_or", "aten::bitwise_xor") and isinstance(args[1], int):
        func, args = func.overloadpacket.Tensor, (args[0], torch.tensor(args[1]))
    try:
        return func(*args, **kwargs)
    except RuntimeError as error:
        if "not implemented for 'Half'" not in str(error):
            raise
    result = func(*tree_map(_widened, args), **tree_map(_widened, kwargs))
    return tree_map(_narrowed, result)


class _Tried(TorchDispatchMode):
    """The same for operators that nobody else watches."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype == torch.float16:
        return torch.ops.aten._to_copy.default(value, dtype=torch.float32)
    return value


def _narrowed(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype == torch.float32:
        return torch.ops.aten._to_copy.default(value, dtype=torch.float16)
    return value


def _inside(value: Any) -> Iterable[Any]:
    return value if isinstance(value, (set, frozenset)) else getattr(value, "__dict__", {}).values()


def _is_tensor_of_trace(value: Any) -> bool:
    return isinstance(value, Tensor) and is_fake(value)


def _item(error: DataDependentOutputException) -> str:
    name = error.func._schema.name
    return "aten::item" if name == "aten::_local_scalar_dense" else name


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _has_tensors(func: Any) -> bool:
    """Whether an operator takes or gives tensors; torch.promote_types, for one, does not."""
    schema = func._schema
    return any("Tensor" in str(item.type) for item in (*schema.arguments, *schema.returns))


def _multiply_adds(name: str, inputs: List[Tensor], outputs: List[Tensor]) -> int:
    if name in ("mm", "addmm", "bmm", "baddbmm"):
        return outputs[0].numel() * inputs[-1].shape[-2]
    if name in ("convolution", "_convolution"):
        return outputs[0].numel() * inputs[1][0].numel()
    return 0
