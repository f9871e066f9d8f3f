"""What the device reads of an optimizer, and what may replace it later (rules 4.1, 4.2, 4.11 to 4.16).

An optimizer is read when a model is wrapped and again by `setOptimizer`. Every value comes with
whether it is compiled in as a constant, which PopTorch's own optimizers say by what their constructor
was given, and torch's by their values.
"""

from __future__ import annotations

import enum
import numbers
from dataclasses import dataclass, replace
from typing import Any, Callable, Dict, FrozenSet, Iterator, List, Optional, Tuple, Type

import torch

from ipu_vit.emulator.enums import MeanReductionStrategy
from ipu_vit.emulator.errors import Error
from ipu_vit.emulator.log import log_once, logger
from ipu_vit.emulator.optim.adam import Adam, AdamW
from ipu_vit.emulator.optim.base import DEFAULTS, Optimizer, VariableAttributes
from ipu_vit.emulator.optim.lamb import LAMB
from ipu_vit.emulator.optim.rmsprop import RMSprop
from ipu_vit.emulator.optim.sgd import SGD
from ipu_vit.emulator.options import Options


class Kind(enum.Enum):
    """The device's optimizers."""

    SGD_COMBINED = "SGD1"
    SGD_SEPARATE = "SGD2"
    ADAM = "ADAM"
    ADAMW = "ADAMW"
    ADAMW_NO_BIAS = "ADAMW_NO_BIAS"
    RMSPROP = "RMSPROP"
    RMSPROP_CENTERED = "RMSPROP_CENTERED"
    LAMB = "LAMB"
    LAMB_NO_BIAS = "LAMB_NO_BIAS"


SGD_KINDS = (Kind.SGD_COMBINED, Kind.SGD_SEPARATE)
# torch's classes and PopTorch's of the same optimizer. AdamW comes first: newer torch derives it from Adam.
_CLASSES: List[Tuple[type, Type[Optimizer]]] = [
    (torch.optim.SGD, SGD),
    (torch.optim.AdamW, AdamW),
    (torch.optim.Adam, Adam),
    (torch.optim.RMSprop, RMSprop),
    (LAMB, LAMB),
]

# When a value of a torch optimizer is compiled in; PopTorch's own optimizers know (rule 4.12).
_CONSTANT: Dict[str, Callable[[Any], bool]] = {
    "lr": lambda _: False,
    "weight_decay": lambda value: value == 0.0,
    "momentum": lambda value: value == 0.0,
    "dampening": lambda value: value == 0.0,
    "velocity_scaling": lambda value: value == 1.0,
    "eps": lambda value: value == 1e-8,
    "max_weight_norm": lambda value: value == DEFAULTS["max_weight_norm"],
    "loss_scaling": lambda value: value == 1.0,
    "alpha": lambda _: True,
    "betas": lambda _: True,
    "nesterov": lambda _: True,
}


@dataclass(frozen=True)
class Group:
    """One parameter group: its parameters, later their names, and the numbers of their update."""

    parameters: List[Any]
    values: Dict[str, Any]
    constants: FrozenSet[str]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def described(self, name: str) -> str:
        return f"{'a constant' if name in self.constants else 'a variable'} ({self[name]})"

    def may_become(self, name: str, new: Group) -> bool:
        """Whether the device can take over another group's value."""
        if name in self.constants:
            return name in new.constants and self[name] == new[name]
        return name not in new.constants


# What torch's learning rate schedulers leave on an optimizer and its groups.
_OF_SCHEDULERS = {"initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr", "step"}


