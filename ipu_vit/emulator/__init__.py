"""PopTorch on a CPU: programs written for Graphcore IPUs, without an IPU and without the SDK.

`install()` makes `import poptorch` find the emulator, in this process and in those it starts; `python -m
ipu_vit.emulator` runs a whole program that way. The emulator knows nothing of the rest of this package.
"""

from __future__ import annotations

import importlib.util
import os
import site
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any, Optional

#: What the emulator stands in for.
PACKAGES = ("poptorch", "popart", "popdist")

_HERE = Path(__file__).resolve().parent
_SITE, _PROJECT = str(_HERE / "site"), str(_HERE.parents[1])


class _Finder:
    """Finds the stand-ins first, wherever in sys.path a program puts an SDK; sys.path is for processes to come."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> Optional[ModuleSpec]:
        return PathFinder.find_spec(name, [_SITE]) if name in PACKAGES else None


def install() -> None:
    """Let `import poptorch` find the emulator from now on, child processes included.

    Modules of another PopTorch are forgotten; what the program has already taken from them it keeps.
    """
    for name in [name for name in sys.modules if name.split(".")[0] in PACKAGES]:
        if not is_own(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]
    sys.path[:] = [_SITE, *(entry for entry in sys.path if entry != _SITE)]
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)
    if _PROJECT not in sys.path:
        sys.path.append(_PROJECT)
    os.environ["PYTHONPATH"] = search_path(os.environ.get("PYTHONPATH"))


def is_installed() -> bool:
    """Whether `import poptorch` finds the emulator."""
    return is_own(found_poptorch())


def found_poptorch() -> Optional[str]:
    """The file that `import poptorch` runs, or has run; None without any."""
    if "poptorch" in sys.modules:
        return getattr(sys.modules["poptorch"], "__file__", None)
    spec = importlib.util.find_spec("poptorch")
    return None if spec is None else spec.origin


def is_own(file: Optional[str]) -> bool:
    """Whether a module's file is one of the emulator's stand-ins."""
    return file is not None and file.startswith(_SITE + os.sep)


def search_path(inherited: Optional[str]) -> str:
    """A PYTHONPATH by which new Python processes find the emulator, wherever they start."""
    entries = [entry for entry in inherited.split(os.pathsep) if entry != _SITE] if inherited else []
    # The project comes last, lest its folders hide the program's; and not at all if it is found anyway, for
    # what is in PYTHONPATH comes before the standard library.
    found_anyway = map(os.path.realpath, [*entries, *site.getsitepackages(), site.getusersitepackages()])
    if _PROJECT not in found_anyway:
        entries.append(_PROJECT)
    return os.pathsep.join([_SITE, *entries])
