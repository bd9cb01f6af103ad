"""The file of declarations beside the methods that it was made from."""

import inspect
from functools import reduce
from operator import or_
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import pytest
from torch import Tensor

from sightline.app.cli.declarations import (
    DECLARATIONS_FILE,
    format_declarations,
    format_type,
    parse_type,
    read_method_declarations,
    read_sample_names,
)
from sightline.images.io.pictures import samples
from sightline.methods import load_methods
from sightline.registry.method import Method


def is_written(kind: Any) -> bool:
    """Whether a command line can hold such a value: no tensor, no object, no function."""
    return get_origin(kind) in (tuple, Literal) or kind in (int, float, bool, str, Path, NoneType)


def without_tensors(kind: Any) -> Any:
    """A type as far as text can write it, derived from the type itself and not from its text."""
    members = get_args(kind)
    if get_origin(kind) is tuple:
        return tuple[without_tensors(members[0]), ...]
    if get_origin(kind) is Literal or not members:
        return kind
    return reduce(or_, [without_tensors(member) for member in members if is_written(member)])


def test_the_file_is_up_to_date() -> None:
    content = DECLARATIONS_FILE.read_text(encoding="utf-8")
    assert content == format_declarations(), "run make declarations"


def test_every_method_is_declared_in_the_order_of_the_report() -> None:
    assert list(read_method_declarations()) == list(load_methods())


@pytest.mark.parametrize("method", load_methods().values(), ids=load_methods())
def test_what_is_read_is_what_the_method_declares(method: Method) -> None:
    declaration = read_method_declarations()[method.name]
    for text in ("title", "summary", "question", "reading", "caution", "chapter", "subject"):
        assert getattr(declaration, text) == getattr(method, text)
    assert declaration.module == method.function.__module__
    written = [name for name in method.parameters if name != "callback"]
    assert list(declaration.parameters) == written
    for name in written:
        spec = method.parameters[name]
        parameter = declaration.parameters[name]
        assert (parameter.name, parameter.doc) == (name, spec.doc)
        assert parameter.default == spec.default
        assert type(parameter.default) is type(spec.default)
        assert parameter.type == without_tensors(spec.type)
        value_range = spec.value_range
        assert parameter.limits == (value_range and (value_range.low, value_range.high))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (int, "int"),
        (str | Path | None, "str | Path | None"),
        (Tensor | str | None, "str | None"),
        (tuple[Tensor | str, ...] | None, "tuple[str, ...] | None"),
        (float | Literal["a b", "c"], "float | Literal['a b', 'c']"),
        (Literal["only"], "Literal['only']"),
    ],
)
def test_types_as_text(kind: Any, text: str) -> None:
    assert format_type(kind) == text
    assert parse_type(text) == without_tensors(kind)


@pytest.mark.parametrize("text", ["print(1)", "int if 1 else str", "list[int]", "tuple[int]"])
def test_other_text_is_no_type(text: str) -> None:
    with pytest.raises((TypeError, KeyError)):
        parse_type(text)


def test_sample_names() -> None:
    assert read_sample_names() == samples()


def test_no_parameter_is_required() -> None:
    for declaration in read_method_declarations().values():
        for parameter in declaration.parameters.values():
            assert parameter.default is not inspect.Parameter.empty
