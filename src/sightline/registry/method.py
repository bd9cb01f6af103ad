"""The registry of methods.

A method's signature and docstring are read once, here. The library, the command line, the report
and the contract tests all use what was read.

The decorator keeps what every method promises, so that its author need not: parameters are checked
against their declared ranges and choices, the image against the convention, every result carries
the recipe that makes it again, and `help` is complete.
"""

import functools
import hashlib
import inspect
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from types import NoneType
from typing import Any, ParamSpec, get_type_hints

import torch
from torch import Tensor

from sightline.errors import (
    OverwrittenInputError,
    SightlineError,
    convert_memory_errors,
    make_unknown_name_error,
)
from sightline.images.validation import check_image
from sightline.process.default_device import make_tensors_on_cpu
from sightline.registry.docstring import (
    SHARED_PARAMETER_DOCS,
    MethodDocstring,
    compose_help,
    read_docstring,
)
from sightline.registry.parameter import ParameterSpec, make_parameter_spec
from sightline.registry.result import Result

P = ParamSpec("P")

# Parameters that take several layers.
LAYER_LIST_PARAMETERS = ("layer", "layers", "content_layers", "style_layers")

# Parameters that the memory of a run grows with.
MEMORY_PARAMETERS = ("size", "side", "tile", "batch", "memory", "samples", "frames", "k")


@dataclass(frozen=True)
class AttributionSpec:
    """Which value of a method is an attribution, so that it can be evaluated.

    The value is N×3×H×W and signed, or N×h×w. All that is empty by default does not apply.

    Attributes:
        value_key: Its name in `Result.values`.
        kind_parameter: The parameter that chooses between kinds of attribution.
        label_parameter: The parameter that takes the class index.
        gradient_kinds: Kinds whose value is per unit of pixel value.
        magnitude_kinds: Kinds whose value is signed but shown by its magnitude.
        costly_kinds: Kinds that are averaged over many passes; True if all are.
        test_parameters: Parameters to set for the evaluation.
    """

    value_key: str
    kind_parameter: str = ""
    label_parameter: str = "label"
    gradient_kinds: tuple[str, ...] = ()
    magnitude_kinds: tuple[str, ...] = ()
    costly_kinds: tuple[str, ...] | bool = ()
    test_parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Method:
    """A method as the library, the command line and the report see it.

    Attributes:
        chapter: The chapter of the report that it stands in.
        question: What it answers; `reading` says how to read its pictures, and `caution` what not
            to conclude from them.
        subject: The name of its second argument, "image" or "objective", or empty.
        parameters: Its keyword-only parameters by name.
        function: The method itself, with all checks.
        tour_runs: The parameters of each of its runs in the report; `image` among them names a
            sample to run on.
        tour_titles: The titles of these runs, with parameters in braces; empty for its own title.
        quick_parameters: Parameters that make these runs short.
        subject_optional: Whether it can be called without its subject.
        former_names: Older names of parameters, which calls and recipes may still use.
        repaints: Whether `values["image"]` is the given picture, repainted pixel by pixel.
    """

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
    subject_optional: bool = False
    former_names: Mapping[str, str] = field(default_factory=dict[str, str])
    repaints: bool = False
    tour_titles: tuple[str, ...] = ()

    def check_parameter_names(self, parameters: Mapping[str, Any]) -> None:
        """Raises SightlineError for the first parameter that this method does not have."""
        for name in parameters:
            if name not in self.parameters:
                raise make_unknown_name_error(f"parameter of {self.name}", name, self.parameters)


@dataclass(frozen=True)
class MethodSignature:
    """What a method's signature declares; `hints` are the annotations of all arguments."""

    parameters: Mapping[str, ParameterSpec]
    subject: str
    subject_optional: bool
    hints: Mapping[str, Any]


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
    former_names: Mapping[str, str] | None = None,
    repaints: bool = False,
    tour_titles: tuple[str, ...] = (),
) -> Callable[[Callable[P, Result]], Callable[P, Result]]:
    """Registers a function `(model, [image | objective], *, parameters) -> Result` in METHODS.

    The arguments are those of `Method`. Raises TypeError, at import, for a function without a
    docstring, and for a parameter that neither its `Args:` nor SHARED_PARAMETER_DOCS describes.
    """

    def register(function: Callable[P, Result]) -> Callable[P, Result]:
        docstring = read_docstring(function)
        signature = parse_method_signature(function, docstring)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> Result:
            return _run_method(method, function, args, kwargs)

        call.__doc__ = compose_help(
            function,
            docstring,
            signature.hints,
            signature.parameters,
            example_parameters=tour_runs[0] if tour_runs else {},
        )
        method = Method(
            name=function.__name__,
            chapter=chapter,
            title=title,
            summary=docstring.summary,
            question=question,
            reading=reading,
            caution=caution,
            subject=signature.subject,
            parameters=signature.parameters,
            function=call,
            tour_runs=tour_runs,
            quick_parameters=dict(quick_parameters or {}),
            attribution=attribution,
            subject_optional=signature.subject_optional,
            former_names=dict(former_names or {}),
            repaints=repaints,
            tour_titles=tour_titles,
        )
        METHODS[method.name] = method
        return call

    return register


