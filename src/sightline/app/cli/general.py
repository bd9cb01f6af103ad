"""The commands that are not methods. What needs torch is imported when a command runs."""

import json
import signal
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from sightline.app.cli.declarations import read_sample_names
from sightline.app.cli.options import (
    DeviceOption,
    ImageArgument,
    JsonOption,
    NetworkOption,
    OutOption,
    QuietOption,
    SizeOption,
    WeightsOption,
)
from sightline.app.cli.terminal import handle_interrupts, make_progress_display, print_lines
from sightline.errors import SightlineError, escape_for_display
from sightline.models.zoo.names import list_network_names


def tour(
    image: ImageArgument = "rocket",
    /,
    *,
    model: NetworkOption = "sightnet",
    label: Annotated[
        str, Parameter(help='Class to ask about; "top" for the predicted one.')
    ] = "top",
    folder: Annotated[
        str | None,
        Parameter(
            help="Dataset for neighbours, embedding and patches, as for scan: at most 1,000 of "
            "its images, evenly drawn (200 with --quick). Tiles of the sample photographs by "
            "default."
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
    from sightline.images.files import check_writable
    from sightline.images.io.pictures import read_file_or_sample
    from sightline.models.zoo.load import load

    report_folder = out or Path("out") / "tour"
    check_writable(report_folder)
    network = load(model, weights=weights, device=device)
    picture = network.fit(read_file_or_sample(image), size)
    report = TourReport(
        network, picture, source=image, size=size, label=label, quick=quick, dataset_folder=folder
    )
    with make_progress_display("{task.description:<36}", quiet=quiet) as display:
        task = display.add_task("starting", total=1.0)

        def show_progress(stage: str, share: float) -> None:
            display.update(task, description=stage, completed=share)

        # The report ends with the finished sections, wherever Ctrl-C finds it.
        with handle_interrupts(signal.default_int_handler):
            page = report.write_report(report_folder, show_progress)

    if as_json:
        summary = {"report": str(page), "sections": report.collect_numbers()}
        print(json.dumps(summary, default=str))
    else:
        print_lines(str(page))
    if report.interrupted:
        return 130
    report.check_failures()
    return 0


def again(
    recipe: Annotated[Path, Parameter(help="A recipe.json that a command or `Result.save` wrote.")],
    /,
    *,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> int:
    """Makes a result again from its recipe.json."""
    from sightline.app.cli.execution import save_and_print_result
    from sightline.app.recipe import read_recipe
    from sightline.app.replay import record_image_source, run_recipe
    from sightline.images.files import check_writable

    content = read_recipe(recipe)
    folder = out or Path("out") / "again"
    check_writable(folder)
    result = run_recipe(content)
    image = content.image
    if image is not None and image.path is not None:
        result = record_image_source(result, image.path, image.size, whole=image.whole)
    save_and_print_result(result, folder, as_json=as_json)
    return 0


def layers(
    model: NetworkOption = "sightnet",
    *,
    weights: WeightsOption = "random",
    as_json: JsonOption = False,
) -> int:
    """Lists the layers of a network with shapes, names and landmarks."""
    from sightline.models.zoo.load import load

    # The embedded network has its weights at hand; of others only the layers are looked at.
    is_embedded = model == "sightnet" and weights == "random"
    network = load(model, weights=None if is_embedded else weights, device="cpu")
    if as_json:
        rows = [
            {"name": layer.name, "kind": layer.kind, "shape": layer.shape, "alias": layer.alias}
            for layer in network.layers.values()
        ]
        print(json.dumps({"layers": rows, "landmarks": dict(network.landmarks)}))
        return 0
    for layer in network.layers.values():
        shape = "×".join(map(str, layer.shape))
        name = escape_for_display(layer.name)
        print_lines(f"{name:<44} {layer.alias:<14} {shape:<16} {layer.kind}")
    landmarks = [
        f"{landmark} = {escape_for_display(name)}" for landmark, name in network.landmarks.items()
    ]
    print_lines("", f"Landmarks: {', '.join(landmarks)}")
    return 0


def models(
    search: Annotated[str, Parameter(help="Part of a name.")] = "",
    /,
    *,
    as_json: JsonOption = False,
) -> int:
    """Lists the names of networks that can be loaded."""
    matches = {
        library: [name for name in names if search in name]
        for library, names in list_network_names().items()
    }
    if as_json:
        print(json.dumps(matches))
        return 0
    if not any(matches.values()):
        raise SightlineError(f"no network's name contains {search!r}")
    for library, names in matches.items():
        for name in names:
            print_lines(f"{name:<48} {library}")
    return 0


def samples(*, as_json: JsonOption = False) -> int:
    """Lists the sample photographs, which stand for an image by name."""
    names = read_sample_names()
    print_lines(*([json.dumps(names)] if as_json else names))
    return 0
