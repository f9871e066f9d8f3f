"""Devices, and what the environment says of them, of options and of the log (section 10)."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict

import poptorch
import pytest
from emulator_models import Layers, data, options

from ipu_vit.emulator import hardware
from ipu_vit.emulator.log import logger

VARIABLES = [
    "POPTORCH_IPU_MODEL",
    "POPTORCH_SMALL_IPU_MODEL",
    "POPTORCH_IPU_MODEL_VERSION",
    "POPTORCH_EMULATED_IPUS",
    "POPTORCH_CACHE_DIR",
    "POPTORCH_DEFAULT_OPTIONS",
]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set variables for one test, which begins without any."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch.setenv


def logged(variables: Dict[str, str]) -> subprocess.CompletedProcess[str]:
    """What a new process with these variables writes when it warns of something."""
    return subprocess.run(
        [sys.executable, "-c", "from ipu_vit.emulator.log import logger; logger.warning('%d fires', 3)"],
        env={"PYTHONPATH": str(Path(__file__).parents[2]), **variables},
        capture_output=True,
        text=True,
        check=False,
    )


# Devices -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "own, model, small, expected",
    [
        (None, None, None, False),
        (None, "1", None, True),
        (None, "0", None, False),
        (None, None, "1", True),
        (None, "0", "3", True),
        (False, "1", "1", False),
        (True, None, None, True),
    ],
)
def test_rule_10_1_who_chooses_the_ipu_model(
    environment: Any, own: Any, model: Any, small: Any, expected: bool
) -> None:
    opts = options()
    if own is not None:
        opts.useIpuModel(own)
    for name, value in (("POPTORCH_IPU_MODEL", model), ("POPTORCH_SMALL_IPU_MODEL", small)):
        if value is not None:
            environment(name, value)
    assert hardware.uses_ipu_model(opts) is expected


@pytest.mark.parametrize(
    "variables, tiles",
    [
        ({}, 1472),
        ({"POPTORCH_IPU_MODEL_VERSION": "ipu1"}, 1216),
        ({"POPTORCH_IPU_MODEL_VERSION": "ipu2"}, 1472),
        ({"POPTORCH_IPU_MODEL_VERSION": "ipu21"}, 1472),
        ({"POPTORCH_IPU_MODEL_VERSION": "ipu:8"}, 8),
        ({"POPTORCH_SMALL_IPU_MODEL": "1"}, 4),
        ({"POPTORCH_SMALL_IPU_MODEL": "1", "POPTORCH_IPU_MODEL": "1"}, 1472),
    ],
)
def test_rule_10_1_models_and_their_tiles(environment: Any, variables: Dict[str, str], tiles: int) -> None:
    for name, value in variables.items():
        environment(name, value)
    assert hardware.ipu_model_tiles() == tiles


def test_rule_10_1_variables_must_make_sense(environment: Any) -> None:
    environment("POPTORCH_IPU_MODEL", "yes")
    with pytest.raises(poptorch.Error, match="POPTORCH_IPU_MODEL must be an integer, not 'yes'"):
        poptorch.ipuHardwareIsAvailable()
    environment("POPTORCH_IPU_MODEL", "1")
    environment("POPTORCH_IPU_MODEL_VERSION", "ipu3")
    with pytest.raises(poptorch.Error, match="ipu1, ipu2, ipu21"):
        poptorch.inferenceModel(Layers(), options()).compile(*data(1))


def test_rule_10_2_no_hardware_is_reported() -> None:
    assert not poptorch.ipuHardwareIsAvailable()
    assert not poptorch.ipuHardwareIsAvailable(num_ipus=4)
    with pytest.raises(AssertionError, match="no IPU"):
        poptorch.ipuHardwareVersion()
    assert poptorch.poptorch_core.ipuHardwareVersion() == 0


def test_rule_10_2_hardware_can_be_reported(environment: Any) -> None:
    environment("POPTORCH_EMULATED_IPUS", "16")
    assert poptorch.ipuHardwareIsAvailable(16)
    assert not poptorch.ipuHardwareIsAvailable(17)
    assert poptorch.ipuHardwareVersion() == poptorch.poptorch_core.ipuHardwareVersion(16) == 2
    assert poptorch.poptorch_core.ipuHardwareVersion(17) == 0
    environment("POPTORCH_SMALL_IPU_MODEL", "1")
    assert not poptorch.ipuHardwareIsAvailable(1)


def test_rule_10_3_emulated_ipus_are_never_waited_for(environment: Any) -> None:
    environment("POPTORCH_WAIT_FOR_IPU", "1")
    executor = poptorch.inferenceModel(Layers(), options())
    executor(*data(1))
    assert executor.isAttachedToDevice()


# Options -----------------------------------------------------------------------------------------


def test_rule_10_4_default_options(environment: Any) -> None:
    environment(
        "POPTORCH_DEFAULT_OPTIONS",
        '{"deviceIterations": 3, "Training.gradientAccumulation": 8, "Precision.enableStochasticRounding": true,'
        ' "setAvailableMemoryProportion": {"IPU1": 0.3}}',
    )
    opts = poptorch.Options()
    assert (opts.device_iterations, opts.Training.gradient_accumulation) == (3, 8)
    assert opts._Popart.options["enableStochasticRounding"] is True
    assert opts.available_memory_proportion == {1: 0.3}
    assert opts.deviceIterations(5).device_iterations == 5
    environment("POPTORCH_DEFAULT_OPTIONS", '{"noSuchOption": 1}')
    with pytest.raises(AttributeError, match="noSuchOption"):
        poptorch.Options()


def test_rule_10_4_options_in_files(tmp_path: Path) -> None:
    file = tmp_path / "poptorch.conf"
    file.write_text(
        "# the size of everything\n\n"
        "deviceIterations(3)\n"
        "  Training.gradientAccumulation(8)  # micro batches\n"
        "outputMode(poptorch.OutputMode.EveryN, 3)\n"
        "_Popart.set('autoRecomputation', 3)\n"
    )
    opts = poptorch.Options()
    assert opts.loadFromFile(str(file)) is opts
    assert (opts.device_iterations, opts.Training.gradient_accumulation, opts.output_return_period) == (3, 8, 3)
    assert opts._Popart.options["autoRecomputation"] == 3


def test_rule_10_4_files_with_mistakes(tmp_path: Path) -> None:
    file = tmp_path / "poptorch.conf"
    file.write_text("deviceIterations(3)\n\ndeviceIterations(4\n")
    opts = poptorch.Options()
    with pytest.raises(poptorch.ConfigFileError, match="line 3"):
        opts.loadFromFile(str(file))
    assert opts.device_iterations == 1
    file.write_text("noSuchOption(3)\n")
    with pytest.raises(AttributeError, match="noSuchOption"):
        opts.loadFromFile(str(file))


# The log -----------------------------------------------------------------------------------------


def test_rule_10_5_log_levels(log: pytest.LogCaptureFixture) -> None:
    for level, heard in (
        ("OFF", ""),
        ("ERR", "e"),
        ("WARN", "ew"),
        ("INFO", "ewi"),
        ("DEBUG", "ewid"),
        ("TRACE", "ewid"),
    ):
        log.clear()
        poptorch.setLogLevel(level)
        logger.error("e"), logger.warning("w"), logger.info("i"), logger.debug("d")
        assert "".join(log.messages) == heard
    for number, name in ((0, "TRACE"), (1, "DEBUG"), (2, "INFO"), (3, "WARN"), (4, "ERR"), (6, "OFF")):
        poptorch.setLogLevel(name)
        level = logger.level
        poptorch.setLogLevel(number)
        assert logger.level == level
    for wrong in (5, "LOUD", "warn"):
        with pytest.raises(ValueError, match="TRACE"):
            poptorch.setLogLevel(wrong)


def test_rule_10_5_the_log_by_environment(tmp_path: Path) -> None:
    assert logged({}).stderr.endswith("] [poptorch::python] [warning] 3 fires\n")
    assert logged({"POPTORCH_LOG_LEVEL": "ERR"}).stderr == ""
    assert logged({"POPTORCH_LOG_DEST": "stdout"}).stdout.endswith("3 fires\n")
    file = tmp_path / "log"
    assert logged({"POPTORCH_LOG_DEST": str(file)}).stderr == ""
    assert file.read_text().endswith("3 fires\n")
    assert "Invalid log level 'LOUD'" in logged({"POPTORCH_LOG_LEVEL": "LOUD"}).stderr


def test_rule_10_6_what_the_ipu_model_does_not_do(environment: Any, log: pytest.LogCaptureFixture) -> None:
    environment("POPTORCH_IPU_MODEL", "1")
    executor = poptorch.inferenceModel(Layers(), options().enableExecutableCaching("folder"))
    executor(*data(1))
    assert "no effect on the IPU Model" in log.text
    with pytest.raises(poptorch.Error, match="cycles"):
        poptorch.inferenceModel(Layers(), options().logCycleCount(True)).compile(*data(1))
    poptorch.inferenceModel(Layers(), options().logCycleCount(True).useIpuModel(False)).compile(*data(1))


def test_importing_makes_forking_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RDMAV_FORK_SAFE")
    importlib.reload(poptorch)
    assert os.environ["RDMAV_FORK_SAFE"] == "1"
    monkeypatch.setenv("RDMAV_FORK_SAFE", "0")
    importlib.reload(poptorch)
    assert os.environ["RDMAV_FORK_SAFE"] == "0"