def parse_method_signature(
    function: Callable[..., Result], docstring: MethodDocstring
) -> MethodSignature:
    """Reads a method's parameters and subject. Raises TypeError for an undescribed parameter."""
    docs = {**SHARED_PARAMETER_DOCS, **docstring.parameter_docs}
    hints = get_type_hints(function, include_extras=True)
    parameters: dict[str, ParameterSpec] = {}
    positional: list[inspect.Parameter] = []
    for parameter in inspect.signature(function).parameters.values():
        name = parameter.name
        if parameter.kind is not parameter.KEYWORD_ONLY:
            positional.append(parameter)
            continue
        if not docs.get(name):
            raise TypeError(
                f"{function.__name__}: the parameter {name!r} has no line under Args: "
                "in its docstring"
            )
        parameters[name] = make_parameter_spec(parameter, hints[name], docs[name])
    if len(positional) < 2:
        return MethodSignature(parameters, subject="", subject_optional=False, hints=hints)
    subject = positional[1]
    is_optional = subject.default is not subject.empty
    return MethodSignature(parameters, subject.name, subject_optional=is_optional, hints=hints)


# ── a call ──


def _run_method(
    method: Method,
    function: Callable[..., Result],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Result:
    """Checks the arguments, runs the method and adds the recipe to its result."""
    parameters = {method.former_names.get(name, name): kwargs[name] for name in kwargs}
    positional = list(args)
    for name in ("model", method.subject)[len(args) :]:
        if name in parameters:
            positional.append(parameters.pop(name))
    _check_model(method, positional)
    method.check_parameter_names(parameters)
    resolve_layer_requests(positional[0] if positional else None, parameters)
    for name, value in parameters.items():
        parameters[name] = method.parameters[name].check_value(value)
    _check_single_question(method, parameters)

    stop_steps: list[int] = []
    if parameters.get("callback"):
        parameters["callback"] = _record_stop(parameters["callback"], stop_steps)
    # In inference mode nothing has a gradient.
    with torch.inference_mode(False), make_tensors_on_cpu():
        if method.subject == "image" and len(positional) > 1:
            channels = getattr(positional[0], "channels", 3)
            positional[1] = _detach_image(positional[1], channels)
        with convert_memory_errors(f"for {method.name}", *_list_quantities(method)):
            result = _run_function(function, positional, parameters)
    _check_finite_attribution(method, result)
    result = _note_weights(result, positional[0])

    recipe = build_result_recipe(method, positional, {**parameters, **result.chosen})
    if stop_steps:
        recipe["stopped_after"] = stop_steps[0]
    return replace(result, recipe=recipe)


def _run_function(
    function: Callable[..., Result], positional: Sequence[Any], parameters: Mapping[str, Any]
) -> Result:
    """What the method gives. It begins anew where a network turns out to overwrite inputs."""
    try:
        return function(*positional, **parameters)
    except OverwrittenInputError:
        expect_writes = getattr(positional[0], "expect_writes", None)
        if expect_writes is None or not expect_writes():
            raise
        return function(*positional, **parameters)


def resolve_layer_requests(model: Any, parameters: dict[str, Any]) -> None:
    """Replaces layers asked for by index by the index as text, and several ones by their names.

    Patterns with wildcards stand for all their matches where a method takes several layers.
    """
    layer = parameters.get("layer")
    if isinstance(layer, int) and not isinstance(layer, bool):
        parameters["layer"] = str(layer)
    for name in LAYER_LIST_PARAMETERS:
        value = parameters.get(name)
        if isinstance(value, (tuple, list)) and hasattr(model, "match_layers"):
            is_name = [isinstance(item, (str, int)) for item in value]
            if all(is_name):
                parameters[name] = model.match_layers(value)


def _list_quantities(method: Method) -> list[str]:
    """What a call could lower to take less memory."""
    quantities = [name for name in MEMORY_PARAMETERS if name in method.parameters]
    if method.subject == "image":
        quantities.insert(0, "the size of the image")
    return quantities or ["the size of the network's input"]


def _check_model(method: Method, positional: Sequence[Any]) -> None:
    """Raises SightlineError for a first argument that is no Model. Python reports a missing one."""
    if not positional:
        return
    model = positional[0]
    if isinstance(model, torch.nn.Module):
        raise SightlineError(
            f"{method.name} takes a Model: sl.load(network), not the {type(model).__name__} itself"
        )
    if not hasattr(model, "recipe"):
        raise SightlineError(
            f"{method.name} takes a Model first, as sl.load gives it, not {model!r:.60}"
        )


def _check_single_question(method: Method, parameters: Mapping[str, Any]) -> None:
    """Raises SightlineError where both a label and a target are asked about."""
    label = parameters.get("label", "top")
    if parameters.get("target") is not None and "label" in method.parameters and label != "top":
        raise SightlineError(
            f"label is {label!r} and target is {parameters['target']}; give one of them"
        )


def _check_finite_attribution(method: Method, result: Result) -> None:
    """Raises SightlineError for an attribution with NaN, of which no picture means anything."""
    attribution = result.values.get("attribution")
    if not isinstance(attribution, Tensor) or not attribution.is_floating_point():
        return
    if bool(attribution.isnan().any()):
        raise SightlineError(
            f"{method.name} gives NaN for this image: a step of the network has no finite gradient "
            "or value there, such as the square root or logarithm of 0"
        )


def _note_weights(result: Result, model: Any) -> Result:
    """The result with what there is to say of the network's weights at the first caption's end."""
    note = getattr(model, "weights_note", "")
    if not note or not result.captions:
        return result
    first, caption = next(iter(result.captions.items()))
    return replace(result, captions={**result.captions, first: f"{caption} {note}"})


def _detach_image(image: Any, channels: int) -> Tensor:
    """The image, checked, without history. One made in inference mode has to be copied."""
    checked = check_image(image, channels=channels)
    return checked.clone() if checked.is_inference() else checked.detach()


def _record_stop(callback: Callable[[Any], object], stop_steps: list[int]) -> Callable[[Any], bool]:
    """The callback, which also notes the step at which it stopped the run."""

    def call(step: Any) -> bool:
        is_stopped = bool(callback(step))
        if is_stopped:
            stop_steps.append(step.index)
        return is_stopped

    return call


# ── the recipe ──


def build_result_recipe(
    method: Method, positional: Sequence[Any], parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that makes the result again, as JSON holds it.

    That is the method, all parameters with their defaults, the model, the subject, and versions.
    """
    model = positional[0]
    settings = {
        name: parameters.get(name, parameter.default)
        for name, parameter in method.parameters.items()
        if name != "callback"
    }
    if "store" in settings and settings["store"] is None:
        # A Scan in the model's place is found again by the path of its store.
        settings["store"] = getattr(model, "path", None)
    recipe: dict[str, Any] = {
        "method": method.name,
        "knobs": {name: serialize_parameter(value) for name, value in settings.items()},
        "model": dict(model.recipe),
    }
    subject = positional[1] if len(positional) > 1 else None
    if method.subject == "image" and len(positional) > 1:
        recipe["image"] = serialize_parameter(subject)
    elif method.subject == "objective":
        recipe["objective"] = "" if subject is None else str(serialize_parameter(subject))
    recipe["versions"] = {
        "sightline": _read_package_version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    return recipe


def serialize_parameter(value: Any) -> Any:
    """A parameter's value as JSON holds it.

    A tensor becomes its shape and digest, a path its text, and a function, which is a target's
    score, `score(NAME)`.
    """
    if isinstance(value, Tensor):
        return {"shape": list(value.shape), "sha256": hash_tensor(value)}
    if isinstance(value, (list, tuple)):
        return [serialize_parameter(item) for item in value]
    if isinstance(value, (int, float, str, NoneType)):
        return value
    if callable(value):
        return f"score({getattr(value, '__qualname__', type(value).__name__)})"
    return str(value)


def hash_tensor(tensor: Tensor) -> str:
    """SHA-256 of a tensor's content as float32, in row-major order."""
    content = tensor.detach().cpu().float().contiguous().view(-1).numpy()
    return hashlib.sha256(content.data).hexdigest()


@functools.cache
def _read_package_version() -> str:
    """The package's version; reading it takes longer than drawing a heatmap."""
    return version("sightline")
