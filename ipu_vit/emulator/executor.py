"""`poptorch.PoplarExecutor`: a model that is compiled once and then run by host batches.

Compiling traces the model (`trace`), checks the trace against the options, and copies the weights
to the "device": tensors of the emulator's own. Running cuts the host batch into micro batches
(`batches`), runs each forward and, in training, backward from the loss operator, accumulates and
updates (`update`). A pipeline's stages hold different micro batches at a time but compute the same
numbers as one micro batch after the other, so that is what a run does.
"""

from __future__ import annotations

import random as host_random
import time
import weakref
from contextlib import contextmanager, nullcontext
from typing import Any, Callable, ContextManager, Dict, Iterator, List, Optional, Tuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ipu_vit.emulator import device
from ipu_vit.emulator.arithmetic import HalfArithmetic
from ipu_vit.emulator.batches import HostBatch, Layout, Outputs
from ipu_vit.emulator.enums import OutputMode
from ipu_vit.emulator.errors import Error
from ipu_vit.emulator.functions import DeviceFunctions
from ipu_vit.emulator.limits import check_program
from ipu_vit.emulator.log import logger
from ipu_vit.emulator.optim import SGD, Optimizer, attributes_of
from ipu_vit.emulator.options import Options
from ipu_vit.emulator.random import BitStream, DeviceRandom
from ipu_vit.emulator.trace import Program, fakes_of, tracing
from ipu_vit.emulator.update import Accumulators, SGDUpdate
from ipu_vit.emulator.weights import DeviceWeights

#: The version of PopTorch whose behaviour is emulated.
POPTORCH_VERSION = "3.4.0"

# Training executors by the module they train, so that inference with the same module follows (rule 8.4).
_trainers: weakref.WeakKeyDictionary[nn.Module, weakref.ref[PoplarExecutor]] = weakref.WeakKeyDictionary()
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


class _Run(device.Context):
    """What the operators of one running micro batch report to: keeps the loss to differentiate."""

    def __init__(self, wanted: Optional[int]) -> None:
        self._wanted = wanted
        self._met = 0
        self.loss: Optional[Tensor] = None

    def on_loss(self, loss: Tensor) -> None:
        if self._met == self._wanted:
            self.loss = loss
        self._met += 1


