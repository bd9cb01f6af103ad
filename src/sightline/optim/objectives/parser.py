"""Text to objectives, for recipes and the command line.

A formula like `logit('goose') - 0.1 * tv()`, or a class label like `goose`.
"""

import ast
import inspect
import operator
import re
from collections.abc import Callable
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from sightline.errors import SightlineError, escape_for_display, make_unknown_name_error
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
    logit, cross_entropy, channel, neuron, energy, direction, cosine, content, caricature,
    diversity, tv, l1, l2, bounded, roughness,
)  # fmt: skip

OBJECTIVES_BY_NAME: dict[str, Callable[..., Objective]] = {
    function.__name__: function for function in OBJECTIVE_FUNCTIONS
}

FORMULA_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}

# Characters of a formula. A direction of 2048 numbers has about 40,000.
MAX_FORMULA_LENGTH = 50_000

# Signs and operators. Each is a call within a call when the objective is computed.
MAX_OPERATIONS = 200

# A number of 32 bits, and its products with activations, end at 3e38.
MAX_MAGNITUDE = 1e30

# What Python raises for text that it can't parse, or that has the wrong types or is too large.
PARSE_ERRORS = (
    SyntaxError,
    TypeError,
    ValueError,
    OverflowError,
    RecursionError,
    MemoryError,
)


def parse_objective(text: str) -> Objective:
    """Parses a formula of objectives (`channel('conv5', 7) - 0.1 * tv()`) or a class label.

    Only the objectives, numbers, strings, tuples and `+ - *` are evaluated. Raises SightlineError
    for a formula that contains anything else.
    """
    # A formula has a call. In a label a parenthesis follows a space: "crane (bird)".
    if not re.search(r"\w\(", text):
        return logit(text.strip())
    if len(text) > MAX_FORMULA_LENGTH:
        raise SightlineError(
            f"the objective has {len(text)} characters; it may have {MAX_FORMULA_LENGTH}"
        )

    try:
        tree = ast.parse(text.strip(), mode="eval")
        check_operation_count(tree)
        value = evaluate_node(tree.body)
    except SightlineError:
        raise
    except PARSE_ERRORS as error:
        names_objective = any(f"{name}(" in text for name in OBJECTIVES_BY_NAME)
        if not names_objective:
            return logit(text.strip())
        reason = escape_for_display(str(error.args[0] if error.args else "it is too large"))
        raise SightlineError(f"the objective {text[:80]!r} can't be read: {reason}") from error

    if not isinstance(value, Objective):
        raise SightlineError(
            f"{text[:80]!r} is not an objective; an example is logit('goose') - 0.1 * tv()"
        )
    return value


def check_operation_count(tree: ast.Expression) -> None:
    """Raises SightlineError for a formula with too many operators. Signs of numbers don't count."""
    count = 0
    for node in ast.walk(tree):
        is_sign = isinstance(node, ast.UnaryOp) and not isinstance(node.operand, ast.Constant)
        if is_sign or isinstance(node, ast.BinOp):
            count += 1
    if count > MAX_OPERATIONS:
        raise SightlineError(f"the objective has {count} operations; it may have {MAX_OPERATIONS}")


def evaluate_node(node: ast.expr) -> Any:
    """The value of a node of a formula. Raises SyntaxError for a node that formulas don't have."""
    match node:
        case ast.Constant():
            return evaluate_constant(node)
        case ast.Tuple(elts=elements):
            return tuple(evaluate_node(element) for element in elements)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -evaluate_node(operand)
        case ast.BinOp(op=ast.Add() | ast.Sub() | ast.Mult()):
            return evaluate_operation(node)
        case ast.Call(func=ast.Name(id=name)):
            args = [evaluate_node(arg) for arg in node.args]
            keywords = {str(item.arg): evaluate_node(item.value) for item in node.keywords}
            return call_objective(name, args, keywords)
        case _:
            raise SyntaxError(f"unexpected {ast.unparse(node)}")


def evaluate_constant(node: ast.Constant) -> str | int | float | None:
    """A text, a number of usual size, or None. Raises SyntaxError for other constants."""
    value = node.value
    if value is None or isinstance(value, str):
        return value
    # To Python, True is a number.
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SyntaxError(f"unexpected {ast.unparse(node)}")
    if not -MAX_MAGNITUDE <= value <= MAX_MAGNITUDE:
        raise SyntaxError(f"a number in it is larger than {MAX_MAGNITUDE:g}")
    return value


def evaluate_operation(node: ast.BinOp) -> Any:
    """The value of a sum, difference or product."""
    operands = (evaluate_node(node.left), evaluate_node(node.right))
    # 'a' * 10**12 would fill the memory.
    if any(isinstance(operand, (str, tuple)) for operand in operands):
        raise TypeError("+ - * take objectives and numbers")
    operation = FORMULA_OPERATORS[type(node.op)]
    return operation(*operands)


def call_objective(function_name: str, args: list[Any], keywords: dict[str, Any]) -> Objective:
    """Calls an objective by name, if the arguments have the types that it declares."""
    if function_name not in OBJECTIVES_BY_NAME:
        raise make_unknown_name_error("objective", function_name, OBJECTIVES_BY_NAME)
    function = OBJECTIVES_BY_NAME[function_name]
    hints = get_type_hints(function)
    signature = inspect.signature(function)
    arguments = signature.bind(*args, **keywords).arguments
    for name, value in arguments.items():
        hint = hints[name]
        is_union = get_origin(hint) in (Union, UnionType)
        accepted_types = get_args(hint) if is_union else (hint,)
        if not any(is_of_type(value, accepted_type) for accepted_type in accepted_types):
            raise TypeError(f"{name} of {function_name} can't be {value}")
    return function(*args, **keywords)


def is_of_type(value: Any, expected_type: Any) -> bool:
    """Whether a value is of a type. An int is a float too; tuples are homogeneous."""
    if get_origin(expected_type) is tuple:
        item_type = get_args(expected_type)[0]
        return isinstance(value, tuple) and all(is_of_type(item, item_type) for item in value)
    if expected_type is float:
        return isinstance(value, (int, float))
    return isinstance(value, expected_type)
