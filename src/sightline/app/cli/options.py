"""The options of the command line: those that commands share, and those made from parameters."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from cyclopts import Parameter, Token, validators

from sightline.app.cli.declarations import MethodDeclaration, ParameterDeclaration
from sightline.app.cli.terminal import hide_downloads
from sightline.errors import SightlineError
from sightline.images.sample_names import DEFAULT_SAMPLE

if TYPE_CHECKING:
    from sightline.models.ablation import AblationFill
    from sightline.models.model import Model


class UsageError(SightlineError):
    """A command that can't be understood. The exit status is 2."""


def read_numbers(_type: object, tokens: Sequence[Token]) -> tuple[float, ...]:
    """Numbers with spaces or commas between them.

    Raises ValueError for what is no number, which cyclopts reports with the option's name.
    """
    words = [word for token in tokens for word in token.value.split(",")]
    return tuple(float(word) for word in words)


# ── options that commands share ──

NetworkOption = Annotated[
    str,
    Parameter(
        help="The network: sightnet (the embedded one), a name of torchvision or timm, or "
        "package.module:function."
    ),
]

OptionalNetworkOption = Annotated[
    str | None,
    Parameter(
        help="The network, as for every command. The network of --store by default, or sightnet "
        "without a store."
    ),
]

StoredNetworkOption = Annotated[
    str | None,
    Parameter(
        help="The network that the store or recipe was made with, where that can't name it: your "
        "own, as package.module:function."
    ),
]

ImageArgument = Annotated[str, Parameter(help="An image file, or a name of `sightline samples`.")]

IMAGE_HELP = f"An image file, or a name of `sightline samples`. {DEFAULT_SAMPLE} by default."
OptionalImageArgument = Annotated[str | None, Parameter(help=IMAGE_HELP)]

WeightsOption = Annotated[
    str | None,
    Parameter(help='File with the weights of the network (safetensors, torch), or "random".'),
]

LabelsOption = Annotated[
    str | None,
    Parameter(
        help="Names of the network's classes: a file with one a line, or a list such as cat,dog."
    ),
]

MeanOption = Annotated[
    tuple[float, ...] | None,
    Parameter(
        consume_multiple=True,
        converter=read_numbers,
        negative=(),
        help="Channel means that normalize an image in [0, 1], such as 0.485 0.456 0.406.",
    ),
]

StdOption = Annotated[
    tuple[float, ...] | None,
    Parameter(
        consume_multiple=True,
        converter=read_numbers,
        negative=(),
        help="Channel standard deviations, as many as means.",
    ),
]

SizeOption = Annotated[
    int | None,
    Parameter(
        help="Side in pixels, 16 to 4096, to which the image is resized; the network's own by "
        "default. Of a texture, the side of what is made; of style and deepdream, the short side "
        "of the whole image, 512 by default.",
        validator=validators.Number(gte=16, lte=4096),
    ),
]

UncroppedOption = Annotated[
    bool,
    Parameter(
        negative=(),
        help="Use the whole image, its short side resized to --size, and not its central square.",
    ),
]

CroppedOption = Annotated[
    bool,
    Parameter(
        negative=(),
        help="Use the central square of the image, and not all of it, as other methods do.",
    ),
]

DeviceOption = Annotated[str | None, Parameter(help="Where to run: cpu, cuda, cuda:1, mps.")]

AblateOption = Annotated[
    tuple[str, ...],
    Parameter(
        consume_multiple=True,
        negative=(),
        help="Units that are turned off, as LAYER:UNIT,UNIT or LAYER:FIRST-LAST: layer4:12,40.",
    ),
]

AblateFillOption = Annotated[
    Literal["zero", "mean", "resample"],
    Parameter(
        help="What stands in the place of units that are turned off: 0, their mean over the sample "
        "photographs, or their map in one of these."
    ),
]

OutOption = Annotated[
    Path | None, Parameter(help="Folder for pictures, numbers and recipe; out/COMMAND by default.")
]

