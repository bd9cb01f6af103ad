"""The facts of a layer's units, computed from the responses once and kept in the store.

Whoever asks first computes them, holding the store's lock: others wait, and then read them. They
are in the store whole or not at all. What can't be read there, or was made by another version of
this file, is computed again.
"""

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sightline.data.store.interface import ArrowTable, StoreWriter, make_list_array
from sightline.data.store.reader import QUANTILE_LEVELS, Scan
from sightline.data.units.correlation import NEIGHBORS_PER_SIDE, find_nearest_units
from sightline.data.units.distribution import RANKED_IMAGES, measure_distribution
from sightline.data.units.selectivity import measure_selectivity
from sightline.errors import SightlineError, convert_memory_errors

# Of the tables in stores. Another number makes all of them be computed again.
FACTS_VERSION = 1

MIN_FACTS_IMAGES = 2

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class UnitFacts:
    """What the responses of a layer's U units to all images tell, unit by unit.

    A response is the largest value of the unit's feature map for an image, as float16.

    Attributes:
        layer: The layer's own name.
        layers: The names of all layers of the scan, which `neighbor_layers` refers to.
        is_dead: U; whether no image gets a response over 0, or every image the same. In front of
            batch normalization, or of an activation other than ReLU, a unit without a response over
            0 may be of use all the same.
        frequency: U; the share of images with a response over 0.
        mean, deviation: U; of the responses.
        quantiles: U×11; the quantiles 0, 0.1, …, 1 of the responses, over all images.
        selectivity: U; the class selectivity index of Morcos et al. (2018), 0 to 1, where a
            negative mean response counts as 0; NaN without two classes.
        selective_class: U; the class with the largest mean response, −1 without one.
        top_images, middle_images, bottom_images: U×9 ids (fewer of fewer images): the strongest
            first, those around the median in falling order, and the weakest first.
        neighbor_layers, neighbor_units, neighbor_correlations: U×10; the units with the largest
            correlation of responses over the images (Pearson's), in falling order: up to five of
            the own layer, and up to five of others. What is missing is −1, −1 and NaN.
        duplicate_of: U; the first unit before it in the layer with a correlation of 0.95 or more,
            or −1.
    """

    layer: str
    layers: tuple[str, ...]
    is_dead: np.ndarray
    frequency: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    quantiles: np.ndarray
    selectivity: np.ndarray
    selective_class: np.ndarray
    top_images: np.ndarray
    middle_images: np.ndarray
    bottom_images: np.ndarray
    neighbor_layers: np.ndarray
    neighbor_units: np.ndarray
    neighbor_correlations: np.ndarray
    duplicate_of: np.ndarray

    @cached_property
    def nearest_units(self) -> list[list[tuple[str, int, float]]]:
        """Layer, number and correlation of the nearest units of each unit, the nearest first."""
        nearest: list[list[tuple[str, int, float]]] = []
        for unit in range(len(self.is_dead)):
            entries = zip(
                self.neighbor_layers[unit].tolist(),
                self.neighbor_units[unit].tolist(),
                self.neighbor_correlations[unit].tolist(),
                strict=True,
            )
            nearest.append(
                [
                    (self.layers[layer], number, correlation)
                    for layer, number, correlation in entries
                    if number >= 0
                ]
            )
        return nearest


# The columns of the stored table: the type of their numbers, and whether a unit has a list of them.
COLUMN_TYPES: dict[str, tuple[str, bool]] = {
    "is_dead": ("bool", False),
    "frequency": ("float64", False),
    "mean": ("float64", False),
    "deviation": ("float64", False),
    "quantiles": ("float64", True),
    "selectivity": ("float64", False),
    "selective_class": ("int64", False),
    "top_images": ("int64", True),
    "middle_images": ("int64", True),
    "bottom_images": ("int64", True),
    "neighbor_layers": ("int64", True),
    "neighbor_units": ("int64", True),
    "neighbor_correlations": ("float64", True),
    "duplicate_of": ("int64", False),
}


def read_unit_facts(scan: Scan, layer: str) -> UnitFacts:
    """The facts of a layer's units, from the store; computed first where they are not there.

    A store that can't be written gives them all the same, but computes them each time.

    Raises:
        SightlineError: The scan is not complete, was made without responses, does not have the
            layer, or has only one image.
    """
    name = require_facts(scan, layer)
    facts = read_stored_facts(scan, name)
    if facts is not None:
        return facts
    with ExitStack() as stack:
        writer = enter_writer(stack, scan)
        # Another process may have computed them while this one waited.
        facts = read_stored_facts(scan, name)
        if facts is not None:
            return facts
        with convert_memory_errors("for the facts of units", "the load of the machine"):
            facts = compute_unit_facts(scan, name)
        if writer is not None:
            save_facts(writer, scan, facts)
        return facts


def require_facts(scan: Scan, layer: str) -> str:
    """The layer's own name. Raises SightlineError where there can't be facts of its units."""
    scan.require_responses(layer, "max")
    if not scan.complete:
        raise SightlineError(
            f"the store {scan.path.name} is not complete ({scan.done:,} of "
            f"{scan.description.dataset.count:,} files): the command that began it goes on"
        )
    if scan.images < MIN_FACTS_IMAGES:
        raise SightlineError(
            f"the store {scan.path.name} has only {scan.images} image; facts of units need 2"
        )
    return scan.layer(layer)


