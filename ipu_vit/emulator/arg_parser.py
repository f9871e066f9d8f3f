"""Argument types of a program's own: how to take their tensors out and put others in their place.

Models and asynchronous data loaders understand tensors, tuples, lists and dictionaries. A class of the
program's own is understood once it is registered with a parser.
"""

from __future__ import annotations

import abc
from typing import Any, Dict, Iterator, Optional, Type

#: The registered types and their parsers; None makes a type a plain value again.
custom_parsers: Dict[type, Optional[ICustomArgParser]] = {}


class ICustomArgParser(abc.ABC):
    """`poptorch.ICustomArgParser`: knows the tensors inside one type of argument."""

    @abc.abstractmethod
    def yieldTensors(self, struct: Any) -> Iterator[Any]:
        """Every tensor of the argument, always in the same order."""

    @abc.abstractmethod
    def reconstruct(self, original_structure: Any, tensor_iterator: Iterator[Any]) -> Any:
        """An argument like the original one that holds the next tensors of the iterator."""


def registerCustomArgParser(arg_data_type: Type[Any], arg_parser: Optional[ICustomArgParser]) -> None:
    """`poptorch.registerCustomArgParser`: have arguments of this type, or derived from it, taken apart."""
    if not isinstance(arg_data_type, type):
        raise AssertionError(f"registerCustomArgParser takes a type, not {arg_data_type!r}")
    if arg_parser is not None and not isinstance(arg_parser, ICustomArgParser):
        raise AssertionError(
            f"The parser of {arg_data_type.__name__} must derive from poptorch.ICustomArgParser and be an object, not "
            f"{arg_parser!r}"
        )
    custom_parsers[arg_data_type] = arg_parser


def custom_parser_of(kind: type) -> Optional[ICustomArgParser]:
    """The parser registered for a type or the nearest of its base classes, if there is one."""
    if not custom_parsers:
        return None
    return next((custom_parsers[base] for base in kind.__mro__ if base in custom_parsers), None)
