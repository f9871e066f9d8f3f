"""The emulator has what PopTorch has, as PopTorch has it: names, parameters, defaults, values.

Nobody without the SDK can import PopTorch, so `poptorch_api.json` tells what its classes and functions
look like, and PopART's session options and enumerations.
"""

from __future__ import annotations

import enum
import importlib
import inspect
import json
from pathlib import Path
from typing import Any, Dict, List, Optional

import popart
import poptorch
import pytest

from ipu_vit.emulator import session_options
from ipu_vit.emulator.left_out import LEFT_OUT

TABLE = json.loads((Path(__file__).parents[1] / "poptorch_api.json").read_text())
API: Dict[str, Any] = TABLE["api"]
SESSION: Dict[str, Any] = TABLE["popart_session_options"]
CALLABLE = ("function", "method", "staticmethod")
MODULES = [poptorch, poptorch.enums, poptorch.ops, poptorch.optim, poptorch.options, poptorch.profiling]
STARS = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}

# Base classes are written as PopTorch's source names them, mostly without their module.
BASES = {
    "_options_impl.OptionsDict": poptorch.Options.__base__,
    "_IExecutionStrategy": poptorch.options._IExecutionStrategy,
    "_IPhasedExecution": poptorch.options._IPhasedExecution,
    "PipelinedExecution": poptorch.PipelinedExecution,
    "Optimizer": poptorch.optim.Optimizer,
    "Exception": Exception,
}


def emulated(path: str) -> Any:
    """The emulator's object of that path, unbound, or None. A group of options is its class."""
    thing: Any = poptorch
    for name in path.split(".")[1:]:
        if thing is poptorch.Options and f"poptorch.Options.{name}" in API_GROUPS:
            thing = type(getattr(poptorch.Options(), name))
        else:
            thing = inspect.getattr_static(thing, name, None)
    return thing


def class_named(path: str) -> Any:
    if path in BASES:
        return BASES[path]
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def paths(*kinds: str) -> List[str]:
    """Paths of what is of one of these kinds and not left out."""
    return [path for path, entry in API.items() if entry["kind"] in kinds and path not in LEFT_OUT]


API_GROUPS = {path for path, entry in API.items() if entry["kind"] == "options group"}


@pytest.mark.parametrize("path", paths(*{entry["kind"] for entry in API.values()}))
def test_it_is_there(path: str) -> None:
    assert emulated(path) is not None


@pytest.mark.parametrize("path", paths("class", "enum", "options group"))
def test_bases(path: str) -> None:
    found = emulated(path)
    assert isinstance(found, type)
    for base in API[path].get("bases", []):
        assert issubclass(found, class_named(base)), base


@pytest.mark.parametrize("path", paths("enum"))
def test_members(path: str) -> None:
    assert {member.name: member.value for member in emulated(path)} == API[path]["members"]


@pytest.mark.parametrize("path", paths(*CALLABLE))
def test_signature(path: str) -> None:
    entry, found = API[path], emulated(path)
    assert isinstance(found, staticmethod) == (entry["kind"] == "staticmethod")
    if entry["kind"] == "method" and path.rpartition(".")[2] not in own_attributes(path.rpartition(".")[0]):
        return  # PyTorch's or Python's own, as there
    parameters = list(inspect.signature(getattr(found, "__func__", found)).parameters.values())
    if entry["kind"] == "method":
        del parameters[0]
    assert [[STARS.get(one.kind, "") + one.name, text_of(one.default)] for one in parameters] == entry["parameters"]
    keyword_only = [one.name for one in parameters if one.kind == inspect.Parameter.KEYWORD_ONLY]
    assert keyword_only == entry.get("keyword_only", [])


def own_attributes(path: str) -> List[str]:
    """What a class of the emulator's defines itself or has from another of them."""
    bases = [base for base in emulated(path).__mro__ if base.__module__.startswith("ipu_vit")]
    return [name for base in bases for name in vars(base)]


def text_of(default: Any) -> Optional[str]:
    """A default value as PopTorch's source writes it; None if there is none."""
    if default is inspect.Parameter.empty:
        return None
    return f"{type(default).__name__}.{default.name}" if isinstance(default, enum.Enum) else repr(default)


@pytest.mark.parametrize("path", paths("property"))
def test_properties(path: str) -> None:
    found = emulated(path)
    assert isinstance(found, property)
    assert (found.fset is not None) == API[path].get("settable", False)


@pytest.mark.parametrize("path", sorted(API_GROUPS))
def test_option_groups(path: str) -> None:
    options, name = poptorch.Options(), path.rpartition(".")[2]
    class_name = API[path]["class"].rpartition(".")[2]
    assert type(getattr(options, name)) is getattr(poptorch.options, class_name)
    with pytest.raises((AssertionError, AttributeError)):
        setattr(options, name, None)


@pytest.mark.parametrize("path", [path for path, entry in API.items() if "stored_defaults" in entry])
def test_stored_defaults(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "POPTORCH_DEFAULT_OPTIONS"):
        monkeypatch.delenv(variable, raising=False)
    options = poptorch.Options()
    group = options if path == "poptorch.Options" else getattr(options, path.rpartition(".")[2])
    wanted = {name: eval(text, {"enums": poptorch.enums}) for name, text in API[path]["stored_defaults"].items()}
    assert group._values == wanted
    assert {name: type(value) for name, value in group._values.items()} == {
        name: type(value) for name, value in wanted.items()
    }


@pytest.mark.parametrize("name", TABLE["popart_enums"])
def test_popart_enumerations(name: str) -> None:
    found = getattr(popart, name)
    assert {member.name: int(member) for member in found} == TABLE["popart_enums"][name]
    assert not any(isinstance(member, int) for member in found)


def test_popart_members_that_python_cannot_say() -> None:
    assert popart.RecomputationType.NoRecompute is getattr(popart.RecomputationType, "None")
    assert popart.MergeVarUpdateType.Off is getattr(popart.MergeVarUpdateType, "None")
    assert popart.CommGroupType.Ungrouped is getattr(popart.CommGroupType, "None")


def test_session_options() -> None:
    found = (
        session_options.BOOLS,
        session_options.INTS,
        session_options.STRINGS,
        session_options.FLOATS,
        session_options.CONTAINERS,
    )
    for names, kind in zip(found, ("bool", "int", "str", "float", "container")):
        assert names == set(SESSION[kind]), kind
    assert SESSION["int_upper_bound_exclusive"] == session_options.ENUMERATIONS


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_no_name_is_invented(module: Any) -> None:
    for name in module.__all__:
        thing = getattr(module, name)
        known = f"poptorch.{name}" in API or f"{module.__name__}.{name}" in API
        assert known or inspect.ismodule(thing) or issubclass(thing, Exception), name


@pytest.mark.parametrize("module", [poptorch.enums, poptorch.ops, poptorch.options], ids=lambda module: module.__name__)
def test_modules_share_what_poptorch_gathers(module: Any) -> None:
    for name in module.__all__:
        assert getattr(module, name) is getattr(poptorch, name)


def test_what_is_left_out_exists_in_poptorch() -> None:
    assert [name for name in LEFT_OUT if name.split("(")[0] not in API] == []
