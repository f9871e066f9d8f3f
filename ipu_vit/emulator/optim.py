"""`poptorch.optim`: attributes that a program sets, read by the device's own update.

PopTorch's optimizers subclass torch's for their parameter groups and schedulers, but `step` never
runs: the executor reads `attributes_of` at compile and at `setOptimizer` (rules 4.1, 4.12, 4.14).
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Optional, Set, Union

import torch

from ipu_vit.emulator.log import logger

Params = Union[Iterable[torch.Tensor], Iterable[Dict[str, Any]]]


class VariableAttributes:
    """Which attributes may change after compile; the others are compiled in as constants."""

    def __init__(self, variable_attributes: Iterable[str], allowed_attributes: Iterable[str]) -> None:
        self._allowed = set(allowed_attributes)
        self._variable: Set[str] = set()
        for name in variable_attributes:
            self.markAsVariable(name)

    def isConstant(self, attr: str) -> bool:
        return attr not in self._variable

    def markAsConstant(self, attr: str) -> None:
        self._check(attr)
        self._variable.discard(attr)

    def markAsVariable(self, attr: str) -> None:
        self._check(attr)
        self._variable.add(attr)

    def _check(self, attr: str) -> None:
        if attr not in self._allowed:
            raise AssertionError(f"Unknown optimizer attribute {attr!r}: choose from {sorted(self._allowed)}")


class Optimizer:
    """What PopTorch's optimizers share: variable attributes, and state that lives on the device."""

    def __init__(self) -> None:
        self.variable_attrs: Optional[VariableAttributes] = None
        self._executor: Optional[weakref.ref[Any]] = None
        self._loaded: Optional[Dict[str, Any]] = None

    def state_dict(self) -> Dict[str, Any]:
        """torch's entries and, once there is any, the device's: `ipu_state` and `ipu_param` (rule 4.17)."""
        return {**super().state_dict(), **self.get_state_dict()}  # type: ignore[misc]

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Take over what `state_dict` of a wrapped optimizer returned."""
        if not {"ipu_state", "ipu_param"} <= set(state):
            raise RuntimeError("Only an optimizer state written by a PopTorch optimizer with state can be loaded")
        super().load_state_dict({"state": state["state"], "param_groups": state["param_groups"]})  # type: ignore[misc]
        self.set_state_dict(state)

    def get_state_dict(self) -> Dict[str, Any]:
        """The device's entries alone."""
        executor = self._executor() if self._executor is not None else None
        if executor is not None and executor.isCompiled():
            return executor._optimizer_state()  # type: ignore[no-any-return]
        return self._loaded or {}

    def set_state_dict(self, state: Dict[str, Any]) -> None:
        """Put the device's entries in place, now or when the executor is compiled."""
        self._loaded = {"ipu_state": state["ipu_state"], "ipu_param": state["ipu_param"]}
        executor = self._executor() if self._executor is not None else None
        if executor is not None and executor.isCompiled():
            executor._load_optimizer_state(self._loaded)

    def has_state(self) -> bool:
        """Whether there is any device state to save."""
        return bool(self.get_state_dict())


def _accumulator_type(name: str, dtype: Optional[torch.dtype]) -> torch.dtype:
    dtype = torch.float32 if dtype is None else dtype
    assert dtype in (torch.float16, torch.float32), f"{name} must be torch.float16 or torch.float32, not {dtype}"
    return dtype


