"""The IPUs of the machine, as programs are told of them: there are none, and yet every program runs.

The emulator plays a machine without IPUs, so hardware queries say so, and programs that fall back to
the IPU Model or skip their tests do. What runs is emulated all the same, acquired at once and always:
POPTORCH_WAIT_FOR_IPU has nothing to wait for. For programs that refuse to start without IPUs,
POPTORCH_EMULATED_IPUS=16 has the queries report that many, of the second generation.
"""

from __future__ import annotations

import os
import re
from typing import Dict

from ipu_vit.emulator.enums import ConnectionType
from ipu_vit.emulator.errors import Error
from ipu_vit.emulator.log import log_once, logger
from ipu_vit.emulator.options import Options

#: IPUs that one process can use (rule 5.11).
MOST_IPUS = 64
#: What the IPU Model can stand for, with its tiles (rule 10.1).
MODEL_TILES: Dict[str, int] = {"ipu1": 1216, "ipu2": 1472, "ipu21": 1472}
SMALL_MODEL_TILES = 4
#: Generations that programs can be compiled for without a device (rule 9.4).
OFFLINE_VERSIONS = (1, 2, 21)

_REPORTED_VERSION = 2


# What programs ask -------------------------------------------------------------------------------


def ipuHardwareIsAvailable(num_ipus: int = 1) -> bool:
    """`poptorch.ipuHardwareIsAvailable`: whether that many IPUs are reported (rule 10.2)."""
    return 0 < num_ipus <= _reported_ipus()


def ipuHardwareVersion() -> int:
    """`poptorch.ipuHardwareVersion`: their generation; AssertionError if there are none."""
    if not ipuHardwareIsAvailable():
        raise AssertionError("There is no IPU whose version could be told: ask ipuHardwareIsAvailable() first")
    return _REPORTED_VERSION


def _reported_ipus() -> int:
    return 0 if _environment_wants_model() else _integer_of("POPTORCH_EMULATED_IPUS")


# The IPU Model -----------------------------------------------------------------------------------


def uses_ipu_model(options: Options) -> bool:
    """Whether the program runs on an IPU Model: it says so itself, or else the environment does (rule 10.1)."""
    return bool(options.use_model) if options.exists("use_model") else _environment_wants_model()


def ipu_model_tiles() -> int:
    """The tiles of each IPU that the model stands for."""
    version = os.environ.get("POPTORCH_IPU_MODEL_VERSION", "ipu2")
    custom = re.match(r"ipu:(\d+)", version)
    if not custom and version not in MODEL_TILES:
        raise Error(f"POPTORCH_IPU_MODEL_VERSION is {version!r}: it takes {', '.join(MODEL_TILES)} or ipu:<tiles>")
    if not _integer_of("POPTORCH_IPU_MODEL") and _integer_of("POPTORCH_SMALL_IPU_MODEL"):
        return SMALL_MODEL_TILES
    return int(custom[1]) if custom else MODEL_TILES[version]


def _environment_wants_model() -> bool:
    return bool(_integer_of("POPTORCH_IPU_MODEL") or _integer_of("POPTORCH_SMALL_IPU_MODEL"))


def _integer_of(variable: str) -> int:
    text = os.environ.get(variable) or "0"
    try:
        return int(text)
    except ValueError:
        raise Error(f"{variable} must be an integer, not {text!r}") from None


# What a program can have -------------------------------------------------------------------------


def check_device(options: Options, ipus: int) -> None:
    """Raise Error unless a device with that many IPUs in all can be had as the options want it."""
    if ipus > MOST_IPUS:
        raise Error(f"Too many IPUs: the program takes {ipus}, and one process can use {MOST_IPUS}")
    offline = options.connection_type == ConnectionType.Never
    if uses_ipu_model(options):
        _check_model(options, offline, ipus)
    elif offline:
        _check_offline_target(options)
    else:
        _check_count(options, ipus)
        if _counts_cycles(options):
            log_once("logCycleCount has no effect: cycles are counted by IPU hardware only")


def _check_model(options: Options, offline: bool, ipus: int) -> None:
    if offline:
        raise Error("The IPU Model cannot be an offline target: leave out useOfflineIpuTarget or useIpuModel(True)")
    if _counts_cycles(options):
        raise Error("logCycleCount needs IPU hardware: the IPU Model counts no cycles")
    if options._Popart.options.get("enableEngineCaching"):
        logger.warning("enableExecutableCaching has no effect on the IPU Model")
    logger.info("The program stands for %d IPU Models with %d tiles each", ipus, ipu_model_tiles())


def _check_offline_target(options: Options) -> None:
    if options.exists("ipu_id"):
        raise Error("A program for an offline target cannot choose a device: leave out useIpuId")
    if _counts_cycles(options):
        raise Error("logCycleCount needs IPU hardware: an offline target counts no cycles")
    if options.exists("ipu_version") and options.ipu_version not in OFFLINE_VERSIONS:
        raise Error(f"useOfflineIpuTarget takes the versions {OFFLINE_VERSIONS}, not {options.ipu_version!r}")


def _check_count(options: Options, ipus: int) -> None:
    """Hardware gives IPUs in powers of two (rule 5.11)."""
    reserved = 1 << (ipus - 1).bit_length()
    if reserved == ipus:
        return
    if not options.auto_round_num_ipus:
        raise Error(
            f"The program takes {ipus} IPUs, which is not a power of two: use {reserved}, by other blocks or another "
            "replicationFactor, or call autoRoundNumIPUs(True)"
        )
    logger.warning("Reserving %d IPUs for a program that takes %d: the others stay idle", reserved, ipus)


def _counts_cycles(options: Options) -> bool:
    return bool(options._Popart.options["instrumentWithHardwareCycleCounter"])