JsonOption = Annotated[
    bool, Parameter(name="--json", negative=(), help="Print values and file names as JSON.")
]

QuietOption = Annotated[bool, Parameter(negative=(), help="Show no progress bar.")]

QuickOption = Annotated[
    bool, Parameter(negative=(), help="Fewer steps or images, where no option says how many.")
]


@dataclass(frozen=True)
class NetworkArguments:
    """What the options say of the network."""

    model: str | None
    weights: str | None
    labels: str | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    device: str | None
    size: int | None = None

    @property
    def is_named(self) -> bool:
        """Whether a network is named, so that the store has to be one of it."""
        return self.model is not None or self.weights is not None

    def format_options(self) -> list[str]:
        """The options of the network itself as words of a command line."""
        words = [] if self.model is None else ["--model", self.model]
        words += [] if self.weights is None else ["--weights", self.weights]
        return words + format_network_settings(self.labels, self.mean, self.std)

    def load(self, *, quiet: bool) -> "Model":
        """Loads the network; the embedded one where none is named."""
        from sightline.models.zoo.load import load

        settings = read_network_settings(self.labels, self.mean, self.std)
        with hide_downloads(quiet=quiet):
            return load(
                self.model or "sightnet",
                weights=self.weights,
                device=self.device,
                **settings,
            )

    def load_named(self, *, quiet: bool) -> "Model | None":
        """Loads the network; None where none is named, so that the store's own is meant.

        Raises UsageError for settings of a network that is not named.
        """
        if self.is_named:
            return self.load(quiet=quiet)
        refuse_network_settings(read_network_settings(self.labels, self.mean, self.std))
        return None


def refuse_network_settings(settings: Mapping[str, Any]) -> None:
    """Raises UsageError for settings of a network where a store or a recipe brings its own."""
    if settings:
        given_options = ", ".join(f"--{name}" for name in settings)
        raise UsageError(
            f"what is stored knows its own network; leave out {given_options}, or name the network "
            "with --model"
        )


