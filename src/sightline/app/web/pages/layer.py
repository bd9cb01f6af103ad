"""The page of a layer: all its units on one sheet, and a map of them."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.explorer.page import Page
from sightline.app.web.pages.content.facts import (
    Numbers,
    UnitTable,
    count_things,
    keep_numbers,
    read_image_groups,
    read_unit_table,
    round_numbers,
)
from sightline.app.web.pages.content.sheets import (
    CARD_SIDE,
    SHEET_COLUMNS,
    SHEET_UNITS,
    add_filter_sheet,
    add_layer_sheet,
    add_synthesis_sheet,
)
from sightline.app.web.pages.network import describe_fields
from sightline.data.search.nearest import pick_evenly_spaced
from sightline.data.search.projection import (
    MIN_PROJECTED_VECTORS,
    PROJECTION_NAMES,
    project_vectors,
)
from sightline.data.store.reader import Scan
from sightline.errors import SightlineError, escape_for_display
from sightline.methods.units.filters import find_conv_layer
from sightline.models.model import Model
from sightline.models.tracing.connections import read_weight

MAX_MAP_IMAGES = 2000  # whose responses the map of the units is made from
MAX_MAP_UNITS = 4096

# The quantiles of a unit's responses travel as steps between its least and its largest one.
QUANTILE_STEPS = 99

CAUTION = (
    "One patch stands for each unit: where it is strongest. Units that look alike here may differ "
    "over the rest of their range, and a unit may respond to several things."
)


def build_layer_page(explorer: Explorer, layer: str) -> Page:
    """The sheet of a layer's units; the numbers of the units come as a script."""
    table = read_unit_table(explorer, layer)
    scan = explorer.scan
    name = escape_for_display(layer)
    height, width = scan.description.layers[layer].map_shape
    field = describe_fields(explorer.model, scan.size).get(layer)
    pictures = list_pictures(explorer, table)
    spelling = explorer.link("layer", layer=layer).removesuffix(".html")
    units_name = spelling.replace("layers/", "units-of/")
    map_name = spelling.replace("layers/", "map-of/")
    facts = table.facts
    map_note = explain_missing_map(scan, table)
    position = scan.layers.index(layer)
    data = {
        "breadcrumb": [
            (escape_for_display(str(scan.recipe.get("model"))), explorer.link("network")),
            (name, ""),
        ],
        "layer": name,
        "map_text": f"maps of {height}×{width}" if height * width > 1 else "no map",
        "unit_text": count_things(table.unit_count, "unit"),
        "field_text": field["text"] if field else "whole image",
        "previous": describe_neighbor(explorer, position - 1),
        "next": describe_neighbor(explorer, position + 1),
        "dead_count": table.dead_count,
        "duplicate_count": table.duplicate_count,
        "sorts": list_sorts(table),
        "pictures": [(kind, label) for kind, label, _ in pictures],
        "has_synthesis": explorer.has_synthesis,
        "has_facts": facts is not None,
        "map_note": map_note,
        "script": explorer.add_script(units_name, lambda: collect_units(explorer, table, pictures)),
        "settings": {
            "units": units_name,
            "map": map_name,
            "mapScript": ""
            if map_note
            else explorer.add_script(map_name, lambda: collect_unit_map(explorer, layer)),
        },
        "caution": CAUTION,
    }
    return Page("explorer/layer.html", data, name)


def describe_neighbor(explorer: Explorer, position: int) -> dict[str, str] | None:
    """The layer at a position of the scan; None beyond its first and last one."""
    layers = explorer.scan.layers
    if not 0 <= position < len(layers):
        return None
    layer = layers[position]
    return {"name": escape_for_display(layer), "address": explorer.link("layer", layer=layer)}


def list_sorts(table: UnitTable) -> list[tuple[str, str]]:
    """The orders that a page offers, as pairs of the name of an array and a text."""
    sorts = [("number", "number"), ("peak", "strongest response")]
    if any(table.names):
        sorts.insert(1, ("name", "name"))
    if table.facts is not None:
        sorts.append(("selectivity", "selectivity"))
        sorts.append(("frequency", "frequency"))
    if table.readability is not None:
        sorts.append(("readability", "readability"))
    return sorts


# ── pictures ──


def list_pictures(explorer: Explorer, table: UnitTable) -> list[tuple[str, str, list[str]]]:
    """What the cells can show: a word, a text for people, and the addresses of the sheets."""
    layer = table.layer
    starts = range(0, table.unit_count, SHEET_UNITS)
    patches = [add_layer_sheet(explorer, layer, start, table.unit_count) for start in starts]
    pictures = [("patch", "strongest patch", patches)]
    if explorer.has_synthesis:
        sheets = [add_synthesis_sheet(explorer, layer, start, table.unit_count) for start in starts]
        known_sheets = [sheet for sheet in sheets if sheet]
        if len(known_sheets) == len(sheets):
            pictures.append(("synthesis", "synthesis", known_sheets))
    weight = read_color_filters(explorer.model, layer)
    if weight is not None:
        filters = [add_filter_sheet(explorer, layer, weight, start) for start in starts]
        pictures.append(("filter", "filter", filters))
    return pictures


