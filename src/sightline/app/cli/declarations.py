"""The declarations of all methods as a file, so that help need not import the methods.

`python -m sightline.app.cli.declarations` writes the file from the imported methods, and the JSON
schema of recipes. The command line reads it and imports a method only to run it.
"""

import ast
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, cast, get_args, get_origin

from sightline.app.agents.schema import build_recipe_schema, describe_spec

if TYPE_CHECKING:
    from sightline.registry.method import Method
    from sightline.registry.parameter import ParameterSpec

DECLARATIONS_FILE = Path(__file__).parents[2] / "registry" / "declarations.json"
SHIPPED_PICTURES_FOLDER = Path(__file__).parents[2] / "assets"

RECIPE_SCHEMA_FILE = DECLARATIONS_FILE.with_name("recipe.schema.json")

SIMPLE_TYPES: Mapping[str, Any] = {
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "Path": Path,
    "None": None,
}


@dataclass(frozen=True)
class ParameterDeclaration:
    """A parameter that can be written as text.

    Attributes:
        type: Its type without tensors, which a command line names by file or sample.
        default: Its default, or `inspect.Parameter.empty` if it has none.
        limits: The ends of a number's closed range.
        is_target: Whether it takes a target, such as `pixel(10, 20, 'cat')`.
    """

    name: str
    type: Any
    default: Any
    doc: str
    limits: tuple[float, float] | None = None
    is_target: bool = False


@dataclass(frozen=True)
class MethodDeclaration:
    """What `sightline.registry.method.Method` declares, without the function itself.

    `quick` are the parameters that make a run short. What `repaints` takes the whole picture unless
    it is told not to.
    """

    name: str
    module: str
    chapter: str
    title: str
    summary: str
    question: str
    reading: str
    caution: str
    subject: str
    parameters: Mapping[str, ParameterDeclaration]
    quick: Mapping[str, Any] = field(default_factory=dict[str, Any])
    repaints: bool = False


# ── reading ──


@cache
def read_method_declarations() -> Mapping[str, MethodDeclaration]:
    """Every method's declaration by name, in the order of the report."""
    declarations: dict[str, MethodDeclaration] = {}
    for entry in _read_file()["methods"]:
        parameters = [_parse_parameter(parameter) for parameter in entry["parameters"]]
        by_name = {parameter.name: parameter for parameter in parameters}
        fields: Any = {**entry, "parameters": by_name}
        declarations[entry["name"]] = MethodDeclaration(**fields)
    return declarations


def read_sample_names() -> list[str]:
    """The names of the sample photographs: those of the installed scikit-image, and our own."""
    spec = find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        return []
    folder = Path(spec.submodule_search_locations[0]) / "data"
    available = {path.stem for path in (*folder.iterdir(), *SHIPPED_PICTURES_FOLDER.iterdir())}
    return [name for name in _read_file()["samples"] if name in available]


@cache
def _read_file() -> dict[str, Any]:
    return json.loads(DECLARATIONS_FILE.read_text(encoding="utf-8"))


def _parse_parameter(entry: Mapping[str, Any]) -> ParameterDeclaration:
    default = entry.get("default", inspect.Parameter.empty)
    if isinstance(default, list):
        default = tuple(cast("list[Any]", default))
    limits = entry.get("limits")
    return ParameterDeclaration(
        name=entry["name"],
        type=parse_type(entry["type"]),
        default=default,
        doc=entry["doc"],
        limits=tuple(limits) if limits else None,
        is_target=entry.get("is_target", False),
    )


def parse_type(text: str) -> Any:
    """The type that a text such as "int | tuple[str, ...] | None" names."""
    return _build_type(ast.parse(text, mode="eval").body)


def _build_type(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=None):
            return None
        case ast.Name(id=name):
            return SIMPLE_TYPES[name]
        case ast.BinOp(left=left, right=right):
            return _build_type(left) | _build_type(right)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            values = ast.literal_eval(choices)
            return Literal[values]
        case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=[item, _])):
            return tuple[_build_type(item), ...]
        case _:
            raise TypeError(f"no parameter has the type {ast.unparse(node)}")


# ── writing ──


def format_declarations() -> str:
    """The content of the declarations' file, made from the imported methods."""
    from sightline.images.sample_names import SAMPLE_NAMES
    from sightline.methods import load_methods

    methods = [_declare_method(method) for method in load_methods().values()]
    content = {"samples": SAMPLE_NAMES, "methods": methods}
    return json.dumps(content, ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def format_recipe_schema() -> str:
    """The JSON schema of `recipe.json`, made from what recipes may hold and from the methods."""
    from sightline.app.recipe import Recipe
    from sightline.methods import load_methods

    methods: list[tuple[str, dict[str, Any]]] = []
    for method in load_methods().values():
        parameters = {
            name: describe_spec(spec)
            for name, spec in method.parameters.items()
            if name != "callback"
        }
        for former, name in method.former_names.items():
            parameters[former] = parameters[name]
        methods.append((method.name, parameters))
    schema = build_recipe_schema(Recipe.model_json_schema(), methods)
    return json.dumps(schema, ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def _declare_method(method: "Method") -> dict[str, Any]:
    parameters = [
        _declare_parameter(parameter)
        for name, parameter in method.parameters.items()
        if name != "callback"  # a function can't be written as text
    ]
    return {
        "name": method.name,
        "module": method.function.__module__,
        "chapter": method.chapter,
        "title": method.title,
        "summary": method.summary,
        "question": method.question,
        "reading": method.reading,
        "caution": method.caution,
        "subject": method.subject,
        "parameters": parameters,
        "quick": dict(method.quick_parameters),
        "repaints": method.repaints,
    }


def _declare_parameter(spec: "ParameterSpec") -> dict[str, Any]:
    declared: dict[str, Any] = {
        "name": spec.name,
        "type": format_type(spec.type),
        "doc": spec.doc,
    }
    if spec.default is not inspect.Parameter.empty:
        declared["default"] = spec.default
    if spec.value_range:
        limits = (spec.value_range.low, spec.value_range.high)
        declared["limits"] = [_simplify_number(limit) for limit in limits]
    if any(getattr(member, "__name__", "") == "Target" for member in get_args(spec.type)):
        declared["is_target"] = True
    return declared


def _simplify_number(limit: float) -> float:
    """A whole limit as an int.

    `typing` keeps one of two equal annotations, so whether 1 or 1.0 is seen depends on imports.
    """
    return int(limit) if limit == int(limit) else limit


def can_be_typed(kind: Any) -> bool:
    """Whether a value of a type can be written on a command line."""
    if get_origin(kind) in (tuple, Literal) or kind is NoneType:
        return True
    return kind in SIMPLE_TYPES.values()


def format_type(kind: Any) -> str:
    """A type as text, without the members that a command line can't name: tensors, functions."""
    origin = get_origin(kind)
    members = get_args(kind)
    if origin in (Union, UnionType):
        texts = [format_type(member) for member in members if can_be_typed(member)]
        return " | ".join(texts)
    if origin is tuple:
        return f"tuple[{format_type(members[0])}, ...]"
    if origin is Literal:
        return f"Literal[{', '.join(repr(choice) for choice in members)}]"
    if kind is NoneType:
        return "None"
    return kind.__name__


if __name__ == "__main__":
    DECLARATIONS_FILE.write_text(format_declarations(), encoding="utf-8")
    RECIPE_SCHEMA_FILE.write_text(format_recipe_schema(), encoding="utf-8")
