"""One command for every method, its signature made from the method's declaration.

What a command is about comes first: an image, a goal, or the network for `filters`. The network is
`--model`. Nothing here imports torch; a method is imported when its command runs.
"""

import inspect
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from sightline.app.cli.declarations import MethodDeclaration, read_method_declarations
from sightline.app.cli.options import (
    TARGET_OPTIONS,
    AblateFillOption,
    AblateOption,
    ClassArgument,
    CroppedOption,
    DeviceOption,
    ImageArgument,
    JsonOption,
    LabelsOption,
    MeanOption,
    NetworkOption,
    OptionalImageArgument,
    OptionalNetworkOption,
    OutOption,
    QuickOption,
    QuietOption,
    SizeOption,
    StdOption,
    UncroppedOption,
    UsageError,
    WeightsOption,
    find_class_parameter,
    make_method_option,
    make_option_default,
)
from sightline.images.sample_names import DEFAULT_SAMPLE
from sightline.models.zoo.names import is_network_name

# The one method that is about the network alone, which its command therefore names first.
NETWORK_FIRST = "filters"

GoalArgument = Annotated[
    str,
    Parameter(
        help="A class label, a formula such as \"channel('conv4_1', 7) - 0.1 * tv()\", or a "
        "target such as \"pixel(10, 20, 'cat')\". "
        "Leave it out for the units of --layer."
    ),
]

PaintingArguments = Annotated[
    str,
    Parameter(
        help="The style pictures: files, names of samples or of shipped paintings. "
        "They replace --styles."
    ),
]


def make_method_command(declaration: MethodDeclaration) -> Callable[..., int]:
    """The function that cyclopts calls, with a signature and a docstring of its own."""
    signature = build_command_signature(declaration)

    def command(*args: Any, **kwargs: Any) -> int:
        from sightline.app.cli.execution import run_method

        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return run_method(declaration, bound.arguments)

    command.__signature__ = signature
    command.__annotations__ = {
        name: parameter.annotation for name, parameter in signature.parameters.items()
    }
    command.__name__ = declaration.name
    command.__doc__ = "\n\n".join(
        [declaration.summary, declaration.reading, f"Beware: {declaration.caution}"]
    )
    return command


def build_command_signature(declaration: MethodDeclaration) -> inspect.Signature:
    """The subject by position, then the network, the method's parameters and shared options."""
    parameters = _make_subject_parameters(declaration)
    if declaration.name != NETWORK_FIRST:
        parameters.append(_make_network_parameter(declaration, inspect.Parameter.KEYWORD_ONLY))

    for option in declaration.parameters.values():
        if option.name == "size":
            continue  # --size is among the shared options
        default = make_option_default(option)
        annotation = make_method_option(declaration, option.name)
        parameters.append(_make_keyword(option.name, annotation, default))

    if takes_target(declaration):
        for name, annotation in TARGET_OPTIONS.items():
            parameters.append(_make_keyword(name, annotation, None))

    parameters += [
        _make_keyword("weights", WeightsOption, None),
        _make_keyword("labels", LabelsOption, None),
        _make_keyword("mean", MeanOption, None),
        _make_keyword("std", StdOption, None),
    ]
    if declaration.subject == "image" or "size" in declaration.parameters:
        parameters.append(_make_keyword("size", SizeOption, None))
    parameters += [
        _make_keyword("ablate", AblateOption, ()),
        _make_keyword("ablate_fill", AblateFillOption, "zero"),
        _make_keyword("device", DeviceOption, None),
        _make_keyword("out", OutOption, None),
        _make_keyword("as_json", JsonOption, False),
        _make_keyword("quiet", QuietOption, False),
    ]
    if declaration.quick:
        parameters.append(_make_keyword("quick", QuickOption, False))
    if declaration.subject == "image":
        parameters.append(_make_keyword("uncropped", UncroppedOption, False))
    if declaration.repaints:
        parameters.append(_make_keyword("cropped", CroppedOption, False))
    return inspect.Signature(parameters)


def takes_target(declaration: MethodDeclaration) -> bool:
    """Whether a method can be asked about a target."""
    has_parameter = any(option.is_target for option in declaration.parameters.values())
    return has_parameter or declaration.subject == "objective"


def _make_subject_parameters(declaration: MethodDeclaration) -> list[inspect.Parameter]:
    """What the command is about, by position."""
    positional = inspect.Parameter.POSITIONAL_ONLY
    if declaration.name == NETWORK_FIRST:
        return [_make_network_parameter(declaration, inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    if declaration.subject == "objective":
        goal = inspect.Parameter("objective", positional, default="", annotation=GoalArgument)
        return [goal]
    if declaration.subject != "image":
        return []

    default, annotation = DEFAULT_SAMPLE, ImageArgument
    if "store" in declaration.parameters:  # the image may be one of the store's
        default, annotation = None, OptionalImageArgument
    subject = [inspect.Parameter("image", positional, default=default, annotation=annotation)]
    if declaration.name == "style":
        variadic = inspect.Parameter.VAR_POSITIONAL
        subject.append(inspect.Parameter("paintings", variadic, annotation=PaintingArguments))
    elif find_class_parameter(declaration) is not None:
        named_class = inspect.Parameter(
            "class_name", positional, default=None, annotation=ClassArgument
        )
        subject.append(named_class)
    return subject


def _make_network_parameter(declaration: MethodDeclaration, kind: Any) -> inspect.Parameter:
    if "store" in declaration.parameters:  # the network may be the store's
        return inspect.Parameter("model", kind, default=None, annotation=OptionalNetworkOption)
    return inspect.Parameter("model", kind, default="sightnet", annotation=NetworkOption)


def _make_keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


def refuse_old_order(words: Sequence[str]) -> None:
    """Raises UsageError with the corrected line where a network stands in the subject's place."""
    if len(words) < 2:
        return
    command, first, *remaining = words
    takes_network_first = command == NETWORK_FIRST or command not in read_method_declarations()
    if takes_network_first or not re.fullmatch(r"\w[\w.:]*", first) or Path(first).exists():
        return
    names_network = any(word.split("=")[0] == "--model" for word in remaining)
    if names_network or not is_network_name(first):
        return
    corrected = shlex.join(["sightline", command, *remaining, "--model", first])
    raise UsageError(f"{first} is a network's name: {corrected}")


def __getattr__(name: str) -> Callable[..., int]:
    """The command of a method, made when it is asked for."""
    declarations = read_method_declarations()
    if name not in declarations:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return make_method_command(declarations[name])
