"""Text to objectives, for recipes and the command line: `logit('goose') - 0.1 * tv()`, or simply `goose`."""

import ast
import inspect
import operator
import re
from collections.abc import Callable
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from sightline.errors import SightlineError, make_unknown_name_error
from sightline.optim.objectives.features import caricature, content, cosine, direction, diversity
from sightline.optim.objectives.objective import (
    Objective,
    bounded,
    channel,
    cross_entropy,
    energy,
    l1,
    l2,
    logit,
    neuron,
    roughness,
    tv,
)

OBJECTIVE_FUNCTIONS = (
    logit, cross_entropy, channel, neuron, energy, direction, cosine, content, caricature, diversity, tv, l1, l2, bounded, roughness,
)  # fmt: skip

OBJECTIVES_BY_NAME: dict[str, Callable[..., Objective]] = {
    word.__name__: word for word in OBJECTIVE_FUNCTIONS
}

FORMULA_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}

MAX_FORMULA_LENGTH = 50_000  # characters of a formula; a direction of 2048 numbers has about 40,000


def parse_objective(text: str) -> Objective:
    """An objective from text: a formula of objectives (`channel('conv5', 7) - 0.1 * tv()`), else a class label.

    Raises SightlineError for anything else; nothing but these words, numbers, strings and `+ - *` is evaluated.
    """
    if not re.search(r"\w\(", text):  # «crane (bird)» is a label
        return logit(text.strip())
    if len(text) > MAX_FORMULA_LENGTH:
        raise SightlineError(
            f"the objective has {len(text)} characters; it may have {MAX_FORMULA_LENGTH}"
        )
    try:
        value = evaluate_node(ast.parse(text.strip(), mode="eval").body)
    except SightlineError:
        raise
    except (
        SyntaxError,
        TypeError,
        ValueError,
        OverflowError,
        RecursionError,
        MemoryError,
    ) as error:
        if any(f"{word}(" in text for word in OBJECTIVES_BY_NAME):
            reason = error.args[0] if error.args else "it is nested too deeply"
            raise SightlineError(f"the objective {text[:80]!r} can't be read: {reason}") from error
        return logit(text.strip())
    if not isinstance(value, Objective):
        raise SightlineError(
            f"{text[:80]!r} is not an objective; an example is logit('goose') - 0.1 * tv()"
        )
    return value


def evaluate_node(node: ast.expr) -> Any:
    """The value of a formula's node."""
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float, str, type(None))):
        return node.value
    if isinstance(node, ast.Tuple):
        return tuple(evaluate_node(item) for item in node.elts)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -evaluate_node(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in FORMULA_OPERATORS:
        left, right = evaluate_node(node.left), evaluate_node(node.right)
        if isinstance(left, (str, tuple)) or isinstance(
            right, (str, tuple)
        ):  # 'a' * 10**12 would fill the memory
            raise TypeError("+ - * take objectives and numbers")
        return FORMULA_OPERATORS[type(node.op)](left, right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        keywords = {str(item.arg): evaluate_node(item.value) for item in node.keywords}
        return call_objective(node.func.id, [evaluate_node(item) for item in node.args], keywords)
    raise SyntaxError(f"unexpected {ast.unparse(node)}")


def call_objective(function_name: str, args: list[Any], keywords: dict[str, Any]) -> Objective:
    """One word of the vocabulary with arguments of the types it declares."""
    if function_name not in OBJECTIVES_BY_NAME:
        raise make_unknown_name_error("objective", function_name, OBJECTIVES_BY_NAME)
    hints = get_type_hints(OBJECTIVES_BY_NAME[function_name])
    for name, value in (
        inspect.signature(OBJECTIVES_BY_NAME[function_name])
        .bind(*args, **keywords)
        .arguments.items()
    ):
        kinds = (
            get_args(hints[name])
            if get_origin(hints[name]) in (Union, UnionType)
            else (hints[name],)
        )
        if not any(is_of_type(value, kind) for kind in kinds):
            raise TypeError(f"{name} of {function_name} can't be {value}")
    return OBJECTIVES_BY_NAME[function_name](*args, **keywords)


def is_of_type(value: Any, expected_type: Any) -> bool:
    """Whether a value is of a type, a whole number being a float too."""
    if get_origin(expected_type) is tuple:
        return isinstance(value, tuple) and all(
            is_of_type(item, get_args(expected_type)[0]) for item in value
        )
    return isinstance(value, (int, float) if expected_type is float else expected_type)
