"""The application uses only what PopTorch has.

Nobody without the SDK can import PopTorch, so `poptorch_api.json` holds its names and parameters. Every
file of the application is read, and each use of `poptorch` that its syntax shows is checked against that
table.
"""

from __future__ import annotations

import ast
import inspect
import json
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

import pytest
from tiny_runs import CPU

from ipu_vit.options import evaluation_options, training_options
from ipu_vit.settings import Settings

TABLE = json.loads((Path(__file__).parent / "poptorch_api.json").read_text())
API: Dict[str, Any] = TABLE["api"]
SESSION: Dict[str, Any] = TABLE["popart_session_options"]
PACKAGE = Path(__file__).parent.parent / "ipu_vit"
# Settings have groups of the same names, and know nothing of PopTorch.
OTHERS = {"emulator", "settings"}
FILES = [path for path in PACKAGE.rglob("*.py") if not OTHERS.intersection(path.relative_to(PACKAGE).parts)]

# Paths are those of the table; an instance has its class's with brackets.
# What variables of these names hold throughout the application, unless they are annotated otherwise.
NAMES = {
    "options": "poptorch.Options()",
    "executor": "poptorch.PoplarExecutor()",
    "optimizer": "poptorch.optim.SGD()",
    "loader": "poptorch.DataLoader()",
}
RESULTS = {
    "poptorch.trainingModel": "poptorch.PoplarExecutor()",
    "poptorch.inferenceModel": "poptorch.PoplarExecutor()",
    "poptorch.PoplarExecutor.options": "poptorch.Options()",
}
CHAINED = ("poptorch.Options", "poptorch.TensorLocationSettings", "poptorch.Stage")  # their methods return them
BASES = {"poptorch.optim.SGD": "poptorch.optim.Optimizer"}
# What PopTorch has beside the names in the table: torch's own attributes, and options as their values are kept.
BESIDES = {
    "poptorch.optim.SGD.param_groups",
    "poptorch.Options.device_iterations",
    "poptorch.Options.replication_factor",
}
SESSION_TYPES: Dict[str, Any] = {"bool": bool, "int": int, "str": str, "float": float}


