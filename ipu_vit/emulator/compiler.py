"""From a module to a program: the module's forward is traced once and checked against the options."""

from __future__ import annotations

import torch
from torch import nn

from ipu_vit.emulator import functions
from ipu_vit.emulator.batches import HostBatch, Layout
from ipu_vit.emulator.errors import Error
from ipu_vit.emulator.leftovers import TraceMode, cleared_away, trace_mode
from ipu_vit.emulator.limits import check_options, check_program
from ipu_vit.emulator.options import Options
from ipu_vit.emulator.program import Program
from ipu_vit.emulator.random import DeviceRandom
from ipu_vit.emulator.recorder import Recorder
from ipu_vit.emulator.session_options import auto_recomputation
from ipu_vit.emulator.trace import Tracer, tracing
from ipu_vit.emulator.weights import DeviceWeights


def compile_program(
    model: nn.Module,
    batch: HostBatch,
    layout: Layout,
    options: Options,
    training: bool,
    weights: DeviceWeights,
    random: DeviceRandom,
) -> Program:
    """Trace a module on a host batch, whose values do not matter; Error for what PopTorch would not compile."""
    check_options(options, training)
    with trace_mode() as fake:
        program = _trace(fake, model, batch, layout, options, training, weights, random)
    check_program(program, options, training)
    if training:
        program.recomputation = auto_recomputation(options, program.ipus)
    _check_buffers(program, options, weights)
    return program


def _trace(
    fake: TraceMode,
    model: nn.Module,
    batch: HostBatch,
    layout: Layout,
    options: Options,
    training: bool,
    weights: DeviceWeights,
    random: DeviceRandom,
) -> Program:
    with fake:
        inputs = [
            torch.empty(tensor.shape, dtype=tensor.dtype) for tensor in batch.micro_batch(0, layout.micro_batches)
        ]
    args, kwargs = batch.arguments(inputs)
    fakes = weights.fakes(fake)
    recorder = Recorder(
        functions.replacements(random), weights.name_of, functions.on_device_types, functions.check_call
    )
    for tensor in inputs:
        recorder.new_slot(tensor)
    recorder.weights = {name: recorder.new_slot(tensor) for name, tensor in fakes.items()}
    parameters = {id(tensor): name for name, tensor in fakes.items() if isinstance(tensor, nn.Parameter)}
    tracer = Tracer(options._strategy, parameters, recorder, training)
    tracer.inputs = {id(tensor): f"Input {position}" for position, tensor in enumerate(inputs)}
    with cleared_away(model), weights.installed(fakes), torch.set_grad_enabled(training):
        with tracing(tracer, recorder, options._strategy, fake):
            result = model(*args, **kwargs)
    tracer.check(result)
    if training:
        tracer.trace_backward(fake, [fakes[name] for name in weights.trained])
    loss = tracer.losses[tracer.program.loss_index] if training else None
    tracer.program.tape = recorder.finish(inputs, result, loss)
    return tracer.program


def _check_buffers(program: Program, options: Options, weights: DeviceWeights) -> None:
    """Replicas that share a buffer must not write into it (rule 8.7); those of batch normalisation may."""
    if options.replication_factor == 1 or not options.broadcast_buffers:
        return
    written = set(program.tape.assigned_weights).intersection(weights.buffers) - weights.statistics
    if written:
        raise Error(
            f"forward changes buffer {min(written)} in place, and {options.replication_factor} replicas would share "
            "it: call broadcastBuffers(False) so that each has its own"
        )
