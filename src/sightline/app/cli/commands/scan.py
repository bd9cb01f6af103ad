"""The commands over datasets: `sightline scan`, and `sightline store` for what it wrote."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from sightline.app.cli.options import (
    AblateFillOption,
    AblateOption,
    DeviceOption,
    JsonOption,
    LabelsOption,
    MeanOption,
    NetworkOption,
    QuietOption,
    SizeOption,
    StdOption,
    WeightsOption,
    read_network_settings,
    turn_units_off,
)
from sightline.app.cli.terminal import hide_downloads, print_lines, show_progress_bar
from sightline.data.scan.run import Passing, ScanEngine
from sightline.data.scan.run import scan as scan_dataset
from sightline.data.search.nearest import Metric
from sightline.data.store.description import expand_side
from sightline.data.store.index import VectorIndex, ensure_vector_index
from sightline.data.store.maintenance import (
    UNCHECKED_PARTS,
    compact_store,
    summarize_store,
    verify_store,
)
from sightline.data.store.reader import Scan
from sightline.errors import SightlineError, escape_for_display
from sightline.models.network.preprocessing import format_size
from sightline.models.zoo.load import load

# So many of the reasons why files could not be read are listed, and so many of a store's problems.
MAX_LISTED_REASONS = 10
MAX_LISTED_PROBLEMS = 5

BYTES_PER_MEGABYTE = 1e6

StoreArgument = Annotated[Path, Parameter(help="A store that `sightline scan` wrote.")]


def scan(
    folder: Annotated[
        str | None,
        Parameter(
            help="Folder tree, pattern, text list, .tar, .parquet or .lance; tiles of the sample "
            "photographs by default."
        ),
    ] = None,
    /,
    *,
    model: NetworkOption = "sightnet",
    store: Annotated[
        Path | None, Parameter(help="Where it is stored; a folder in your cache by default.")
    ] = None,
    layers: Annotated[
        tuple[str, ...] | None,
        Parameter(
            help="Layers whose units are recorded; all convolutions by default.",
            consume_multiple=True,
            negative=(),
        ),
    ] = None,
    vectors: Annotated[
        tuple[str, ...],
        Parameter(help="Layers whose features are stored.", consume_multiple=True, negative=()),
    ] = ("penultimate",),
    k: Annotated[int | None, Parameter(help="Images stored for each unit; 25 by default.")] = None,
    batch: Annotated[
        int, Parameter(help="Images that go through the network at once. From 1 to 4096.")
    ] = 32,
    responses: Annotated[
        bool | None,
        Parameter(
            help="Store every unit's response to every image, 2 bytes each. By default a new store "
            "has them, and one that exists is taken as it is."
        ),
    ] = None,
    mean_responses: Annotated[
        bool, Parameter(help="Store the responses' means over positions, too.", negative=())
    ] = False,
    engine: Annotated[
        ScanEngine,
        Parameter(
            help="Here, or on the workers of a Ray cluster (RAY_ADDRESS names it; extra «cluster»)."
        ),
    ] = "local",
    weights: WeightsOption = None,
    labels: LabelsOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    size: SizeOption = None,
    ablate: AblateOption = (),
    ablate_fill: AblateFillOption = "zero",
    device: DeviceOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Passes a dataset through a network once and stores its responses.

    A scan that was stopped is resumed.
    """
    settings = read_network_settings(labels, mean, std)
    with hide_downloads(quiet=quiet):
        network = load(model, weights=weights, device=device, **settings)
    network = turn_units_off(network, ablate, ablate_fill)
    with show_progress_bar("Scan", quiet=quiet) as bar:

        def show_images(event: Passing) -> bool:
            title = f"Scan: {event.rate:.1f} images/s, {event.errors} unreadable"
            return bar.update_display(event.done, event.total, title)

        result = scan_dataset(
            network,
            folder,
            store=store,
            layers=layers,
            vectors=vectors,
            k=k,
            size=size,
            batch=batch,
            responses=responses,
            mean_responses=mean_responses,
            engine=engine,
            callback=show_images,
        )
    if as_json:
        summary = {
            "store": str(result.path),
            "images": result.images,
            "errors": len(result.errors),
            "complete": result.complete,
            "responses": result.has_responses,
        }
        print(json.dumps(summary))
    else:
        print_lines(*summarize_scan(result))
    return 0 if result.complete else 130


