"""JSON schemas (draft 2020-12) of parameters and of `recipe.json`, from what methods declare.

Nothing here imports torch.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

if TYPE_CHECKING:
    from sightline.registry.parameter import ParameterSpec

JSON_TYPES: Mapping[Any, str] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    Path: "string",
    NoneType: "null",
}

SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"

# What a recipe has in place of a tensor: its shape and digest.
TENSOR_SCHEMA = {"type": "object"}


def describe_type(kind: Any, limits: tuple[float, float] | None = None) -> dict[str, Any]:
    """The schema of a parameter's type; `limits` are those of a number.

    Members of a union that JSON can't hold, such as tensors, are left out. Raises TypeError where
    none is left.
    """
    if kind is None:
        kind = NoneType
    if kind in JSON_TYPES:
        schema: dict[str, Any] = {"type": JSON_TYPES[kind]}
        if limits is not None and kind in (int, float):
            schema |= {"minimum": limits[0], "maximum": limits[1]}
        return schema
    if get_origin(kind) is Literal:
        return {"enum": list(get_args(kind))}
    if get_origin(kind) is tuple:
        return {"type": "array", "items": describe_type(get_args(kind)[0], limits)}
    schemas = [describe_type(member, limits) for member in get_args(kind) if _has_schema(member)]
    if not schemas:
        raise TypeError(f"no JSON schema of {kind}")
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def describe_parameter(
    kind: Any, doc: str, default: object, limits: tuple[float, float] | None
) -> dict[str, Any]:
    """The schema of one parameter, with its documentation, and its default if JSON has it."""
    schema = {"description": doc, **describe_type(kind, limits)}
    if default is None or isinstance(default, (bool, int, float, str, list, tuple)):
        schema["default"] = default
    return schema


def describe_spec(spec: "ParameterSpec") -> dict[str, Any]:
    """The schema of a method's parameter, without what JSON can't hold."""
    limits = (spec.value_range.low, spec.value_range.high) if spec.value_range else None
    return describe_parameter(spec.type, spec.doc, spec.default, limits)


def _has_schema(kind: Any) -> bool:
    """Whether JSON can hold values of a type; not tensors and functions."""
    return kind in JSON_TYPES or get_origin(kind) in (Literal, tuple)


def describe_parameters(
    parameters: Mapping[str, Mapping[str, Any]], required: Sequence[str] = ()
) -> dict[str, Any]:
    """The schema of an object with these parameters and no others."""
    return {
        "type": "object",
        "properties": dict(parameters),
        "required": list(required),
        "additionalProperties": False,
    }


def build_recipe_schema(
    recipe_schema: Mapping[str, Any], methods: Iterable[tuple[str, Mapping[str, Any]]]
) -> dict[str, Any]:
    """The schema of `recipe.json`: its parts, and for each method the parameters under `knobs`.

    `recipe_schema` is that of the parts, `methods` are names with the schemas of parameters.
    """
    conditions: list[dict[str, Any]] = []
    names: list[str] = []
    for name, parameters in methods:
        names.append(name)
        knobs = {key: {"anyOf": [value, TENSOR_SCHEMA]} for key, value in parameters.items()}
        conditions.append(
            {
                "if": {"properties": {"method": {"const": name}}},
                "then": {
                    "properties": {"knobs": {"properties": knobs, "additionalProperties": False}}
                },
            }
        )
    properties = {**recipe_schema["properties"], "method": {"enum": names}}
    properties_without_title = {
        key: value for key, value in recipe_schema.items() if key != "title"
    }
    return {
        "$schema": SCHEMA_DIALECT,
        **properties_without_title,
        "title": "recipe.json of Sightline",
        "description": "What makes a result again: `sightline again recipe.json`.",
        "properties": properties,
        "allOf": conditions,
    }
