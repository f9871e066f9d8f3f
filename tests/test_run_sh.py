"""run.sh with stand-ins for Python and pip that write down how they are called; nothing is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Dict, List

import pytest

from ipu_vit.__main__ import _parser
from ipu_vit.config import list_presets

ROOT = Path(__file__).parent.parent

PYTHON = r"""#!/bin/bash
# Answers as Python {version} would; `-m venv DIR` makes DIR/bin/python another one like itself.
echo "$(basename "$0") $*" >>"$CALLS"
case "$*" in
"-c import sys, venv"*) exit {unsupported} ;;
"-c import sys; print"*) echo "{version}" ;;
"-c import importlib"*) exit {poptorch_missing} ;;
"-c import horovod.torch"*) exit "${{NO_HOROVOD:-0}}" ;;
"-c import torch.utils.cpp_extension"*) echo "${{TORCHS_BUILDER:-}}" ;;
"-c import sysconfig"*) dirname "$CALLS" ;;
"-m pip download "*) exit 1 ;;
"-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
"-m pip install "*) exit "${{PIP_STATUS:-0}}" ;;
"-m pip list "*) printf 'numpy==1.23.5\npydantic==1.9.0\ntorch==2.0.1+cpu\n' ;;
"-m ipu_vit "*) echo "malloc: $GLIBC_TUNABLES" ;;
esac
"""


class Checkout:
    """A copy of what run.sh uses, a PATH that holds stand-ins only, and what they were called with."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls_file, self.bin = folder / "checkout", folder / "calls", folder / "bin"
        self.folder.mkdir()
        self.bin.mkdir()
        shutil.copytree(ROOT / "configs", self.folder / "configs")
        shutil.copytree(ROOT / "scripts", self.folder / "scripts")
        for file in (ROOT / "run.sh", *ROOT.glob("requirements*.txt")):
            shutil.copy(file, self.folder / file.name)
        for tool in (
            "bash",
            "basename",
            "cat",
            "cmp",
            "cp",
            "dirname",
            "env",
            "grep",
            "mkdir",
            "rm",
            "sed",
            "sort",
            "tail",
        ):
            self.add_tool(tool)

    def add_tool(self, name: str) -> None:
        (self.bin / name).symlink_to(str(shutil.which(name)))

    def add_python(self, path: Path, version: str = "3.11", unsupported: bool = False, poptorch: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = PYTHON.format(version=version, unsupported=int(unsupported), poptorch_missing=int(not poptorch))
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment: Dict[str, str] = {"PATH": str(self.bin), "CALLS": str(self.calls_file), **variables}
        self.calls_file.write_text("", encoding="utf-8")
        return subprocess.run(
            [str(self.folder / "run.sh"), *arguments],
            env=environment, cwd=self.folder.parent, capture_output=True,
            text=True, check=False,
        )  # fmt: skip

    def calls(self, word: str = "") -> List[str]:
        return [line for line in self.calls_file.read_text(encoding="utf-8").splitlines() if word in line]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.fixture
def ready(checkout: Checkout) -> Checkout:
    checkout.add_python(checkout.bin / "python3.11")
    return checkout


def test_usage_lists_presets_without_any_python(checkout: Checkout) -> None:
    result = checkout.run()
    assert result.returncode == 0
    for name, description in list_presets():
        assert any(line.split(None, 1) == [name, description] for line in result.stdout.splitlines())


def test_unknown_preset_is_refused_before_anything_is_installed(ready: Checkout) -> None:
    result = ready.run("quikstart")
    assert result.returncode == 2 and not ready.calls()
    assert result.stderr.startswith("run.sh: there is no preset or command 'quikstart'; ")
    assert result.stderr.endswith(" alone lists them\n")


def test_first_call_installs_then_trains(ready: Checkout) -> None:
    result = ready.run("quickstart", "seed=1", "data.root=two words")
    assert result.returncode == 0, result.stderr
    assert ready.calls("install") == ["python -m pip install --disable-pip-version-check -r requirements.txt"]
    assert ready.calls()[-1] == "python -m ipu_vit train quickstart seed=1 data.root=two words"
    assert (ready.folder / ".venv").is_dir()


def test_second_call_starts_at_once(ready: Checkout) -> None:
    ready.run("quickstart")
    ready.run("quickstart")
    assert ready.calls() == ["python -m ipu_vit train quickstart"]


def test_changed_requirements_are_installed_into_the_same_environment(ready: Checkout) -> None:
    ready.run("quickstart")
    with (ready.folder / "requirements.txt").open("a", encoding="utf-8") as file:
        file.write("another==1.0\n")
    ready.run("quickstart")
    assert ready.calls("pip install") and not ready.calls("-m venv")


def test_interrupted_install_is_not_taken_for_finished(ready: Checkout) -> None:
    result = ready.run("quickstart", PIP_STATUS="1")
    assert result.returncode == 2 and not ready.calls("ipu_vit train")
    assert "installing requirements.txt failed, see above; check the network connection" in result.stderr
    assert ready.run("quickstart").returncode == 0
    assert len(ready.calls("pip install")) == 1


def test_tests_have_requirements_of_their_own(ready: Checkout) -> None:
    ready.run("quickstart")
    ready.run("test", "-k", "one thing")
    assert ready.calls("pip install") == ["python -m pip install --disable-pip-version-check -r requirements-test.txt"]
    assert ready.calls()[-1] == "python -m pytest -k one thing"
    ready.run("test")
    assert ready.calls() == ["python -m pytest"]


def test_every_command_of_the_package_is_one_of_run_sh() -> None:
    listed = re.search(r"commands:\n(.*?)\n\n", _parser().format_help(), re.DOTALL)
    assert listed is not None
    commands = re.findall(r"^    ([\w-]+)", listed[1], re.MULTILINE)
    assert len(commands) > 9
    passed_on = re.search(r"^(train \|.*)\)$", (ROOT / "run.sh").read_text(), re.MULTILINE)
    assert passed_on is not None and set(passed_on[1].split(" | ")) == set(commands)


@pytest.mark.parametrize("command", ["train", "evaluate", "plan"])
def test_other_commands_are_passed_on(ready: Checkout, command: str) -> None:
    ready.run(command, "runs/quickstart", "--help")
    assert ready.calls()[-1] == f"python -m ipu_vit {command} runs/quickstart --help"


def test_allocator_is_tuned_unless_it_is_already(ready: Checkout) -> None:
    assert "glibc.malloc.mmap_threshold=8589934592" in ready.run("quickstart").stdout
    tuned = "glibc.malloc.top_pad=1"
    assert ready.run("quickstart", GLIBC_TUNABLES=tuned).stdout == f"malloc: {tuned}\n"


def test_another_folder_for_the_environment(ready: Checkout) -> None:
    ready.run("quickstart", VENV="elsewhere")
    assert (ready.folder / "elsewhere").is_dir() and not (ready.folder / ".venv").exists()


# --- several processes ---------------------------------------------------------------------------


def test_hvd_starts_the_launcher(ready: Checkout) -> None:
    ready.run("quickstart", "seed=1", HVD="2")
    assert ready.calls()[-1] == "python -m ipu_vit.launch train quickstart seed=1"
    ready.run("evaluate", "runs/quickstart", HVD="a:4,b:4")
    assert ready.calls()[-1] == "python -m ipu_vit.launch evaluate runs/quickstart"


@pytest.mark.parametrize("command", ["test", "install-horovod"])
def test_hvd_is_for_nothing_that_one_process_does(ready: Checkout, command: str) -> None:
    result = ready.run(command, HVD="2")
    assert (result.returncode, result.stderr) == (2, f"run.sh: HVD=2 is for train and evaluate, not for {command}\n")
    assert ready.calls() == []


def test_horovod_that_is_there_is_left_alone(ready: Checkout, sdk: Dict[str, str]) -> None:
    for variables in ({}, sdk):
        ready.run("quickstart", **variables)
        result = ready.run("install-horovod", **variables)
        assert result.returncode == 0 and not ready.calls("pip")
        assert result.stderr.splitlines()[-1].endswith("has a Horovod that fits its torch already")


@pytest.fixture
def without_horovod(ready: Checkout) -> Dict[str, str]:
    """Variables of an environment without Horovod whose torch builds its extensions with C++17."""
    builder = ready.folder.parent / "cpp_extension.py"
    builder.write_text("flags = ['-std=c++14'] if old else ['-std=c++17']\n", encoding="utf-8")
    return {"NO_HOROVOD": "1", "TORCHS_BUILDER": str(builder)}


def test_tools_that_horovod_is_built_with_are_asked_for(ready: Checkout, without_horovod: Dict[str, str]) -> None:
    result = ready.run("install-horovod", **without_horovod)
    assert result.returncode == 2
    assert result.stderr.endswith(
        "install-horovod: building Horovod needs make and found none; install it and call again\n"
    )
    ready.add_tool("make")
    result = ready.run("install-horovod", **without_horovod)
    assert result.returncode == 2
    assert "needs a C++ compiler that knows C++17, and 'g++' is none; install one" in result.stderr.splitlines()[-1]
    assert not ready.calls("pip download")


def test_environment_without_torch_gets_no_horovod(ready: Checkout, without_horovod: Dict[str, str]) -> None:
    result = ready.run("install-horovod", NO_HOROVOD="1", TORCHS_BUILDER="/nowhere")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("install-horovod: Horovod is built for a torch, and ")


def test_failed_build_leaves_its_log_and_nothing_else(ready: Checkout, without_horovod: Dict[str, str]) -> None:
    compiler = ready.bin / "clang++"
    compiler.write_text("#!/bin/bash\n", encoding="utf-8")
    compiler.chmod(0o755)
    ready.add_tool("make")
    headers = ready.folder.parent / "Python.h"
    headers.write_text("", encoding="utf-8")
    result = ready.run("install-horovod", CXX="clang++", **without_horovod)
    assert result.returncode == 2, result.stderr
    venv = ready.folder / ".venv"
    assert result.stderr.splitlines()[-1].endswith(f"building Horovod 0.28.1 failed, see above and {venv}/horovod.log")
    assert (venv / "horovod.log").exists() and not (venv / "build-horovod").exists()
    assert ready.calls("pip uninstall --yes --quiet horovod")


# --- which Python --------------------------------------------------------------------------------


def test_without_python(checkout: Checkout) -> None:
    result = checkout.run("quickstart")
    assert result.returncode == 2
    assert result.stderr.startswith("run.sh: found no Python 3.8 to 3.13 with its venv module; install one")


def test_python_that_does_not_fit_is_passed_over(checkout: Checkout) -> None:
    checkout.add_python(checkout.bin / "python3.11", unsupported=True)
    checkout.add_python(checkout.bin / "python3", version="3.9")
    assert checkout.run("quickstart").returncode == 0
    assert checkout.calls("-m venv") == ["python3 -m venv .venv"]


def test_named_python_is_used_or_refused(ready: Checkout) -> None:
    named = ready.folder.parent / "python8"
    ready.add_python(named, version="3.8")
    assert ready.run("quickstart", PYTHON=str(named)).returncode == 0
    assert ready.calls("-m venv") == ["python8 -m venv .venv"]
    ready.add_python(named, unsupported=True)
    result = ready.run("quickstart", PYTHON=str(named))
    assert result.returncode == 2
    assert result.stderr == f"run.sh: PYTHON={named} is not a Python 3.8 to 3.13 with its venv module\n"


def test_environment_of_another_python_is_left_alone(ready: Checkout) -> None:
    ready.run("quickstart")
    other = ready.folder.parent / "python8"
    ready.add_python(other, version="3.8")
    result = ready.run("quickstart", PYTHON=str(other))
    assert result.returncode == 2 and not ready.calls("-m")
    assert result.stderr.startswith(f"run.sh: .venv holds another Python than {other}; remove it, or name another")


# --- the SDK -------------------------------------------------------------------------------------


@pytest.fixture
def sdk(ready: Checkout) -> Dict[str, str]:
    """Variables of an enabled SDK with an active environment that has poptorch."""
    environment = ready.folder.parent / "sdk_env"
    ready.add_python(environment / "bin" / "python", version="3.8", poptorch=True)
    return {"POPLAR_SDK_ENABLED": "/opt/poplar", "VIRTUAL_ENV": str(environment)}


def test_sdk_environment_is_used_and_its_packages_stay(ready: Checkout, sdk: Dict[str, str]) -> None:
    result = ready.run("quickstart", **sdk)
    assert result.returncode == 0, result.stderr
    assert f"using the Poplar SDK's environment {sdk['VIRTUAL_ENV']}" in result.stderr
    constraints = Path(sdk["VIRTUAL_ENV"]) / "kept-packages.txt"
    assert ready.calls("pip install") == [
        f"python -m pip install --disable-pip-version-check -r requirements-sdk.txt --constraint {constraints}"
    ]
    assert constraints.read_text(encoding="utf-8").split() == ["numpy==1.23.5", "torch==2.0.1+cpu"]
    assert ready.calls()[-1] == "python -m ipu_vit train quickstart"
    assert not (ready.folder / ".venv").exists()
    ready.run("quickstart", **sdk)
    assert not ready.calls("pip")


def test_sdk_without_poptorch_goes_on_without_it(ready: Checkout, sdk: Dict[str, str]) -> None:
    ready.add_python(Path(sdk["VIRTUAL_ENV"]) / "bin" / "python", poptorch=False)
    result = ready.run("quickstart", **sdk)
    assert result.returncode == 0
    assert "the Poplar SDK is enabled, but no active environment has poptorch" in result.stderr
    assert (ready.folder / ".venv").is_dir()


def test_environment_is_not_touched_when_no_sdk_is_enabled(ready: Checkout, sdk: Dict[str, str]) -> None:
    del sdk["POPLAR_SDK_ENABLED"]
    ready.run("quickstart", **sdk)
    assert [file.name for file in Path(sdk["VIRTUAL_ENV"]).iterdir()] == ["bin"]


def test_named_environment_comes_before_the_sdk(ready: Checkout, sdk: Dict[str, str]) -> None:
    ready.run("quickstart", VENV="mine", **sdk)
    assert (ready.folder / "mine").is_dir() and not ready.calls("requirements-sdk")
