"""`python -m ipu_vit.emulator` runs programs as `python` runs them, except for where poptorch comes from.

What `python` does is not written down here: the same program is run by both, and what they print, how they end and
what they report of themselves must be equal.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any, Dict, List, Optional

import pytest
from tiny_runs import run

import ipu_vit.emulator

ROOT = Path(__file__).parents[2]
SITE = ROOT / "ipu_vit" / "emulator" / "site"
EMULATOR = ["-m", "ipu_vit.emulator"]

# A program that tells where it is and what it was given, and then ends as its first argument says.
PROGRAM = """
    import atexit, builtins, sys, threading

    class Thing:
        pass

    def end(how):
        if how == "raise":
            raise ValueError("as asked")
        if how == "chain":
            try:
                end("raise")
            except ValueError as error:
                raise RuntimeError("again") from error
        if how == "hook":
            sys.excepthook = lambda kind, error, traceback: print("hooked", kind, error, traceback.tb_lineno)
            end("raise")
        if how == "late":
            import pickle
            atexit.register(lambda: print(len(pickle.dumps(Thing())), "late"))
            threading.Timer(0.01, lambda: print(sys.modules["__main__"].Thing)).start()
        if how == "interrupt":
            raise KeyboardInterrupt
        if how.isdigit():
            sys.exit(int(how))
        if how == "message":
            sys.exit("a last word")

    me = sys.modules["__main__"]
    print(__name__, __file__, __package__, __doc__, __cached__, __builtins__ is builtins, me.Thing is Thing)
    print(__spec__ and __spec__.name, type(__loader__).__name__, sys.argv, sys.path[0])
    print("flags", Thing.__module__, sorted(set(globals()) - {"__annotations__"}))
    sys.stdout.flush()
    end(sys.argv[1] if len(sys.argv) > 1 else "well")
"""
ENDS = ["well", "raise", "chain", "hook", "late", "interrupt", "0", "3", "message"]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


def environment(*path: Path, **more: str) -> Dict[str, str]:
    """Without what these tests themselves have installed."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**kept, "PYTHONPATH": os.pathsep.join(map(str, [ROOT, *path])), **more}


def python(*arguments: Any, cwd: Path, env: Optional[Dict[str, str]] = None) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, *map(str, arguments)], cwd=cwd, env=env or environment())


def behaves_as_python(*program: Any, cwd: Path) -> subprocess.CompletedProcess[str]:
    """What both do, after checking that it is the same."""
    emulated, plain = python(*EMULATOR, *program, cwd=cwd), python(*program, cwd=cwd)
    assert (emulated.returncode, emulated.stdout) == (plain.returncode, plain.stdout)
    assert emulated.stderr == without_runpy(plain.stderr)
    return emulated


def without_runpy(text: str) -> str:
    """A traceback without the frames by which `python -m` begins one; they show a line of code if runpy is a file."""
    return re.sub(r'  File "[^"]*runpy[^"]*", line \d+, in \w+\n(    .*\n)*', "", text)


# As python does ---------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ENDS)
def test_script(tmp_path: Path, end: str) -> None:
    write(tmp_path / "program.py", PROGRAM)
    behaves_as_python("program.py", end, "--help", "-m", cwd=tmp_path)


@pytest.mark.parametrize("end", ["well", "raise", "interrupt", "3"])
def test_module(tmp_path: Path, end: str) -> None:
    write(tmp_path / "package" / "program.py", PROGRAM)
    behaves_as_python("-m", "package.program", end, "-h", cwd=tmp_path)


def test_package(tmp_path: Path) -> None:
    write(tmp_path / "package" / "__main__.py", PROGRAM)
    write(tmp_path / "package" / "__init__.py", "print(__import__('sys').argv)")
    behaves_as_python("-m", "package", "raise", cwd=tmp_path)


def test_script_elsewhere_and_behind_a_link(tmp_path: Path) -> None:
    program = write(tmp_path / "there" / "program.py", PROGRAM)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "link").symlink_to(program)
    behaves_as_python(program, "raise", cwd=tmp_path)
    behaves_as_python(Path("here") / "link", "raise", cwd=tmp_path)


