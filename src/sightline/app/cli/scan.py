"""The commands over collections: `sightline scan`, and `sightline store` for what it made."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from sightline.app.cli.options import (
    DeviceOption,
    JsonOption,
    NetworkOption,
    QuietOption,
    SizeOption,
    WeightsOption,
)
from sightline.app.cli.progress import show_progress_bar
from sightline.data.scan.run import Passing, ScanEngine
from sightline.data.scan.run import scan as pass_over
from sightline.data.search.nearest import Metric
from sightline.data.store.index import VectorIndex, ensure_vector_index
from sightline.data.store.reader import Scan
from sightline.errors import SightlineError
from sightline.models.zoo.load import load

StoreArgument = Annotated[Path, Parameter(help="A store that `sightline scan` made.")]


def scan(
    folder: Annotated[
        str | None,
        Parameter(
            help="Folder tree, pattern, text list, .tar, .parquet or .lance; tiles of the sample photographs by default."
        ),
    ] = None,
    /,
    *,
    model: NetworkOption = "sightnet",
    store: Annotated[
        Path | None, Parameter(help="Where it is kept; a folder in your cache by default.")
    ] = None,
    layers: Annotated[
        tuple[str, ...] | None,
        Parameter(
            help="Layers whose units are followed; all convolutions by default.",
            consume_multiple=True,
            negative=(),
        ),
    ] = None,
    vectors: Annotated[
        tuple[str, ...],
        Parameter(help="Layers whose features are kept.", consume_multiple=True, negative=()),
    ] = ("penultimate",),
    k: Annotated[int | None, Parameter(help="Images kept for each unit; 25 by default.")] = None,
    batch: Annotated[
        int, Parameter(help="Images that go through the network at once. From 1 to 4096.")
    ] = 32,
    engine: Annotated[
        ScanEngine,
        Parameter(
            help="Here, or on the workers of a Ray cluster (RAY_ADDRESS names it; extra «cluster»)."
        ),
    ] = "local",
    weights: WeightsOption = None,
    size: SizeOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Passes a dataset through a network once and stores its responses.

    A scan that was stopped is resumed.
    """
    network = load(model, weights=weights, device=device)
    with show_progress_bar("Scan", quiet=quiet) as bar:

        def tell(event: Passing) -> bool:
            return bar.update_display(
                event.done,
                event.total,
                f"Scan: {event.rate:.1f} images/s, {event.errors} unreadable",
            )

        options = {
            "layers": layers,
            "vectors": vectors,
            "k": k,
            "size": size,
            "batch": batch,
            "engine": engine,
        }
        found = pass_over(network, folder, store=store, callback=tell, **options)  # pyright: ignore[reportArgumentType]
    told = {
        "store": str(found.path),
        "images": found.images,
        "errors": len(found.errors),
        "complete": found.complete,
    }
    print(json.dumps(told) if as_json else summarize_scan(found))
    return 0 if found.complete else 130


def summarize_scan(finished_scan: Scan) -> str:
    """What a pass came to, with the commonest reasons of what could not be read."""
    lines = [
        f"{finished_scan.images} images in {finished_scan.path}"
        + ("" if finished_scan.complete else "; stopped, the same command goes on")
    ]
    if finished_scan.errors:
        lines.append(f"{len(finished_scan.errors)} files could not be read:")
        reasons = Counter(reason.split(" (")[0] for _, reason in finished_scan.errors)
        lines += [f"  {count} × {reason}" for reason, count in reasons.most_common(10)]
    return "\n".join(lines)


def info(store: StoreArgument, /, *, as_json: JsonOption = False) -> int:
    """Describes what a store holds."""
    from sightline.data.store.maintenance import summarize_store as facts_of

    told = facts_of(store)
    if as_json:
        print(json.dumps(told))
        return 0
    print(
        f"{told['images']} images, {told['errors']} errors, {told['bytes'] / 1e6:.1f} MB; {'complete' if told['complete'] else 'not complete'}"
    )
    print(
        f"model: {told['model']} at {told['network']['side']} px, weights {told['network']['weights'][:12]}"
    )
    print(
        f"collection: {told['collection']['source'] or told['collection']['kind']}, {len(told['classes'])} known classes"
    )
    print(
        f"units: {', '.join(f'{name} ({units})' for name, units in told['layers'].items())}; the {told['k']} strongest of each"
    )
    print(f"vectors: {', '.join(f'{name} ({length})' for name, length in told['vectors'].items())}")
    for name, held in told["indexes"].items():
        print(f"index of {name} ({held['metric']}): {VectorIndex(**held)}")
    return 0


def verify(store: StoreArgument, /, *, as_json: JsonOption = False) -> int:
    """Reads a whole store and reports what is damaged."""
    from sightline.data.store.maintenance import verify_store as wrong_with

    wrong = wrong_with(store)
    if as_json:
        print(json.dumps({"wrong": wrong}))
    elif not wrong:
        print(f"{store} is whole")
    if wrong:
        raise SightlineError(f"the store {store} is damaged: {'; '.join(wrong[:5])}")
    return 0


def compact(store: StoreArgument, /, *, as_json: JsonOption = False) -> int:
    """Merges the fragments that a scan's commits left."""
    from sightline.data.store.maintenance import compact_store as merge

    before, after = merge(store)
    print(
        json.dumps({"before": before, "after": after})
        if as_json
        else f"{before / 1e6:.1f} MB before, {after / 1e6:.1f} MB after"
    )
    return 0


def index(
    store: StoreArgument,
    /,
    *,
    layer: Annotated[
        str, Parameter(help="Whose vectors: a layer of the scan's --vectors.")
    ] = "penultimate",
    metric: Annotated[Metric, Parameter(help="What near means; an index serves one.")] = "cosine",
    as_json: JsonOption = False,
) -> int:
    """Builds an index for approximate search and measures its recall.

    One that holds all images is kept.
    """
    built = ensure_vector_index(Scan.open(store), layer, metric)
    print(json.dumps(asdict(built)) if as_json else f"{built}; built in {built.seconds:.0f} s")
    return 0
