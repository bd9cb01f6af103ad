"""The page of a unit: what it would like to see, what it sees, and what it is connected to."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.explorer.page import Page
from sightline.app.web.pages.content.effects import add_effect_script
from sightline.app.web.pages.content.facts import (
    Distribution,
    ImageGroups,
    UnitTable,
    count_things,
    describe_unit,
    format_number,
    link_image,
    make_histogram,
    name_image,
    name_image_group,
    rank_class_means,
    read_distribution,
    read_image_groups,
    read_sample,
    read_unit_table,
    round_share,
)
from sightline.app.web.pages.content.sheets import (
    PATCH_SIDE,
    RANGE_SIDE,
    Patch,
    add_gradient_sheet,
    add_sheet_of_patches,
    count_sheet_rows,
    find_field,
    list_strongest_patches,
    make_unit_card,
    select_patches,
)
from sightline.data.store.reader import TopImages
from sightline.errors import SightlineError, escape_for_display
from sightline.models.model import Model
from sightline.models.tracing.connections import (
    find_classifier,
    find_source_layer,
    find_weight_module,
    read_channel_weights,
)

PATCH_COLUMNS = 4
PATCH_COUNT = 12  # strongest patches
GUIDED_COUNT = 6  # of them with what drives the unit there, which takes a backward pass each
RANGE_COLUMNS = 12
RANGE_COUNT = 48  # patches from across the range, among which the brush chooses
RANGE_ROW = 6  # patches that stand for the middle, and for the weakest
CLASS_COUNT = 8
NEAREST_COUNT = 6
WEIGHT_COUNT = 4  # strongest weights of each sign
CONSUMER_REACH = 4  # layers after a unit's own in which its readers are sought

CAUTION = (
    "The strongest patches are the extremes. A unit that looks pure there may do something else "
    "over the rest of its range: move the selection over its range to see where."
)


def build_unit_page(explorer: Explorer, layer: str, unit: int) -> Page:
    """Everything that is known of one unit."""
    scan = explorer.scan
    table = read_unit_table(explorer, layer)
    groups = read_image_groups(scan)
    distribution = read_distribution(scan, layer, unit)
    name = escape_for_display(layer)
    title = f"Unit {unit} of {name}"
    data = {
        "breadcrumb": [
            (escape_for_display(str(scan.recipe.get("model"))), explorer.link("network")),
            (name, explorer.link("layer", layer=layer)),
            (f"unit {unit}", ""),
        ],
        "layer": name,
        "layer_address": explorer.link("layer", layer=layer),
        "unit": unit,
        "name": describe_name(table, unit),
        "previous": link_unit(explorer, table, unit - 1),
        "next": link_unit(explorer, table, unit + 1),
        "synthesis": explorer.synthesis(layer, unit, 1),
        "opposite": explorer.synthesis(layer, unit, -1),
        "variants": explorer.synthesis_variants(layer, unit),
        "facts": describe_facts(table, unit, distribution),
        "is_dead": table.facts is not None and bool(table.facts.is_dead[unit]),
        "duplicate": describe_duplicate(explorer, table, unit),
        "strongest": describe_strongest(explorer, layer, unit, groups),
        "range": describe_range(explorer, layer, unit, distribution, groups),
        "classes": describe_classes(explorer, distribution, groups),
        "class_noun": groups.noun,
        "nearest": describe_nearest(explorer, table, unit),
        "has_facts": table.facts is not None,
        "inputs": describe_inputs(explorer, layer, unit),
        "outputs": describe_outputs(explorer, layer, unit),
        "has_model": explorer.model is not None,
        "model_note": explorer.model_note,
        "effect": add_effect_script(explorer, layer, unit),
        "patch_command": explorer.format_command("patches", "--layer", layer, "--unit", str(unit)),
        "synthesis_command": explorer.format_command("explore", "--synthesis"),
        "caution": CAUTION,
    }
    return Page("explorer/unit.html", data, title)


def link_unit(explorer: Explorer, table: UnitTable, unit: int) -> str:
    """The address of a unit of the same layer; empty beyond the first and last one."""
    if not 0 <= unit < table.unit_count:
        return ""
    return explorer.link("unit", layer=table.layer, unit=unit)


# ── numbers ──


def describe_facts(
    table: UnitTable, unit: int, distribution: Distribution
) -> list[tuple[str, str, str]]:
    """Numbers of a unit: name, value, and what it means."""
    rows = [("Strongest response", format_number(float(table.peaks[unit])), "")]
    if len(distribution.values):
        middle = float(np.median(distribution.values))
        rows.append(("Median response", format_number(middle), ""))
    facts = table.facts
    if facts is not None:
        frequency = round_share(float(facts.frequency[unit]))
        rows.append(("Frequency", frequency, "share of the images that it responds to"))
        selectivity = float(facts.selectivity[unit])
        if np.isfinite(selectivity):
            rows.append(
                ("Selectivity", format_number(selectivity), "0: all classes alike, 1: one class")
            )
    if table.readability is not None and np.isfinite(table.readability[unit]):
        score = format_number(float(table.readability[unit]))
        limit = format_number(table.readability_limit)
        meaning = f"how alike its strongest images are; chance stays below {limit}"
        rows.append(("Readability", score, meaning))
    return rows


def describe_name(table: UnitTable, unit: int) -> dict[str, Any]:
    """A unit's name, how well it agrees with it, and the tests that it passed."""
    row = table.name_rows[unit]
    if row is None:
        note = ""
        if any(table.name_rows):
            note = "It has no name: no class agreed with it and passed the tests of a name."
        return {"text": "", "note": note, "score": "", "checks": []}
    score = (
        f"AUPRC {row['auprc']:.2f} (chance {row['auprc_chance']:.2f}), correlation "
        f"{row['correlation']:.2f} (chance {row['correlation_chance']:.2f}), over "
        f"{count_things(row['name_images'], 'image')}"
    )
    if not table.names[unit]:
        closest = escape_for_display(row["name"])
        note = f"It has no name: the closest class, {closest}, fits badly ({score})."
        return {"text": "", "note": note, "score": "", "checks": []}
    return {"text": table.names[unit], "note": "", "score": score, "checks": list_checks(row)}