class Checker:
    """Everything that one source file says to PopTorch and PopTorch would not understand.

    Expressions are given the path of their class, function or value in the table; variables by what is assigned
    to them or, by convention, their names.
    """

    def __init__(self, source: str) -> None:
        self.complaints: List[str] = []
        self.understood: List[str] = []  # the paths that were found in the table
        tree = ast.parse(source)
        self._constants = {
            statement.targets[0].id: statement.value
            for statement in tree.body
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
        }
        self._visit(tree, {})

    def _visit(self, node: ast.AST, variables: Dict[str, Optional[str]]) -> None:
        if isinstance(node, ast.FunctionDef):
            variables = {**variables, **self._variables_of(node)}
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "poptorch":
            for alias in node.names:
                self._look_up(f"{node.module}.{alias.name}", node.lineno)
        elif isinstance(node, ast.Attribute):
            path = self._path(node, variables)
            if path is not None and not path.endswith("()"):
                self._look_up(path, node.lineno)
        elif isinstance(node, ast.Call):
            self._check_call(node, self._path(node.func, variables))
        for child in ast.iter_child_nodes(node):
            self._visit(child, variables)

    # What expressions are -----------------------------------------------------------------------

    def _path(self, node: ast.AST, variables: Dict[str, Optional[str]]) -> Optional[str]:
        """The path of an expression's value; None if it is not PopTorch's."""
        if isinstance(node, ast.Name):
            return "poptorch" if node.id == "poptorch" else variables.get(node.id, NAMES.get(node.id))
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and node.value.id == "self":
                return NAMES.get(node.attr.lstrip("_"))
            owner = self._path(node.value, variables)
            return None if owner is None else f"{RESULTS.get(owner, owner)}.{node.attr}".replace("()", "")
        if isinstance(node, ast.Call):
            called = self._path(node.func, variables)
            kind = API.get(called, {}).get("kind")
            if called is None or kind == "class":
                return called and f"{called}()"
            owner = called.rpartition(".")[0]
            return RESULTS.get(called, f"{owner}()" if kind == "method" and owner.startswith(CHAINED) else None)
        return None

    def _variables_of(self, function: ast.FunctionDef) -> Dict[str, Optional[str]]:
        """What the names that a function binds hold; None if it is not PopTorch's."""
        found: Dict[str, Optional[str]] = {}
        for node in ast.walk(function):
            if isinstance(node, ast.arg) and not _is_any(node.annotation):
                found[node.arg] = None
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and not _is_any(node.annotation):
                found[node.target.id] = None
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
                found.update({name.id: None for name in node.targets[0].elts if isinstance(name, ast.Name)})
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                path = self._path(node.value, found)
                if path is not None:
                    found[node.targets[0].id] = path
        return found

    # What the table says ------------------------------------------------------------------------

    def _look_up(self, path: str, line: int) -> None:
        owner, _, name = path.rpartition(".")
        base = f"{BASES[owner]}.{name}" if owner in BASES else ""
        is_module = any(known.startswith(f"{path}.") for known in API)
        is_member = name in API.get(owner, {}).get("members", {})
        if path in API or base in API or is_module or is_member or path in BESIDES:
            self.understood.append(path)
        else:
            self.complaints.append(f"line {line}: PopTorch has no {path}")

    def _check_call(self, call: ast.Call, path: Optional[str]) -> None:
        if path is None:
            return
        callee = {"class": f"{path}.__init__", "method": path, "function": path, "staticmethod": path}.get(
            API.get(path, {}).get("kind"), ""
        )
        if path.endswith("()"):
            callee = f"{path[:-2]}.__call__"
        parameters = API.get(callee, {}).get("parameters")
        if parameters is not None:
            self._check_arguments(call, callee, parameters)
        if path == "poptorch.Options._Popart.set":
            self._check_session_option(call)
        for keyword in call.keywords:
            if keyword.arg == "async_options" and isinstance(keyword.value, ast.Dict):
                accepted = dict(API["poptorch.AsynchronousDataAccessor.__init__"]["parameters"])
                for key in keyword.value.keys:
                    if isinstance(key, ast.Constant) and key.value not in accepted:
                        self.complaints.append(f"line {call.lineno}: async_options has no {key.value}")

    def _check_arguments(self, call: ast.Call, callee: str, parameters: List[List[Any]]) -> None:
        names = [name for name, _ in parameters if not name.startswith("*")]
        takes_any = {kind: any(name.startswith(kind) for name, _ in parameters) for kind in ("*", "**")}
        takes_any["*"] = any(name.startswith("*") and not name.startswith("**") for name, _ in parameters)
        starred = any(isinstance(argument, ast.Starred) for argument in call.args)
        keywords = [keyword.arg for keyword in call.keywords]
        where = f"line {call.lineno}: {callee}"
        if len(call.args) > len(names) and not takes_any["*"] and not starred:
            self.complaints.append(f"{where} takes {len(names)} arguments, not {len(call.args)}")
        for keyword in keywords:
            if keyword is not None and keyword not in names and not takes_any["**"]:
                self.complaints.append(f"{where} has no parameter {keyword}")
        given = {*names[: len(call.args)], *keywords}
        missing = [name for name, default in parameters if default is None and name in names and name not in given]
        if missing and not starred and None not in keywords:
            self.complaints.append(f"{where} lacks {', '.join(missing)}")

    def _check_session_option(self, call: ast.Call) -> None:
        """The name, and the value's type where it is written there or in a constant."""
        name, value = call.args
        assert isinstance(name, ast.Constant)
        kinds = [kind for kind in (*SESSION_TYPES, "container") if name.value in SESSION[kind]]
        if not kinds:
            self.complaints.append(f"line {call.lineno}: PopART has no session option {name.value}")
        if isinstance(value, ast.Name):
            value = self._constants.get(value.id, value)
        if kinds and isinstance(value, ast.Constant) and type(value.value) is not SESSION_TYPES[kinds[0]]:
            self.complaints.append(f"line {call.lineno}: session option {name.value} is of type {kinds[0]}")


def _is_any(annotation: Optional[ast.AST]) -> bool:
    return annotation is None or (isinstance(annotation, ast.Name) and annotation.id == "Any")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_application_uses_what_poptorch_has(path: Path) -> None:
    assert Checker(path.read_text(encoding="utf-8")).complaints == []


def test_checker_sees_the_applications_calls() -> None:
    """A checker that resolved nothing would be content with everything."""
    seen = {name for path in FILES for name in Checker(path.read_text(encoding="utf-8")).understood}
    assert {
        "poptorch.optim.SGD", "poptorch.optim.SGD.load_state_dict", "poptorch.Options.deviceIterations",
        "poptorch.Options.Training.gradientAccumulation", "poptorch.Options._Popart.set",
        "poptorch.AutoStage.SameAsIpu",
        "poptorch.TensorLocationSettings.useReplicatedTensorSharding", "poptorch.Options.Precision.setPartialsType",
        "poptorch.PoplarExecutor.compile", "poptorch.PoplarExecutor.rng_state", "poptorch.PoplarExecutor.setOptimizer",
        "poptorch.DataLoader", "poptorch.DataLoader.terminate", "poptorch.DataLoaderMode.AsyncRebatched",
        "poptorch.identity_loss", "poptorch.BeginBlock", "poptorch.ipuHardwareIsAvailable",
    } <= seen  # fmt: skip


