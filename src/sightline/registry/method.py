"""The catalogue of methods. A method's signature and docstring are read once, here; the library, the command line,
the report and the contract tests all use what was read.

The decorator keeps the promises, not the method's author: knobs are checked against their declared ranges and
choices, the image against the convention, and every result carries the recipe that makes it again.
"""

import functools
import hashlib
import inspect
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from types import NoneType
from typing import Any, ParamSpec, get_type_hints

import torch
from torch import Tensor

from sightline.errors import SightlineError, make_unknown_name_error
from sightline.images.io import check_image
from sightline.registry.parameter import ParameterSpec, make_parameter_spec
from sightline.registry.result import Result

P = ParamSpec("P")

# What these mean is the same everywhere, so a method need not say it again.
SHARED_PARAMETER_DOCS = {
    "label": 'Class to ask about: an index, a name or an unambiguous part of one, or "top" for the predicted class.',
    "layer": "Layer to look at: its name, alias (conv4_2) or landmark (first, last_conv, penultimate).",
    "memory": "Gigabytes that the features of what is run at once may take, by estimate; less makes smaller batches, not other numbers.",
    "seed": "Seed of the local random generator; the same seed gives the same picture.",
    "callback": "Called with a Step after every step; returning True stops the run and keeps the picture.",
}


@dataclass(frozen=True)
class AttributionSpec:
    """Which value of a method says where in the image something matters, so that it can be tested: N×3×H×W signed or N×h×w.

    `kind` is the knob that chooses between sorts of map, `label` the one that takes the class's index; `slopes` are the kinds whose
    value is per unit of pixel value, `sizes` those of a signed value that are shown by their size, `costly` those averaged over many
    passes (all if True); `knobs` are set for the tests."""

    value_key: str
    kind_parameter: str = ""
    label_parameter: str = "label"
    gradient_kinds: tuple[str, ...] = ()
    magnitude_kinds: tuple[str, ...] = ()
    costly_kinds: tuple[str, ...] | bool = ()
    test_parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Method:
    """A method as the faces see it. `subject` is its second argument ("image", "objective" or none); `question`, `reading`
    and `caution` are what the report says beside its pictures; `tour` holds the knobs of each of its
    runs in the report (`image` among them names a sample to run on), and `quick` the ones that make them short."""

    name: str
    chapter: str
    title: str
    summary: str
    question: str
    reading: str
    caution: str
    subject: str
    parameters: Mapping[str, ParameterSpec]
    function: Callable[..., Result]
    tour_runs: tuple[Mapping[str, Any], ...]
    quick_parameters: Mapping[str, Any]
    attribution: AttributionSpec | None = None
    subject_optional: bool = False  # whether it can do without its subject

    def check_parameter_names(self, parameters: Mapping[str, Any]) -> None:
        """Raises SightlineError for the first knob that this method doesn't have."""
        for name in parameters:
            if name not in self.parameters:
                raise make_unknown_name_error(f"knob of {self.name}", name, self.parameters)


METHODS: dict[str, Method] = {}


def register_method(
    *,
    chapter: str,
    title: str,
    question: str,
    reading: str,
    caution: str,
    tour_runs: tuple[Mapping[str, Any], ...] = ({},),
    quick_parameters: Mapping[str, Any] | None = None,
    attribution: AttributionSpec | None = None,
) -> Callable[[Callable[P, Result]], Callable[P, Result]]:
    """Registers `(model, [image | objective], *, knobs) -> Result` in METHODS and keeps its promises.

    Raises TypeError at import for a knob whose line is missing from the docstring's `Args:`.
    """

    def register(function: Callable[P, Result]) -> Callable[P, Result]:
        run: Callable[..., Result] = function
        summary, knobs, subject = parse_method_signature(function)
        optional = (
            bool(subject)
            and inspect.signature(function).parameters[subject].default
            is not inspect.Parameter.empty
        )

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> Result:
            given: dict[str, Any] = dict(kwargs)
            positional: list[Any] = [
                *args,
                *(given.pop(name) for name in ("model", subject)[len(args) :] if name in given),
            ]
            if positional and isinstance(positional[0], torch.nn.Module):
                raise SightlineError(
                    f"{entry.name} takes a Model: sl.load(network), not the {type(positional[0]).__name__} itself"
                )
            if positional and not hasattr(positional[0], "recipe"):
                raise SightlineError(
                    f"{entry.name} takes a Model first, as sl.load gives it, not {positional[0]!r:.60}"
                )
            entry.check_parameter_names(given)
            for name, value in given.items():
                entry.parameters[name].check_value(value)
            stopped: list[int] = []
            if given.get("callback"):
                given["callback"] = record_stop(given["callback"], stopped)
            with torch.inference_mode(False):  # in which nothing has a gradient
                if subject == "image" and len(positional) > 1:
                    checked = check_image(positional[1])
                    positional[1] = checked.clone() if checked.is_inference() else checked.detach()
                result = run(*positional, **given)
            recipe = build_result_recipe(entry, positional, given)
            return replace(
                result, recipe={**recipe, "stopped_after": stopped[0]} if stopped else recipe
            )

        name = function.__name__
        entry = Method(
            name,
            chapter,
            title,
            summary,
            question,
            reading,
            caution,
            subject,
            knobs,
            call,
            tour_runs,
            dict(quick_parameters or {}),
            attribution,
            optional,
        )
        METHODS[entry.name] = entry
        return call

    return register


