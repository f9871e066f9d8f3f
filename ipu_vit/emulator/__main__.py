"""`python -m ipu_vit.emulator`: run a PopTorch program on this CPU, otherwise as `python` would run it.

The program becomes the module `__main__` for good, unlike with `runpy.run_path`: its classes are pickled as
`__main__`'s, and processes that multiprocessing starts import it anew by its file or its name.
"""

from __future__ import annotations

import builtins
import functools
import importlib.util
import io
import os
import runpy
import subprocess
import sys
import zipfile
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any, List, Optional, Tuple

from ipu_vit import emulator
from ipu_vit.emulator.malloc import keep_freed_memory

COMMAND = "python -m ipu_vit.emulator"
USAGE = f"""\
usage: {COMMAND} SCRIPT [ARGUMENTS]
       {COMMAND} -m MODULE [ARGUMENTS]

Runs a PopTorch program on this CPU, with neither IPUs nor the Poplar SDK: poptorch, popart and popdist are the
emulator's, in the program and in the Python processes that it starts. For example

       {COMMAND} train.py --epochs 2
       {COMMAND} -m pytest tests/
"""

# Files whose frames belong to starting a program and not to the program.
_STARTING = {__file__, runpy.run_path.__code__.co_filename}


class NotFound(Exception):
    """There is no such program."""


def main(arguments: List[str]) -> int:
    """Run the program that the arguments name; returns 2 after saying why there is none."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(USAGE, end="")
        return 0
    is_module = arguments[:1] == ["-m"]
    if is_module:
        arguments = arguments[1:]
    if not arguments:
        print(USAGE, end="", file=sys.stderr)
        return 2
    try:
        if arguments[0].startswith("-"):
            raise NotFound(f"unknown option {arguments[0]}; see {COMMAND} --help")
        _run(is_module, *arguments)
    except NotFound as error:
        print(f"{COMMAND}: {error}", file=sys.stderr)
        return 2
    return 0


def _run(is_module: bool, name: str, *arguments: str) -> None:
    sys.argv = ["-m" if is_module else name, *arguments]
    if not is_module and sys.version_info >= (3, 9):
        name = os.path.abspath(name)
    _install(None if is_module else _folder_of(name))
    keep_freed_memory()
    try:
        main_module, code = _find_module(name) if is_module else _find_script(name)
        sys.modules["__main__"] = main_module
        exec(code, main_module.__dict__)
    except NotFound:
        raise
    except BaseException as error:
        _report_without_frames_of_ours(error)
        raise


def _install(folder: Optional[str]) -> None:
    """Install the emulator, behind the script's folder or, for a module, the working folder."""
    begins_with_folder = not (sys.flags.isolated or getattr(sys.flags, "safe_path", False))
    if begins_with_folder and folder is not None:
        sys.path[0] = folder
    other = emulator.found_poptorch()
    emulator.install()
    if begins_with_folder:
        sys.path[0], sys.path[1] = sys.path[1], sys.path[0]
    _install_in_child_processes()
    if other is not None and not emulator.is_own(other):
        # Not through PopTorch's log, which the program may be about to set up by environment variables.
        print(f"{COMMAND}: the emulator stands in for {other}", file=sys.stderr)


def _install_in_child_processes() -> None:
    """Keep the emulator in PYTHONPATH, the only way into a new process, also where a program sets that itself."""
    start = subprocess.Popen.__init__

    @functools.wraps(start)
    def start_with_emulator(self: Any, *args: Any, **kwargs: Any) -> None:
        environment = os.environ if kwargs.get("env") is None else kwargs["env"]
        path = emulator.search_path(environment.get("PYTHONPATH"))
        start(self, *args, **{**kwargs, "env": {**environment, "PYTHONPATH": path}})

    setattr(subprocess.Popen, "__init__", start_with_emulator)  # noqa: B010 (mypy refuses an assignment)


def _folder_of(script: str) -> str:
    return script if _is_folder(script) else os.path.dirname(os.path.realpath(script))


def _is_folder(script: str) -> bool:
    """Whether a script is a folder or an archive, in which `__main__` is run."""
    return os.path.isdir(script) or zipfile.is_zipfile(script)


def _find_module(name: str) -> Tuple[ModuleType, CodeType]:
    _, spec, code = runpy._get_module_details(name, NotFound)  # type: ignore[attr-defined]
    sys.argv[0] = spec.origin
    return _main_module(spec), code


def _find_script(path: str) -> Tuple[ModuleType, CodeType]:
    if _is_folder(path):
        spec = PathFinder.find_spec("__main__", [path])
        if spec is None:
            raise NotFound(f"there is no __main__.py in {path!r}")
        return _main_module(spec), spec.loader.get_code("__main__")  # type: ignore[union-attr]
    try:
        with io.open_code(path) as file:
            source = file.read()
    except OSError as error:
        raise NotFound(f"cannot read the script {path!r}: {error.strerror}") from None
    spec = importlib.util.spec_from_file_location("__main__", path, loader=SourceFileLoader("__main__", path))
    assert spec is not None
    main_module = _main_module(spec)
    # By these, multiprocessing tells a script from a module.
    main_module.__dict__.update(__spec__=None, __package__=None, __cached__=None)
    return main_module, compile(source, path, "exec", dont_inherit=True)


def _main_module(spec: ModuleSpec) -> ModuleType:
    module = importlib.util.module_from_spec(spec)
    module.__name__ = "__main__"
    module.__dict__["__builtins__"] = builtins
    return module


def _report_without_frames_of_ours(error: BaseException) -> None:
    """Have the interpreter begin the traceback of an error that ends the program with the program's own frames."""
    report, traceback = sys.excepthook, error.__traceback__
    while traceback is not None and traceback.tb_frame.f_code.co_filename in _STARTING:
        traceback = traceback.tb_next
    sys.excepthook = lambda kind, error, _: report(kind, error.with_traceback(traceback), traceback)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
