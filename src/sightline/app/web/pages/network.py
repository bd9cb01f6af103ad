"""The page of the network: its layers from first to last, with some units of each."""

from typing import Any

import numpy as np

from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.explorer.page import Page
from sightline.app.web.pages.content.facts import (
    UnitTable,
    count_things,
    describe_image,
    read_image_groups,
    read_unit_table,
)
from sightline.app.web.pages.content.inversions import describe_inversions
from sightline.app.web.pages.content.sheets import make_unit_card
from sightline.data.search.nearest import pick_evenly_spaced
from sightline.errors import SightlineError, escape_for_display
from sightline.models.model import Model
from sightline.models.tracing.receptive_field import receptive_fields

MAX_CELLS = 280  # units on the page
MAX_ROW_CELLS = 8  # units of one layer
MIN_ROW_CELLS = 3

MAX_LISTED_CLASSES = 40
MAX_LISTED_IMAGES = 18

EXAMPLE_ID = 0  # the image that receptive fields and inversions are shown on

FIELD_PICTURE_SIDE = 40  # pixels of the picture of a receptive field

CAUTION = (
    "A few units stand for each layer, and their strongest patches for each unit: the extremes of "
    "what it does. Open a unit to see the rest of its range."
)


def build_network_page(explorer: Explorer) -> Page:
    """The layers as rows, the sums over all of them, and the index that the search reads."""
    scan = explorer.scan
    tables = [read_unit_table(explorer, layer) for layer in scan.layers]
    fields = describe_fields(explorer.model, scan.size)
    cell_count = choose_cell_count(len(tables))
    rows = [
        describe_layer(explorer, table, fields.get(table.layer), cell_count) for table in tables
    ]
    network = escape_for_display(str(scan.recipe.get("model")))
    data = {
        "breadcrumb": [(network, "")],
        "rows": rows,
        "has_fields": bool(fields),
        "totals": describe_totals(explorer, tables),
        "caution": CAUTION,
        "example": describe_example(explorer),
        "classes": [
            {"name": name, "address": explorer.link("class", index=index)}
            for index, name in enumerate(scan.model_labels[:MAX_LISTED_CLASSES])
        ],
        "class_count": len(scan.model_labels),
        "images": describe_some_images(explorer),
        "inversions": describe_inversions(explorer, EXAMPLE_ID) if scan.images else None,
    }
    return Page("explorer/network.html", data, network)


def choose_cell_count(layer_count: int) -> int:
    """How many units a layer's row shows."""
    per_layer = MAX_CELLS // max(1, layer_count)
    return min(MAX_ROW_CELLS, max(MIN_ROW_CELLS, per_layer))


# ── one row ──


def describe_layer(
    explorer: Explorer, table: UnitTable, field: dict[str, Any] | None, cell_count: int
) -> dict[str, Any]:
    """A layer's row: name, shape, receptive field, notes, and some units."""
    layer = table.layer
    height, width = explorer.scan.description.layers[layer].map_shape
    shape = count_things(table.unit_count, "unit")
    if height * width > 1:
        shape += f" · map {height}×{width}"
    units = pick_units(table, cell_count)
    return {
        "name": escape_for_display(layer),
        "address": explorer.link("layer", layer=layer),
        "shape": shape,
        "field": field,
        "notes": describe_idle_units(table),
        "units": [make_unit_card(explorer, layer, unit, "") for unit in units],
    }


def pick_units(table: UnitTable, count: int) -> list[int]:
    """The most selective units of a layer; evenly spread ones where that is not known.

    Dead units and those that do the same as an earlier one are left out, if enough others remain.
    """
    facts = table.facts
    units = np.arange(table.unit_count)
    if facts is not None:
        is_busy = ~facts.is_dead & (facts.duplicate_of < 0)
        if is_busy.sum() >= count:
            units = np.flatnonzero(is_busy)
        selectivity = facts.selectivity[units]
        if np.isfinite(selectivity).any():
            order = np.argsort(-np.nan_to_num(selectivity, nan=-1), kind="stable")
            return units[order[:count]].tolist()
    spread = np.linspace(0, len(units) - 1, min(count, len(units)))
    return units[spread.round().astype(int)].tolist()


