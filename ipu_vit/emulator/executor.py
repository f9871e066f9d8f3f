"""`poptorch.PoplarExecutor`: a model that is compiled once (`compiled`) and then run by host batches."""

from __future__ import annotations

import datetime
import inspect
import random as host_random
import time
from typing import Any, Dict, List, Optional

import torch
from torch import Tensor, nn

from ipu_vit.emulator import optim
from ipu_vit.emulator.batches import HostBatch, Layout
from ipu_vit.emulator.compiled import CompiledModel
from ipu_vit.emulator.enums import ConnectionType, OutputMode
from ipu_vit.emulator.errors import Error
from ipu_vit.emulator.exported import Executable, read_executable, write_executable
from ipu_vit.emulator.hooks import around_compiling
from ipu_vit.emulator.host_switches import neutral
from ipu_vit.emulator.host_tensors import require_unwrapped, trainer_of, unwrap_module, wrap_module
from ipu_vit.emulator.latency import Latency
from ipu_vit.emulator.log import logger
from ipu_vit.emulator.options import Options
from ipu_vit.emulator.program import Program
from ipu_vit.emulator.random import DeviceRandom
from ipu_vit.emulator.replica_groups import GroupableParameter
from ipu_vit.emulator.structure import flatten
from ipu_vit.emulator.version import POPTORCH_VERSION
from ipu_vit.emulator.weights import DeviceWeights


def _own_copy(options: Optional[Options]) -> Options:
    """Options that can still be completed; those of the program cannot be changed from now on (rule 9.7)."""
    if options is None:
        return Options()
    options._freeze()
    return options.clone()