def read_color_filters(model: Model | None, layer: str) -> Tensor | None:
    """The filters of a layer that reads the image's three colours, U×3×h×w; None for others."""
    if model is None:
        return None
    try:
        if find_conv_layer(model, layer) != layer:
            return None
    except SightlineError:
        return None
    convolution: Any = model.module(layer)
    weight = read_weight(convolution)
    return weight if weight.shape[1] == 3 and convolution.groups == 1 else None


# ── the numbers of the units ──


def collect_units(
    explorer: Explorer, table: UnitTable, pictures: list[tuple[str, str, list[str]]]
) -> dict[str, Any]:
    """All that the sheet shows of the units, as arrays with one entry for each."""
    first_unit = explorer.link("unit", layer=table.layer, unit=0)
    content: dict[str, Any] = {
        "count": table.unit_count,
        "folder": first_unit.removesuffix("0.html"),
        "columns": SHEET_COLUMNS,
        "perSheet": SHEET_UNITS,
        "side": CARD_SIDE,
        "sheets": {kind: sheets for kind, _, sheets in pictures},
        "names": list(table.names) if any(table.names) else [],
        "peak": round_numbers(table.peaks),
    }
    facts = table.facts
    if facts is not None:
        content["selectivity"] = round_numbers(facts.selectivity)
        content["frequency"] = round_numbers(facts.frequency)
        content["dead"] = np.flatnonzero(facts.is_dead).tolist()
        content["duplicateOf"] = facts.duplicate_of.tolist()
        content["quantiles"] = quantize_quantiles(facts.quantiles).tolist()
        groups = read_image_groups(explorer.scan)
        classes = facts.selective_class.tolist()
        content["class"] = [groups.names[index] if index >= 0 else "" for index in classes]
    if table.readability is not None:
        content["readability"] = round_numbers(table.readability)
    return content


def quantize_quantiles(quantiles: Numbers) -> Numbers:
    """Quantiles U×11 as whole steps from 0, each unit's least, to 99, its largest."""
    lowest = quantiles[:, :1]
    span = quantiles[:, -1:] - lowest
    shares = (quantiles - lowest) / np.where(span > 0, span, 1)
    return (shares * QUANTILE_STEPS).round().astype(int)


# ── the map of the units ──


def explain_missing_map(scan: Scan, table: UnitTable) -> str:
    """Why there is no map of a layer's units; empty where there is one."""
    if not scan.has_responses:
        return "The scan was made without responses: scan again to see a map of the units."
    if table.unit_count < MIN_PROJECTED_VECTORS or scan.images < MIN_PROJECTED_VECTORS:
        return "A map needs at least four units and four images."
    if table.unit_count > MAX_MAP_UNITS:
        return f"A map is made for layers of up to {MAX_MAP_UNITS:,} units."
    return ""


def collect_unit_map(explorer: Explorer, layer: str) -> dict[str, Any]:
    """The positions of the units in the plane, in [0, 1], and how they were found."""
    key = {"numbers": "unit map", "layer": layer, "images": MAX_MAP_IMAGES}
    scan = explorer.scan
    return keep_numbers(explorer, key, lambda: compute_unit_map(scan, layer))


def compute_unit_map(scan: Scan, layer: str) -> dict[str, Any]:
    """Lays out the units by the correlation of their responses.

    Between standardized responses, the squared distance is 2n(1 − correlation). Units that never
    change have no correlation, and lie together.
    """
    ids = pick_evenly_spaced(scan.images, MAX_MAP_IMAGES).tolist()
    responses = scan.responses(layer, images=ids).astype(np.float32)
    centered = responses - responses.mean(0)
    deviation = centered.std(0)
    standardized = centered / np.where(deviation > 0, deviation, 1)
    vectors = torch.from_numpy(standardized.T.copy())
    projection = project_vectors(vectors, "tsne", 2, seed=0)
    positions = projection.positions.numpy()
    span = np.ptp(positions, axis=0).max() or 1.0
    shares = (positions - positions.min(0)) / span
    margin = (1 - np.ptp(shares, axis=0)) / 2  # the shorter axis is centred
    return {
        "x": np.round(shares[:, 0] + margin[0], 4).tolist(),
        "y": np.round(shares[:, 1] + margin[1], 4).tolist(),
        "method": PROJECTION_NAMES[projection.kind],
        "images": len(ids),
    }
