"""The commands: one per method, generated from the catalogue, and the faces that are not methods."""

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, validators

from sightline.app.cli.parameters import (
    make_option_annotation,
    make_option_default,
    unwrap_single_item,
)
from sightline.app.cli.progress import make_progress_display, show_progress_bar
from sightline.app.cli.subjects import load_model_and_subject
from sightline.app.replay import again as repeat
from sightline.app.replay import prepare_network_input, read_recipe, record_image_source
from sightline.data.store.reader import Scan
from sightline.errors import SightlineError
from sightline.images.files import check_writable
from sightline.images.io import read_file_or_sample
from sightline.images.io import samples as list_samples
from sightline.images.video import VIDEO_SUFFIXES
from sightline.methods import load_methods
from sightline.models.zoo.load import list_network_names, load
from sightline.registry.method import Method
from sightline.registry.result import Result

NetworkArgument = Annotated[
    str,
    Parameter(
        help="sightnet (the embedded network), a name of torchvision or timm, or package.module:function."
    ),
]

ImageArgument = Annotated[str, Parameter(help="An image file, or a name of `sightline samples`.")]

OptionalNetworkArgument = Annotated[
    str | None, Parameter(help="As everywhere; by default the network of --store, else sightnet.")
]

OptionalImageArgument = Annotated[
    str | None, Parameter(help="An image file, or a name of `sightline samples`.")
]

WeightsOption = Annotated[
    str | None,
    Parameter(help='File with the network\'s weights (safetensors, torch), or "random".'),
]

SIDE_LIMITS = validators.Number(gte=16, lte=4096)

SizeOption = Annotated[
    int | None,
    Parameter(
        help="Side in pixels, 16 to 4096, that the image is brought to; the network's own by default.",
        validator=SIDE_LIMITS,
    ),
]

UncroppedOption = Annotated[
    bool,
    Parameter(
        negative=(),
        help="Take the image whole, its short side brought to --size, instead of its square middle.",
    ),
]

DeviceOption = Annotated[str | None, Parameter(help="Where to run: cpu, cuda, cuda:1, mps.")]

OutOption = Annotated[
    Path | None, Parameter(help="Folder for pictures, numbers and recipe; out/NAME by default.")
]

JsonOption = Annotated[
    bool, Parameter(name="--json", negative=(), help="Print values and file names as JSON.")
]

QuietOption = Annotated[bool, Parameter(negative=(), help="No progress bar.")]

# ── one command per method ──


def make_method_command(method: Method) -> Callable[..., int]:
    """A function whose signature is the method's, with network, image and output options around its knobs."""

    def command(network: str | None, *named: str | None, **options: Any) -> int:
        common = {
            name: options.pop(name)
            for name in ("weights", "size", "uncropped", "device", "out", "as_json", "quiet")
            if name in options
        }
        options = {
            name: unwrap_single_item(method.parameters[name], value)
            for name, value in options.items()
        }
        out = common["out"] or Path("out") / method.name
        check_writable(out)
        model, subject = load_model_and_subject(method, network, named, options, common)
        given: list[Any] = list(subject)
        if method.subject == "image":
            nets = [
                model.model(common["device"]) if isinstance(model, Scan) else model for _ in subject
            ]
            given = [
                prepare_network_input(
                    net, read_file_or_sample(name), common["size"], whole=common["uncropped"]
                )
                for net, name in zip(nets, subject, strict=True)
            ]
        if method.subject != "image" and common["size"]:
            options["size"] = common["size"]
        with show_progress_bar(method.title, quiet=common["quiet"]) as bar:
            if "callback" in method.parameters:
                options["callback"] = bar.on_step
            result = method.function(model, *given, **options)
        if method.subject == "image" and subject:
            result = record_image_source(
                result, subject[0], common["size"], whole=common["uncropped"]
            )
        save_and_print_result(result, out, as_json=common["as_json"])
        return 130 if bar.stopped else 0

    def call(*args: Any, **kwargs: Any) -> int:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return command(*bound.args, **bound.kwargs)

    signature = build_command_signature(method)
    call.__signature__ = signature
    call.__annotations__ = {
        name: parameter.annotation for name, parameter in signature.parameters.items()
    }
    call.__name__, call.__doc__ = (
        method.name,
        f"{method.summary}\n\n{method.reading}\n\nBeware: {method.caution}",
    )
    return call


def build_command_signature(method: Method) -> inspect.Signature:
    """Network and subject by position, then the method's knobs, then what all commands share."""
    position, keyword = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.KEYWORD_ONLY
    stored = "store" in method.parameters  # then the network may be the store's
    parameters = [
        inspect.Parameter(
            "network",
            position,
            default=None if stored else "sightnet",
            annotation=OptionalNetworkArgument if stored else NetworkArgument,
        )
    ]
    if method.subject == "image":
        parameters.append(
            inspect.Parameter(
                "image",
                position,
                default=None if stored else "rocket",
                annotation=OptionalImageArgument if stored else ImageArgument,
            )
        )
    elif method.subject:
        goal = Annotated[
            str,
            Parameter(
                help="A class label, or a formula such as \"channel('conv4_1', 7) - 0.1 * tv()\"; nothing for the units of --layer."
            ),
        ]
        parameters.append(inspect.Parameter(method.subject, position, default="", annotation=goal))
    for field in method.parameters.values():
        if field.name not in ("callback", "size"):
            parameters.append(
                inspect.Parameter(
                    field.name,
                    keyword,
                    default=make_option_default(field),
                    annotation=make_option_annotation(field),
                )
            )
    shared: dict[str, tuple[Any, Any]] = {
        "weights": (WeightsOption, None), "size": (SizeOption, None), "device": (DeviceOption, None),
        "out": (OutOption, None), "as_json": (JsonOption, False), "quiet": (QuietOption, False),
        **({"uncropped": (UncroppedOption, False)} if method.subject == "image" else {}),
    }  # fmt: skip
    parameters += [
        inspect.Parameter(name, keyword, default=default, annotation=kind)
        for name, (kind, default) in shared.items()
    ]
    return inspect.Signature(parameters)


