"""Runs a method for its command: loads network and subject, shows progress, saves the result."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from sightline.app.cli.declarations import MethodDeclaration
from sightline.app.cli.options import (
    UsageError,
    compose_target_text,
    find_class_parameter,
    looks_like_target,
    read_class,
    read_network_settings,
    refuse_network_settings,
    turn_units_off,
    unwrap_single_item,
)
from sightline.app.cli.terminal import hide_downloads, print_lines, show_progress_bar
from sightline.app.corrections import is_picture_name
from sightline.app.replay import (
    keep_transparency,
    note_crop,
    prepare_network_input,
    record_image_source,
)
from sightline.data.store.reader import Scan
from sightline.generators.checkpoint import parse_style_blend
from sightline.images.files import check_writable
from sightline.images.io.library import PAINTING_NAMES
from sightline.images.io.pictures import read_file_or_sample
from sightline.images.sample_names import DEFAULT_SAMPLE
from sightline.images.video.properties import VIDEO_SUFFIXES
from sightline.methods import takes_scan
from sightline.models.ablation import AblationFill
from sightline.models.model import Model
from sightline.models.zoo.load import load
from sightline.registry.method import METHODS, Method
from sightline.registry.parameter import is_value_of_type
from sightline.registry.result import Result

# Parameters that choose an image or a unit of a store, in place of an image by name.
STORED_SUBJECT_PARAMETERS = ("id", "unit")


STYLE_METHOD = "style"
TEXTURE_METHOD = "texture"
# Pixels of an exemplar's side; of a larger one the middle is taken.
MAX_EXEMPLAR_SIDE = 512
# Pixels of the short side of a picture that is repainted, unless --size says so or it has fewer.
DEFAULT_REPAINTED_SIDE = 512


@dataclass(frozen=True)
class SharedOptions:
    """The values of the options that all methods share.

    `crop` is the largest side of the middle of a picture that is taken without resizing it.
    """

    weights: str | None
    size: int | None
    device: str | None
    out: Path
    as_json: bool
    quiet: bool
    uncropped: bool = False
    cropped: bool = False
    crop: int | None = None
    network_settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    ablate: tuple[str, ...] = ()
    ablate_fill: AblationFill = "zero"


def run_method(declaration: MethodDeclaration, arguments: Mapping[str, Any]) -> int:
    """Runs a method with its command's arguments. Returns the exit status.

    Raises SightlineError for what can't be met, before anything is written.
    """
    import_module(declaration.module)
    method = METHODS[declaration.name]
    shared = _read_shared_options(method.name, arguments)
    parameters = _read_parameters(declaration, arguments)
    check_writable(shared.out)

    image_name = None
    if method.subject == "image":
        image_name = choose_image_name(method, arguments["image"], parameters)
    model = load_network_or_store(method, arguments["model"], parameters, shared)

    subject: list[Tensor | str] = []
    picture_size: Sequence[int] = ()
    if image_name is not None:
        picture = read_file_or_sample(image_name)
        picture_size = picture.shape[-2:]
        shared = choose_picture_size(method, picture, shared, parameters)
        subject.append(_fit_picture(picture, model, shared))
    elif method.subject == "objective":
        subject.append(_read_objective(arguments))
    if method.subject != "image" and shared.size:
        parameters["size"] = shared.size

    runs = split_layers(method, parameters)
    summaries: dict[str, dict[str, Any]] = {}
    with show_progress_bar(method.title, quiet=shared.quiet) as bar:
        for name, run_parameters in runs.items():
            if "callback" in method.parameters:
                run_parameters["callback"] = bar.on_step
            # A judge or a peer may be downloaded.
            with hide_downloads(quiet=shared.quiet):
                result = method.function(model, *subject, **run_parameters)
            if image_name is not None:
                result = _add_image_source(result, model, image_name, picture_size, shared)
            summaries[name] = _save_result(result, shared.out / name, as_json=shared.as_json)
            if bar.stopped:
                break
    if shared.as_json:
        _print_summaries(summaries)
    return 130 if bar.stopped else 0


def _save_result(result: Result, folder: Path, *, as_json: bool) -> dict[str, Any]:
    """Saves a result, and prints it unless JSON is asked for. Returns its summary."""
    files = result.save(folder)
    if not as_json:
        print_result(result, files)
    return summarize_result(result, files)


def _print_summaries(summaries: Mapping[str, dict[str, Any]]) -> None:
    """Prints the summaries of runs as JSON: that of an only run, or those of all layers."""
    content = summaries.get("") or {"layers": summaries}
    print(json.dumps(content, default=str))


def choose_picture_size(
    method: Method, picture: Tensor, shared: SharedOptions, parameters: dict[str, Any]
) -> SharedOptions:
    """How a method takes its picture, where it is not the square that the network was made for.

    Methods that repaint a picture take all of it, at most 512 pixels high or wide on its short
    side; a texture's exemplar keeps its scale, and --size is that of what is made.
    """
    if method.name == TEXTURE_METHOD and not shared.uncropped:
        if shared.size is not None and parameters["side"] is not None:
            return shared  # --size is then that of the exemplar
        if shared.size is not None:
            parameters["side"] = shared.size
        return replace(shared, size=None, crop=MAX_EXEMPLAR_SIDE)
    if not method.repaints or shared.cropped:
        return shared
    size = shared.size or min(DEFAULT_REPAINTED_SIDE, *picture.shape[-2:])
    return replace(shared, size=size, uncropped=True)


def split_layers(method: Method, parameters: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The parameters of each run, by the name of its folder: empty for an only run.

    Several layers are one run where the method takes them together, and one run each otherwise.
    """
    layers = parameters.get("layer")
    if not isinstance(layers, tuple):
        return {"": parameters}
    spec = method.parameters["layer"]
    if "layers" in method.parameters:
        if parameters["layers"] not in (None, ()):
            raise UsageError("give several layers as --layer or as --layers, not both")
        return {"": {**parameters, "layer": spec.default, "layers": layers}}
    if is_value_of_type(layers, spec.type):
        return {"": parameters}
    runs: dict[str, dict[str, Any]] = {}
    for layer in layers:
        folder = re.sub(r"[^\w.-]", "_", str(layer))
        runs[folder] = {**parameters, "layer": layer}
    return runs


