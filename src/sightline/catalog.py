"""The catalogue of methods. A method's signature and docstring are read once, here; the library, the command line,
the report and the contract tests all use what was read.

The decorator keeps the promises, not the method's author: knobs are checked against their declared ranges and
choices, the image against the convention, and every result carries the recipe that makes it again.
"""

import functools
import hashlib
import inspect
import math
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, ParamSpec, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from . import image as images
from .errors import SightlineError, outside, unknown
from .result import Result

P = ParamSpec("P")

# What these mean is the same everywhere, so a method need not say it again.
COMMON = {
    "label": 'Class to ask about: an index, a name or an unambiguous part of one, or "top" for the predicted class.',
    "layer": "Layer to look at: its name, alias (conv4_2) or landmark (first, last_conv, penultimate).",
    "seed": "Seed of the local random generator; the same seed gives the same picture.",
    "callback": "Called with a Step after every step; returning True stops the run and keeps the picture.",
}


@dataclass(frozen=True)
class Between:
    """The closed range of a number knob: `Annotated[int, Between(1, 12)]`."""

    low: float
    high: float


@dataclass(frozen=True)
class Field:
    """One knob: name, type without its range, default, one-line documentation, range, choices."""

    name: str
    type: Any
    default: Any
    doc: str
    between: Between | None = None
    choices: tuple[str, ...] = ()

    def check(self, value: Any) -> Any:
        """The value if it is allowed; raises SightlineError otherwise."""
        if self.choices and value not in self.choices:
            raise unknown(self.name, value, self.choices)
        kinds = get_args(self.type) if get_origin(self.type) in (Union, UnionType) else (self.type,)
        if not any(fits(value, kind) for kind in kinds):
            shown = repr(value) if isinstance(value, (int, float, str, NoneType)) else f"of type {type(value).__name__}"
            raise SightlineError(f"{self.name} is {shown}; it must be {' or '.join(spoken(kind) for kind in kinds)}")
        if self.between and isinstance(value, (int, float)) and not self.between.low <= value <= self.between.high:
            raise outside(self.name, value, self.between.low, self.between.high)
        return value


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a knob's type. A whole number is a number too; True and NaN are none."""
    if kind in (int, float):
        numbers = (int, float) if kind is float else int
        return isinstance(value, numbers) and not isinstance(value, bool) and not (isinstance(value, float) and math.isnan(value))
    if get_origin(kind) is tuple:
        return isinstance(value, (tuple, list)) and all(fits(item, get_args(kind)[0]) for item in value)
    if get_origin(kind) is Callable:
        return callable(value)
    return not isinstance(kind, type) or isinstance(value, kind)


def spoken(kind: Any) -> str:
    """A knob's type in words."""
    if get_origin(kind) is tuple:
        return f"a list, each {spoken(get_args(kind)[0])}"
    words = {
        int: "a whole number",
        float: "a number",
        bool: "True or False",
        str: "text",
        Path: "a path",
        NoneType: "None",
        Callable: "a function",
    }
    return words.get(get_origin(kind) or kind) or str(kind)


@dataclass(frozen=True)
class Method:
    """A method as the faces see it. `subject` is its second argument ("image", "objective" or none); `question`, `reading`
    and `caution` are what the report says beside its pictures; `tour` holds the knobs of each of its
    runs in the report, and `quick` the ones that make them short."""

    name: str
    chapter: str
    title: str
    summary: str
    question: str
    reading: str
    caution: str
    subject: str
    fields: Mapping[str, Field]
    function: Callable[..., Result]
    tour: tuple[Mapping[str, Any], ...]
    quick: Mapping[str, Any]

    def refuse_unknown(self, knobs: Mapping[str, Any]) -> None:
        """Raises SightlineError for the first knob that this method doesn't have."""
        for name in knobs:
            if name not in self.fields:
                raise unknown(f"knob of {self.name}", name, self.fields)


METHODS: dict[str, Method] = {}


