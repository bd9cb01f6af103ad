"""The commands that are not methods. What needs torch is imported when a command runs."""

import json
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter, validators

from sightline.app.agents.schema import describe_parameter
from sightline.app.cli.declarations import (
    RECIPE_SCHEMA_FILE,
    MethodDeclaration,
    read_method_declarations,
    read_sample_names,
)
from sightline.app.cli.options import (
    IMAGE_HELP,
    AblateFillOption,
    AblateOption,
    DeviceOption,
    JsonOption,
    LabelsOption,
    MeanOption,
    NetworkArguments,
    NetworkOption,
    OutOption,
    QuietOption,
    SizeOption,
    StdOption,
    StoredNetworkOption,
    WeightsOption,
    format_ablation,
    format_network_settings,
    read_network_settings,
    turn_units_off,
)
from sightline.app.cli.terminal import (
    handle_interrupts,
    hide_downloads,
    make_progress_display,
    print_lines,
    show_progress_bar,
)
from sightline.app.machine.sharing import count_threads
from sightline.errors import SightlineError, escape_for_display
from sightline.images.sample_names import DEFAULT_SAMPLE
from sightline.models.zoo.names import EMBEDDED_NETWORKS, list_network_names

if TYPE_CHECKING:
    from sightline.app.machine.cache import CacheEntry


def tour(
    image: Annotated[str, Parameter(help=IMAGE_HELP)] = DEFAULT_SAMPLE,
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
            "its images, evenly drawn (200 with --quick). Parts of the sample pictures by default."
        ),
    ] = None,
    quick: Annotated[
        bool,
        Parameter(negative=(), help="Fewer steps, larger windows, fewer images of the folder."),
    ] = False,
    weights: WeightsOption = None,
    labels: LabelsOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    size: SizeOption = None,
    ablate: AblateOption = (),
    ablate_fill: AblateFillOption = "zero",
    device: DeviceOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Writes one self-contained HTML report: every method on one image."""
    from sightline.app.report.worker import SectionWorker
    from sightline.images.files import check_writable

    report_folder = out or Path("out") / "tour"
    check_writable(report_folder)
    settings = read_network_settings(labels, mean, std)
    with ExitStack() as stack:
        worker = None
        if count_threads() > 1 and device in (None, "cpu"):
            # Started first: it imports torch while this process does.
            worker = stack.enter_context(SectionWorker())
        from sightline.app.report.tour import TourReport
        from sightline.images.io.pictures import read_file_or_sample
        from sightline.models.zoo.load import load

        with hide_downloads(quiet=quiet):
            network = load(model, weights=weights, device=device, **settings)
        network = turn_units_off(network, ablate, ablate_fill)
        picture = network.fit(read_file_or_sample(image), size)
        report = TourReport(
            network,
            picture,
            source=image,
            size=size,
            label=label,
            quick=quick,
            dataset_folder=folder,
            network_options=[
                *format_network_settings(labels, mean, std),
                *format_ablation(ablate, ablate_fill),
            ],
        )
        display = stack.enter_context(make_progress_display("{task.description:<36}", quiet=quiet))
        task = display.add_task("starting", total=1.0)

        def show_progress(stage: str, share: float) -> None:
            display.update(task, description=stage, completed=share)

        # The report ends with the finished sections, wherever Ctrl-C finds it.
        stack.enter_context(handle_interrupts(signal.default_int_handler))
        page = report.write_report(report_folder, show_progress, worker)

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
    model: StoredNetworkOption = None,
    weights: WeightsOption = None,
    labels: LabelsOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    device: DeviceOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Makes a result again from its recipe.json."""
    from sightline.app.cli.execution import save_and_print_result
    from sightline.app.recipe import read_recipe
    from sightline.app.replay import note_crop, record_image_source, run_recipe
    from sightline.images.files import check_writable
    from sightline.images.io.pictures import read_file_or_sample

    content = read_recipe(recipe)
    folder = out or Path("out") / "again"
    check_writable(folder)
    title = content.find_method().title
    network = NetworkArguments(model, weights, labels, mean, std, device).load_named(quiet=quiet)
    with hide_downloads(quiet=quiet), show_progress_bar(title, quiet=quiet) as bar:
        result = run_recipe(content, network, device=device, callback=bar.on_step)
    image = content.image
    if image is not None and image.path is not None:
        result = record_image_source(
            result, image.path, image.size, whole=image.whole, crop=image.crop
        )
        if not image.whole:
            picture_size = read_file_or_sample(image.path).shape[-2:]
            result = note_crop(result, picture_size, crop=image.crop)
    save_and_print_result(result, folder, as_json=as_json)
    return 130 if bar.stopped else 0