def describe_idle_units(table: UnitTable) -> list[str]:
    """«3 dead», «2 duplicates»; empty where there are none."""
    notes: list[str] = []
    if table.dead_count:
        notes.append(f"{table.dead_count} dead")
    if table.duplicate_count:
        noun = "duplicate" if table.duplicate_count == 1 else "duplicates"
        notes.append(f"{table.duplicate_count} {noun}")
    return notes


def describe_fields(model: Model | None, size: tuple[int, int]) -> dict[str, dict[str, Any]]:
    """By layer, what a unit sees: in words, and as a rectangle in the picture of the image."""
    if model is None:
        return {}
    try:
        fields = receptive_fields(model, *size)
    except SightlineError:
        return {}
    pictures: dict[str, dict[str, Any]] = {}
    for layer, field in fields.items():
        height = min(field.size[0], size[0])
        width = min(field.size[1], size[1])
        is_whole = (height, width) == size
        text = "whole image" if is_whole else f"{height}×{width} px"
        scale = FIELD_PICTURE_SIDE / max(size)
        drawn_height = max(1.0, height * scale)
        drawn_width = max(1.0, width * scale)
        pictures[layer] = {
            "text": text,
            "left": round((FIELD_PICTURE_SIDE - drawn_width) / 2, 1),
            "top": round((FIELD_PICTURE_SIDE - drawn_height) / 2, 1),
            "width": round(drawn_width, 1),
            "height": round(drawn_height, 1),
        }
    return pictures


# ── the whole network ──


def describe_totals(explorer: Explorer, tables: list[UnitTable]) -> list[tuple[str, str]]:
    """What holds for all layers together, as pairs of name and text."""
    scan = explorer.scan
    totals = [
        ("Layers", f"{len(tables):,}"),
        ("Units", f"{sum(table.unit_count for table in tables):,}"),
    ]
    totals += describe_unit_totals(tables)
    totals.append(("Images", f"{scan.images:,}"))
    if not scan.complete:
        totals.append(("Pass", f"{scan.done:,} of {scan.description.dataset.count:,} files so far"))
    totals.append(("Classes", f"{len(scan.model_labels):,}"))
    totals.append(("Input", f"{scan.size[0]}×{scan.size[1]} pixels"))
    return totals


def describe_unit_totals(tables: list[UnitTable]) -> list[tuple[str, str]]:
    """What was found of the units of all layers, as pairs of name and text."""
    totals: list[tuple[str, str]] = []
    named_count = sum(1 for table in tables for name in table.names if name)
    if named_count:
        totals.append(("Units with a name", f"{named_count:,}"))
    if tables and all(table.facts is not None for table in tables):
        dead_count = sum(table.dead_count or 0 for table in tables)
        duplicate_count = sum(table.duplicate_count or 0 for table in tables)
        totals.append(("Dead units", f"{dead_count:,}"))
        totals.append(("Duplicates of another unit", f"{duplicate_count:,}"))
    return totals


def describe_example(explorer: Explorer) -> dict[str, Any] | None:
    """An image on which the receptive fields are drawn; None for a scan without images."""
    if not explorer.scan.images:
        return None
    return {"picture": explorer.thumbnail(EXAMPLE_ID)}


def describe_some_images(explorer: Explorer) -> list[dict[str, Any]]:
    """Images evenly spread over the scan, of those that have a page."""
    ids = explorer.image_ids
    if not ids:
        return []
    groups = read_image_groups(explorer.scan)
    places = pick_evenly_spaced(len(ids), MAX_LISTED_IMAGES).tolist()
    return [describe_image(explorer, groups, ids[place]) for place in places]


# ── the index of the search ──


def add_search_index(explorer: Explorer) -> str:
    """The script with all layers, names of units and classes, read when somebody searches."""

    def make_index() -> dict[str, Any]:
        scan = explorer.scan
        layers: list[dict[str, Any]] = []
        for layer in scan.layers:
            names = read_unit_table(explorer, layer).names
            first_unit = explorer.link("unit", layer=layer, unit=0)
            layers.append(
                {
                    "name": escape_for_display(layer),
                    "address": explorer.link("layer", layer=layer),
                    "folder": first_unit.removesuffix("0.html"),
                    "count": len(names),
                    "names": {str(unit): name for unit, name in enumerate(names) if name},
                }
            )
        return {"layers": layers, "classes": list(scan.model_labels)}

    return explorer.add_script("index", make_index)
