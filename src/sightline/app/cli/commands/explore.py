"""The commands of the explorer: its pages served on this machine, or written as files."""

import json
import shlex
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter, validators

from sightline.app.cli.commands.diagnosis import show_steps
from sightline.app.cli.options import (
    DeviceOption,
    JsonOption,
    LabelsOption,
    MeanOption,
    NetworkArguments,
    OptionalNetworkOption,
    QuietOption,
    SizeOption,
    StdOption,
    WeightsOption,
)
from sightline.app.cli.terminal import print_lines, show_progress_bar
from sightline.errors import SightlineError

if TYPE_CHECKING:
    from sightline.app.web.explorer.explorer import Explorer
    from sightline.data.store.reader import Scan
    from sightline.models.model import Model

BYTES_PER_MEGABYTE = 1e6

FolderArgument = Annotated[
    str | None,
    Parameter(
        help="What to scan where the store is not there yet, as for scan; tiles of the sample "
        "photographs without a store."
    ),
]

StoreOption = Annotated[
    Path | None, Parameter(help="A store that `sightline scan` wrote, or is to be made.")
]

SynthesisOption = Annotated[
    bool,
    Parameter(
        negative=(),
        help="Make what each unit and class would like to see first. It takes long once; what was "
        "made is kept.",
    ),
]


CompareOption = Annotated[
    Path | None,
    Parameter(
        help="The store of an earlier network over the same images: one more page compares them, "
        "as `sightline compare` does."
    ),
]

MistakesOption = Annotated[
    bool,
    Parameter(
        negative=(),
        help="One more page groups the mistakes and tests what causes them, as `sightline "
        "mistakes` does.",
    ),
]


