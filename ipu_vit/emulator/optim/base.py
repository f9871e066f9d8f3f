"""What PopTorch's optimizers have in common: variable attributes, and state that lives on the device."""

from __future__ import annotations

import weakref
from typing import Any, Dict, Iterable, List, Optional, Set, Union

import torch

Params = Union[Iterable[torch.Tensor], Iterable[Dict[str, Any]]]

# What an attribute of PopTorch's own is when the constructor is not given it.
DEFAULTS: Dict[str, Any] = {
    "loss_scaling": 1.0,
    "velocity_scaling": 1.0,
    "use_combined_accum": False,
    "bias_correction": True,
    "use_tf_variant": False,
    "max_weight_norm": 65500.0,
    "max_grad_norm": float("inf"),
    "accum_type": torch.float32,
    "velocity_accum_type": torch.float32,
    "first_order_momentum_accum_type": torch.float32,
    "second_order_momentum_accum_type": torch.float32,
}


class VariableAttributes:
    """Which attributes may change after compile; the others are compiled in as constants (rule 4.12)."""

    def __init__(self, variable_attributes: List[str], allowed_attributes: List[str]) -> None:
        self._allowed = list(allowed_attributes)
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
        assert attr in self._allowed, f"Unknown optimizer attribute {attr!r}: choose from {sorted(self._allowed)}"


class Optimizer:
    """`poptorch.optim.Optimizer`: what its classes add to torch's.

    They inherit torch's parameter groups and schedulers, and torch's `step`, which only moves weights
    on the host that have gradients there: the device reads the attributes (rule 4.1).
    """

    #: attributes of the whole optimizer that may be variable, those that torch's class lacks, and those of a group
    _child_vars: List[str] = []
    _child_only: List[str] = []
    _group_vars: List[str] = []

    def __init__(self) -> None:
        self.variable_attrs: Optional[VariableAttributes] = None
        self._executor: Optional[weakref.ref[Any]] = None
        self._kept: Dict[str, Any] = {}

    def _construct(self, arguments: Dict[str, Any]) -> None:
        """Give torch's constructor what the program passed of its parameters, and keep the rest.

        `arguments` are the `locals()` of the class's own constructor: None for what was not passed.
        """
        Optimizer.__init__(self)
        given = {
            name: value for name, value in arguments.items() if name not in ("self", "params") and value is not None
        }
        own = {name: given.get(name, DEFAULTS[name]) for name in self._child_only}
        for name, value in own.items():
            assert not name.endswith("_type") or value in (torch.float16, torch.float32), (
                f"{name} must be torch.float16 or torch.float32, not {value}"
            )
        for_torch = {name: value for name, value in given.items() if name not in own}
        super().__init__(arguments["params"], **for_torch)  # type: ignore[call-arg]
        for name, value in own.items():
            if name in self._group_vars:
                self._add_to_groups(name, value)
            else:
                setattr(self, name, value)
        allowed = self._child_vars + self._group_vars
        self.variable_attrs = VariableAttributes([name for name in given if name in allowed], allowed)

    def _add_to_groups(self, name: str, default: Any) -> None:
        groups: Any = self
        groups.defaults[name] = default
        for group in groups.param_groups:
            group.setdefault(name, default)

    # State ------------------------------------------------------------------------------------

    def state_dict(self) -> Dict[str, Any]:
        """torch's entries and, once there is any, the device's: `ipu_state` and `ipu_param` (rule 4.17)."""
        return {**super().state_dict(), **self.get_state_dict()}  # type: ignore[misc]

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Take over what `state_dict` of a wrapped optimizer returned."""
        if not {"ipu_state", "ipu_param"} <= set(state):
            raise RuntimeError(
                "Only the state of a PopTorch optimizer that was wrapped and compiled can be loaded: ipu_state or "
                "ipu_param is missing"
            )
        super().load_state_dict({"state": state["state"], "param_groups": state["param_groups"]})  # type: ignore[misc]
        self.set_state_dict(state)

    def get_state_dict(self) -> Dict[str, Any]:
        """The device's entries alone."""
        executor = self._compiled_executor()
        return self._kept if executor is None else executor._optimizer_state()

    def set_state_dict(self, state: Dict[str, Any]) -> None:
        """Put the device's entries in place, now or when the executor is compiled."""
        self._kept = {name: state[name] for name in ("ipu_state", "ipu_param")}
        self._send()

    def has_state(self) -> bool:
        """Whether there is any device state to save."""
        return bool(self.get_state_dict())

    def attach(self, executor: Any) -> None:
        """Have the state live on this executor's device, once it is compiled; what was loaded goes there."""
        self._executor = weakref.ref(executor)
        self._send()

    def detach(self) -> None:
        """Keep the state as it is now: another optimizer takes over, or the device goes."""
        self._kept = self.get_state_dict()
        self._executor = None

    def _send(self) -> None:
        executor = self._compiled_executor()
        if executor is not None and self._kept:
            executor._load_optimizer_state(self._kept)
            self._kept = {}

    def _compiled_executor(self) -> Any:
        executor = None if self._executor is None else self._executor()
        return executor if executor is not None and executor.isCompiled() else None

    def __getstate__(self) -> Dict[str, Any]:
        """For copies and files, which belong to no executor; torch's keeps only what torch knows."""
        own = {name: getattr(self, name) for name in self._child_only if hasattr(self, name)}
        return {
            **super().__getstate__(),  # type: ignore[dict-item]
            **own,
            "variable_attrs": self.variable_attrs,
            "_executor": None,
            "_kept": self.get_state_dict(),
        }