def choose_image_name(
    method: Method, image: str | None, parameters: Mapping[str, Any]
) -> str | None:
    """The image by name, the default sample without one; None for an image or unit of a store."""
    if image is not None:
        return image
    names_stored_subject = any(
        parameters.get(name) is not None for name in STORED_SUBJECT_PARAMETERS
    )
    if method.subject_optional and names_stored_subject:
        return None
    return DEFAULT_SAMPLE


def load_network_or_store(
    method: Method, network: str | None, parameters: dict[str, Any], shared: SharedOptions
) -> Model | Scan:
    """The network; or, if none is named, the store, which knows its network.

    A method that takes a Scan gets the store in place of the network and not as a parameter;
    others get the store's network. With a folder, the store is where its scan is written.
    """
    store = parameters.get("store")
    if network is not None or store is None or parameters.get("folder"):
        with hide_downloads(quiet=shared.quiet):
            model = load(
                network or "sightnet",
                weights=shared.weights,
                device=shared.device,
                **shared.network_settings,
            )
        return turn_units_off(model, shared.ablate, shared.ablate_fill)
    refuse_network_settings(shared.network_settings)
    scan = Scan.open(store)
    if not takes_scan(method):
        model = scan.model(shared.device)
        return turn_units_off(model, shared.ablate, shared.ablate_fill)
    if shared.ablate:
        raise UsageError(
            f"{method.name} reads --store, whose numbers are those of all units; scan the images "
            "again with --ablate into a store of its own"
        )
    del parameters["store"]
    return scan


def save_and_print_result(result: Result, out: Path, *, as_json: bool) -> None:
    """Saves a result; prints its captions and pictures, or its values and files as JSON."""
    summary = _save_result(result, out, as_json=as_json)
    if as_json:
        _print_summaries({"": summary})


def summarize_result(result: Result, files: Sequence[Path]) -> dict[str, Any]:
    """What --json prints of a result."""
    return {"values": result.numbers, "files": [str(path) for path in files]}


def print_result(result: Result, files: Sequence[Path]) -> None:
    """Prints captions, and the files that one looks at."""
    print_lines(*result.captions.values())
    shown_suffixes = (".png", ".html", *VIDEO_SUFFIXES)
    print_lines(*(str(path) for path in files if path.suffix in shown_suffixes))


def _read_shared_options(name: str, arguments: Mapping[str, Any]) -> SharedOptions:
    return SharedOptions(
        weights=arguments["weights"],
        size=arguments.get("size"),
        device=arguments["device"],
        out=arguments["out"] or Path("out") / name,
        as_json=arguments["as_json"],
        quiet=arguments["quiet"],
        uncropped=arguments.get("uncropped", False),
        cropped=arguments.get("cropped", False),
        network_settings=read_network_settings(
            arguments["labels"], arguments["mean"], arguments["std"]
        ),
        ablate=arguments["ablate"],
        ablate_fill=arguments["ablate_fill"],
    )