def layers(
    model: NetworkOption = "sightnet",
    *,
    weights: WeightsOption = "random",
    labels: LabelsOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    as_json: JsonOption = False,
) -> int:
    """Lists the layers of a network with shapes, names and landmarks."""
    from sightline.models.zoo.load import load

    # Embedded networks have their weights at hand; of others only the layers are looked at.
    is_embedded = model in EMBEDDED_NETWORKS and weights == "random"
    settings = read_network_settings(labels, mean, std)
    network = load(model, weights=None if is_embedded else weights, device="cpu", **settings)
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


def doctor(*, as_json: JsonOption = False) -> int:
    """Lists versions, devices, threads, fast paths, the cache and extras, for a report of a bug."""
    from sightline.app.machine.facts import collect_machine_facts, format_machine_facts

    facts = collect_machine_facts()
    print_lines(*([json.dumps(facts.as_json())] if as_json else format_machine_facts(facts)))
    return 1 if facts.problem else 0


def cache_info(*, as_json: JsonOption = False) -> int:
    """Lists what the cache holds: scans without a store of their own, the largest first."""
    from sightline.app.machine.cache import list_cache_entries
    from sightline.images.files import get_cache_folder

    entries = list_cache_entries()
    folder = get_cache_folder()
    if as_json:
        rows = [_describe_cache_entry(entry) for entry in entries]
        print(json.dumps({"folder": str(folder), "entries": rows}))
        return 0
    print_lines(*(_format_cache_entry(entry) for entry in entries))
    print_lines(f"{_count_entries(entries)} in {folder}")
    return 0


def cache_clear(
    *,
    older_than: Annotated[
        float | None,
        Parameter(
            help="DAYS: remove only what was not written to for so many days.",
            validator=validators.Number(gte=0),
        ),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Removes what the cache holds, and says what it removed. Nothing else is touched."""
    from sightline.app.machine.cache import list_cache_entries, remove_cache_entries
    from sightline.images.files import get_cache_folder

    chosen = [entry for entry in list_cache_entries() if entry.days >= (older_than or 0.0)]
    removed, failures = remove_cache_entries(chosen)
    if as_json:
        rows = [_describe_cache_entry(entry) for entry in removed]
        reasons = {str(path): reason for path, reason in failures.items()}
        print(json.dumps({"removed": rows, "kept": reasons}))
    else:
        print_lines(*(f"removed {_format_cache_entry(entry)}" for entry in removed))
        print_lines(f"removed {_count_entries(removed)} from {get_cache_folder()}")
    if failures:
        reasons = [f"{path} ({reason})" for path, reason in failures.items()]
        raise SightlineError(f"not removed: {'; '.join(reasons)}")
    return 0


def methods(
    *,
    as_json: JsonOption = False,
    schema: Annotated[
        bool, Parameter(negative=(), help="Print the JSON schema of recipe.json instead.")
    ] = False,
) -> int:
    """Lists the methods; with --json their parameters, ranges, defaults and documentation."""
    if schema:
        print(RECIPE_SCHEMA_FILE.read_text(encoding="utf-8"), end="")
        return 0
    declarations = read_method_declarations()
    if as_json:
        rows = [describe_declaration(declaration) for declaration in declarations.values()]
        print(json.dumps({"methods": rows}))
        return 0
    print_lines(
        *(f"{name:<18} {declaration.summary}" for name, declaration in declarations.items())
    )
    return 0


def describe_declaration(declaration: MethodDeclaration) -> dict[str, object]:
    """A method as JSON holds it; each parameter as a JSON schema with its default."""
    parameters = {
        parameter.name: describe_parameter(
            parameter.type, parameter.doc, parameter.default, parameter.limits
        )
        for parameter in declaration.parameters.values()
    }
    texts = ("name", "title", "chapter", "summary", "question", "reading", "caution", "subject")
    return {
        **{name: getattr(declaration, name) for name in texts},
        "parameters": parameters,
        "quick": dict(declaration.quick),
    }


def mcp() -> int:
    """Serves the methods to programs by the Model Context Protocol, on standard input and output.

    Needs the extra «mcp».
    """
    from sightline.app.agents.server import serve

    serve()
    return 0


def _describe_cache_entry(entry: "CacheEntry") -> dict[str, object]:
    return {
        "path": str(entry.path),
        "kind": entry.kind,
        "bytes": entry.size,
        "days": round(entry.days, 2),
    }


def _format_cache_entry(entry: "CacheEntry") -> str:
    name = escape_for_display(f"{entry.kind}/{entry.path.name}")
    return f"{name:<64} {entry.size / 1e6:9.1f} MB {entry.days:7.1f} days"


def _count_entries(entries: Sequence["CacheEntry"]) -> str:
    count = len(entries)
    size = sum(entry.size for entry in entries) / 1e6
    return f"{count} {'entry' if count == 1 else 'entries'}, {size:.1f} MB,"