class PoplarExecutor:
    """A wrapped model; made by `trainingModel` and `inferenceModel`."""

    def __init__(
        self,
        model: nn.Module,
        options: Optional[Options],
        training: bool,
        poptorch_version: str,
        optimizer: Optional[torch.optim.Optimizer] = None,
        user_model: Optional[nn.Module] = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise Error(f"Only a torch.nn.Module can be wrapped, not {model!r}")
        if not isinstance(options, (Options, type(None))):
            raise Error(f"options must be a poptorch.Options, not {options!r}")
        options = _own_copy(options)
        if not training and options.Training.gradient_accumulation != 1:
            raise Error(
                f"You must set Training.gradientAccumulation to 1, not {options.Training.gradient_accumulation}, for "
                "inference: use another poptorch.Options and raise deviceIterations instead"
            )
        if options.defaultOutputMode():
            options.outputMode(OutputMode.Final if training else OutputMode.All)
        options._freeze()
        # What runs, with its own class and flags, and the module that the program goes on using.
        self._model = model
        self._user_model = model if user_model is None else user_model
        self._options = options
        self._training = training
        self._optimizer = optimizer
        self._attributes: Optional[optim.Attributes] = None
        if training:
            require_unwrapped(self._user_model)
            self._optimizer = optim.SGD(model.parameters(), lr=0.01) if optimizer is None else optimizer
            self._attributes = optim.read_attributes(self._optimizer, options)
        self._signature = inspect.signature(model.forward)
        self._weights = DeviceWeights(model, max(1, options.replication_factor))
        self._layout = Layout(options, training)
        seed = options.random_seed if options.exists("random_seed") else host_random.SystemRandom().getrandbits(31)
        self._random = DeviceRandom(seed)
        self._compiled: Optional[CompiledModel] = None
        self._compilation_seconds: Optional[float] = None
        self._attached = False
        self._latency = Latency()
        self._followed = 0  # copies to the host, by the training executor, that this one has seen
        #: what `replicaGrouping` was told, by the parameter's name
        self.per_replica_params = self._weights.chosen_groups
        if training:
            self._weights.watch_host()
            wrap_module(self._user_model, self)
            if isinstance(self._optimizer, optim.Optimizer):
                self._optimizer.attach(self)

    # Properties -------------------------------------------------------------------------------

    @property
    def model(self) -> nn.Module:
        return self._user_model

    @property
    def options(self) -> Options:
        return self._options

    @property
    def program(self) -> Program:
        """What the trace recorded: operators, parameters and traffic by pipeline stage.

        Not part of PopTorch. Raises Error before compilation.
        """
        return self._what_is_compiled().program

    @property
    def rng_state(self) -> List[int]:
        self._what_is_compiled()
        return self._random.state

    @rng_state.setter
    def rng_state(self, state: List[int]) -> None:
        self._what_is_compiled()
        self._random.state = state

    def isCompiled(self) -> bool:
        return self._compiled is not None

    def _what_is_compiled(self) -> CompiledModel:
        if self._compiled is None:
            raise Error("The model is not compiled yet: call compile() or run it once")
        return self._compiled

    # Compile ----------------------------------------------------------------------------------

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Trace the model on arguments of a full host batch, whose values do not matter (rule 9.1)."""
        if self.isCompiled():
            logger.warning("The model is already compiled: nothing to do")
            return
        self._compile(HostBatch(self._signature, args, kwargs))

    @neutral()
    def _compile(self, batch: HostBatch) -> None:
        started = time.perf_counter()
        with around_compiling():
            self._compiled = CompiledModel(
                self._model,
                batch,
                self._layout,
                self._options,
                self._weights,
                self._random,
                self._attributes if self._training else None,
            )
            self._attached = self._options.connection_type == ConnectionType.Always
            if isinstance(self._optimizer, optim.Optimizer):
                self._optimizer.attach(self)
        self._compilation_seconds = time.perf_counter() - started

    # Run --------------------------------------------------------------------------------------

    @neutral()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run one host batch and return what `forward` returned, for the micro batches the output mode keeps."""
        assert self._options.connection_type != ConnectionType.Never, (
            "Trying to run a model compiled for an offline target: load the executable where IPUs are"
        )
        if self._compiled is None:
            batch = HostBatch(self._signature, args, kwargs)
            self._compile(batch)
        else:
            batch = self._compiled.batch.following(args, kwargs)
        runner = self._what_is_compiled().runner
        if not self._attached:
            self.attachToDevice()
        if not self._training:
            self._follow_trainer()
        result = runner(batch)
        if self._training:
            self._weights.host_is_stale = True
            self._weights.lend_host()
        self._latency.note(runner.times, len(batch.tensors), runner.outputs)
        return result

    # Optimizer --------------------------------------------------------------------------------

    def setOptimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Use these attribute values from the next call on (rule 4.14)."""
        attributes = optim.read_attributes(optimizer, self._options, self.isCompiled())
        if self._compiled is not None:
            self._compiled.replace_attributes(attributes)
        if isinstance(self._optimizer, optim.Optimizer) and self._optimizer is not optimizer:
            self._optimizer.detach()
        self._attributes, self._optimizer = attributes, optimizer
        if isinstance(optimizer, optim.Optimizer):
            optimizer.attach(self)

    def _optimizer_state(self) -> Dict[str, Any]:
        return self._what_is_compiled().optimizer_state()

    def _load_optimizer_state(self, state: Dict[str, Any]) -> None:
        self._what_is_compiled().load_optimizer_state(state)

    # Weights ----------------------------------------------------------------------------------

    def copyWeightsToHost(self) -> None:
        """Copy the device's weights into the wrapped module."""
        self._what_is_compiled()
        self._weights.to_host()

    def copyWeightsToHostIfNeeded(self) -> bool:
        """Copy the weights back if a run has changed them since; tells whether it did."""
        if not self._weights.host_is_stale:
            return False
        self._weights.to_host()
        return True

    def copyWeightsToDevice(self) -> None:
        """Copy the wrapped module's weights to the device (rule 8.3)."""
        self._what_is_compiled()
        self._weights.host_is_stale = False
        self._weights.to_device()

    def copyNamedBuffersToDevice(self) -> None:
        """Copy the buffers named by `updatableNamedBuffers` to the device."""
        self._what_is_compiled()
        names = self._options._Popart.options.get("updatableNamedBuffers", [])
        unknown = sorted(set(names) - set(self._weights.buffers))
        if unknown:
            raise Error(f"updatableNamedBuffers names {unknown[0]!r}, which is no buffer of the model")
        self._weights.to_device(names)

    def load_state_dict(self, state_dict: Dict[str, Tensor], strict: bool = True) -> Any:
        """Load into the wrapped module, and on to the device if attached (rules 8.3, 8.9)."""
        self.copyWeightsToHostIfNeeded()  # what the dictionary lacks keeps the values it was trained to
        result = self._user_model.load_state_dict(state_dict, strict)
        if self._attached:
            self.copyWeightsToDevice()
        return result

    def _follow_trainer(self) -> None:
        """Take over weights that a training executor of the same module has changed (rule 8.4)."""
        trainer = trainer_of(self._user_model)
        if trainer is None:
            return
        trainer.copyWeightsToHostIfNeeded()
        if self._followed != trainer._weights.copies_to_host:
            self._followed = trainer._weights.copies_to_host
            self.copyWeightsToDevice()

    # Device -----------------------------------------------------------------------------------

    def isAttachedToDevice(self) -> bool:
        return self._attached

    def detachFromDevice(self) -> None:
        """Give the IPUs back, with the weights copied to the host first."""
        self._what_is_compiled()
        if not self._attached:
            raise Error("The executor is not attached to a device")
        self.copyWeightsToHostIfNeeded()
        self._attached = False

    def attachToDevice(self) -> None:
        """Take IPUs again, and put the host's weights on them."""
        self._what_is_compiled()
        assert self._options.connection_type != ConnectionType.Never, (
            "Trying to attach a model that is compiled for an offline target: load the executable where IPUs are"
        )
        if self._attached:
            raise Error("The executor is attached to a device already")
        self._attached = True
        self.copyWeightsToDevice()

    def destroy(self) -> None:
        """Give up the compiled program; the module can then be wrapped again (rule 8.1)."""
        if not self.isCompiled():
            return
        self.copyWeightsToHostIfNeeded()
        if isinstance(self._optimizer, optim.Optimizer):
            self._optimizer.detach()
        self._weights.forget()
        self._compiled = None
        self._attached = False
        if self._training:
            self._weights.unwatch_host()
            unwrap_module(self._user_model)

    # Files ------------------------------------------------------------------------------------

    def save(self, filename: str, export_model: bool = True, save_rng_state: bool = True) -> None:
        """Write the compiled program, and by default the model with its weights, to a file (rule 9.3)."""
        example = self._what_is_compiled().batch.blank()
        self.copyWeightsToHostIfNeeded()
        write_executable(
            filename,
            Executable(
                version=POPTORCH_VERSION,
                training=self._training,
                example=example,
                options=self._options,
                optimizer=self._optimizer if export_model else None,
                model=self._user_model if export_model else None,
                rng_state=self._random.state if save_rng_state else None,
            ),
        )

    def compileAndExport(self, filename: str, *args: Any, export_model: bool = True, **kwargs: Any) -> None:
        """Compile, and write the result to a file."""
        if not self.isCompiled():
            self.compile(*args, **kwargs)
        self.save(filename, export_model)

    def loadExecutable(self, filename: str) -> None:
        """Take the compiled program from a file instead of compiling."""
        if self.isCompiled():
            raise Error("The model is compiled already: load executables into a new executor")
        self.take(read_executable(filename))

    def take(self, executable: Executable) -> None:
        """Compile what a file holds; Error if it is not for this kind of executor."""
        if executable.training != self._training:
            kinds = {True: "training", False: "inference"}
            raise Error(f"The executable is for {kinds[executable.training]}, not for {kinds[self._training]}")
        leaves, structure = flatten(executable.example)  # which are blanks that take no room
        args, kwargs = structure.build([leaf.contiguous() if isinstance(leaf, Tensor) else leaf for leaf in leaves])
        self._compile(HostBatch(self._signature, args, kwargs))
        if executable.rng_state is not None:
            self._random.state = executable.rng_state

    # Questions --------------------------------------------------------------------------------

    def getTensorNames(self) -> List[str]:
        """Names of the compiled program's tensors: weights by their names, results as `function:count`."""
        assert self._compiled is not None, "The model is not compiled yet, so its tensors have no names"
        return self._compiled.tensor_names()

    def getAnchoredTensor(self, short_name: str) -> Tensor:
        """The tensor that `Options.anchorTensor` named, of the last call."""
        anchored = {} if self._compiled is None else self._compiled.runner.anchored
        assert short_name in anchored, f"No tensor is anchored as {short_name!r}, or the model has not run yet"
        return anchored[short_name]

    def compilationTime(self) -> datetime.timedelta:
        """How long compiling took."""
        if self._compilation_seconds is None:
            raise Error("The model is not compiled yet")
        return datetime.timedelta(seconds=self._compilation_seconds)

    def cycleCount(self) -> int:
        """IPU cycles of the last call: hardware counts them, and there is none."""
        raise Error("Cycles are counted by IPU hardware only, with Options.logCycleCount(True)")

    def getPerfCounters(self) -> Any:
        return self._latency.counters()

    def getHostIpuLatency(self) -> Any:
        return self._latency.host_to_ipu()

    def getComputeLatency(self) -> Any:
        return self._latency.compute()

    def getIpuHostLatency(self) -> Any:
        return self._latency.ipu_to_host()

    def getLatency(self) -> Any:
        return self._latency.whole()

    def __getattr__(self, name: str) -> Any:
        # Whatever is not the executor's is the wrapped module's.
        if name.startswith("__") or "_user_model" not in self.__dict__:
            raise AttributeError(name)
        value = getattr(self._user_model, name)
        if not isinstance(value, nn.Parameter):
            return value
        return GroupableParameter(value, lambda chosen: self.per_replica_params.update({name: chosen}))

    def __repr__(self) -> str:
        return repr(self._user_model)