def _read_parameters(
    declaration: MethodDeclaration, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """The method's own parameters. The paintings of `style` become its `styles`."""
    parameters = {
        name: unwrap_single_item(parameter.type, arguments[name])
        for name, parameter in declaration.parameters.items()
        if name != "size"
    }
    _name_class(declaration, parameters, arguments.get("class_name"))
    _write_target(declaration, parameters, arguments)
    if arguments.get("quick"):
        for name, value in declaration.quick.items():
            if parameters.get(name) == declaration.parameters[name].default:
                parameters[name] = value
    paintings = arguments.get("paintings", ())
    if paintings:
        if parameters["styles"] != declaration.parameters["styles"].default:
            raise UsageError("give the paintings after the photograph or by --styles, not both")
        parameters["styles"] = tuple(paintings)
    if declaration.name == STYLE_METHOD:
        _split_style_shares(parameters)
    return parameters


def _split_style_shares(parameters: dict[str, Any]) -> None:
    """Takes the shares out of styles such as night.jpg:2,great_wave:1, as `stylizer` has them."""
    names: list[str] = []
    shares: list[float] = []
    has_shares = False
    for text in parameters["styles"]:
        blend = {text: 1.0} if Path(text).exists() else parse_style_blend(text, PAINTING_NAMES)
        has_shares |= len(blend) > 1 or blend != dict.fromkeys(blend, 1.0)
        names += blend
        shares += blend.values()
    if not has_shares:
        return
    if parameters["mix"] is not None:
        raise UsageError("the styles have shares, and --mix has others; give one of them")
    total = sum(shares)
    parameters["styles"] = tuple(names)
    parameters["mix"] = tuple(share / total for share in shares)


def _read_objective(arguments: Mapping[str, Any]) -> str:
    """The objective by its text, or the target that an option writes."""
    objective = arguments["objective"]
    target = compose_target_text(arguments)
    if target is not None and objective:
        raise UsageError(f"the objective is {objective}, and an option writes {target}; give one")
    return target or objective


def _name_class(
    declaration: MethodDeclaration, parameters: dict[str, Any], class_name: int | str | None
) -> None:
    """Sets the class by position, and makes a class of a --target that is the name of one.

    What stands in the class's place and is a target becomes the target.
    """
    key = find_class_parameter(declaration)
    if key is None:
        return
    if class_name is not None:
        _set_class_by_position(declaration, parameters, key, class_name)
    asks_target = any(option.is_target for option in declaration.parameters.values())
    if key == "label" and asks_target and "target" in declaration.parameters:
        _tell_class_from_target(parameters, declaration.parameters[key].default)


def _set_class_by_position(
    declaration: MethodDeclaration, parameters: dict[str, Any], key: str, class_name: int | str
) -> None:
    """Sets the class that stands behind the picture. Raises UsageError for what is none."""
    if parameters[key] != declaration.parameters[key].default:
        raise UsageError(f"the class is {class_name}, and --{key} is {parameters[key]}; give one")
    if is_picture_name(str(class_name)):
        raise UsageError(
            f"{class_name} is a second picture, and {declaration.name} takes one; what stands "
            "behind the picture is a class"
        )
    parameters[key] = class_name


def _tell_class_from_target(parameters: dict[str, Any], default_label: Any) -> None:
    """Moves a target that was given as the class, and a class that was given as the target."""
    target = parameters["target"]
    label = parameters["label"]
    if looks_like_target(label) and target is None:
        parameters["target"] = label
        parameters["label"] = default_label
    elif isinstance(target, str) and "(" not in target and label == default_label:
        parameters["label"] = read_class(target)
        parameters["target"] = None


def _write_target(
    declaration: MethodDeclaration, parameters: dict[str, Any], arguments: Mapping[str, Any]
) -> None:
    """Sets the method's target to what an option such as --pixel writes."""
    name = next((item.name for item in declaration.parameters.values() if item.is_target), None)
    target = None if name is None else compose_target_text(arguments)
    if name is None or target is None:
        return
    if parameters[name] is not None:
        raise UsageError(f"--{name} is {parameters[name]}, and an option writes {target}; give one")
    parameters[name] = target


def _add_image_source(
    result: Result,
    model: Model | Scan,
    image_name: str,
    picture_size: Sequence[int],
    shared: SharedOptions,
) -> Result:
    """The result with the source of its image, and as transparent as that."""
    if isinstance(model, Model) and shared.crop is None:
        result = keep_transparency(result, model, image_name, shared.size, whole=shared.uncropped)
    result = record_image_source(
        result, image_name, shared.size, whole=shared.uncropped, crop=shared.crop
    )
    return result if shared.uncropped else note_crop(result, picture_size, crop=shared.crop)


def _fit_picture(picture: Tensor, model: Model | Scan, shared: SharedOptions) -> Tensor:
    """The picture at the size that the network takes."""
    network = model.model(shared.device) if isinstance(model, Scan) else model
    return prepare_network_input(
        network, picture, shared.size, whole=shared.uncropped, crop=shared.crop
    )
