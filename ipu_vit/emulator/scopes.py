"""Contexts that tell PopART something of the operators inside. They change no number."""

from __future__ import annotations

from typing import Any, Dict, List, Union

import torch

from ipu_vit.emulator.arguments import require
from ipu_vit.emulator.enums import MultiConvPlanType


class MultiConv:
    """`poptorch.MultiConv`: the convolutions inside run in parallel.

    Settings steer speed and memory of the device, so they are checked and not kept.
    """

    def availableMemoryProportions(self, value: Union[float, List[float]]) -> MultiConv:
        items = _per_convolution(value)
        assert value is None or (items and all(isinstance(item, float) for item in items)), (
            f"Invalid available memory proportion {value!r}: give a float, or one for each convolution"
        )
        return self

    def partialsTypes(self, value: Union[torch.dtype, List[torch.dtype]]) -> MultiConv:
        if not all(item in (torch.float32, torch.float16) for item in _per_convolution(value)):
            raise ValueError(f"Invalid partials types {value!r}: give torch.float or torch.half, or a list of them")
        return self

    def enableConvDithering(self, value: Union[bool, List[bool]]) -> MultiConv:
        if value is not None and not all(isinstance(item, bool) for item in _per_convolution(value)):
            raise ValueError(f"Convolution dithering must be a bool or a list of them, not {value!r}")
        return self

    def planType(self, value: MultiConvPlanType) -> MultiConv:
        assert value is None or isinstance(value, MultiConvPlanType), (
            f"Invalid plan type {value!r}: give a poptorch.MultiConvPlanType"
        )
        return self

    def perConvReservedTiles(self, value: int) -> MultiConv:
        assert isinstance(value, int), f"The number of reserved tiles must be an int, not {value!r}"
        return self

    def cycleBackOff(self, value: float) -> MultiConv:
        assert isinstance(value, float), f"The cycle back-off must be a float, not {value!r}"
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, type: Any, value: Any, traceback: Any) -> None:
        pass


def _per_convolution(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else [value]


class NameScope:
    """`poptorch.NameScope`: the names of the operators inside begin with this one."""

    def __init__(self, name: str) -> None:
        assert isinstance(name, str), f"The name of a NameScope must be a string, not {name!r}"
        self.name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, type: Any, value: Any, traceback: Any) -> None:
        pass


class Attribute:
    """`poptorch.Attribute`: PopART attributes of the operators inside, as `Attribute(__outline={"layer": "a"})`."""

    def __init__(self, **kwargs: Dict[str, str]) -> None:
        self._kwargs = kwargs

    def __enter__(self) -> None:
        for attribute, entries in self._kwargs.items():
            if not isinstance(entries, dict):
                raise AttributeError(f"Attribute: {attribute} must be a dictionary of strings, not {entries!r}")
            for key, value in entries.items():
                require(
                    isinstance(key, str) and isinstance(value, str),
                    f"Attribute: keys and values of {attribute} must be strings, unlike {key!r}: {value!r}",
                )

    def __exit__(self, type: Any, value: Any, traceback: Any) -> None:
        pass