@pytest.mark.parametrize(
    "statement, complaint",
    [
        ("poptorch.beginBlock(layer)", "no poptorch.beginBlock"),
        ("poptorch.OutputMode.Every", "no poptorch.OutputMode.Every"),
        ("poptorch.optim.Sgd", "no poptorch.optim.Sgd"),
        ("from poptorch.optim import Lion", "no poptorch.optim.Lion"),
        ("options.deviceIteration(4)", "no poptorch.Options.deviceIteration"),
        ("options.deviceIterations(4, 5)", "takes 1 arguments, not 2"),
        ("options.deviceIterations()", "lacks device_iterations"),
        ("options.deviceIterations(4).replicationFactors(2)", "no poptorch.Options.replicationFactors"),
        ("poptorch.Options().Training.gradientAccumulation(4, steps=4)", "no parameter steps"),
        ("mine = poptorch.Options(); mine.Precision.halfs(True)", "no poptorch.Options.Precision.halfs"),
        ("options.TensorLocations.setLocation(x)", "no poptorch.Options.TensorLocations.setLocation"),
        ("poptorch.TensorLocationSettings().useOnChipStorage(True).on()", "no poptorch.TensorLocationSettings.on"),
        ("poptorch.optim.SGD(weights, lr=1.0, accum_dtype=x)", "no parameter accum_dtype"),
        ("poptorch.optim.SGD(weights)", "lacks lr"),
        ("self.optimizer.state_dicts()", "no poptorch.optim.SGD.state_dicts"),
        ("poptorch.identity_loss(loss)", "lacks reduction"),
        ("self.executor.isCompield()", "no poptorch.PoplarExecutor.isCompield"),
        ("mine = poptorch.inferenceModel(net); mine.detach()", "no poptorch.PoplarExecutor.detach"),
        ("executor.options.randomSeeds(1)", "no poptorch.Options.randomSeeds"),
        ("executor.rng_states = []", "no poptorch.PoplarExecutor.rng_states"),
        ("poptorch.DataLoader(options, data, async_options={'preload': True})", "async_options has no preload"),
        ("options._Popart.set('prefetchDepth', 2)", "no session option prefetchDepth"),
        ("options._Popart.set('defaultBufferingDepth', True)", "is of type int"),
        ("options._Popart.set('defaultBufferingDepth', DEPTH)", "is of type int"),
    ],
)
def test_checker_finds_mistakes(statement: str, complaint: str) -> None:
    (found,) = Checker(f"import poptorch\nDEPTH = '2'\ndef f(self):\n    {statement}\n").complaints
    assert found.startswith("line ") and complaint in found


def test_checker_knows_what_is_not_poptorchs() -> None:
    source = """
        def f(optimizer: OptimizerSettings, settings):
            options: Dict[str, Any] = {}
            options.update(optimizer.anything)
            loader, executor = settings.loader, settings.executor
            return loader.something, executor.anything, settings.optimizer.loss_scaling
    """
    assert Checker(inspect.cleandoc(source)).complaints == []


def every_kind_of_options() -> Iterator[Any]:
    for pipeline, optimizer in (
        ({"replicas": 4, "replicated_tensor_sharding": True, "executable_cache": "cache"}, {}),
        ({"partials": "float32", "stochastic_rounding": False}, {"max_grad_norm": 1.0}),
    ):
        settings = Settings(pipeline=pipeline, optimizer=optimizer)
        yield training_options(settings, CPU)
        yield evaluation_options(settings, CPU)


def test_session_options_have_the_types_that_popart_expects() -> None:
    found = [item for options in every_kind_of_options() for item in options._Popart.options.items()]
    assert "accumulateOuterFragmentSettings.schedule" in dict(found)
    for name, value in found:
        kinds = [kind for kind in (*SESSION_TYPES, "container") if name in SESSION[kind]]
        assert kinds, name
        if kinds != ["container"]:
            assert type(value) in [SESSION_TYPES[kind] for kind in kinds if kind != "container"], name
        bound = SESSION["int_upper_bound_exclusive"].get(name)
        assert bound is None or 0 <= value < bound, name
        if name == "accumulateOuterFragmentSettings.schedule":
            assert value == TABLE["popart_enums"]["AccumulateOuterFragmentSchedule"]["OverlapMemoryOptimized"]
