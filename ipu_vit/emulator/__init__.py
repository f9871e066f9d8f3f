"""PopTorch on a CPU: programs written for Graphcore IPUs, without an IPU and without the SDK.

`install()` makes `import poptorch` find the emulator, in this process and in those it starts. The
emulator knows nothing of the rest of this package.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_SITE = Path(__file__).parent / "site"
_PROJECT = Path(__file__).parents[2]


def install() -> None:
    """Let `import poptorch` find the emulator from now on, child processes included."""
    for name in [name for name in sys.modules if name.split(".")[0] == "poptorch"]:
        if not _is_ours(name):
            del sys.modules[name]
    if str(_SITE) not in sys.path:
        sys.path.insert(0, str(_SITE))
        # Child processes look for the emulator's package too, wherever they are started.
        inherited = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(_SITE), str(_PROJECT), *([inherited] if inherited else [])])


def is_installed() -> bool:
    """Whether `import poptorch` finds the emulator."""
    return str(_SITE) in sys.path


def _is_ours(name: str) -> bool:
    return (getattr(sys.modules[name], "__file__", None) or "").startswith(str(_SITE))