def test_folder_and_archive(tmp_path: Path) -> None:
    program = write(tmp_path / "folder" / "__main__.py", PROGRAM)
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.write(program, "__main__.py")
    behaves_as_python("folder", "3", cwd=tmp_path)
    behaves_as_python("archive.zip", "3", cwd=tmp_path)


def test_syntax_error(tmp_path: Path) -> None:
    write(tmp_path / "program.py", "# -*- coding: latin-1 -*-\nx = )\n")
    assert "SyntaxError" in behaves_as_python("program.py", cwd=tmp_path).stderr


def test_import_error_in_a_package_is_a_traceback(tmp_path: Path) -> None:
    write(tmp_path / "package" / "__init__.py", "import missing_thing")
    write(tmp_path / "package" / "program.py", PROGRAM)
    result = python(*EMULATOR, "-m", "package.program", cwd=tmp_path)
    assert result.returncode == 1
    assert "__init__.py" in result.stderr and "No module named 'missing_thing'" in result.stderr


# What is refused --------------------------------------------------------------------------------


def test_usage(tmp_path: Path) -> None:
    for arguments, code in ([], 2), (["-m"], 2), (["-h"], 0), (["--help"], 0):
        result = python(*EMULATOR, *arguments, cwd=tmp_path)
        assert result.returncode == code
        assert "usage: python -m ipu_vit.emulator SCRIPT" in (result.stderr if code else result.stdout)
        assert (result.stdout if code else result.stderr) == ""


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["missing.py"], "missing.py': No such file"),
        (["-m", "missing"], "No module named missing"),
        (["-m", "missing.module"], "No module named 'missing'"),
        (["-m", "json"], "'json' is a package and cannot be directly executed"),
        (["."], "there is no __main__.py in"),
        (["--fast", "program.py"], "unknown option --fast"),
    ],
)
def test_missing_program_is_one_sentence(tmp_path: Path, arguments: List[str], complaint: str) -> None:
    result = python(*EMULATOR, *arguments, cwd=tmp_path)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("python -m ipu_vit.emulator: ") and complaint in result.stderr
    assert result.stderr.count("\n") == 1


# Where poptorch comes from ----------------------------------------------------------------------

# Prints the file of each package, without the seconds that importing it takes.
WHERE = """
    import importlib.util, json, sys
    print(json.dumps([importlib.util.find_spec(name).origin for name in ("poptorch", "popart", "popdist")]), flush=True)
"""
FOREIGN = "print('the SDK')\n"


def foreign_sdk(folder: Path) -> Path:
    for name in "poptorch", "popart", "popdist":
        write(folder / name / "__init__.py", FOREIGN)
    return folder


def all_emulated(output: str, times: int = 1) -> bool:
    files = [json.loads(line) for line in output.splitlines() if line.startswith("[")]
    return len(files) == times and all(Path(file).parents[1] == SITE for line in files for file in line)


def test_packages_can_be_imported(tmp_path: Path) -> None:
    write(
        tmp_path / "program.py",
        "import poptorch, poptorch.optim, popart, popdist, popdist.poptorch; print('all there')",
    )
    result = python(*EMULATOR, "program.py", cwd=tmp_path)
    assert (result.stdout, result.stderr) == ("all there\n", "")


@pytest.mark.parametrize("place", ["PYTHONPATH", "beside the program"])
def test_emulator_wins_against_an_sdk_and_says_so(tmp_path: Path, place: str) -> None:
    write(tmp_path / "program.py", WHERE)
    sdk = foreign_sdk(tmp_path / "sdk" if place == "PYTHONPATH" else tmp_path)
    result = python(*EMULATOR, "program.py", cwd=tmp_path, env=environment(sdk))
    assert all_emulated(result.stdout)
    assert result.stderr == f"python -m ipu_vit.emulator: the emulator stands in for {sdk}/poptorch/__init__.py\n"


