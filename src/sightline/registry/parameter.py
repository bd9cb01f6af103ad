"""A parameter of a method: what its signature declares, which values it takes, what help says."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np
import torch
from torch import Tensor

from sightline.errors import SightlineError, make_out_of_range_error, make_unknown_name_error

# What torch, numpy and scikit-learn all take as a seed.
SEED_RANGE = (0, 2**32 - 1)
# torch's whole numbers have 64 bits.
MAX_INTEGER = 2**63 - 1

TYPE_DESCRIPTIONS = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "text",
    Path: "a path",
    NoneType: "None",
    Callable: "a function",
    Tensor: "an image tensor",
}


@dataclass(frozen=True)
class ValueRange:
    """The closed range of a number: `Annotated[int, ValueRange(1, 12)]`."""

    low: float
    high: float


@dataclass(frozen=True)
class ParameterSpec:
    """A parameter: name, type without its range, default, one line of documentation.

    `value_range` is that of a number, `choices` are those of a `Literal`.
    """

    name: str
    type: Any
    default: Any
    doc: str
    value_range: ValueRange | None = None
    choices: tuple[str, ...] = ()

    def check_value(self, value: Any) -> Any:
        """Returns the value if it is allowed; raises SightlineError otherwise.

        A tensor of whole numbers becomes a list where the parameter takes one.
        """
        if not is_value_of_type(value, self.type):
            plain_value = _unwrap_numbers(value)
            if is_value_of_type(plain_value, self.type):
                value = plain_value
        if self.choices:
            if not isinstance(value, str) or value not in self.choices:
                raise make_unknown_name_error(self.name, value, self.choices)
            return value
        if not is_value_of_type(value, self.type):
            is_short = isinstance(value, (int, float, str, NoneType))
            description = repr(value) if is_short else f"of type {type(value).__name__}"
            raise SightlineError(
                f"{self.name} is {description}; it must be {describe_parameter_type(self.type)}"
            )
        if self.value_range and isinstance(value, (int, float)):
            low = self.value_range.low
            high = self.value_range.high
            if not low <= value <= high:
                raise make_out_of_range_error(self.name, value, low, high)
        return value

    def describe(self) -> str:
        """The documentation with range, choices and default, for `help`."""
        facts: list[str] = []
        if self.value_range:
            low = _format_limit(self.value_range.low)
            high = _format_limit(self.value_range.high)
            facts.append(f"from {low} to {high}")
        if any(f'"{choice}"' not in self.doc for choice in self.choices):
            facts.append("one of " + ", ".join(f'"{choice}"' for choice in self.choices))
        if self.default is inspect.Parameter.empty:
            facts.append("required")
        else:
            facts.append(f"default {format_value(self.default)}")
        sentence = "; ".join(facts)
        return f"{self.doc} {sentence[0].upper()}{sentence[1:]}."


def make_parameter_spec(parameter: inspect.Parameter, hint: Any, doc: str) -> ParameterSpec:
    """Reads a parameter with its annotation, `Annotated[type, ValueRange(...)]` or a plain type."""
    kind = hint
    value_range = None
    if get_origin(hint) is Annotated:
        kind, *metadata = get_args(hint)
        value_range = next((item for item in metadata if isinstance(item, ValueRange)), None)
    if parameter.name == "seed":
        value_range = value_range or ValueRange(*SEED_RANGE)
    choices: tuple[str, ...] = ()
    if get_origin(kind) is Literal:
        choices = tuple(str(choice) for choice in get_args(kind))
    return ParameterSpec(parameter.name, kind, parameter.default, doc, value_range, choices)


def is_value_of_type(value: Any, kind: Any) -> bool:
    """Whether a value is of a parameter's type.

    An int is allowed for a float and a list for a tuple. A bool is no number, nor is NaN or an int
    of more than 64 bits.
    """
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return any(is_value_of_type(value, member) for member in get_args(kind))
    if origin is Literal:
        return isinstance(value, (str, int)) and value in get_args(kind)
    if origin is tuple:
        item_kind = get_args(kind)[0]
        is_sequence = isinstance(value, (tuple, list))
        return is_sequence and all(is_value_of_type(item, item_kind) for item in value)
    if origin is Callable:
        return callable(value)
    if kind in (int, float):
        return _is_number(value, kind)
    return not isinstance(kind, type) or isinstance(value, kind)


def describe_parameter_type(kind: Any) -> str:
    """A parameter's type in words, to follow «it must be»."""
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return " or ".join(describe_parameter_type(member) for member in get_args(kind))
    if origin is Literal:
        return " or ".join(f'"{choice}"' for choice in get_args(kind))
    if origin is tuple:
        return f"a list, each {describe_parameter_type(get_args(kind)[0])}"
    name = getattr(kind, "__name__", str(kind))
    return TYPE_DESCRIPTIONS.get(origin or kind) or f"a {name}"


def format_value(value: Any) -> str:
    """A value as one would type it in Python."""
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        items = ", ".join(format_value(item) for item in value)
        comma = "," if len(value) == 1 else ""
        return f"({items}{comma})"
    return repr(value)


def _unwrap_numbers(value: Any) -> Any:
    """Numbers of torch and numpy as Python's: one by itself, whole ones of one axis as a tuple.

    So are those in a list. Anything else is given back as it is.
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "iuf":
        return _unwrap_numbers(torch.from_numpy(value.copy()))
    if isinstance(value, Tensor):
        if value.ndim == 0:
            return value.item()
        is_whole = not value.is_floating_point() and not value.is_complex()
        is_list = is_whole and value.dtype != torch.bool and value.ndim == 1
        return tuple(value.tolist()) if is_list else value
    if isinstance(value, (list, tuple)):
        return tuple(_unwrap_numbers(item) for item in value)
    return value


def _is_number(value: Any, kind: type[int] | type[float]) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, int):
        return abs(value) <= MAX_INTEGER
    return kind is float and isinstance(value, float) and not math.isnan(value)


def _format_limit(limit: float) -> str:
    """A limit of a range: 1,000,000, not 1e+06."""
    if limit == int(limit):
        return f"{int(limit):,}"
    return f"{limit:g}"
