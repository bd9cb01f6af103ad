"""A knob as an option of the command line: how it is written, read and checked."""

from collections.abc import Sequence
from functools import reduce
from operator import or_
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

from cyclopts import Parameter, Token
from torch import Tensor

from sightline.registry.parameter import ParameterSpec


def make_option_annotation(spec: ParameterSpec) -> Any:
    """The annotation that gives a knob its help text."""
    limits = (
        f" From {spec.value_range.low:g} to {spec.value_range.high:g}." if spec.value_range else ""
    )
    kind, kinds = (
        make_writable_type(spec.type),
        get_args(make_writable_type(spec.type)) or (spec.type,),
    )
    lists = [member for member in (kind, *kinds) if get_origin(member) is tuple]
    convert = (
        parse_list_option
        if lists and is_single_item_allowed(spec)
        else parse_whole_number
        if int in kinds and float not in kinds
        else None
    )
    parameter = Parameter(
        help=spec.doc + limits,
        consume_multiple=bool(lists),
        negative=None if spec.type is bool else (),
        converter=convert,
    )
    told = lists[0] if lists else kind
    return Annotated[told | None if lists and NoneType in kinds else told, parameter]


def make_writable_type(kind: Any) -> Any:
    """A knob's type as far as a command line can write it: an image by its file or sample name."""
    members = get_args(kind)
    if get_origin(kind) is tuple:
        return tuple[make_writable_type(members[0]), ...]
    return (
        reduce(or_, [member for member in members if member is not Tensor])
        if Tensor in members
        else kind
    )


def parse_whole_number(kind: Any, tokens: Sequence[Token]) -> int | str:
    """A whole number, or the text where text is allowed too; cyclopts would round 8.5 to 8."""
    text = tokens[0].value
    if not text.lstrip("+-").isdecimal():
        if str in get_args(kind):
            return text
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def parse_list_option(kind: Any, tokens: Sequence[Token]) -> tuple[int | str, ...]:
    """A list, of a type that may also be one thing by itself (see `alone`)."""
    item = get_args(kind)[0]
    return tuple(
        parse_whole_number(item, [token]) if int in (item, *get_args(item)) else token.value
        for token in tokens
    )


def is_single_item_allowed(spec: ParameterSpec) -> bool:
    """Whether a knob that takes a list takes one thing by itself too."""
    return (
        any(
            get_origin(member) is not tuple and member is not NoneType
            for member in get_args(spec.type)
        )
        and get_origin(spec.type) is not tuple
    )


def make_option_default(spec: ParameterSpec) -> Any:
    """A knob's default as a list where the command line takes lists: what is parsed is checked against that."""
    single = any(get_origin(member) is tuple for member in get_args(spec.type)) and not isinstance(
        spec.default, (tuple, NoneType)
    )
    return (spec.default,) if single else spec.default


def unwrap_single_item(spec: ParameterSpec, value: Any) -> Any:
    """The only item of a list where the knob takes one thing by itself too."""
    return (
        value[0]
        if isinstance(value, tuple) and len(value) == 1 and is_single_item_allowed(spec)
        else value
    )