def test_without_an_sdk_nothing_is_said(tmp_path: Path) -> None:
    write(tmp_path / "program.py", WHERE)
    result = python(*EMULATOR, "program.py", cwd=tmp_path)
    assert all_emulated(result.stdout) and result.stderr == ""


CHILDREN = {
    "elsewhere": "subprocess.run([sys.executable, child], cwd='/')",
    "path added": "subprocess.run([sys.executable, child], env={**os.environ, 'PYTHONPATH': sdk + ':' + inherited})",
    "path replaced": "subprocess.run([sys.executable, child], env={**os.environ, 'PYTHONPATH': sdk})",
    "environment emptied": "subprocess.run([sys.executable, child], env={})",
    "environment changed": "os.environ['PYTHONPATH'] = sdk; subprocess.run([sys.executable, child])",
    "shell": "os.system(f'{sys.executable} {child}')",
    "grandchild": "subprocess.run(['sh', '-c', f'cd /; {sys.executable} {child}'])",
    "in place": "os.execv(sys.executable, [sys.executable, child])",
}
CHILD = """
    import os, subprocess, sys
    sdk, child = sys.argv[1:]
    inherited = os.environ["PYTHONPATH"]
"""


@pytest.mark.parametrize("start", CHILDREN.values(), ids=CHILDREN)
def test_child_processes_find_it(tmp_path: Path, start: str) -> None:
    sdk, child = foreign_sdk(tmp_path / "sdk"), write(tmp_path / "elsewhere" / "child.py", WHERE)
    write(tmp_path / "program.py", textwrap.dedent(CHILD) + start)
    result = python(*EMULATOR, "program.py", sdk, child, cwd=tmp_path)
    assert all_emulated(result.stdout), result


def test_child_processes_find_their_own_modules_first(tmp_path: Path) -> None:
    # The project has a folder of that name, too.
    write(tmp_path / "mine" / "tests" / "own.py", "print('mine')")
    write(
        tmp_path / "program.py",
        "import subprocess, sys; subprocess.check_call([sys.executable, '-c', 'import tests.own'])",
    )
    result = python(*EMULATOR, "program.py", cwd=tmp_path, env=environment(tmp_path / "mine"))
    assert result.stdout == "mine\n"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("way", [["program.py"], ["-m", "program"]], ids=["script", "module"])