def summarize_scan(finished_scan: Scan) -> list[str]:
    """How many images were scanned, and the most frequent reasons why others were not."""
    count = f"{finished_scan.images} images in {finished_scan.path}"
    if not finished_scan.complete:
        count += "; stopped, the same command resumes it"
    if not finished_scan.has_responses:
        count += "; made without responses"
    lines = [count]
    if finished_scan.errors:
        lines.append(f"{len(finished_scan.errors)} files could not be read:")
        reasons = Counter(reason.split(" (")[0] for _, reason in finished_scan.errors)
        for reason, frequency in reasons.most_common(MAX_LISTED_REASONS):
            lines.append(f"  {frequency} × {reason}")
    return lines


def info(store: StoreArgument, /, *, as_json: JsonOption = False) -> int:
    """Describes what a store holds."""
    facts = summarize_store(store)
    if as_json:
        print(json.dumps(facts))
        return 0
    size = _format_megabytes(facts["bytes"])
    state = "complete" if facts["complete"] else "not complete"
    print_lines(f"{facts['images']} images, {facts['errors']} errors, {size}; {state}")

    network = facts["network"]
    digest = network["weights"][:12]
    model = escape_for_display(str(facts["model"]))
    sides = format_size(expand_side(network["side"]))
    print_lines(f"model: {model} at {sides} px, weights {digest}")

    dataset = escape_for_display(facts["collection"]["source"] or facts["collection"]["kind"])
    print_lines(f"dataset: {dataset}, {len(facts['classes'])} known classes")

    layers = [f"{escape_for_display(name)} ({units})" for name, units in facts["layers"].items()]
    print_lines(f"units: {', '.join(layers)}; the {facts['k']} strongest images of each")

    vectors = [
        f"{escape_for_display(name)} ({length})" for name, length in facts["vectors"].items()
    ]
    print_lines(f"vectors: {', '.join(vectors)}")
    print_lines(f"responses: {format_response_kinds(facts['responses'])}")
    for name, index_facts in facts["indexes"].items():
        index = VectorIndex(**index_facts)
        print_lines(f"index of {escape_for_display(name)} ({index_facts['metric']}): {index}")
    return 0


def format_response_kinds(kinds: Sequence[str]) -> str:
    """What a store keeps of every unit and image."""
    if not kinds:
        return "none; sightline scan --responses into another store keeps them"
    kind_names = {"max": "largest value", "mean": "mean"}
    return f"{' and '.join(kind_names[kind] for kind in kinds)} of every unit for every image"


def verify(store: StoreArgument, /, *, as_json: JsonOption = False) -> int:
    """Reads a whole store and reports what is damaged."""
    problems = verify_store(store)
    if as_json:
        print(json.dumps({"wrong": problems}))
    elif not problems:
        print_lines(f"{store} is whole")
        print(f"not checked: {'; '.join(UNCHECKED_PARTS)}", file=sys.stderr)
    if problems:
        listed = "; ".join(problems[:MAX_LISTED_PROBLEMS])
        raise SightlineError(f"the store {store} is damaged: {listed}")
    return 0


def compact(store: StoreArgument, /, *, as_json: JsonOption = False) -> int:
    """Merges the fragments that a scan's commits left."""
    bytes_before, bytes_after = compact_store(store)
    if as_json:
        print(json.dumps({"before": bytes_before, "after": bytes_after}))
    else:
        print_lines(
            f"{_format_megabytes(bytes_before)} before, {_format_megabytes(bytes_after)} after"
        )
    return 0


def index(
    store: StoreArgument,
    /,
    *,
    layer: Annotated[
        str, Parameter(help="Whose vectors: a layer of the scan's --vectors.")
    ] = "penultimate",
    metric: Annotated[Metric, Parameter(help="The distance that the index is for.")] = "cosine",
    as_json: JsonOption = False,
) -> int:
    """Builds an index for approximate search and measures its recall.

    An index that covers all images is not built again.
    """
    built = ensure_vector_index(Scan.open(store), layer, metric)
    if as_json:
        print(json.dumps(asdict(built)))
    else:
        print_lines(f"{built}; built in {built.seconds:.0f} s")
    return 0


def _format_megabytes(size: int) -> str:
    return f"{size / BYTES_PER_MEGABYTE:.1f} MB"
