"""What every group of options is: named values, checked by type, that can be frozen.

Values are read as attributes (`options.device_iterations`). A setter checks a value's type against the
one before it, hardly ever its range (rule 9.8). Executors and data loaders freeze the options they are
given (rules 7.1, 9.7).
"""

from __future__ import annotations

import copy
from typing import Any, Dict, Iterator, TypeVar

Group = TypeVar("Group", bound="OptionsDict")


class OptionsDict:
    """Named, typed values that can be frozen. Private attributes must be made before `super().__init__`."""

    def __init__(self, **default_values: Any) -> None:
        self._is_frozen = False
        self._values = default_values

    def set(self, **kwargs: Any) -> None:
        """Change values that exist."""
        self.checkIsFrozen()
        for name, value in kwargs.items():
            if name not in self._values:
                raise AssertionError(f"There is no option {name}: the valid ones are {sorted(self._values)}")
            expected = type(self._values[name])
            if not isinstance(value, expected):
                raise AssertionError(
                    f"Option {name} takes a value of type {expected.__name__}, not {value!r} ({type(value).__name__})"
                )
            self._values[name] = value

    def createOrSet(self, **kwargs: Any) -> None:
        """Change values that exist, and add the others."""
        self.checkIsFrozen()
        self.set(**{name: value for name, value in kwargs.items() if name in self._values})
        self._values.update(kwargs)

    def exists(self, option: str) -> bool:
        return option in self._values

    def deleteIfExists(self, option: str) -> None:
        self.checkIsFrozen()
        self._values.pop(option, None)

    # Freezing ---------------------------------------------------------------------------------

    def checkIsFrozen(self, option: Any = None) -> None:
        """Raise AttributeError if the options are in use."""
        if self._is_frozen and option != "_is_frozen":
            raise AttributeError(
                "Can't modify frozen Options: an executor or a data loader uses them; change them before, or a clone()"
            )

    def _freeze(self) -> None:
        for part in (self, *self._parts()):
            part.__dict__["_is_frozen"] = True

    def _unfreeze(self) -> None:
        for part in (self, *self._parts()):
            part.__dict__["_is_frozen"] = False

    def _parts(self) -> Iterator[Any]:
        """The groups that this one consists of."""
        return (value for value in self.__dict__.values() if hasattr(value, "_is_frozen"))

    def __deepcopy__(self: Group, memo: Dict[int, Any]) -> Group:
        """A copy that is not frozen."""
        copied = object.__new__(type(self))
        memo[id(self)] = copied
        for name, value in self.__dict__.items():
            copied.__dict__[name] = copy.deepcopy(value, memo)
        copied.__dict__["_is_frozen"] = False
        return copied

    # Values as attributes ---------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_values"][name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no option or method {name!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        if "_values" not in self.__dict__ or name == "__class__":
            object.__setattr__(self, name, value)
        elif not name.startswith("_"):
            self.set(**{name: value})
        elif name in self.__dict__:
            self.checkIsFrozen(name)
            object.__setattr__(self, name, value)
        else:
            raise AttributeError(f"{type(self).__name__} has no private attribute {name!r}")

    def __call__(self, option: str) -> Any:
        return getattr(self, option)

    def update(self, other: Dict[str, Any]) -> Dict[str, Any]:
        """Add the values to a dictionary that must not have any of them."""
        common = sorted(set(self._values).intersection(other))
        if common:
            raise AssertionError(f"Option {common[0]} is set in two ways: use its own setter only, not _Popart.set")
        other.update(self._values)
        return other

    def toDict(self) -> Dict[str, Any]:
        """Every value by name."""
        return self.update({})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._values.items())})"
