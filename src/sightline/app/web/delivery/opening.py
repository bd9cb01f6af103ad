"""Opens the explorer of a scan: the store, and the network that it names."""

from collections.abc import Callable, Sequence
from pathlib import Path

from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.pages.content.facts import read_unit_table
from sightline.app.web.pages.diagnosis import read_comparison, read_mistakes
from sightline.data.store.reader import Scan
from sightline.errors import SightlineError
from sightline.methods.diagnosis.compare import StepProgress
from sightline.models.model import Model

PreparationProgress = Callable[[int, int], bool]


def open_stored_scan(store: Path) -> Scan:
    """The scan of a store.

    Raises SightlineError for a path without one, a damaged one or one of a newer version, and for
    a scan without images or units, of which there is nothing to see.
    """
    if not store.exists():
        raise SightlineError(
            f"there is no store {str(store)!r}; name the folder of its images too, to make it"
        )
    scan = Scan.open(store)
    check_explorable(scan)
    return scan


def check_explorable(scan: Scan) -> None:
    """Raises SightlineError for a scan without images, or one that follows no units."""
    if not scan.images:
        raise SightlineError(f"the store {scan.path} has no images yet; go on with sightline scan")
    if not scan.layers:
        raise SightlineError(
            f"the store {scan.path} follows the units of no layer; scan again with --layers"
        )


def open_explorer(
    scan: Scan,
    model: Model | None = None,
    *,
    device: str | None = None,
    has_synthesis: bool = False,
    compared_scan: Scan | None = None,
    has_mistakes: bool = False,
    is_served: bool = False,
    command: str = "",
    network_options: Sequence[str] = (),
) -> Explorer:
    """The explorer of a scan, with its network where that can be had by name.

    Raises SightlineError for a `model` of other weights or preprocessing than the scan's.
    """
    note = ""
    if model is not None:
        scan.require(model)
    else:
        try:
            model = scan.model(device)
        except SightlineError as error:
            # The pages show what the store holds, and say what they lack.
            note = str(error)
    return Explorer(
        scan,
        model,
        model_note=note,
        has_synthesis=has_synthesis,
        compared_scan=compared_scan,
        has_mistakes=has_mistakes,
        is_served=is_served,
        command=command,
        network_options=network_options,
    )


def prepare_layers(explorer: Explorer, on_progress: PreparationProgress) -> bool:
    """Finds what the pages say of the units of every layer, and keeps it.

    `on_progress` gets the layers done and all; where it returns True, the rest is left for the
    first page that shows it. Returns whether all was found.
    """
    layers = explorer.scan.layers
    for number, layer in enumerate(layers):
        if on_progress(number, len(layers)):
            return False
        read_unit_table(explorer, layer)
    on_progress(len(layers), len(layers))
    return True


def prepare_diagnosis(explorer: Explorer, on_step: StepProgress) -> None:
    """Finds what the pages of the comparison and of mistakes show, and keeps it.

    Raises SightlineError for scans that can't be compared, and for one without classes, with too
    few images or too few mistakes.
    """
    if explorer.compared_scan is not None:
        read_comparison(explorer, explorer.compared_scan, on_step)
    if explorer.has_mistakes:
        read_mistakes(explorer, on_step)


def count_synthesis_units(explorer: Explorer) -> dict[str, int]:
    """The units whose synthesis the pages show, by layer: those of the scan, and the classes."""
    counts = {
        layer: description.units for layer, description in explorer.scan.description.layers.items()
    }
    if explorer.has_classes and "logits" not in counts:
        counts["logits"] = len(explorer.scan.model_labels)
    return counts
