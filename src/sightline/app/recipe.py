"""What a recipe may hold, checked before anything of it is used.

A recipe is data that people pass on. It names a method, its parameters, a network and an image; it
runs no code and writes nothing but its result.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, cast

from pydantic import Field, ValidationError

from sightline.errors import SightlineError, escape_for_display, make_unknown_name_error
from sightline.images.decode.source import check_regular_file
from sightline.methods import load_methods
from sightline.models.zoo.reload import StrictModel, convert_to_json_types
from sightline.registry.method import Method

MAX_RECIPE_BYTES = 20_000_000

# Parameters that name other networks.
NETWORK_PARAMETERS = ("judge", "peer", "other", "others")

# The sides that --size takes, and smaller ones of images that were resized in code.
ImageSide = Annotated[int, Field(ge=1, le=4096)]


class ImageRecipe(StrictModel):
    """The image of a result: its tensor's shape and digest, and the file or sample it came from.

    `size` is the side of the square that the network takes of it, or with `whole` the short side of
    the whole image. With `crop` it is its middle, at most so many pixels wide and high, not
    resized.
    """

    shape: list[int] | None = None
    sha256: str | None = None
    path: str | None = None
    size: ImageSide | None = None
    whole: bool = False
    crop: ImageSide | None = None
    file_sha256: str | None = None


class Recipe(StrictModel):
    """A recipe as `Result.save` writes it; the `model` is checked when it is loaded."""

    method: str
    knobs: dict[str, Any]
    model: dict[str, Any]
    image: ImageRecipe | None = None
    objective: str | None = None
    stopped_after: Annotated[int, Field(ge=0)] | None = None
    versions: dict[str, str | None] = Field(default_factory=dict[str, str | None])
    captions: dict[str, str] = Field(default_factory=dict[str, str])

    def find_method(self) -> Method:
        """The method; raises SightlineError for an unknown one."""
        methods = load_methods()
        if self.method not in methods:
            raise make_unknown_name_error("method", self.method, methods)
        return methods[self.method]


# ── reading ──


def read_recipe(path: Path) -> Recipe:
    """The recipe in a `recipe.json`; raises SightlineError for anything else."""
    name = escape_for_display(str(path))
    try:
        check_regular_file(path, "a file")
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise SightlineError(f"more than {MAX_RECIPE_BYTES / 1e6:g} MB")
        content = json.loads(
            path.read_text(encoding="utf-8-sig"),  # some editors begin a file with a mark
            parse_constant=_refuse_constant,
            object_pairs_hook=_refuse_duplicates,
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SightlineError(f"{name} can't be read as a recipe ({reason})") from error
    except RecursionError as error:
        raise SightlineError(f"{name} can't be read as a recipe (nested too deeply)") from error
    if isinstance(content, dict) and "sections" in content:
        raise SightlineError(
            f"{name} is a report's recipe; each section has its own in the folder of its name, "
            "or run sightline tour again"
        )
    return parse_recipe(content, name)


def parse_recipe(content: object, name: str = "this") -> Recipe:
    """The recipe in a mapping or in JSON content, checked as a whole.

    Raises SightlineError, beginning with `name`, for what is no recipe.
    """
    try:
        return Recipe.model_validate(convert_to_json_types(content))
    except ValidationError as error:
        reason = _describe_first_problem(error)
        raise SightlineError(f"{name} is not a recipe: {reason}") from error
    except RecursionError as error:
        raise SightlineError(f"{name} is not a recipe: it is nested too deeply") from error


def read_parameters(recipe: Recipe) -> dict[str, Any]:
    """The parameters as the recipe's method takes them, each checked: JSON's lists are tuples.

    Raises SightlineError for a parameter that the method does not have, for a value that it does
    not take, for a tensor, of which the recipe holds only the digest, and for a network that is
    made by code.
    """
    method = recipe.find_method()
    parameters: dict[str, Any] = {}
    for given_name, value in recipe.knobs.items():
        items = cast("list[Any]", value) if isinstance(value, list) else [value]
        if any(isinstance(item, dict) for item in items):
            raise SightlineError(
                f"the recipe's {escape_for_display(given_name)} was a tensor, not a file; "
                f"call {method.name} with it yourself"
            )
        name = method.former_names.get(given_name, given_name)
        parameters[name] = tuple(items) if isinstance(value, list) else value
    if "callback" in parameters:
        raise SightlineError("a recipe may not name a callback")
    method.check_parameter_names(parameters)
    for name, value in parameters.items():
        method.parameters[name].check_value(value)
        refuse_code(name, value, "recipe")
    return parameters


def refuse_code(name: str, value: Any, source: str) -> None:
    """Raises SightlineError for a parameter of a recipe or call that names code as a network.

    `source` is what the parameter is of: «recipe». Parameters that name no network may hold any
    text.
    """
    if name not in NETWORK_PARAMETERS:
        return
    networks = value if isinstance(value, tuple) else (value,)
    for network in cast("tuple[Any, ...]", networks):
        network_name = str(network).partition("=")[0]
        if ":" in network_name:
            raise SightlineError(
                f"the {source}'s {name} is made by code ({escape_for_display(network_name)}), "
                f"which a {source} may not run"
            )


def _refuse_constant(text: str) -> NoReturn:
    """Raises ValueError for the NaN and Infinity that Python's JSON would take."""
    raise ValueError(f"{text} is no number of JSON")


def _refuse_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a mapping. Raises ValueError for a key that stands there twice.

    Another reader of the file may take the other value.
    """
    content = dict(pairs)
    if len(content) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        key, count = counts.most_common(1)[0]
        raise ValueError(f"{escape_for_display(key, 80)!r} stands there {count} times")
    return content


def _describe_first_problem(error: ValidationError) -> str:
    """The first thing that is wrong in one line: the field, its value and what is allowed."""
    first = error.errors()[0]
    field = escape_for_display(".".join(str(key) for key in first["loc"]), 80)
    if not field:
        return "method, knobs and model are expected"
    if first["type"] == "missing":
        return f"{field} is missing; method, knobs and model are expected"
    if first["type"] == "extra_forbidden":
        return f"{field!r} is no part of one; its parts are {', '.join(Recipe.model_fields)}"
    return f"{field} is {first['input']!r:.60} ({first['msg'].lower()})"
