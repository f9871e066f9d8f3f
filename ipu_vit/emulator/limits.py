"""What PopTorch refuses when it compiles: programs that do not fit their options or the machine."""

from __future__ import annotations

from ipu_vit.emulator.errors import Error
from ipu_vit.emulator.options import Options
from ipu_vit.emulator.trace import Program

#: IPUs that one process can use (rule 5.11).
MOST_IPUS = 64


def check_program(program: Program, options: Options, training: bool) -> None:
    """Raise Error unless the traced program can run with these options (rules 5.9, 5.11, 9.8)."""
    accumulation = options.Training.gradient_accumulation
    iterations, replicas = options.device_iterations, options.replication_factor
    for name, value in (
        ("deviceIterations", iterations),
        ("replicationFactor", replicas),
        ("Training.gradientAccumulation", accumulation),
    ):
        if value < 1:
            raise Error(f"{name} must be at least 1, not {value}")
    if replicas % options.input_group_size:
        raise Error(
            f"inputReplicaGrouping size {options.input_group_size} does not divide replicationFactor {replicas}"
        )
    if options._strategy.pipelined:
        _check_pipeline_is_full(program, accumulation, iterations, training)
    total = program.ipus * replicas
    if total > MOST_IPUS:
        raise Error(f"{program.ipus} IPUs × {replicas} replicas are {total}; one process can use {MOST_IPUS}")
    if total & (total - 1) and not options.auto_round_num_ipus:
        raise Error(
            f"{program.ipus} IPUs × {replicas} replicas are {total}, not a power of two: change replicationFactor, or "
            "call autoRoundNumIPUs(True)"
        )


def _check_pipeline_is_full(program: Program, accumulation: int, iterations: int, training: bool) -> None:
    stages = program.forward_stages
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
