"""Targets from text and from functions."""

import ast
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from torch import Tensor

from sightline.errors import SightlineError, make_unknown_name_error
from sightline.models.heads.targets import (
    Target,
    box,
    classes,
    pixel,
    region,
    regression,
    score,
    similar_to,
    unit,
)

TARGET_TYPES: dict[str, type[Target]] = {
    "unit": unit,
    "classes": classes,
    "pixel": pixel,
    "region": region,
    "box": box,
    "similar_to": similar_to,
    "regression": regression,
}

TARGET_EXAMPLES = "such as unit('layer4', 7), pixel(10, 20, 'cat') or box(10, 20, 80, 90)"

TargetChoice = Target | str | Callable[[Any], Tensor]


def make_target(choice: TargetChoice) -> Target:
    """A target from itself, from a text such as "box(10, 20, 80, 90, 'cat')", or from a function.

    Raises SightlineError for a text that is no target.
    """
    if isinstance(choice, Target):
        return choice
    if isinstance(choice, str):
        return parse_target(choice)
    if callable(choice):
        return score(choice)
    raise SightlineError(
        f"target is {choice!r:.60}; give one of {', '.join(TARGET_TYPES)}, or a function of the "
        "network's output"
    )


def parse_target(text: str) -> Target:
    """The target that a text describes: a name and literal arguments; no code is run.

    Raises SightlineError for anything else.
    """
    try:
        expression = ast.parse(text.strip(), mode="eval").body
        if not isinstance(expression, ast.Call) or not isinstance(expression.func, ast.Name):
            raise SightlineError(f"target is {text!r:.80}; a target is a call {TARGET_EXAMPLES}")
        arguments = [ast.literal_eval(argument) for argument in expression.args]
        named = {str(item.arg): ast.literal_eval(item.value) for item in expression.keywords}
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, SightlineError):
            raise
        raise SightlineError(
            f"target is {text!r:.80}; a target is a call {TARGET_EXAMPLES}"
        ) from error
    name = expression.func.id
    if name not in TARGET_TYPES:
        raise make_unknown_name_error("target", name, TARGET_TYPES)
    try:
        target = TARGET_TYPES[name](*arguments, **named)
    except TypeError as error:
        raise SightlineError(
            f"target is {text!r:.80}; {error}: a target is a call {TARGET_EXAMPLES}"
        ) from error
    check_target_fields(target, text)
    return target


def check_target_fields(target: Target, text: str) -> None:
    """Raises SightlineError for a field of another type than it is declared with."""
    number_fields = {"channel", "y", "x", "index", "x0", "y0", "x1", "y1"}
    for item in fields(target):
        value = getattr(target, item.name)
        if item.name in number_fields and not is_plain_number(value):
            raise SightlineError(f"target is {text!r:.80}; {item.name} is {value!r}, not a number")
        is_text_field = item.name in ("layer", "image", "mask") and value is not None
        if is_text_field and not isinstance(value, (str, Tensor)):
            raise SightlineError(f"target is {text!r:.80}; {item.name} is {value!r}, not a text")


def is_plain_number(value: Any) -> bool:
    """Whether a value is a number and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