def list_checks(row: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The tests of a name: how it did, a word, and what was tested."""
    tests = (
        (
            "passes_missing_label",
            "missing labels",
            "It agrees less once half of the labels go",
        ),
        ("passes_extra_label", "extra labels", "It agrees less once wrong labels are added"),
    )
    checks: list[tuple[str, str, str]] = []
    for key, word, title in tests:
        level = "strong" if row[key] else "failed"
        outcome = "passes" if row[key] else "fails"
        checks.append((level, f"{outcome}: {word}", title))
    return checks


def describe_duplicate(explorer: Explorer, table: UnitTable, unit: int) -> dict[str, Any] | None:
    """The earlier unit that does the same; None where there is none."""
    if table.facts is None or table.facts.duplicate_of[unit] < 0:
        return None
    return describe_unit(explorer, table.layer, int(table.facts.duplicate_of[unit]))


def describe_classes(
    explorer: Explorer, distribution: Distribution, groups: ImageGroups
) -> list[dict[str, Any]]:
    """The classes that drive the unit: mean response, and its share of the largest mean."""
    means = rank_class_means(distribution, groups, CLASS_COUNT)
    largest = max((abs(item.mean) for item in means), default=0.0) or 1.0
    rows: list[dict[str, Any]] = []
    for item in means:
        label = groups.labels[item.index]
        rows.append(
            {
                "name": item.name,
                "address": explorer.link("class", index=label) if label >= 0 else "",
                "value": format_number(item.mean),
                "share": round(100 * max(0.0, item.mean) / largest, 1),
                "count": count_things(item.count, "image"),
            }
        )
    return rows


# ── patches ──


def describe_strongest(
    explorer: Explorer, layer: str, unit: int, groups: ImageGroups
) -> dict[str, Any]:
    """The strongest patches and their guided gradients, as sheets with a cell for each."""
    patches = list_strongest_patches(explorer, layer, unit, PATCH_COUNT)
    field = find_field(explorer.model, explorer.scan, layer)
    seen_area = "whole images"
    if field is not None:
        seen_area = f"the {field.size[0]}×{field.size[1]} pixels that it sees there"
    cells = describe_cells(explorer, patches, groups, PATCH_COLUMNS)
    sheet = ""
    guided = None
    if patches:
        driven = patches[:GUIDED_COUNT]
        sheet = add_sheet_of_patches(explorer, patches, PATCH_SIDE, PATCH_COLUMNS)
        guided = add_gradient_sheet(explorer, layer, unit, driven, PATCH_COLUMNS)
    return {
        "patches": make_group(sheet, cells, PATCH_SIDE, PATCH_COLUMNS),
        "guided": make_group(guided, cells[:GUIDED_COUNT], PATCH_SIDE, PATCH_COLUMNS)
        if guided
        else None,
        "seen": seen_area,
    }


def make_group(sheet: str, cells: list[dict[str, Any]], side: int, columns: int) -> dict[str, Any]:
    """A sheet of patches as templates show it."""
    rows = count_sheet_rows(len(cells), columns)
    return {"sheet": sheet, "cells": cells, "side": side, "columns": columns, "rows": rows}


def describe_cells(
    explorer: Explorer, patches: Sequence[Patch], groups: ImageGroups, columns: int
) -> list[dict[str, Any]]:
    """Each cell of a sheet: its place, the response, the image and its class."""
    cells: list[dict[str, Any]] = []
    for number, patch in enumerate(patches):
        row, column = divmod(number, columns)
        cells.append(
            {
                "row": row,
                "column": column,
                "value": format_number(patch.value),
                "number": patch.value,
                "class": name_image_group(groups, patch.image_id),
                "name": name_image(explorer.scan, patch.image_id),
                "address": link_image(explorer, patch.image_id),
            }
        )
    return cells


def describe_range(
    explorer: Explorer,
    layer: str,
    unit: int,
    distribution: Distribution,
    groups: ImageGroups,
) -> dict[str, Any]:
    """The whole distribution, and patches from across it, strongest first."""
    scan = explorer.scan
    counts, edges = make_histogram(distribution.values)
    patches = pick_range_patches(explorer, layer, unit)
    cells = describe_cells(explorer, patches, groups, RANGE_COLUMNS)
    middle_start = max(0, (len(cells) - RANGE_ROW) // 2)
    best_class = find_best_class(distribution, groups)
    sheet = ""
    if patches:
        sheet = add_sheet_of_patches(explorer, patches, RANGE_SIDE, RANGE_COLUMNS)
    return {
        **make_group(sheet, cells, RANGE_SIDE, RANGE_COLUMNS),
        "middle": cells[middle_start : middle_start + RANGE_ROW],
        "weakest": cells[-RANGE_ROW:],
        "counts": counts.tolist(),
        "low": format_number(float(edges[0])),
        "high": format_number(float(edges[-1])),
        "is_complete": distribution.is_complete,
        "images": len(distribution.values),
        "data": {
            "low": float(f"{edges[0]:.5g}"),
            "high": float(f"{edges[-1]:.5g}"),
            "counts": counts.tolist(),
            "className": groups.names[best_class] if best_class >= 0 else "",
            "classNoun": groups.noun,
            "classCounts": count_class_responses(distribution, groups, best_class, edges),
            "cells": [
                [float(f"{cell['number']:.5g}"), cell["class"], cell["name"], cell["address"]]
                for cell in cells
            ],
            "images": len(distribution.values),
            "total": scan.images,
        },
    }


def pick_range_patches(explorer: Explorer, layer: str, unit: int) -> list[Patch]:
    """Patches evenly spread over the ranks of the scan's sample of images, strongest first."""
    sample = read_sample(explorer.scan, layer)
    count = len(sample.values)
    ranks = np.unique(np.linspace(0, count - 1, min(RANGE_COUNT, count)).round().astype(int))
    images = TopImages(sample.values, sample.ids, sample.positions)
    return select_patches(explorer, layer, unit, images, ranks.tolist())


def find_best_class(distribution: Distribution, groups: ImageGroups) -> int:
    """The class of the highest mean response; −1 where no class is known."""
    means = rank_class_means(distribution, groups, 1)
    return means[0].index if means else -1


def count_class_responses(
    distribution: Distribution, groups: ImageGroups, index: int, edges: np.ndarray[Any, Any]
) -> list[int]:
    """How many images of a class fall into each bin of the distribution."""
    if index < 0:
        return []
    is_member = groups.indices[distribution.ids] == index
    counts, _ = np.histogram(distribution.values[is_member].astype(np.float64), bins=edges)
    return counts.tolist()


# ── other units ──


def describe_nearest(explorer: Explorer, table: UnitTable, unit: int) -> list[dict[str, Any]]:
    """The units whose responses go along with this one's, with their correlation."""
    if table.facts is None:
        return []
    cards: list[dict[str, Any]] = []
    for layer, neighbor, correlation in table.facts.nearest_units[unit][:NEAREST_COUNT]:
        cards.append(make_unit_card(explorer, layer, neighbor, f"r = {correlation:.2f}"))
    return cards


@lru_cache(maxsize=512)
def find_source(model: Model, layers: tuple[str, ...], layer: str) -> str | None:
    """The layer of a scan whose units a layer reads one by one; None where there is none."""
    if find_weight_module(model, layer) is None:
        return None
    order = list(model.layers)
    position = order.index(layer)
    candidates = [name for name in layers if name in order and order.index(name) < position]
    try:
        return find_source_layer(model, layer, candidates)
    except SightlineError:
        return None


def describe_inputs(explorer: Explorer, layer: str, unit: int) -> dict[str, Any] | None:
    """The units that a unit reads with the strongest weights; None where that is not known."""
    model = explorer.model
    if model is None:
        return None
    source = find_source(model, tuple(explorer.scan.layers), layer)
    if source is None:
        return None
    weights = read_channel_weights(model, layer)[unit].numpy()
    cards = [
        make_unit_card(explorer, source, channel, f"weight {format_number(value)}")
        for channel, value in pick_strongest_weights(weights)
    ]
    return {"layer": escape_for_display(source), "units": cards}


def describe_outputs(explorer: Explorer, layer: str, unit: int) -> list[dict[str, Any]]:
    """The units and classes that read a unit with the strongest weights, by their layer."""
    model = explorer.model
    if model is None:
        return []
    layers = tuple(explorer.scan.layers)
    position = layers.index(layer)
    readers: list[dict[str, Any]] = []
    for reader in layers[position + 1 : position + 1 + CONSUMER_REACH]:
        if find_source(model, layers, reader) != layer:
            continue
        weights = read_channel_weights(model, reader)[:, unit].numpy()
        cards = [
            make_unit_card(explorer, reader, target_unit, f"weight {format_number(value)}")
            for target_unit, value in pick_strongest_weights(weights)
        ]
        readers.append({"layer": escape_for_display(reader), "units": cards, "classes": []})
    classifier = find_classifier(model)
    if classifier is not None and find_source(model, layers, classifier) == layer:
        weights = read_channel_weights(model, classifier)[:, unit].numpy()
        readers.append(
            {
                "layer": escape_for_display(classifier),
                "units": [],
                "classes": describe_class_weights(explorer, model, weights),
            }
        )
    return readers


def pick_strongest_weights(weights: np.ndarray[Any, Any]) -> list[tuple[int, float]]:
    """The largest weights, then the most negative ones, with their numbers; zeros are left out."""
    order = np.argsort(-weights, kind="stable")
    largest = [index for index in order[:WEIGHT_COUNT] if weights[index] > 0]
    smallest = [index for index in order[::-1][:WEIGHT_COUNT] if weights[index] < 0]
    return [(int(index), float(weights[index])) for index in [*largest, *smallest]]


def describe_class_weights(
    explorer: Explorer, model: Model, weights: np.ndarray[Any, Any]
) -> list[dict[str, Any]]:
    """The classes that a unit speaks for and against most, with its weights."""
    scale = float(np.abs(weights).max()) or 1.0
    return [
        {
            "name": model.labels[index],
            "address": explorer.link("class", index=index),
            "value": format_number(value),
            "share": round(100 * value / scale, 1),
        }
        for index, value in pick_strongest_weights(weights)
    ]