def record_stop(callback: Callable[[Any], object], stop_steps: list[int]) -> Callable[[Any], bool]:
    """The callback, with a note of the step at which it stopped the run."""

    def call(step: Any) -> bool:
        if stop := bool(callback(step)):
            stop_steps.append(step.index)
        return stop

    return call


def parse_method_signature(
    function: Callable[..., Result],
) -> tuple[str, dict[str, ParameterSpec], str]:
    """Summary, knobs and subject of a method, from its signature and docstring."""
    from docstring_parser import parse

    doc = parse(inspect.getdoc(function) or "")
    lines = {
        **SHARED_PARAMETER_DOCS,
        **{item.arg_name: " ".join((item.description or "").split()) for item in doc.params},
    }
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, ParameterSpec] = {}
    positional: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is not parameter.KEYWORD_ONLY:
            positional.append(parameter.name)
            continue
        if not lines.get(parameter.name):
            raise TypeError(
                f"{function.__name__}: the knob {parameter.name!r} has no line under Args: in its docstring"
            )
        fields[parameter.name] = make_parameter_spec(
            parameter, hints[parameter.name], lines[parameter.name]
        )
    if not doc.short_description:
        raise TypeError(f"{function.__name__} has no docstring")
    return doc.short_description, fields, positional[1] if len(positional) > 1 else ""


def build_result_recipe(
    entry: Method, positional: list[Any], parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that makes the result again, JSON-able: method, knobs with their defaults, model, subject, versions."""
    full = {
        name: parameters.get(name, field_.default)
        for name, field_ in entry.parameters.items()
        if name != "callback"
    }
    if (
        "store" in full and full["store"] is None
    ):  # a Scan in the Model's place is found again by its store
        full["store"] = getattr(positional[0], "path", None)
    recipe: dict[str, Any] = {
        "method": entry.name,
        "knobs": {name: serialize_parameter(value) for name, value in full.items()},
        "model": dict(positional[0].recipe),
    }
    if entry.subject == "image" and len(positional) > 1:
        recipe["image"] = serialize_parameter(positional[1])
    elif entry.subject == "objective":
        recipe["objective"] = str(positional[1]) if len(positional) > 1 else ""
    recipe["versions"] = {
        "sightline": read_package_version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    return recipe


@functools.cache
def read_package_version() -> str:
    """The package's version; reading it takes longer than drawing a map."""
    return version("sightline")


def serialize_parameter(value: Any) -> Any:
    """A knob's value as JSON holds it; a tensor as its shape and digest, a file by its path."""
    if isinstance(value, Tensor):
        return {"shape": list(value.shape), "sha256": hash_tensor(value)}
    if isinstance(value, (list, tuple)):
        return [serialize_parameter(item) for item in value]
    return value if isinstance(value, (int, float, str, NoneType)) else str(value)


def hash_tensor(tensor: Tensor) -> str:
    """SHA-256 of a tensor's float32 content."""
    return hashlib.sha256(
        tensor.detach().cpu().float().contiguous().view(-1).numpy().data
    ).hexdigest()