class SGD(Optimizer, torch.optim.SGD):
    """`poptorch.optim.SGD` (rules 4.3, 4.4). Attributes given here are variable, the others constant."""

    _child_vars = ["loss_scaling"]
    _group_vars = ["lr", "momentum", "dampening", "weight_decay", "nesterov", "velocity_scaling"]

    def __init__(
        self,
        params: Params,
        lr: float,
        momentum: Optional[float] = None,
        dampening: Optional[float] = None,
        weight_decay: Optional[float] = None,
        nesterov: Optional[bool] = None,
        maximize: Optional[bool] = None,
        foreach: Optional[bool] = None,
        differentiable: Optional[bool] = None,
        loss_scaling: Optional[float] = None,
        velocity_scaling: Optional[float] = None,
        use_combined_accum: Optional[bool] = None,
        accum_type: Optional[torch.dtype] = None,
        velocity_accum_type: Optional[torch.dtype] = None,
        max_grad_norm: Optional[float] = None,
    ) -> None:
        given = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "loss_scaling": loss_scaling,
            "velocity_scaling": velocity_scaling,
        }
        Optimizer.__init__(self)
        if (momentum is not None and momentum < 0) or (dampening is not None and dampening < 0):
            raise ValueError(f"momentum={momentum} and dampening={dampening} must not be negative")
        if nesterov and dampening:
            raise ValueError(f"nesterov needs dampening 0, not {dampening}")
        torch.optim.SGD.__init__(
            self,
            params,  # type: ignore[arg-type]
            lr=lr,
            momentum=momentum or 0.0,
            dampening=dampening or 0.0,
            weight_decay=weight_decay or 0.0,
            nesterov=bool(nesterov),
        )
        if velocity_scaling is not None and not use_combined_accum:
            logger.warning("velocity_scaling is ignored unless use_combined_accum=True")
        self.loss_scaling = 1.0 if loss_scaling is None else loss_scaling
        self.use_combined_accum = bool(use_combined_accum)
        self.accum_type = _accumulator_type("accum_type", accum_type)
        self.velocity_accum_type = _accumulator_type("velocity_accum_type", velocity_accum_type)
        self.max_grad_norm = float("inf") if max_grad_norm is None else float(max_grad_norm)
        self.variable_attrs = VariableAttributes(
            [name for name, value in given.items() if value is not None], self._child_vars + self._group_vars
        )


@dataclass(frozen=True)
class Group:
    """One parameter group as the device sees it: names of parameters and the numbers of their update."""

    parameters: List[str]
    lr: float
    momentum: float
    dampening: float
    weight_decay: float
    nesterov: bool


@dataclass(frozen=True)
class Attributes:
    """Everything an update reads of an optimizer."""

    groups: List[Group]
    loss_scaling: float
    accumulator_type: torch.dtype
    velocity_type: torch.dtype
    max_grad_norm: float
    combined: bool
    constants: Dict[str, Any]

    def check_replaces(self, old: Attributes, relaxed: bool) -> None:
        """Raise ValueError when what was compiled in as a constant would change (rule 4.12)."""
        if (self.accumulator_type, self.velocity_type, self.max_grad_norm, self.combined) != (
            old.accumulator_type, old.velocity_type, old.max_grad_norm, old.combined,
        ):  # fmt: skip
            raise ValueError("Accumulation types and max_grad_norm cannot change after compilation")
        if [group.parameters for group in self.groups] != [group.parameters for group in old.groups]:
            raise ValueError("Parameter groups cannot change after compilation")
        for name, value in old.constants.items():
            if not relaxed and self.constants.get(name, value) != value:
                raise ValueError(
                    f"Optimizer attribute {name} is a constant ({value}) and cannot become {self.constants[name]}: "
                    "pass it to the optimizer's constructor, or mark it with variable_attrs.markAsVariable, before "
                    "compilation"
                )


def attributes_of(optimizer: torch.optim.Optimizer, names: Dict[int, str]) -> Attributes:
    """Read an optimizer; `names` gives each model parameter's name by its storage address.

    Raises KeyError for a parameter that is not the model's, TypeError for a learning rate or other
    value that is not a Python number (rules 4.15, 4.16).
    """
    groups: List[Group] = []
    constants: Dict[str, Any] = {}
    variable = getattr(optimizer, "variable_attrs", None)
    for index, values in enumerate(optimizer.param_groups):
        for name in ("lr", "momentum", "dampening", "weight_decay"):
            if isinstance(values[name], bool) or not isinstance(values[name], (int, float)):
                raise TypeError(f"Optimizer attribute {name} must be a number, not {values[name]!r}")
        groups.append(
            Group(
                parameters=[names[parameter.data_ptr()] for parameter in values["params"]],
                lr=values["lr"],
                momentum=values["momentum"],
                dampening=values["dampening"],
                weight_decay=values["weight_decay"],
                nesterov=values["nesterov"],
            )
        )
        for name in ("lr", "momentum", "dampening", "weight_decay", "nesterov"):
            if variable is not None and variable.isConstant(name):
                constants[f"{name} (group {index})"] = values[name]
    loss_scaling = float(getattr(optimizer, "loss_scaling", 1.0))
    if variable is not None and variable.isConstant("loss_scaling"):
        constants["loss_scaling"] = loss_scaling
    return Attributes(
        groups=groups,
        loss_scaling=loss_scaling,
        accumulator_type=getattr(optimizer, "accum_type", torch.float32),
        velocity_type=getattr(optimizer, "velocity_accum_type", torch.float32),
        max_grad_norm=getattr(optimizer, "max_grad_norm", float("inf")),
        combined=getattr(optimizer, "use_combined_accum", False),
        constants=constants,
    )


def check_supported(optimizer):
    pass
