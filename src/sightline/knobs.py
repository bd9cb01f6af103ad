"""A knob of a method: its type, range and choices as the signature declares them, and what is refused."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from torch import Tensor

from .errors import SightlineError, outside, unknown


@dataclass(frozen=True)
class Between:
    """The closed range of a number knob: `Annotated[int, Between(1, 12)]`."""

    low: float
    high: float


@dataclass(frozen=True)
class Field:
    """One knob: name, type without its range, default, one-line documentation, range, choices."""

    name: str
    type: Any
    default: Any
    doc: str
    between: Between | None = None
    choices: tuple[str, ...] = ()

    def check(self, value: Any) -> Any:
        """The value if it is allowed; raises SightlineError otherwise."""
        if self.choices and value not in self.choices:
            raise unknown(self.name, value, self.choices)
        if not fits(value, self.type):
            shown = repr(value) if isinstance(value, (int, float, str, NoneType)) else f"of type {type(value).__name__}"
            raise SightlineError(f"{self.name} is {shown}; it must be {spoken(self.type)}")
        if self.between and isinstance(value, (int, float)) and not self.between.low <= value <= self.between.high:
            raise outside(self.name, value, self.between.low, self.between.high)
        return value


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a knob's type. A whole number is a number too; True and NaN are none."""
    if get_origin(kind) in (Union, UnionType):
        return any(fits(value, member) for member in get_args(kind))
    if kind in (int, float):
        numbers = (int, float) if kind is float else int
        return isinstance(value, numbers) and not isinstance(value, bool) and not (isinstance(value, float) and math.isnan(value))
    if get_origin(kind) is tuple:
        return isinstance(value, (tuple, list)) and all(fits(item, get_args(kind)[0]) for item in value)
    if get_origin(kind) is Callable:
        return callable(value)
    return not isinstance(kind, type) or isinstance(value, kind)


def spoken(kind: Any) -> str:
    """A knob's type in words."""
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(spoken(member) for member in get_args(kind))
    if get_origin(kind) is tuple:
        return f"a list, each {spoken(get_args(kind)[0])}"
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


def field_of(parameter: inspect.Parameter, hint: Any, doc: str) -> Field:
    """One knob from its parameter and annotation."""
    between = None
    if get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        between = next((extra for extra in extras if isinstance(extra, Between)), None)
    choices = tuple(str(choice) for choice in get_args(hint)) if get_origin(hint) is Literal else ()
    return Field(parameter.name, hint, parameter.default, doc, between, choices)
