"""Runs a method for its command: loads network and subject, shows progress, saves the result."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_type_hints

from torch import Tensor

from sightline.app.cli.declarations import MethodDeclaration
from sightline.app.cli.options import (
    UsageError,
    compose_target_text,
    unwrap_single_item,
)
from sightline.app.cli.terminal import print_lines, show_progress_bar
from sightline.app.replay import (
    keep_transparency,
    prepare_network_input,
    record_image_source,
)
from sightline.data.store.reader import Scan
from sightline.images.files import check_writable
from sightline.images.io.pictures import read_file_or_sample
from sightline.images.video.properties import VIDEO_SUFFIXES
from sightline.models.model import Model
from sightline.models.zoo.load import load
from sightline.registry.method import METHODS, Method
from sightline.registry.result import Result

DEFAULT_IMAGE = "rocket"

# Parameters that choose an image or a unit of a store, in place of an image by name.
STORED_SUBJECT_PARAMETERS = ("id", "unit")


@dataclass(frozen=True)
class SharedOptions:
    """The values of the options that all methods share."""

    weights: str | None
    size: int | None
    device: str | None
    out: Path
    as_json: bool
    quiet: bool
    uncropped: bool = False


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
    if image_name is not None:
        subject.append(_load_image(image_name, model, shared))
    elif method.subject == "objective":
        subject.append(_read_objective(arguments))
    if method.subject != "image" and shared.size:
        parameters["size"] = shared.size

    with show_progress_bar(method.title, quiet=shared.quiet) as bar:
        if "callback" in method.parameters:
            parameters["callback"] = bar.on_step
        result = method.function(model, *subject, **parameters)

    if image_name is not None:
        if isinstance(model, Model):
            result = keep_transparency(
                result, model, image_name, shared.size, whole=shared.uncropped
            )
        result = record_image_source(result, image_name, shared.size, whole=shared.uncropped)
    save_and_print_result(result, shared.out, as_json=shared.as_json)
    return 130 if bar.stopped else 0


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
    return DEFAULT_IMAGE


def load_network_or_store(
    method: Method, network: str | None, parameters: dict[str, Any], shared: SharedOptions
) -> Model | Scan:
    """The network; or, if none is named, the store, which knows its network.

    A method that takes a Scan gets the store in place of the network and not as a parameter;
    others get the store's network. With a folder, the store is where its scan is written.
    """
    store = parameters.get("store")
    if network is not None or store is None or parameters.get("folder"):
        return load(network or "sightnet", weights=shared.weights, device=shared.device)
    scan = Scan.open(store)
    if not takes_scan(method):
        return scan.model(shared.device)
    del parameters["store"]
    return scan


def takes_scan(method: Method) -> bool:
    """Whether the method's first argument may be a Scan."""
    return Scan in get_args(get_type_hints(method.function)["model"])


def save_and_print_result(result: Result, out: Path, *, as_json: bool) -> None:
    """Saves a result; prints its captions and pictures, or its values and files as JSON."""
    files = result.save(out)
    if as_json:
        summary = {"values": result.numbers, "files": [str(path) for path in files]}
        print(json.dumps(summary, default=str))
        return
    print_lines(*result.captions.values())
    shown_suffixes = (".png", ".html", *VIDEO_SUFFIXES)
    print_lines(*(str(path) for path in files if path.suffix in shown_suffixes))


def _read_shared_options(name: str, arguments: Mapping[str, Any]) -> SharedOptions:
    return SharedOptions(
        weights=arguments["weights"],
        size=arguments["size"],
        device=arguments["device"],
        out=arguments["out"] or Path("out") / name,
        as_json=arguments["as_json"],
        quiet=arguments["quiet"],
        uncropped=arguments.get("uncropped", False),
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
    _write_target(declaration, parameters, arguments)
    paintings = arguments.get("paintings", ())
    if paintings:
        if parameters["styles"] != declaration.parameters["styles"].default:
            raise UsageError("give the paintings after the photograph or by --styles, not both")
        parameters["styles"] = tuple(paintings)
    return parameters


def _read_objective(arguments: Mapping[str, Any]) -> str:
    """The objective by its text, or the target that an option writes."""
    objective = arguments["objective"]
    target = compose_target_text(arguments)
    if target is not None and objective:
        raise UsageError(f"the objective is {objective}, and an option writes {target}; give one")
    return target or objective


def _write_target(
    declaration: MethodDeclaration, parameters: dict[str, Any], arguments: Mapping[str, Any]
) -> None:
    """Sets the method's target to what an option such as --pixel writes."""
    name = next((item.name for item in declaration.parameters.values() if item.is_target), None)
    target = compose_target_text(arguments)
    if name is None or target is None:
        return
    if parameters[name] is not None:
        raise UsageError(f"--{name} is {parameters[name]}, and an option writes {target}; give one")
    parameters[name] = target


def _load_image(name: str, model: Model | Scan, shared: SharedOptions) -> Tensor:
    """The image at the size that the network takes."""
    network = model.model(shared.device) if isinstance(model, Scan) else model
    picture = read_file_or_sample(name)
    return prepare_network_input(network, picture, shared.size, whole=shared.uncropped)
