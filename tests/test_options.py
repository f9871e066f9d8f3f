"""Settings reach `poptorch.Options`, and nothing else does."""

from __future__ import annotations

from typing import Any, Optional

import poptorch
import pytest
from tiny_runs import CPU

from ipu_vit.device import Device
from ipu_vit.options import evaluation_options, training_options
from ipu_vit.settings import DataSettings, Settings


def settings_with(**options: Any) -> Settings:
    pipeline = {"global_batch": 4 * 7 * 6, "micro_batch": 6, "replicas": 4, "device_iterations": 3, **options}
    optimizer = {"max_grad_norm": pipeline.pop("max_grad_norm", None)}
    return Settings(seed=9, pipeline=pipeline, optimizer=optimizer, schedule={"updates": 30})


def test_training() -> None:
    options = training_options(settings_with(available_memory_proportion=[0.1, 0.2, 0.3, 0.4]), CPU)
    found = options.toDict()
    assert found["device_iterations"] == 3
    assert found["replication_factor"] == 4
    assert found["gradient_accumulation"] == 7
    assert found["accumulation_and_replication_reduction_type"] == poptorch.ReductionType.Mean.value
    assert found["random_seed"] == 9
    assert found["output_mode"] == poptorch.OutputMode.All.value
    assert found["available_memory_proportion"] == {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4}
    assert found["enableStochasticRounding"] is True
    assert "location_optimizer" not in found


def test_one_proportion_is_for_all() -> None:
    options = training_options(settings_with(available_memory_proportion=[0.25]), CPU)
    assert options.toDict()["available_memory_proportion"] == dict.fromkeys(range(4), 0.25)


def test_session_options() -> None:
    found = training_options(settings_with(prefetch_depth=5), CPU)._Popart.options
    assert found["partialsTypeMatMuls"] == "half"
    assert found["defaultBufferingDepth"] == 5
    assert found["disableGradAccumulationTensorStreams"] is True
    assert found["accumulateOuterFragmentSettings.schedule"] == 3  # OverlapMemoryOptimized
    assert training_options(settings_with(partials="float32"), CPU)._Popart.options["partialsTypeMatMuls"] == "float"


def test_clipping_leaves_the_schedule_to_poptorch() -> None:
    found = training_options(settings_with(max_grad_norm=1.0), CPU)._Popart.options
    assert "accumulateOuterFragmentSettings.schedule" not in found


@pytest.mark.parametrize("source, mode", [("folder", None), ("generated", None), ("synthetic", 2)])  # RandomNormal
def test_synthetic_data_are_made_on_the_device(source: str, mode: Optional[int]) -> None:
    settings = settings_with().model_copy(update={"data": DataSettings(source=source)})
    for options in (training_options(settings, CPU), evaluation_options(settings, CPU)):
        assert options._Popart.options.get("syntheticDataMode") == mode


@pytest.mark.parametrize("replicas, expected", [(4, True), (1, False)])
def test_sharding_needs_replicas(replicas: int, expected: bool) -> None:
    found = training_options(settings_with(replicas=replicas, replicated_tensor_sharding=True), CPU).toDict()
    assert ("location_optimizer" in found) == expected
    if expected:
        assert found["location_optimizer"]["useReplicatedTensorSharding"] == 1
        assert found["location_optimizer"]["onChip"] == 1


def test_evaluation() -> None:
    """One replica, a full pipeline, and nothing that only training may have."""
    options = evaluation_options(settings_with(), CPU)
    found = options.toDict()
    assert (found["device_iterations"], found["replication_factor"], found["gradient_accumulation"]) == (4, 1, 1)
    assert found["output_mode"] == poptorch.OutputMode.All.value
    assert not options.Precision.enable_stochastic_rounding
    assert "accumulateOuterFragmentSettings.schedule" not in options._Popart.options


def test_devices(tmp_path: Any) -> None:
    settings = settings_with(executable_cache=str(tmp_path))
    for kind, model, cached in (("ipu", False, True), ("cpu", False, True), ("ipu_model", True, False)):
        options = training_options(settings, Device(kind, "a test"))
        assert (options.toDict().get("use_model") is True) == model, kind
        assert (str(tmp_path) in str({**options.toDict(), **options._Popart.options})) == cached, kind