def explore(
    folder: FolderArgument = None,
    /,
    *,
    store: StoreOption = None,
    model: OptionalNetworkOption = None,
    synthesis: SynthesisOption = False,
    compare: CompareOption = None,
    mistakes: MistakesOption = False,
    host: Annotated[
        str,
        Parameter(
            help="Where to listen; another than this machine's own asks visitors for a token."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        Parameter(
            help="Port; 8642 by default, or a free one where that is in use.",
            validator=validators.Number(gte=0, lte=65535),
        ),
    ] = None,
    weights: WeightsOption = None,
    labels: LabelsOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    size: SizeOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Serves the pages of a scan on this machine: network, layers, units, classes, images, live."""
    from sightline.app.web.delivery.server import open_server_address, serve

    network = NetworkArguments(model, weights, labels, mean, std, device, size)
    sections = SiteSections(synthesis, compare, mistakes)
    command = format_explorer_command("explore", folder, store, network, sections)
    # A port in use is noticed before anything is made.
    address = open_server_address(host, port)
    with closing(address.listener):
        explorer = build_explorer(
            folder, store, network, sections, command, is_served=True, quiet=quiet
        )
        if not prepare_site(explorer, quiet=quiet):
            return 130

        def show_link(link: str) -> None:
            if as_json:
                print(json.dumps({"link": link, "port": address.port}), flush=True)
                return
            print_lines(*describe_explorer(explorer))
            print(f"{link}   (Ctrl-C stops it)", flush=True)

        serve(explorer, address, show_link)
    return 0


def export(
    site: Annotated[
        Path, Parameter(help="Folder for the pages: an empty one, or that of an earlier export.")
    ],
    folder: FolderArgument = None,
    /,
    *,
    store: StoreOption = None,
    model: OptionalNetworkOption = None,
    synthesis: SynthesisOption = False,
    compare: CompareOption = None,
    mistakes: MistakesOption = False,
    parquet: Annotated[
        bool,
        Parameter(
            negative=(),
            help="Also write images.parquet: images, places on the map, predictions and strongest "
            "units, for `embedding-atlas`.",
        ),
    ] = False,
    weights: WeightsOption = None,
    labels: LabelsOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    size: SizeOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Writes the same pages as files, which open from the disk and on any static host."""
    from sightline.app.web.delivery.export import SiteExport, check_export_folder

    check_export_folder(site)
    network = NetworkArguments(model, weights, labels, mean, std, device, size)
    sections = SiteSections(synthesis, compare, mistakes)
    command = format_explorer_command("export", folder, store, network, sections, site=site)
    explorer = build_explorer(
        folder, store, network, sections, command, is_served=False, quiet=quiet
    )
    site_export = SiteExport(explorer, site)
    site_export.claim_folder()
    if not prepare_site(explorer, quiet=quiet):
        return 130
    with show_progress_bar("Pages", quiet=quiet) as bar:

        def show_page(done: int, total: int, address: str) -> bool:
            return bar.update_display(done, total, f"{address[:40]:<40}")

        is_finished = site_export.run(show_page)
    table = None
    if parquet and is_finished:
        from sightline.app.web.delivery.parquet import write_image_table

        table = write_image_table(explorer, site / "images.parquet")
    summary = {
        "page": str(site / "index.html"),
        "files": len(site_export.written),
        "bytes": site_export.total_bytes,
        "parquet": None if table is None else str(table),
        "complete": is_finished,
    }
    if as_json:
        print(json.dumps(summary))
    elif is_finished:
        megabytes = site_export.total_bytes / BYTES_PER_MEGABYTE
        print_lines(f"{summary['page']} ({len(site_export.written):,} files, {megabytes:.1f} MB)")
        if table is not None:
            print_lines(f"{table}: {describe_atlas_command(table)}")
    else:
        print_lines("stopped; the same command goes on")
    return 0 if is_finished else 130


@dataclass(frozen=True)
class SiteSections:
    """What the options say of the pages that take long to make."""

    synthesis: bool = False
    compare: Path | None = None
    mistakes: bool = False


def build_explorer(
    folder: str | None,
    store: Path | None,
    network: NetworkArguments,
    sections: SiteSections,
    command: str,
    *,
    is_served: bool,
    quiet: bool,
) -> "Explorer":
    """The explorer of a store, or of a new scan of a folder.

    Raises SightlineError for a store that can't be explored, or is another network's, and for one
    to compare it with that is not there.
    """
    from sightline.app.web.delivery.opening import (
        check_explorable,
        open_explorer,
        open_stored_scan,
    )

    compared_scan = None if sections.compare is None else open_stored_scan(sections.compare)
    is_new = folder is not None or store is None
    model = network.load(quiet=quiet) if is_new or network.is_named else None
    if is_new and model is not None:
        scan = scan_folder(model, folder, store, network.size, quiet=quiet)
        check_explorable(scan)
    else:
        scan = open_stored_scan(Path() if store is None else store)
    explorer = open_explorer(
        scan,
        model,
        device=network.device,
        has_synthesis=sections.synthesis,
        compared_scan=compared_scan,
        has_mistakes=sections.mistakes,
        is_served=is_served,
        command=command,
        network_options=network.format_options() if network.is_named else (),
    )
    if sections.synthesis and explorer.model is None:
        raise SightlineError(f"--synthesis needs the network: {explorer.model_note}")
    return explorer


def scan_folder(
    model: "Model", folder: str | None, store: Path | None, size: int | None, *, quiet: bool
) -> "Scan":
    """The scan of a folder, made or gone on with where it is not there."""
    from sightline.data.scan.run import Passing, scan

    with show_progress_bar("Scan", quiet=quiet) as bar:

        def show_images(event: Passing) -> bool:
            title = f"Scan: {event.rate:.1f} images/s, {event.errors} unreadable"
            return bar.update_display(event.done, event.total, title)

        return scan(model, folder, store=store, size=size, callback=show_images)


def prepare_site(explorer: "Explorer", *, quiet: bool) -> bool:
    """Makes what is missing: facts of the units, diagnosis, and syntheses.

    Returns whether all is there.
    """
    from sightline.app.web.delivery.opening import (
        count_synthesis_units,
        prepare_diagnosis,
        prepare_layers,
    )

    with show_progress_bar("Units", quiet=quiet) as bar:

        def show_layers(done: int, total: int) -> bool:
            return bar.update_display(done, total, "Units")

        is_finished = prepare_layers(explorer, show_layers)
    if is_finished and (explorer.compared_scan is not None or explorer.has_mistakes):
        with show_steps("diagnosis", quiet=quiet) as show_step:
            prepare_diagnosis(explorer, show_step)
    if is_finished and explorer.has_synthesis and explorer.unit_synthesis is not None:
        counts = count_synthesis_units(explorer)
        with show_progress_bar("Synthesis", quiet=quiet) as bar:

            def show_units(done: float, total: float) -> bool:
                hundredths = max(1, round(total * 100))
                return bar.update_display(round(done * 100), hundredths, "Synthesis")

            is_finished = explorer.unit_synthesis.keep_all(counts, show_units)
    if not is_finished:
        print_lines("stopped; what was made is kept, and the same command goes on")
    return is_finished


def describe_explorer(explorer: "Explorer") -> list[str]:
    """What is served, and what it lacks."""
    scan = explorer.scan
    unit_count = scan.description.unit_count
    lines = [f"{scan.images:,} images, {unit_count:,} units of {len(scan.layers)} layers"]
    if not scan.complete:
        lines.append(
            f"the scan is not complete: {scan.done:,} files so far; sightline scan resumes it"
        )
    if explorer.model is None:
        lines.append(f"without the network, so without the live tab: {explorer.model_note}")
    return lines


def describe_atlas_command(table: Path) -> str:
    """The command that opens the table."""
    words = ["embedding-atlas", str(table), "--x", "x", "--y", "y", "--text", "text"]
    words += ["--image", "image", "--neighbors", "neighbors"]
    return shlex.join(words)


def format_explorer_command(
    name: str,
    folder: str | None,
    store: Path | None,
    network: NetworkArguments,
    sections: SiteSections,
    *,
    site: Path | None = None,
) -> str:
    """The command line that makes the site again."""
    words = ["sightline", name]
    words += [] if site is None else [str(site)]
    words += [] if folder is None else [folder]
    words += [] if store is None else ["--store", str(store)]
    words += network.format_options()
    words += [] if network.size is None else ["--size", str(network.size)]
    words += [] if sections.compare is None else ["--compare", str(sections.compare)]
    words += ["--synthesis"] if sections.synthesis else []
    words += ["--mistakes"] if sections.mistakes else []
    return shlex.join(words)