def method(
    *,
    title: str,
    question: str,
    reading: str,
    caution: str,
    tour: tuple[Mapping[str, Any], ...] = ({},),
    quick: Mapping[str, Any] | None = None,
) -> Callable[[Callable[P, Result]], Callable[P, Result]]:
    """Registers `(model, [image | objective], *, knobs) -> Result` in METHODS and keeps its promises.

    Raises TypeError at import for a knob whose line is missing from the docstring's `Args:`.
    """

    def register(function: Callable[P, Result]) -> Callable[P, Result]:
        run: Callable[..., Result] = function
        summary, knobs, subject = declared(function)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> Result:
            given: dict[str, Any] = dict(kwargs)
            positional: list[Any] = [*args, *(given.pop(name) for name in ("model", subject)[len(args) :] if name in given)]
            if positional and isinstance(positional[0], torch.nn.Module):
                raise SightlineError(f"{entry.name} takes a Model: sl.load(network), not the {type(positional[0]).__name__} itself")
            if positional and not hasattr(positional[0], "recipe"):
                raise SightlineError(f"{entry.name} takes a Model first, as sl.load gives it, not {positional[0]!r:.60}")
            entry.refuse_unknown(given)
            for name, value in given.items():
                entry.fields[name].check(value)
            if subject == "image" and len(positional) > 1:
                positional[1] = images.check(positional[1]).detach()
            stopped: list[int] = []
            if given.get("callback"):
                given["callback"] = noting(given["callback"], stopped)
            result = run(*positional, **given)
            recipe = recipe_of(entry, positional, given)
            return replace(result, recipe={**recipe, "stopped_after": stopped[0]} if stopped else recipe)

        name, chapter = function.__name__, function.__module__.split(".")[-2]
        entry = Method(name, chapter, title, summary, question, reading, caution, subject, knobs, call, tour, dict(quick or {}))
        METHODS[entry.name] = entry
        return call

    return register


def noting(callback: Callable[[Any], object], stopped: list[int]) -> Callable[[Any], bool]:
    """The callback, with a note of the step at which it stopped the run."""

    def call(step: Any) -> bool:
        if stop := bool(callback(step)):
            stopped.append(step.index)
        return stop

    return call


def declared(function: Callable[..., Result]) -> tuple[str, dict[str, Field], str]:
    """Summary, knobs and subject of a method, from its signature and docstring."""
    from docstring_parser import parse

    doc = parse(inspect.getdoc(function) or "")
    lines = {**COMMON, **{item.arg_name: " ".join((item.description or "").split()) for item in doc.params}}
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Field] = {}
    positional: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is not parameter.KEYWORD_ONLY:
            positional.append(parameter.name)
            continue
        if not lines.get(parameter.name):
            raise TypeError(f"{function.__name__}: the knob {parameter.name!r} has no line under Args: in its docstring")
        fields[parameter.name] = field_of(parameter, hints[parameter.name], lines[parameter.name])
    if not doc.short_description:
        raise TypeError(f"{function.__name__} has no docstring")
    return doc.short_description, fields, positional[1] if len(positional) > 1 else ""


def field_of(parameter: inspect.Parameter, hint: Any, doc: str) -> Field:
    """One knob from its parameter and annotation."""
    between = None
    if get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        between = next((extra for extra in extras if isinstance(extra, Between)), None)
    choices = tuple(str(choice) for choice in get_args(hint)) if get_origin(hint) is Literal else ()
    return Field(parameter.name, hint, parameter.default, doc, between, choices)


def recipe_of(entry: Method, positional: list[Any], knobs: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that makes the result again, JSON-able: method, knobs with their defaults, model, subject, versions."""
    full = {name: knobs.get(name, field_.default) for name, field_ in entry.fields.items() if name != "callback"}
    recipe: dict[str, Any] = {
        "method": entry.name,
        "knobs": {
            name: value if isinstance(value, (int, float, str, list, tuple, NoneType)) else str(value) for name, value in full.items()
        },
        "model": dict(positional[0].recipe),
    }
    if entry.subject == "image" and len(positional) > 1:
        recipe["image"] = {"shape": list(positional[1].shape), "sha256": digest(positional[1])}
    elif entry.subject and len(positional) > 1:
        recipe[entry.subject] = str(positional[1])
    recipe["versions"] = {"sightline": version("sightline"), "torch": torch.__version__, "python": platform.python_version()}
    return recipe


def digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's float32 content."""
    return hashlib.sha256(tensor.detach().cpu().float().contiguous().numpy().tobytes()).hexdigest()


def load_methods() -> Mapping[str, Method]:
    """METHODS, with every topic of the table of contents imported, in its order."""
    from .methods import TOPICS

    order = {import_module(f"sightline.methods.{topic}").__name__: number for number, topic in enumerate(TOPICS)}
    return dict(sorted(METHODS.items(), key=lambda item: order.get(item[1].function.__module__, len(order))))