@dataclass(frozen=True)
class Attributes:
    """Everything an update reads of an optimizer."""

    kind: Kind
    groups: List[Group]
    accumulator_type: torch.dtype
    first_type: torch.dtype
    second_type: torch.dtype
    max_grad_norm: float
    tf_variant: bool
    keys: FrozenSet[str]

    @property
    def loss_scaling(self) -> float:
        """The loss scale the program asks for, the same in all groups."""
        return float(self.groups[0]["loss_scaling"])

    def named(self, names: Dict[int, str]) -> Attributes:
        """With names for parameters, by their addresses; KeyError for one that is not the model's (rule 4.16)."""
        groups = []
        for number, group in enumerate(self.groups):
            for position, parameter in enumerate(group.parameters):
                if parameter.data_ptr() not in names:
                    raise KeyError(
                        f"Parameter {position} of the optimizer's group {number} is not one of the wrapped model's: "
                        "make the optimizer of model.parameters(), after the model has got its type"
                    )
            groups.append(replace(group, parameters=[names[parameter.data_ptr()] for parameter in group.parameters]))
        return replace(self, groups=groups)

    def check(self) -> None:
        """Raise Error for numbers the device's optimizer refuses (rules 4.3, 4.9)."""
        if self.loss_scaling == 0:
            raise Error("loss_scaling must not be 0")
        if self.max_grad_norm != self.max_grad_norm:
            raise Error("max_grad_norm must not be NaN: leave it out for no clipping")
        for number, group in enumerate(self.groups):
            for name in ("lr", "weight_decay", "momentum", "dampening"):
                if group.values.get(name, 0) < 0:
                    raise Error(f"{name} of the optimizer's group {number} must not be negative, but is {group[name]}")
            for name in ("velocity_scaling", "eps"):
                if group.values.get(name, 1) <= 0:
                    raise Error(f"{name} of the optimizer's group {number} must be positive, but is {group[name]}")
            if group["lr"] == 0 and "lr" in group.constants:
                raise Error(f"lr of the optimizer's group {number} is a constant 0, with which nothing would train")
            if group.values.get("nesterov") and group["dampening"]:
                raise Error(f"nesterov needs dampening 0, but group {number} of the optimizer has {group['dampening']}")

    def replacing(self, old: Attributes, relaxed: bool) -> Attributes:
        """These attributes for a model compiled with others, whose groups keep their parameters.

        Raises Error when what was compiled in would change (rules 4.12, 4.13), and warns about entries
        that were not there before and are ignored (rule 4.11).
        """
        for what, now, then in (
            ("kind of optimizer", self.kind.value, old.kind.value),
            ("accum_type", self.accumulator_type, old.accumulator_type),
            ("velocity or first momentum type", self.first_type, old.first_type),
            ("second momentum type", self.second_type, old.second_type),
            ("max_grad_norm", self.max_grad_norm, old.max_grad_norm),
            ("use_tf_variant", self.tf_variant, old.tf_variant),
            ("number of parameter groups", len(self.groups), len(old.groups)),
        ):
            if now != then:
                raise Error(f"The optimizer's {what} is compiled in and cannot change from {then} to {now}")
        for number, (before, new) in enumerate(zip(old.groups, self.groups)):
            for name in before.values:
                if not before.may_become(name, new):
                    raise Error(
                        f"Optimizer attribute {name} of group {number} was compiled as {before.described(name)} and "
                        f"cannot become {new.described(name)}: what shall change must be passed to the constructor of "
                        "a poptorch.optim class, or given to variable_attrs.markAsVariable, before compilation"
                    )
        unexpected = sorted(key for key in self.keys - old.keys if key.split(" ")[0] not in _OF_SCHEDULERS)
        if unexpected:
            log = logger.debug if relaxed else logger.warning
            log("Ignoring unexpected attributes of the %s optimizer: %s", self.kind.value, ", ".join(unexpected))
        groups = [replace(new, parameters=before.parameters) for before, new in zip(old.groups, self.groups)]
        return replace(self, groups=groups, keys=self.keys | old.keys)


def read_attributes(optimizer: Any, options: Options, compiled: bool = False) -> Attributes:
    """Read an optimizer, at wrap or by `setOptimizer`; compiling names the parameters.

    Fails as PopTorch does there: AssertionError for other optimizers and for values that are not Python
    numbers (rules 4.2, 4.15), ValueError for amsgrad, types and rule 3.4. `options` are the executor's
    own copy, in which half accumulators choose running means.
    """
    kind, torch_class, attribute_lists = _classify(optimizer)
    classes = (torch_class, attribute_lists)
    if not compiled and type(optimizer) not in classes and torch_class not in type(optimizer).__bases__:
        logger.warning(
            "%s is a subclass of poptorch.optim.%s: only its attributes count, methods such as step() do not run on "
            "the device",
            type(optimizer).__name__,
            attribute_lists.__name__,
        )
    _choose_mean_strategy(optimizer, options, compiled)
    automatic = options._Popart.options.get("automaticLossScalingSettings.enabled", False)
    if automatic and isinstance(optimizer, Optimizer) and optimizer.variable_attrs is not None:
        optimizer.variable_attrs.markAsVariable("loss_scaling")
    own = attribute_lists._child_only
    first = "velocity_accum_type" if kind in SGD_KINDS else "first_order_momentum_accum_type"
    return Attributes(
        kind=kind,
        groups=[_read_group(optimizer, group, kind, attribute_lists, automatic) for group in optimizer.param_groups],
        accumulator_type=_type_of(optimizer, "accum_type"),
        first_type=_type_of(optimizer, first),
        second_type=_type_of(optimizer, "second_order_momentum_accum_type"),
        max_grad_norm=_own(optimizer, "max_grad_norm") if "max_grad_norm" in own else DEFAULTS["max_grad_norm"],
        tf_variant=bool(_own(optimizer, "use_tf_variant")) if "use_tf_variant" in own else False,
        keys=frozenset(_keys_of(optimizer)),
    )


