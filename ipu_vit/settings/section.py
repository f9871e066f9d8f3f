"""What all groups of settings have in common, and how a setting says what it accepts."""

from __future__ import annotations

from typing import Any, Dict, Literal, Set, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """A group of settings that cannot be changed once read and knows all its keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, coerce_numbers_to_str=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_not_one(cls, value: Any, info: ValidationInfo) -> Any:
        """Python counts `true` as 1; a number of updates should not."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise PydanticCustomError("not_a_bool", "a switch is not accepted here")
        return value

    def flat(self) -> Dict[str, Any]:
        """All settings as JSON has them, by dotted names."""
        return _flat(self.model_dump(mode="json"))


def _flat(table: Dict[str, Any], prefix: str = "") -> Dict[str, Any]:
    flat: Dict[str, Any] = {}
    for key, value in table.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def accepted_values(field: FieldInfo) -> str:
    """What a setting accepts, in words: `a number above 0`, `float16 or float32`, `text or none`."""
    kinds = ((Gt, "above", "gt"), (Ge, "at least", "ge"), (Lt, "below", "lt"), (Le, "at most", "le"))
    bounds = [
        f"{words} {getattr(bound, limit)}"
        for bound in field.metadata
        for kind, words, limit in (*kinds, (MinLen, "with at least", "min_length"))
        if isinstance(bound, kind)
    ]
    return " ".join([_kind_of_value(field.annotation), " and ".join(bounds)]).rstrip()


def _kind_of_value(annotation: Any) -> str:
    simple = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    if annotation in simple:
        return simple[annotation]
    kind, parts = get_origin(annotation), get_args(annotation)
    if kind is Literal:
        return " or ".join(map(str, parts))
    if kind is Union:
        return " or ".join("none" if part is type(None) else _kind_of_value(part) for part in parts)
    several = {int: "whole numbers", float: "numbers", str: "texts"}[parts[0]]
    return f"a list of {len(parts)} {several}" if kind is tuple else f"a list of {several}"


def refuse_others(section: Section, group: str, choice: str, owners: Dict[str, Set[str]]) -> None:
    """Raise ValueError for a setting of other kinds than the chosen one, unless it has its default.

    `owners` has the names of the settings that each kind has and some other has not.
    """
    chosen = getattr(section, choice)
    for name, field in type(section).model_fields.items():
        value, having = getattr(section, name), [kind for kind, names in owners.items() if name in names]
        if having and chosen not in having and value != field.default:
            raise ValueError(
                f"{group}.{name}={_spoken(value)} is a setting of {' and '.join(having)}, which "
                f"{group}.{choice}={_spoken(chosen)} has not; accepted: {_spoken(field.default)}"
            )


def _spoken(value: Any) -> str:
    """A value as it is written in YAML."""
    return str(list(value) if isinstance(value, tuple) else value).lower()
