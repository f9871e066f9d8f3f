"""`about.json`: with what a run was started, or continued, last: for whoever reads its results later."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Dict, List

import numpy
import torch

from ipu_vit import __version__
from ipu_vit.device import Device
from ipu_vit.secrets import HIDDEN, names_secret, without_secrets
from ipu_vit.weights.atomic import replacing

ABOUT = "about.json"
# Variables that change what a run does: Poplar's, its tools', Horovod's, the threads' and the schedulers'.
_PREFIXES = (
    "POPLAR",
    "POPTORCH",
    "POPART",
    "POPRUN",
    "POPDIST",
    "IPUOF",
    "PT_",
    "HOROVOD_",
    "OMP_",
    "MKL_",
    "SLURM_JOB",
    "HF_",
)


def write_about(folder: Path, device: Device, pipeline: List[List[str]]) -> None:
    """Write `about.json`; `pipeline` has a row of headings, then one for what each IPU holds."""
    about: Dict[str, Any] = {"environment": environment(device), "pipeline": pipeline}
    with replacing(str(folder / ABOUT)) as file:
        file.write(json.dumps(about, indent=2).encode() + b"\n")


def environment(device: Device) -> Dict[str, str]:
    """The machine, the versions and the variables, without secrets."""
    variables = {
        name: HIDDEN if names_secret(name) else value
        for name, value in sorted(os.environ.items())
        if name.startswith(_PREFIXES)
    }
    facts = {
        "started": datetime.now(timezone.utc).isoformat(sep=" ", timespec="seconds"),
        "command": shlex.join(sys.argv),
        "device": f"{device.kind} ({device.reason})",
        "machine": f"{platform.node()}, {platform.platform()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "ipu_vit": __version__,
    }
    found: Dict[str, str] = without_secrets({**facts, **variables})
    return found
