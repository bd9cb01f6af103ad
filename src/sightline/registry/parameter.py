"""A knob of a method: its type, range and choices as the signature declares them, and what is refused."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from torch import Tensor

from sightline.errors import SightlineError, make_out_of_range_error, make_unknown_name_error


@dataclass(frozen=True)
class ValueRange:
    """The closed range of a number knob: `Annotated[int, Between(1, 12)]`."""

    low: float
    high: float


@dataclass(frozen=True)
class ParameterSpec:
    """One knob: name, type without its range, default, one-line documentation, range, choices."""

    name: str
    type: Any
    default: Any
    doc: str
    value_range: ValueRange | None = None
    choices: tuple[str, ...] = ()

    def check_value(self, value: Any) -> Any:
        """The value if it is allowed; raises SightlineError otherwise."""
        if self.choices and value not in self.choices:
            raise make_unknown_name_error(self.name, value, self.choices)
        if not is_value_of_type(value, self.type):
            shown = (
                repr(value)
                if isinstance(value, (int, float, str, NoneType))
                else f"of type {type(value).__name__}"
            )
            raise SightlineError(
                f"{self.name} is {shown}; it must be {describe_parameter_type(self.type)}"
            )
        if (
            self.value_range
            and isinstance(value, (int, float))
            and not self.value_range.low <= value <= self.value_range.high
        ):
            raise make_out_of_range_error(
                self.name, value, self.value_range.low, self.value_range.high
            )
        return value


def is_value_of_type(value: Any, kind: Any) -> bool:
    """Whether a value is of a knob's type. A whole number is a number too; True and NaN are none."""
    if get_origin(kind) in (Union, UnionType):
        return any(is_value_of_type(value, member) for member in get_args(kind))
    if kind in (int, float):
        numbers = (int, float) if kind is float else int
        return (
            isinstance(value, numbers)
            and not isinstance(value, bool)
            and not (isinstance(value, float) and math.isnan(value))
        )
    if get_origin(kind) is tuple:
        return isinstance(value, (tuple, list)) and all(
            is_value_of_type(item, get_args(kind)[0]) for item in value
        )
    if get_origin(kind) is Callable:
        return callable(value)
    return not isinstance(kind, type) or isinstance(value, kind)


def describe_parameter_type(kind: Any) -> str:
    """A knob's type in words."""
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(describe_parameter_type(member) for member in get_args(kind))
    if get_origin(kind) is tuple:
        return f"a list, each {describe_parameter_type(get_args(kind)[0])}"
    words = {
        int: "a whole number",
        float: "a number",
        bool: "True or False",
        str: "text",
        Path: "a path",
        NoneType: "None",
        Callable: "a function",
        Tensor: "an image tensor",
    }
    return words.get(get_origin(kind) or kind) or str(kind)


def make_parameter_spec(parameter: inspect.Parameter, hint: Any, doc: str) -> ParameterSpec:
    """One knob from its parameter and annotation."""
    between = None
    if get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        between = next((extra for extra in extras if isinstance(extra, ValueRange)), None)
    choices = tuple(str(choice) for choice in get_args(hint)) if get_origin(hint) is Literal else ()
    return ParameterSpec(parameter.name, hint, parameter.default, doc, between, choices)