def read_network_settings(
    labels: str | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> dict[str, Any]:
    """What the options say of a network, as arguments of `load`; without what is not given.

    Raises SightlineError for labels that can't be read.
    """
    from sightline.app.project import read_labels

    settings: dict[str, Any] = {}
    if labels is not None:
        settings["labels"] = read_labels(labels)
    if mean is not None:
        settings["mean"] = tuple(mean)
    if std is not None:
        settings["std"] = tuple(std)
    return settings


def format_network_settings(
    labels: str | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> list[str]:
    """The options that `read_network_settings` reads, as words of a command line."""
    words = [] if labels is None else ["--labels", labels]
    for option, values in (("--mean", mean), ("--std", std)):
        words += [] if values is None else [option, *map(str, values)]
    return words


def turn_units_off(model: "Model", ablate: Sequence[str], fill: "AblationFill") -> "Model":
    """The network without the units that --ablate names; itself where none is named.

    Raises SightlineError for what names no units of the network.
    """
    if not ablate:
        return model
    from sightline.models.ablation import parse_ablation

    return model.ablated(parse_ablation(ablate), fill=fill)


def format_ablation(ablate: Sequence[str], fill: "AblationFill") -> list[str]:
    """The options that `turn_units_off` reads, as words of a command line."""
    if not ablate:
        return []
    return ["--ablate", *ablate, *([] if fill == "zero" else ["--ablate-fill", fill])]


# ── options that write a target ──

PixelOption = Annotated[
    tuple[int, int, str] | None,
    Parameter(help="Y X LABEL: ask about a class at one pixel, as target pixel(Y, X, LABEL)."),
]

BoxOption = Annotated[
    tuple[str, ...] | None,
    Parameter(
        consume_multiple=True,
        negative=(),
        help="X0 Y0 X1 Y1 [LABEL]: ask about a detection, as target box(X0, Y0, X1, Y1, LABEL). "
        "What the command is about comes before it.",
    ),
]

LikeOption = Annotated[
    Path | None,
    Parameter(help="FILE: ask how similar the image is to another, as target similar_to(FILE)."),
]

# The options that write a target's text, by the name of their argument.
TARGET_OPTIONS = {"pixel": PixelOption, "box": BoxOption, "like": LikeOption}


def compose_target_text(arguments: Mapping[str, Any]) -> str | None:
    """The target that one of `TARGET_OPTIONS` writes; None without any.

    Raises UsageError for several, and for a box without four numbers.
    """
    named = [name for name in TARGET_OPTIONS if arguments.get(name)]
    if len(named) > 1:
        raise UsageError(f"give one of {', '.join(f'--{name}' for name in named)}, not several")
    if not named:
        return None
    if named == ["pixel"]:
        row, column, label = arguments["pixel"]
        return f"pixel({row}, {column}, {format_label(label)})"
    if named == ["like"]:
        return f"similar_to({str(Path(arguments['like']).absolute())!r})"
    box: Sequence[str] = arguments["box"]
    if len(box) == 1:
        box = box[0].split(",", 4)  # a class may have commas in its name
    *corners, last = box
    if len(corners) == 3:
        return f"box({', '.join(format_edge(edge) for edge in (*corners, last))})"
    if len(corners) == 4:
        edges = ", ".join(format_edge(edge) for edge in corners)
        return f"box({edges}, label={format_label(last)})"
    raise UsageError(
        f"--box has {len(corners) + 1} values; it takes X0 Y0 X1 Y1 and a label or none"
    )


def format_label(label: str) -> str:
    """A class as the text of a target has it: a number, or a name in quotes."""
    return label if label.isdecimal() else repr(label)


def format_edge(edge: str) -> str:
    """An edge of a box in pixels; raises UsageError for anything but a number."""
    try:
        return f"{float(edge):g}"
    except ValueError as error:
        raise UsageError(f"--box has {edge!r}; its edges are numbers in pixels") from error


# ── classes and layers, given the same way everywhere ──

# A method's class is one of these parameters; the first that it has.
CLASS_PARAMETERS = ("label", "target")


def find_class_parameter(declaration: MethodDeclaration) -> str | None:
    """The name of the parameter that takes a class; None where a method has none."""
    for name in CLASS_PARAMETERS:
        parameter = declaration.parameters.get(name)
        if parameter is not None and not parameter.is_target:
            return name
    return None


def read_class(text: str) -> int | str:
    """A class by its number or name."""
    return int(text) if text.lstrip("+-").isdecimal() else text


def parse_class(kind: Any, tokens: Sequence[Token]) -> int | str:
    """The class that an option gives."""
    return read_class(tokens[0].value)


def parse_classes(kind: Any, tokens: Sequence[Token]) -> int | str | tuple[int | str, ...]:
    """One class by itself, several as a list."""
    classes = tuple(read_class(token.value) for token in tokens)
    return classes[0] if len(classes) == 1 else classes


ClassArgument = Annotated[
    int | str | None,
    Parameter(
        converter=parse_class,
        help="Class to ask about: a name or an unambiguous part of one, or its number.",
    ),
]


def parse_layers(kind: Any, tokens: Sequence[Token]) -> str | tuple[str, ...]:
    """One layer by itself, several as a list."""
    names = tuple(token.value for token in tokens)
    return names[0] if len(names) == 1 else names


def looks_like_target(value: Any) -> bool:
    """Whether a text is a target such as pixel(10, 20, 'cat'), and not the name of a class."""
    return isinstance(value, str) and re.fullmatch(r"\s*\w+\(.*\)\s*", value) is not None


# ── options made from a method's parameters ──

# Names under which one also finds an option, so that it is spelled the same everywhere.
OPTION_ALIASES = {"layers": "--layer"}


def make_method_option(declaration: MethodDeclaration, name: str) -> Any:
    """The type of a method's option: see `make_option_annotation`.

    Several layers may be named where the method takes one, and a class is given as --label and as
    --target.
    """
    option = declaration.parameters[name]
    if name == "layer" and _find_list_type(option.type) is None:
        several = "; several: one result for each"
        if "layers" in declaration.parameters:
            several = "; several are its --layers"
        parameter = Parameter(
            help=option.doc.removesuffix(".") + f"{several}.",
            n_tokens=-1,
            consume_multiple=True,
            negative=(),
            converter=parse_layers,
        )
        is_optional = NoneType in get_args(option.type)
        layers = str | tuple[str, ...]
        return Annotated[layers | None if is_optional else layers, parameter]
    alias = OPTION_ALIASES.get(name)
    if name == "target" and find_class_parameter(declaration) == name:
        parameter = Parameter(
            name=("--target", "--label"),
            help=option.doc,
            n_tokens=-1,
            consume_multiple=True,
            negative=(),
            converter=parse_classes,
        )
        return Annotated[option.type, parameter]
    if name == find_class_parameter(declaration):
        alias = "--target"
    if alias is None or alias.removeprefix("--") in declaration.parameters:
        return make_option_annotation(option)
    return make_option_annotation(option, alias)


def make_option_annotation(declaration: ParameterDeclaration, *aliases: str) -> Any:
    """The type of a parameter's option, with its help text and the converter it needs.

    `aliases` are further names of the option.
    """
    members = get_args(declaration.type) or (declaration.type,)
    list_type = _find_list_type(declaration.type)
    convert: Callable[[Any, Sequence[Token]], Any] | None = None
    if list_type is not None:
        if accepts_single_item(declaration.type):
            convert = parse_list_option
    elif int in members and float not in members:
        convert = parse_whole_number

    help_text = declaration.doc
    if declaration.limits:
        low, high = declaration.limits
        help_text += f" From {low:g} to {high:g}."
    parameter = Parameter(
        name=(f"--{declaration.name.replace('_', '-')}", *aliases) if aliases else None,
        help=help_text,
        consume_multiple=list_type is not None,
        negative=None if declaration.type is bool else (),
        converter=convert,
    )
    option_type = declaration.type
    if list_type is not None:
        option_type = list_type | None if NoneType in members else list_type
    return Annotated[option_type, parameter]


def make_option_default(declaration: ParameterDeclaration) -> Any:
    """The default of a parameter's option: a list where the option takes a list."""
    default = declaration.default
    takes_list = _find_list_type(declaration.type) is not None
    if takes_list and not isinstance(default, (tuple, NoneType)):
        return (default,)
    return default


def unwrap_single_item(kind: Any, value: Any) -> Any:
    """The only item of a list, where a parameter of this type also takes an item by itself."""
    if isinstance(value, tuple) and len(value) == 1 and accepts_single_item(kind):
        return value[0]
    return value


def accepts_single_item(kind: Any) -> bool:
    """Whether a type takes an item by itself beside a list, such as int | tuple[int, ...]."""
    if get_origin(kind) is tuple:
        return False
    members = get_args(kind)
    return any(get_origin(member) is not tuple and member is not NoneType for member in members)


def parse_whole_number(kind: Any, tokens: Sequence[Token]) -> int | str:
    """A whole number, or text where text is allowed. Cyclopts would round 8.5 to 8."""
    text = tokens[0].value
    if text.lstrip("+-").isdecimal():
        return int(text)
    if str in get_args(kind):
        return text
    raise ValueError(f"{text!r} is not a whole number")


def parse_list_option(kind: Any, tokens: Sequence[Token]) -> tuple[int | str, ...]:
    """The items of a list whose parameter also takes an item by itself."""
    item_type = get_args(kind)[0]
    if int not in (item_type, *get_args(item_type)):
        return tuple(token.value for token in tokens)
    return tuple(parse_whole_number(item_type, [token]) for token in tokens)


def _find_list_type(kind: Any) -> Any:
    """The tuple type in a parameter's type, None if it takes no list."""
    for member in (kind, *get_args(kind)):
        if get_origin(member) is tuple:
            return member
    return None
