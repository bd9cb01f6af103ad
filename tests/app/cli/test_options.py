"""Options made from parameters: whole numbers, lists, and what also takes an item by itself."""

from pathlib import Path
from typing import Any, Literal

import pytest
from cyclopts import Token

from sightline.app.cli.declarations import ParameterDeclaration, read_method_declarations
from sightline.app.cli.options import (
    UsageError,
    accepts_single_item,
    compose_target_text,
    make_option_default,
    parse_list_option,
    parse_whole_number,
    unwrap_single_item,
)
from sightline.models.heads.target_text import parse_target


def make_tokens(*words: str) -> list[Token]:
    return [Token(value=word) for word in words]


@pytest.mark.parametrize(
    ("text", "expected"), [("8", 8), ("-3", -3), ("+12", 12), ("0", 0), ("007", 7)]
)
def test_whole_numbers_are_read(text: str, expected: int) -> None:
    assert parse_whole_number(int, make_tokens(text)) == expected


@pytest.mark.parametrize("text", ["8.5", "", "1e3", "eight", "--"])
def test_what_is_no_whole_number_is_refused_or_text(text: str) -> None:
    with pytest.raises(ValueError, match="is not a whole number"):
        parse_whole_number(int, make_tokens(text))
    assert parse_whole_number(int | str, make_tokens(text)) == text


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (int | tuple[int, ...], True),
        (int | tuple[int, ...] | None, True),
        (tuple[str, ...], False),
        (tuple[str, ...] | None, False),
        (str | None, True),
        (Literal["a", "b"], True),
    ],
    ids=["int or list", "int, list or None", "list", "list or None", "text or None", "choice"],
)
def test_an_item_may_stand_by_itself(kind: Any, expected: bool) -> None:
    assert accepts_single_item(kind) is expected


def test_only_the_single_item_of_a_list_is_unwrapped() -> None:
    kind = int | tuple[int, ...]
    assert unwrap_single_item(kind, (3,)) == 3
    assert unwrap_single_item(kind, (3, 4)) == (3, 4)
    assert unwrap_single_item(kind, ()) == ()
    assert unwrap_single_item(kind, 3) == 3
    assert unwrap_single_item(tuple[int, ...], (3,)) == (3,)
    assert unwrap_single_item(kind, None) is None


def test_lists_of_numbers_and_lists_of_text() -> None:
    assert parse_list_option(tuple[int, ...], make_tokens("3", "-4")) == (3, -4)
    assert parse_list_option(tuple[str, ...], make_tokens("3", "4")) == ("3", "4")
    assert parse_list_option(tuple[int | str, ...], make_tokens("3", "dog")) == (3, "dog")
    with pytest.raises(ValueError, match=r"'4\.5' is not a whole number"):
        parse_list_option(tuple[int, ...], make_tokens("3", "4.5"))


def find_parameter(condition: Any) -> ParameterDeclaration:
    for method in read_method_declarations().values():
        for parameter in method.parameters.values():
            if condition(parameter):
                return parameter
    raise LookupError("no method has such a parameter")


def test_a_default_by_itself_becomes_a_list() -> None:
    def has_single_default(parameter: ParameterDeclaration) -> bool:
        takes_list = "tuple" in str(parameter.type)
        return takes_list and not isinstance(parameter.default, (tuple, type(None)))

    single = find_parameter(has_single_default)
    assert make_option_default(single) == (single.default,)
    listed = find_parameter(lambda parameter: isinstance(parameter.default, tuple))
    assert make_option_default(listed) == listed.default
    number = find_parameter(lambda parameter: parameter.type is int)
    assert make_option_default(number) == number.default


# ── options that write a target ──


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, None),
        ({"pixel": None, "box": (), "like": None}, None),
        ({"pixel": (10, 20, "tabby cat")}, "pixel(10, 20, 'tabby cat')"),
        ({"pixel": (10, 20, "281")}, "pixel(10, 20, 281)"),
        ({"box": ("1", "2.5", "30", "40")}, "box(1, 2.5, 30, 40)"),
        ({"box": ("1", "2", "30", "40", "it's")}, 'box(1, 2, 30, 40, label="it\'s")'),
        ({"box": ("1,2.5,30,40",)}, "box(1, 2.5, 30, 40)"),
        ({"box": ("1,2,30,40,crane, bird",)}, "box(1, 2, 30, 40, label='crane, bird')"),
    ],
)
def test_short_options_write_a_target(arguments: dict[str, Any], expected: str | None) -> None:
    text = compose_target_text(arguments)
    assert text == expected
    if text is not None:
        assert str(parse_target(text)) == text, "it is read as it was meant"


def test_an_image_to_resemble_is_named_wherever_one_is_later(tmp_path: Path) -> None:
    text = compose_target_text({"like": tmp_path / "dog's.png"})
    assert text is not None
    target = parse_target(text)
    assert getattr(target, "image", None) == str(tmp_path / "dog's.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"box": ("1", "2", "3")}, "3 values"),
        ({"box": ("1", "2", "3", "4", "cat", "dog")}, "6 values"),
        ({"box": ("1", "two", "3", "4")}, "'two'"),
        ({"box": ("1", "2", "3", "4"), "like": Path("a.png")}, "one of --box, --like"),
    ],
)
def test_what_writes_no_target_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        compose_target_text(arguments)