def save_and_print_result(result: Result, out: Path, *, as_json: bool) -> None:
    """Saves a result and says where, to people or to programs."""
    files = result.save(out)
    if as_json:
        print(
            json.dumps(
                {"values": result.numbers, "files": [str(path) for path in files]}, default=str
            )
        )
        return
    for caption in result.captions.values():
        print(caption)
    print(
        "\n".join(str(path) for path in files if path.suffix in (".png", ".html", *VIDEO_SUFFIXES))
    )


# ── the other commands ──


def tour(
    image: ImageArgument = "rocket",
    /,
    *,
    model: NetworkArgument = "sightnet",
    label: Annotated[
        str, Parameter(help='Class to ask about; "top" for the predicted one.')
    ] = "top",
    folder: Annotated[
        str | None,
        Parameter(
            help="Collection for neighbours, map and patches, as for scan: at most 1,000 images of it, evenly drawn (200 with --quick). "
            "Tiles of the sample photographs by default."
        ),
    ] = None,
    quick: Annotated[
        bool,
        Parameter(negative=(), help="Fewer steps, larger windows, fewer images of the folder."),
    ] = False,
    weights: WeightsOption = None,
    size: SizeOption = None,
    device: DeviceOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Writes one self-contained HTML report: every method on one image."""
    from sightline.app.report import TourReport

    place = out or Path("out") / "tour"
    check_writable(place)
    network = load(model, weights=weights, device=device)
    picture = network.fit(read_file_or_sample(image), size)
    report = TourReport(
        network, picture, source=image, size=size, label=label, quick=quick, dataset_folder=folder
    )
    with make_progress_display("{task.description:<32}", quiet=quiet) as display:
        task = display.add_task("", total=1.0)
        page = report.write_report(
            place, lambda stage, done: display.update(task, description=stage, completed=done)
        )
    print(
        json.dumps({"report": str(page), "sections": report.collect_numbers()}, default=str)
        if as_json
        else page
    )
    return 130 if report.interrupted else 0


def again(
    recipe: Annotated[Path, Parameter(help="A recipe.json that a command or `Result.save` wrote.")],
    /,
    *,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> int:
    """Makes a result again from its recipe.json."""
    told = read_recipe(recipe)
    folder = out or Path("out") / "again"
    check_writable(folder)
    result = repeat(told)
    if "image" in told:
        result = record_image_source(
            result,
            told["image"]["path"],
            told["image"].get("size"),
            whole=bool(told["image"].get("whole")),
        )
    save_and_print_result(result, folder, as_json=as_json)
    return 0


def layers(
    network: NetworkArgument = "sightnet",
    /,
    *,
    weights: WeightsOption = "random",
    as_json: JsonOption = False,
) -> int:
    """Lists the layers of a network with shapes, names and landmarks."""
    model = load(
        network,
        weights=None if (network, weights) == ("sightnet", "random") else weights,
        device="cpu",
    )
    if as_json:
        rows = [
            {"name": layer.name, "kind": layer.kind, "shape": layer.shape, "alias": layer.alias}
            for layer in model.layers.values()
        ]
        print(json.dumps({"layers": rows, "landmarks": dict(model.landmarks)}))
        return 0
    for layer in model.layers.values():
        shape = "×".join(map(str, layer.shape))
        print(f"{layer.name:<44} {layer.alias:<14} {shape:<16} {layer.kind}")
    print("\nLandmarks: " + ", ".join(f"{mark} = {name}" for mark, name in model.landmarks.items()))
    return 0


def models(
    search: Annotated[str, Parameter(help="Part of a name.")] = "",
    /,
    *,
    as_json: JsonOption = False,
) -> int:
    """Lists the names of networks that can be loaded."""
    found = {
        library: [name for name in names if search in name]
        for library, names in list_network_names().items()
    }
    if as_json:
        print(json.dumps(found))
    elif not any(found.values()):
        raise SightlineError(f"no network's name contains {search!r}")
    else:
        print(
            "\n".join(f"{name:<48} {library}" for library, names in found.items() for name in names)
        )
    return 0


def samples(*, as_json: JsonOption = False) -> int:
    """Lists the sample photographs, which stand for an image by name."""
    print(json.dumps(list_samples()) if as_json else "\n".join(list_samples()))
    return 0


def __getattr__(name: str) -> Callable[..., int]:
    """The command of a method, made when it is asked for."""
    methods: Mapping[str, Method] = load_methods()
    if name not in methods:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return make_method_command(methods[name])