def compute_unit_facts(scan: Scan, layer: str) -> UnitFacts:
    """The facts of a layer's units, computed."""
    distribution = measure_distribution(scan, layer)
    selectivity = measure_selectivity(scan, layer)
    nearest = find_nearest_units(scan, layer)
    return UnitFacts(
        layer=layer,
        layers=tuple(scan.layers),
        is_dead=distribution.is_dead,
        frequency=distribution.frequency,
        mean=distribution.mean,
        deviation=distribution.deviation,
        quantiles=distribution.quantiles,
        selectivity=selectivity.degree,
        selective_class=selectivity.favorite,
        top_images=distribution.top_images,
        middle_images=distribution.middle_images,
        bottom_images=distribution.bottom_images,
        neighbor_layers=nearest.layers,
        neighbor_units=nearest.units,
        neighbor_correlations=nearest.correlations,
        duplicate_of=nearest.duplicate_of,
    )


# ── in the store ──


def enter_writer(stack: ExitStack, scan: Scan) -> StoreWriter | None:
    """The writer of a scan's store until the stack is closed, or None if it can't be written."""
    try:
        return stack.enter_context(scan.store.open_writer(scan.description))
    except SightlineError as error:
        logger.debug("the facts of units are not kept: %s", error)
        return None


def save_facts(writer: StoreWriter, scan: Scan, facts: UnitFacts) -> None:
    """Keeps facts in the store, unless there is no room."""
    try:
        writer.save_unit_facts(facts.layer, make_facts_table(scan, facts))
    except SightlineError as error:
        logger.debug("the facts of units are not kept: %s", error)


def read_stored_facts(scan: Scan, layer: str) -> UnitFacts | None:
    """The facts that the store keeps of a layer, or None if there are none that can be used."""
    table = scan.reader.read_unit_facts(layer)
    if table is None:
        return None
    try:
        return parse_facts_table(scan, layer, table)
    except (ValueError, KeyError, TypeError) as error:  # ValueError: pyarrow's, too
        logger.debug("the facts of %s in %s are computed again: %s", layer, scan.path, error)
        return None


def make_facts_table(scan: Scan, facts: UnitFacts) -> ArrowTable:
    """Facts as an Arrow table: one row a unit, and in its metadata what they are of."""
    import pyarrow as pa

    arrays: list[Any] = []
    for name, (number_type, is_list) in COLUMN_TYPES.items():
        values = np.ascontiguousarray(getattr(facts, name), dtype=number_type)
        if is_list:
            arrays.append(make_list_array(values))
        else:
            arrays.append(pa.array(values))
    table = pa.table(arrays, names=list(COLUMN_TYPES))
    return table.replace_schema_metadata(make_facts_metadata(scan, facts.layer))


def make_facts_metadata(scan: Scan, layer: str) -> dict[str, str]:
    """What facts are of: those with other metadata are not the ones that are asked for."""
    return {"version": str(FACTS_VERSION), "layer": layer, "images": str(scan.images)}


def parse_facts_table(scan: Scan, layer: str, table: ArrowTable) -> UnitFacts:
    """The facts in an Arrow table. Raises ValueError, KeyError or TypeError for another table."""
    metadata = {
        name.decode(): value.decode() for name, value in (table.schema.metadata or {}).items()
    }
    if not make_facts_metadata(scan, layer).items() <= metadata.items():
        raise ValueError(f"its metadata are {metadata!s:.200}")
    unit_count = scan.description.layers[layer].units
    listed_images = min(RANKED_IMAGES, scan.images)
    widths = {"quantiles": len(QUANTILE_LEVELS)}
    columns: dict[str, np.ndarray] = {}
    for name, (number_type, is_list) in COLUMN_TYPES.items():
        column = table[name].combine_chunks()
        numbers = column.flatten() if is_list else column
        values = numbers.to_numpy(zero_copy_only=False)
        width = listed_images if name.endswith("_images") else 2 * NEIGHBORS_PER_SIDE
        shape = (unit_count, widths.get(name, width)) if is_list else (unit_count,)
        if values.dtype != number_type or numbers.null_count:
            raise ValueError(f"{name} holds {column.type}, or has gaps")
        columns[name] = values.reshape(shape)
    facts = UnitFacts(layer=layer, layers=tuple(scan.layers), **columns)
    require_known_numbers(scan, facts)
    return facts


def require_known_numbers(scan: Scan, facts: UnitFacts) -> None:
    """Raises ValueError for images, classes or units that are not in the scan."""
    unit_counts = np.array([layer.units for layer in scan.description.layers.values()])
    limits: list[tuple[np.ndarray, int, Any]] = [
        (facts.top_images, 0, scan.images),
        (facts.middle_images, 0, scan.images),
        (facts.bottom_images, 0, scan.images),
        (facts.selective_class, -1, len(scan.class_names)),
        (facts.duplicate_of, -1, len(facts.is_dead)),
        (facts.neighbor_layers, -1, len(unit_counts)),
    ]
    for numbers, lowest, end in limits:
        if ((numbers < lowest) | (numbers >= end)).any():
            raise ValueError("it names what is not in the scan")
    neighbor_limits = unit_counts[facts.neighbor_layers]
    if ((facts.neighbor_units < -1) | (facts.neighbor_units >= neighbor_limits)).any():
        raise ValueError("it names units that are not in the scan")
