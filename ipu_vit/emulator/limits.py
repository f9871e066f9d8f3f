"""What PopTorch refuses when it compiles: programs that do not fit their options or the machine."""

from __future__ import annotations

from ipu_vit.emulator import session_options
from ipu_vit.emulator.enums import OutputMode
from ipu_vit.emulator.errors import Error
from ipu_vit.emulator.hardware import check_device
from ipu_vit.emulator.options import Options
from ipu_vit.emulator.program import Program
from ipu_vit.emulator.update.reduction import meet


def check_options(options: Options, training: bool) -> None:
    """Raise Error unless some program could run with these options."""
    session_options.check(options)
    _check_counts(options)
    _check_processes(options, training)


def check_program(program: Program, options: Options, training: bool) -> None:
    """Raise Error unless the traced program can run with these options."""
    if options._strategy.pipelined:
        _check_pipeline_is_full(program, options, training)
        _check_every_n(program, options)
    if program.overlaps_io:
        _check_overlap(options)
    if options.exists("ipus_per_replica") and program.ipus > options.ipus_per_replica:
        raise Error(
            f"A replica of the program takes {program.ipus} IPUs, and popdist.poptorch.Options was told of "
            f"{options.ipus_per_replica}: give it ipus_per_replica={program.ipus}"
        )
    check_device(options, program.ipus * options.replication_factor)


def _check_counts(options: Options) -> None:
    """Setters take any integer (rule 9.8)."""
    replicas = options.replication_factor
    for name, value in (
        ("deviceIterations", options.device_iterations),
        ("replicationFactor", replicas),
        ("Training.gradientAccumulation", options.Training.gradient_accumulation),
    ):
        if value < 1:
            raise Error(f"{name} must be at least 1, not {value}")
    if replicas % options.input_group_size:
        raise Error(
            f"inputReplicaGrouping size {options.input_group_size} does not divide replicationFactor {replicas}"
        )


def _check_processes(options: Options, training: bool) -> None:
    process, processes = options.Distributed.processId, options.Distributed.numProcesses
    if not 0 <= process < processes:
        raise Error(f"Options.Distributed: there is no process {process} of {processes}; they are numbered from 0")
    if training and processes > 1:
        meet(options)


def _check_pipeline_is_full(program: Program, options: Options, training: bool) -> None:
    """Every stage needs a micro batch of its own (rule 5.9)."""
    stages = program.forward_stages
    accumulation, iterations = options.Training.gradient_accumulation, options.device_iterations
    if training and accumulation < 2 * stages - 1:
        raise Error(
            f"poptorch.Options().Training.gradientAccumulation must be greater than or equal to the number of pipeline "
            f"stages ({2 * stages - 1}), but is {accumulation}"
        )
    if not training and iterations < stages:
        raise Error(
            f"poptorch.Options().deviceIterations must be greater than or equal to the number of pipeline stages "
            f"({stages}), but is {iterations}"
        )


def _check_every_n(program: Program, options: Options) -> None:
    """A pipeline cannot skip batches on their way out (rule 1.7)."""
    modes = [OutputMode(options.output_mode), *(mode for _, mode, _ in options.anchors().values())]
    if program.ipus > 1 and OutputMode.EveryN in modes:
        raise Error(
            "OutputMode.EveryN does not go with PipelinedExecution over more than one IPU: use OutputMode.All and drop "
            "the rest"
        )


def _check_overlap(options: Options) -> None:
    """Traffic with the host beside computation needs tiles and a schedule of its own (rule 9.11)."""
    if options._strategy.pipelined:
        raise Error(
            "set_overlap_for_input and set_overlap_for_output do not go with PipelinedExecution: use "
            "setExecutionStrategy(poptorch.ShardedExecution())"
        )
    if not options.TensorLocations.exists("numIOTiles"):
        raise Error("Overlapped input and output needs IO tiles: call TensorLocations.numIOTiles(32) or more")
    mode = OutputMode(options.output_mode)
    if mode not in (OutputMode.All, OutputMode.Sum):
        raise Error(f"Overlapped input and output needs outputMode All or Sum, not {mode.name}")