def test_multiprocessing_finds_it_and_the_program(tmp_path: Path, method: str, way: List[str]) -> None:
    program = f"""
        import multiprocessing, os, sys
        class Thing:
            def tell(self):
                import importlib.util
                os.write(1, (importlib.util.find_spec("poptorch").origin + "\\n").encode())
        if __name__ == "__main__":
            os.chdir("/")
            process = multiprocessing.get_context({method!r}).Process(target=Thing().tell)
            process.start()
            process.join()
            sys.exit(process.exitcode)
    """
    write(tmp_path / "program.py", program)
    result = python(*EMULATOR, *way, cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{SITE}/poptorch/__init__.py\n", "")


@pytest.mark.parametrize("way", [["program.py"], ["-m", "program"]], ids=["script", "module"])
def test_asynchronous_loader_of_a_dataset_in_the_script(tmp_path: Path, way: List[str]) -> None:
    program = """
        import poptorch
        import torch

        class Squares(torch.utils.data.Dataset):
            def __len__(self):
                return 6

            def __getitem__(self, index):
                return torch.tensor(float(index * index))

        if __name__ == "__main__":
            options = poptorch.Options().deviceIterations(3)
            with_worker = dict(mode=poptorch.DataLoaderMode.Async, num_workers=1)
            loader = poptorch.DataLoader(options, Squares(), **with_worker)
            print([batch.tolist() for batch in loader])
            loader.terminate()
    """
    write(tmp_path / "program.py", program)
    result = python(*EMULATOR, *way, cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "[[0.0, 1.0, 4.0], [9.0, 16.0, 25.0]]\n", "")


# Installed or not -------------------------------------------------------------------------------


def test_from_a_checkout(tmp_path: Path) -> None:
    # Without PYTHONPATH the project is found in the working folder only, which programs and children need not share.
    child = write(tmp_path / "child.py", WHERE)
    start_child = f"import subprocess; subprocess.check_call([sys.executable, {str(child)!r}], cwd='/')"
    program = write(tmp_path / "program.py", textwrap.dedent(WHERE) + start_child)
    result = python(*EMULATOR, program, cwd=ROOT, env=environment(PYTHONPATH=""))
    assert all_emulated(result.stdout, times=2), result


def test_from_site_packages(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    shutil.copytree(ROOT / "ipu_vit", packages / "ipu_vit", ignore=shutil.ignore_patterns("__pycache__"))
    write(packages / "typing.py", "raise ImportError('packages must not hide the standard library')")
    program = "import poptorch_spec, subprocess, sys; subprocess.run([sys.executable, '-m', 'poptorch_spec'])"
    write(tmp_path / "program.py", program)
    write(tmp_path / "poptorch_spec.py", WHERE)
    installed = tmp_path / "venv" / "bin" / "python"
    result = run([str(installed), *EMULATOR, "program.py"], cwd=tmp_path, env=environment(PYTHONPATH=""))
    files = result.stdout.splitlines()
    assert len(files) == 2 and files[0] == files[1] and str(packages) in files[0], result


# In a process that runs already -----------------------------------------------------------------


def test_install_after_a_foreign_import(tmp_path: Path) -> None:
    program = """
        import os, sys
        import poptorch, popart
        foreign, path = poptorch, list(sys.path)
        import ipu_vit.emulator as emulator
        assert not emulator.is_installed()
        for _ in range(3):
            emulator.install()
            assert emulator.is_installed()
            assert sys.path[1:] == path and os.environ["PYTHONPATH"].split(os.pathsep)[1:] == path[1:3]
        assert "poptorch" not in sys.modules and "popart" not in sys.modules
        assert foreign.__file__.startswith(sys.argv[1])
    """
    write(tmp_path / "program.py", textwrap.dedent(program) + textwrap.dedent(WHERE))
    sdk = foreign_sdk(tmp_path / "sdk")
    result = python("program.py", sdk, cwd=tmp_path, env=environment(sdk))
    assert result.returncode == 0 and all_emulated(result.stdout), result


def test_programs_cannot_put_an_sdk_first(tmp_path: Path) -> None:
    program = "import sys; import ipu_vit.emulator; ipu_vit.emulator.install(); sys.path.insert(0, sys.argv[1])"
    write(tmp_path / "program.py", program + textwrap.dedent(WHERE))
    assert all_emulated(python("program.py", foreign_sdk(tmp_path / "sdk"), cwd=tmp_path).stdout)


def test_emulator_is_installed_here() -> None:
    assert ipu_vit.emulator.is_installed()
    spec = importlib.util.find_spec("poptorch")
    assert spec is not None and ipu_vit.emulator.is_own(spec.origin)


# pytest -----------------------------------------------------------------------------------------

PROJECT_TEST = """
    import poptorch
    import torch

    def test_loss_is_marked():
        assert poptorch.identity_loss(torch.tensor([1.0, 3.0]), "mean") == 2.0
"""


@pytest.mark.parametrize(
    "command",
    [["-m", "pytest", "-p", "ipu_vit.emulator.pytest_plugin"], [*EMULATOR, "-m", "pytest"]],
    ids=["plugin", "command"],
)
def test_pytest_of_a_project(tmp_path: Path, command: List[str]) -> None:
    write(tmp_path / "conftest.py", "import poptorch")
    write(tmp_path / "tests" / "test_project.py", PROJECT_TEST)
    sdk = foreign_sdk(tmp_path / "sdk")
    result = python(*command, "-p", "no:cacheprovider", "tests", cwd=tmp_path, env=environment(sdk))
    assert result.returncode == 0 and "1 passed" in result.stdout and "warning" not in result.stdout, result
    assert command[0:2] == EMULATOR or f"poptorch: {SITE}/poptorch/__init__.py" in result.stdout
