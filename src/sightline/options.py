"""A knob as an option of the command line: how it is written, read and checked."""

from collections.abc import Sequence
from functools import reduce
from operator import or_
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

from cyclopts import Parameter, Token
from torch import Tensor

from .knobs import Field


def option(field: Field) -> Any:
    """The annotation that gives a knob its help text."""
    limits = f" From {field.between.low:g} to {field.between.high:g}." if field.between else ""
    kind, kinds = written(field.type), get_args(written(field.type)) or (field.type,)
    lists = [member for member in (kind, *kinds) if get_origin(member) is tuple]
    convert = several if lists and takes_one(field) else whole if int in kinds and float not in kinds else None
    parameter = Parameter(
        help=field.doc + limits, consume_multiple=bool(lists), negative=None if field.type is bool else (), converter=convert
    )
    told = lists[0] if lists else kind
    return Annotated[told | None if lists and NoneType in kinds else told, parameter]


def written(kind: Any) -> Any:
    """A knob's type as far as a command line can write it: an image by its file or sample name."""
    members = get_args(kind)
    if get_origin(kind) is tuple:
        return tuple[written(members[0]), ...]
    return reduce(or_, [member for member in members if member is not Tensor]) if Tensor in members else kind


def whole(kind: Any, tokens: Sequence[Token]) -> int | str:
    """A whole number, or the text where text is allowed too; cyclopts would round 8.5 to 8."""
    text = tokens[0].value
    if not text.lstrip("+-").isdecimal():
        if str in get_args(kind):
            return text
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def several(kind: Any, tokens: Sequence[Token]) -> tuple[int | str, ...]:
    """A list, of a type that may also be one thing by itself (see `alone`)."""
    item = get_args(kind)[0]
    return tuple(whole(item, [token]) if int in (item, *get_args(item)) else token.value for token in tokens)


def takes_one(field: Field) -> bool:
    """Whether a knob that takes a list takes one thing by itself too."""
    return (
        any(get_origin(member) is not tuple and member is not NoneType for member in get_args(field.type))
        and get_origin(field.type) is not tuple
    )


def listed(field: Field) -> Any:
    """A knob's default as a list where the command line takes lists: what is parsed is checked against that."""
    single = any(get_origin(member) is tuple for member in get_args(field.type)) and not isinstance(field.default, (tuple, NoneType))
    return (field.default,) if single else field.default


def alone(field: Field, value: Any) -> Any:
    """The only item of a list where the knob takes one thing by itself too."""
    return value[0] if isinstance(value, tuple) and len(value) == 1 and takes_one(field) else value
