"""One of several processes, or the only one (section 11)."""

from __future__ import annotations

from typing import Any

import popdist
import popdist.poptorch
import poptorch
import pytest
from emulator_models import Layers, data, options


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set variables for one test, which begins without MPI's."""
    for name in ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch.setenv


def process_of(opts: Any) -> Any:
    return opts.Distributed.processId, opts.Distributed.numProcesses


def training(opts: Any, ipus: int = 1) -> Any:
    model = Layers(ipus)
    return poptorch.trainingModel(model, opts, poptorch.optim.SGD(model.parameters(), lr=0.1))


def test_rule_11_1_a_process_knows_itself_by_its_environment(environment: Any) -> None:
    assert process_of(poptorch.Options()) == (0, 1)
    environment("OMPI_COMM_WORLD_SIZE", "4")
    environment("OMPI_COMM_WORLD_RANK", "2")
    opts = poptorch.Options()
    assert process_of(opts) == (2, 4)
    environment("OMPI_COMM_WORLD_RANK", "3")
    assert process_of(opts) == (2, 4)  # read when it was constructed
    assert process_of(poptorch.Options()) == (3, 4)


def test_rule_11_1_the_program_overrides_it(environment: Any) -> None:
    environment("OMPI_COMM_WORLD_SIZE", "4")
    environment("OMPI_COMM_WORLD_RANK", "2")
    environment("MY_SIZE", "8")
    environment("MY_RANK", "7")
    opts = poptorch.Options()
    opts.Distributed.setEnvVarNames("MY_SIZE", "MY_RANK")
    assert process_of(opts) == (7, 8)
    opts.Distributed.configureProcessId(1, 3)
    assert process_of(opts) == (1, 3)
    opts.Distributed.disable()
    assert process_of(opts) == (0, 1)
    opts.Distributed.setEnvVarNames("NOT_SET", "NEITHER")
    assert process_of(opts) == (0, 1)
    with pytest.raises(AssertionError, match="distributed_process_id"):
        opts.Distributed.configureProcessId("1", 3)


@pytest.mark.parametrize("process, processes", [(3, 3), (0, 0)])
def test_rule_11_1_processes_are_numbered_from_zero(process: int, processes: int) -> None:
    opts = options()
    opts.Distributed.configureProcessId(process, processes)
    with pytest.raises(poptorch.Error, match=f"no process {process} of {processes}"):
        poptorch.inferenceModel(Layers(), opts).compile(*data(1))


def test_rule_11_2_popdist_knows_what_poprun_has_told(environment: Any) -> None:
    """The second of two processes that share 8 replicas of 2 IPUs."""
    for name, value in (("NUM_TOTAL_REPLICAS", 8), ("NUM_LOCAL_REPLICAS", 4), ("REPLICA_INDEX_OFFSET", 4),
                        ("NUM_IPUS_PER_REPLICA", 2)):  # fmt: skip
        environment(f"POPDIST_{name}", str(value))
    assert popdist.isPopdistEnvSet()
    assert (popdist.getInstanceIndex(), popdist.getNumInstances()) == (1, 2)
    assert (popdist.getNumLocalReplicas(), popdist.getNumTotalReplicas(), popdist.getNumIpusPerReplica()) == (4, 8, 2)
    opts = popdist.poptorch.Options(ipus_per_replica=2)
    assert process_of(opts) == (1, 2) and opts.replication_factor == 4


def test_rule_11_2_popdist_sees_one_process() -> None:
    assert not popdist.isPopdistEnvSet()
    popdist.init()
    assert popdist.getInstanceIndex() == 0
    assert popdist.getNumInstances() == popdist.getNumLocalReplicas() == popdist.getNumTotalReplicas() == 1
    assert popdist.getNumIpusPerReplica() == 1


@pytest.mark.parametrize(
    "setter, arguments",
    [
        ("replicationFactor", (2,)),
        ("useIpuId", (0,)),
        ("Distributed.disable", ()),
        ("Distributed.setEnvVarNames", ("A", "B")),
        ("Distributed.configureProcessId", (0, 1)),
    ],
)
def test_rule_11_2_popruns_options_are_its_own(setter: str, arguments: Any) -> None:
    opts: Any = popdist.poptorch.Options(ipus_per_replica=2)
    for name in setter.split("."):
        opts = getattr(opts, name)
    with pytest.raises(RuntimeError, match=setter):
        opts(*arguments)


def test_rule_11_2_popdist_options_are_options(environment: Any) -> None:
    environment("OMPI_COMM_WORLD_SIZE", "4")
    opts = popdist.poptorch.Options(ipus_per_replica=2)
    assert isinstance(opts, poptorch.Options)
    assert process_of(opts) == (0, 1) and opts.replication_factor == 1
    opts.Training.gradientAccumulation(3)
    training(opts, ipus=2)(*data(3))
    assert isinstance(opts.clone(), popdist.poptorch.Options)
    popdist.poptorch.Options().deviceIterations(3)


def test_rule_11_2_a_replica_has_no_more_ipus_than_it_was_given() -> None:
    opts = popdist.poptorch.Options(ipus_per_replica=1)
    opts.Training.gradientAccumulation(3)
    with pytest.raises(poptorch.Error, match="takes 2 IPUs.*ipus_per_replica=2"):
        training(opts, ipus=2).compile(*data(3))


def test_rule_11_3_training_needs_the_other_processes() -> None:
    """That it trains with them is shown in `tests/distributed`."""
    opts = options()
    opts.Distributed.configureProcessId(1, 2)
    with pytest.raises(poptorch.Error, match="Horovod is missing|as process 1 of 2, but Horovod as 0 of 1"):
        training(opts).compile(*data(1))
    poptorch.inferenceModel(Layers(), opts)(*data(1))


def test_rule_11_5_one_process_has_64_ipus() -> None:
    with pytest.raises(poptorch.Error, match="takes 128, and one process can use 64"):
        training(options(replicas=128)).compile(*data(128))