class PoplarExecutor:
    """A wrapped model; made by `trainingModel` and `inferenceModel`."""

    def __init__(
        self,
        model: nn.Module,
        options: Optional[Options],
        training: bool,
        poptorch_version: str = POPTORCH_VERSION,
        optimizer: Optional[torch.optim.Optimizer] = None,
        user_model: Optional[nn.Module] = None,
    ) -> None:
        options = Options() if options is None else options.clone()
        if not training and options.Training.gradient_accumulation != 1:
            raise Error(
                f"You must set Training.gradientAccumulation to 1, not {options.Training.gradient_accumulation}, for "
                "inference: use another poptorch.Options and raise deviceIterations instead"
            )
        if options.defaultOutputMode():
            options.outputMode(OutputMode.Final if training else OutputMode.All)
        options._freeze()
        if training and _trainer_of(model) is not None:
            raise RuntimeError("This model is already wrapped for training: call destroy() on the other executor first")
        self._model = model
        self._options = options
        self._training = training
        self._optimizer = optimizer
        if training and optimizer is None:
            self._optimizer = SGD(model.parameters(), lr=0.01)
        if training and not isinstance(self._optimizer, torch.optim.SGD):
            kind = type(self._optimizer).__name__
            raise Error(f"Unsupported optimizer {kind}: use torch.optim.SGD or poptorch.optim.SGD")
        self._weights = DeviceWeights(model)
        self._layout = Layout(options, training)
        seed = options.random_seed if options.exists("random_seed") else host_random.SystemRandom().getrandbits(31)
        self._random = DeviceRandom(seed)
        self._functions = DeviceFunctions(self._random)
        self._program: Optional[Program] = None
        self._compiled_for: Optional[HostBatch] = None
        self._update: Optional[SGDUpdate] = None
        self._attached = False
        self._compilation_seconds: Optional[float] = None
        if training:
            _trainers[model] = weakref.ref(self)
            if isinstance(self._optimizer, Optimizer):
                self._optimizer._executor = weakref.ref(self)
            for module in model.modules():
                self._weights.refresh_before_state_dict(module)

    # Properties -------------------------------------------------------------------------------

    @property
    def model(self) -> nn.Module:
        return self._model

    @property
    def options(self) -> Options:
        return self._options

    @property
    def program(self) -> Program:
        """What the trace recorded: operators, parameters and traffic by pipeline stage.

        Not part of PopTorch. Raises Error before compilation.
        """
        if self._program is None:
            raise Error("The model is not compiled yet: call compile() or run it once")
        return self._program

    @property
    def rng_state(self) -> List[int]:
        if not self.isCompiled():
            raise Error("The random state can be read and set once the model is compiled")
        return self._random.state

    @rng_state.setter
    def rng_state(self, state: List[int]) -> None:
        if not self.isCompiled():
            raise Error("The random state can be read and set once the model is compiled")
        self._random.state = state

    def isCompiled(self) -> bool:
        return self._program is not None

    # Compile ----------------------------------------------------------------------------------

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Trace the model on arguments of a full host batch, whose values do not matter (rule 9.1)."""
        if self.isCompiled():
            logger.warning("The model is already compiled: nothing to do")
            return
        self._compile(HostBatch(args, kwargs))

    def _compile(self, batch: HostBatch) -> None:
        started = time.perf_counter()
        program = self._trace(batch)
        check_program(program, self._options, self._training)
        self._weights.to_device()
        if self._optimizer is not None:
            attributes = attributes_of(self._optimizer, self._weights.names_by_address())
            self._update = SGDUpdate(attributes, self._options, self._weights.device, program.trained)
        self._loss_index = program.loss_index if self._training else None
        self._training_flags = [(module, module.training) for module in self._model.modules()]
        self._program = program
        self._compiled_for = batch
        self._attached = True
        loaded = getattr(self._optimizer, "_loaded", None)
        if loaded is not None:
            self._load_optimizer_state(loaded)
        self._compilation_seconds = time.perf_counter() - started

    def _trace(self, batch: HostBatch) -> Program:
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        args, kwargs = fakes_of(batch.micro_batch(0, self._layout.micro_batches), fake)
        fakes, names = self._weights.fakes(fake)
        with self._weights.installed(fakes), torch.set_grad_enabled(self._training):
            with tracing(self._options._strategy, names, fake) as tracer, self._functions:
                self._model(*args, **kwargs)
        if self._training:
            tracer.trace_backward(fake, [fakes[name] for name in self._weights.trained])
        return tracer.program

    # Run --------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one host batch and return what `forward` returned, for the micro batches the output mode keeps."""
        batch = HostBatch(args, kwargs)
        if not self.isCompiled():
            self._compile(batch)
        assert self._compiled_for is not None
        batch.check_against(self._compiled_for)
        if not self._attached:
            raise Error("The device is detached: call attachToDevice() before running")
        if not self._training:
            self._follow_trainer()
        outputs = Outputs(self._options, self._layout)
        with self._on_device():
            for iteration in range(self._layout.device_iterations):
                self._run_iteration(batch, outputs, iteration)
        if self._training:
            self._weights.host_is_stale = True
        return outputs.gather()

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        """The device's weights, module flags and gradient mode, for the time of a run."""
        flags = [(module, module.training) for module in self._model.modules()]
        with self._weights.installed(self._weights.device), torch.set_grad_enabled(self._training):
            for module, training in self._training_flags:
                module.training = training
            try:
                yield
            finally:
                for module, training in flags:
                    module.training = training

    def _run_iteration(self, batch: HostBatch, outputs: Outputs, iteration: int) -> None:
        """One device iteration: a weight update in training, one micro batch per replica in inference."""
        layout = self._layout
        accumulators = [self._new_accumulators(replica) for replica in range(layout.replicas)] if self._update else []
        for replica in range(layout.replicas):
            for step in range(layout.accumulation):
                index = layout.input_index(iteration, step, replica)
                args, kwargs = batch.micro_batch(index, layout.micro_batches)
                with self._arithmetic(), self._random.micro_batch(replica, step):
                    result, gradients = self._micro_batch(args, kwargs)
                outputs.add(iteration, step, replica, result)
                if accumulators:
                    accumulators[replica].add(gradients)
                self._report_progress(iteration, replica, step)
        if self._update is not None:
            self._update.apply(accumulators, self._rounding_bits(layout.replicas))
        self._random.advance(layout.accumulation)

    def _new_accumulators(self, replica: int) -> Accumulators:
        assert self._update is not None
        return self._update.new_accumulators(self._rounding_bits(replica))

    def _rounding_bits(self, stream: int) -> Optional[BitStream]:
        return self._random.rounding(stream) if self._options.Precision.enable_stochastic_rounding else None

    def _arithmetic(self) -> ContextManager[Any]:
        return HalfArithmetic() if self.program.uses_half else nullcontext()

    def _micro_batch(self, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Tuple[Any, Dict[str, Tensor]]:
        """Forward and, in training, backward: the result and the gradients times the loss scale."""
        run = _Run(self._loss_index)
        with device.context(run), self._functions:
            result = self._model(*args, **kwargs)
        if self._update is None:
            return result, {}
        assert run.loss is not None
        names = self.program.trained
        scale = torch.full_like(run.loss, self._update.attributes.loss_scaling)
        gradients = torch.autograd.grad(run.loss, [self._weights.device[name] for name in names], scale)
        return result, dict(zip(names, gradients))

    def _report_progress(self, iteration: int, replica: int, step: int) -> None:
        layout = self._layout
        done = (iteration * layout.replicas + replica) * layout.accumulation + step + 1
        for observer in _observers:
            observer(done, layout.device_iterations * layout.replicas * layout.accumulation)

    # Optimizer --------------------------------------------------------------------------------

    def setOptimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Use these attribute values from the next call on (rule 4.14)."""
        if self._update is not None:
            new = attributes_of(optimizer, self._weights.names_by_address())
            new.check_replaces(self._update.attributes, self._options._relax_optimizer_checks)
            self._update.attributes = new
        self._optimizer = optimizer
        if isinstance(optimizer, Optimizer):
            optimizer._executor = weakref.ref(self)

    def _optimizer_state(self) -> Dict[str, Any]:
        assert self._update is not None
        return self._update.state()

    def _load_optimizer_state(self, state: Dict[str, Any]) -> None:
        assert self._update is not None
        self._update.load(state)

    # Weights ----------------------------------------------------------------------------------

    def copyWeightsToHost(self) -> None:
        """Copy the device's weights into the wrapped module."""
        self._weights.to_host()

    def copyWeightsToHostIfNeeded(self) -> bool:
        """Copy the weights back if a run has changed them since; tells whether it did."""
        if not self._weights.host_is_stale:
            return False
        self._weights.to_host()
        return True

    def copyWeightsToDevice(self) -> None:
        """Copy the wrapped module's weights to the device (rule 8.3)."""
        self._weights.to_device()

    def load_state_dict(self, state_dict: Dict[str, Tensor], strict: bool = True) -> Any:
        """Load into the wrapped module, and on to the device if attached."""
        result = self._model.load_state_dict(state_dict, strict)
        self._weights.host_is_stale = False
        if self._attached:
            self.copyWeightsToDevice()
        return result

    def state_dict(self, *args: Any, **kwargs: Any) -> Dict[str, Any]:
        """The wrapped module's, with the device's weights."""
        self.copyWeightsToHostIfNeeded()
        return self._model.state_dict(*args, **kwargs)

    def _follow_trainer(self) -> None:
        """Take over weights that a training executor of the same module has changed."""
        trainer = _trainer_of(self._model)
        if trainer is not None and trainer.copyWeightsToHostIfNeeded():
            self.copyWeightsToDevice()

    # Device -----------------------------------------------------------------------------------

    def isAttachedToDevice(self) -> bool:
        return self._attached

    def detachFromDevice(self) -> None:
        """Give the IPUs back, with the weights copied to the host first."""
        if not self._attached:
            raise Error("The executor is not attached to a device")
        self.copyWeightsToHostIfNeeded()
        self._attached = False

    def attachToDevice(self) -> None:
        """Take IPUs again, and put the host's weights on them."""
        if not self.isCompiled():
            raise Error("Compile the model before attaching it to a device")
        if self._attached:
            raise Error("The executor is attached to a device already")
        self._attached = True
        self.copyWeightsToDevice()

    def destroy(self) -> None:
        """Give up the compiled program; the module can then be wrapped again (rule 8.1)."""
        if not self.isCompiled():
            return
        self.copyWeightsToHostIfNeeded()
        self._weights.forget()
        self._program = None
        self._attached = False
        _trainers.pop(self._model, None)

    def compilationTime(self) -> Any:
        """Seconds that compiling took, as a timedelta."""
        import datetime

        if self._compilation_seconds is None:
            raise Error("The model is not compiled yet")
        return datetime.timedelta(seconds=self._compilation_seconds)

    def __getattr__(self, name: str) -> Any:
        # Whatever is not the executor's is the wrapped module's.
        if name.startswith("_") or "_model" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._model, name)


def _trainer_of(model: nn.Module) -> Optional[PoplarExecutor]:
    """The executor that trains this module, if there is one."""
    reference = _trainers.get(model)
    return None if reference is None else reference()


def trainingModel(
    model: nn.Module, options: Optional[Options] = None, optimizer: Optional[torch.optim.Optimizer] = None
) -> PoplarExecutor:
    """`poptorch.trainingModel`."""
    return PoplarExecutor(model, options, training=True, optimizer=optimizer)


def inferenceModel(model: Any, options: Optional[Options] = None) -> PoplarExecutor:
    """`poptorch.inferenceModel`; a training executor may stand for its module (rule 8.1)."""
    return PoplarExecutor(model.model if isinstance(model, PoplarExecutor) else model, options, training=False)