def _classify(optimizer: Any) -> Tuple[Kind, type, Type[Optimizer]]:
    """The device's optimizer, and the classes whose attributes it has."""
    found = [classes for classes in _CLASSES if isinstance(optimizer, classes[0])]
    assert found, (
        f"Unsupported optimizer {type(optimizer).__name__}: use torch.optim's SGD, Adam, AdamW or RMSprop, or "
        "poptorch.optim's, which has LAMB too"
    )
    torch_class, own_class = found[0]
    if own_class is SGD:
        combined = getattr(optimizer, "use_combined_accum", False)
        return Kind.SGD_COMBINED if combined else Kind.SGD_SEPARATE, torch_class, own_class
    if own_class is RMSprop:
        centered = [group["centered"] for group in optimizer.param_groups]
        assert len(set(centered)) == 1, f"All parameter groups must have the same value of centered, not {centered}"
        return Kind.RMSPROP_CENTERED if centered[0] else Kind.RMSPROP, torch_class, own_class
    corrected = getattr(optimizer, "bias_correction", True)
    if own_class is AdamW:
        return Kind.ADAMW if corrected else Kind.ADAMW_NO_BIAS, torch_class, own_class
    if own_class is LAMB:
        return Kind.LAMB if corrected else Kind.LAMB_NO_BIAS, torch_class, own_class
    return Kind.ADAM, torch_class, own_class


def _choose_mean_strategy(optimizer: Any, options: Options, compiled: bool) -> None:
    """Half accumulators hold running means, unless they are velocities too (rule 3.4)."""
    if _own(optimizer, "accum_type") != torch.float16 or _own(optimizer, "use_combined_accum"):
        return
    training = options.Training
    if compiled and training.meanAccumulationAndReplicationReductionStrategy != MeanReductionStrategy.Running:
        raise ValueError(
            "accum_type=torch.float16 needs MeanReductionStrategy.Running, but the model is compiled with another "
            "strategy: use torch.float32, or wrap the model with this optimizer"
        )
    frozen, training._is_frozen = training._is_frozen, False
    training.setMeanAccumulationAndReplicationReductionStrategy(MeanReductionStrategy.Running)
    training._is_frozen = frozen


def _read_group(
    optimizer: Any, group: Dict[str, Any], kind: Kind, attribute_lists: Type[Optimizer], automatic: bool
) -> Group:
    values: Dict[str, Any] = {"loss_scaling": _own(optimizer, "loss_scaling")}
    for name in attribute_lists._group_vars:
        values[name] = group.get(name, DEFAULTS.get(name))
        assert values[name] is not None, f"The optimizer's groups lack {name}"
    if group.get("maximize"):
        log_once("maximize=True has no effect on the device, which minimises: make the loss negative instead")
    if values.get("amsgrad"):
        raise ValueError("amsgrad=True is not supported: only plain Adam and AdamW are")
    for name in ("amsgrad", "centered"):  # they choose the kind of optimizer and are no numbers of it
        values.pop(name, None)
    for name, value in values.items():
        _check_value(name, value)
    constants = {name for name, value in values.items() if _is_constant(optimizer, name, value, kind)}
    if automatic:
        constants.discard("loss_scaling")
    if kind == Kind.SGD_SEPARATE:  # velocities are kept in the range of the gradients (rule 4.4)
        values["velocity_scaling"] = values["loss_scaling"]
        constants.discard("velocity_scaling")
        constants.update({"velocity_scaling"} if "loss_scaling" in constants else ())
    return Group(parameters=list(group["params"]), values=values, constants=frozenset(constants))


def _check_value(name: str, value: Any) -> None:
    if name == "betas":
        assert isinstance(value, tuple) and len(value) == 2, f"betas must be a tuple of two numbers, not {value!r}"
        for beta in value:
            _check_value("each of betas", beta)
        return
    assert isinstance(value, numbers.Number), f"Optimizer attribute {name} must be a number, not {value!r}"


def _is_constant(optimizer: Any, name: str, value: Any, kind: Kind) -> bool:
    variable: Optional[VariableAttributes] = getattr(optimizer, "variable_attrs", None)
    if variable is not None:
        return variable.isConstant(name)
    if name == "weight_decay" and kind == Kind.ADAMW:
        return bool(value == 1e-2)  # the default of torch's AdamW
    return _CONSTANT[name](value)


def _own(optimizer: Any, name: str) -> Any:
    """An attribute of PopTorch's own, which torch's optimizers may have been given too."""
    value = getattr(optimizer, name, DEFAULTS[name])
    assert value is not None, f"Optimizer attribute {name} must not be None"
    return value


def _type_of(optimizer: Any, name: str) -> torch.dtype:
    value = _own(optimizer, name)
    if value not in (torch.float16, torch.float32):
        raise ValueError(f"{name} must be torch.float16 or torch.float32, not {value}")
    assert isinstance(value, torch.dtype)
    return value


def _keys_of(optimizer: Any) -> Iterator[str]:
    """Everything that is there to be read, or to be ignored."""
    torchs = ("defaults", "state", "param_groups", "variable_attrs")
    yield from (name for name in vars(optimizer) if name not in torchs and not name.startswith("_"))
    for number, group in enumerate(optimizer.param_groups):
        yield from (f"{name} of group {number}" for name in group if name != "params")
