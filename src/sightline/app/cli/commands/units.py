"""The command `sightline units`: the units of a layer, as the responses of a scan describe them."""

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from cyclopts import Parameter

from sightline.app.cli.options import JsonOption
from sightline.app.cli.terminal import print_lines
from sightline.data.store.reader import Scan
from sightline.data.units.facts import UnitFacts, read_unit_facts
from sightline.errors import (
    SightlineError,
    escape_for_display,
    make_out_of_range_error,
    make_unknown_name_error,
)

UnitOrder = Literal["unit", "frequency", "selectivity", "mean", "median", "largest"]

DEFAULT_LIMIT = 50

MEDIAN_COLUMN = 5  # of the quantiles 0, 0.1, …, 1


def units(
    *,
    store: Annotated[Path, Parameter(help="A store that `sightline scan` wrote.")],
    layer: Annotated[str, Parameter(help="The layer whose units are listed.")],
    sort: Annotated[
        UnitOrder,
        Parameter(
            help="The order: by number, or by how often a unit fires, its class selectivity, or "
            "its mean, median or largest response, the largest first."
        ),
    ] = "unit",
    reverse: Annotated[bool, Parameter(negative=(), help="The other way round.")] = False,
    limit: Annotated[int, Parameter(help="How many units are listed; 0 lists all.")] = (
        DEFAULT_LIMIT
    ),
    unit: Annotated[
        tuple[int, ...] | None,
        Parameter(help="Only these units.", consume_multiple=True, negative=()),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Lists the units of a layer: how often they fire, for which class, and which are alike."""
    if limit < 0:
        raise SightlineError(f"limit is {limit}; it must be at least 0, which lists all")
    scan = Scan.open(store)
    require_order(scan, sort)
    facts = read_unit_facts(scan, layer)
    numbers = choose_units(facts, unit)
    ordered = sort_units(facts, numbers, sort, reverse=reverse)
    listed = ordered[:limit] if limit else ordered
    if as_json:
        rows = [make_unit_row(scan, facts, number) for number in listed]
        print(json.dumps({"layer": facts.layer, "images": scan.images, "units": rows}))
        return 0
    print_lines(*format_units(scan, facts, listed))
    if len(listed) < len(ordered):
        print_lines(f"… {len(ordered) - len(listed)} more; --limit 0 lists all")
    return 0


def require_order(scan: Scan, sort: str) -> None:
    """Raises SightlineError for an order that there is not, or that needs classes."""
    if sort not in get_args(UnitOrder):
        raise make_unknown_name_error("order", sort, get_args(UnitOrder))
    if sort == "selectivity" and len(scan.class_names) < 2:
        raise SightlineError(
            f"the store {scan.path.name} knows no two classes to be selective for: "
            "put each class into a folder of its own"
        )


def choose_units(facts: UnitFacts, requested: tuple[int, ...] | None) -> list[int]:
    """The units that are asked for, each once. Raises SightlineError if there is no such unit."""
    unit_count = len(facts.is_dead)
    if not requested:
        return list(range(unit_count))
    for number in requested:
        if not 0 <= number < unit_count:
            raise make_out_of_range_error("unit", number, 0, unit_count - 1)
    return list(dict.fromkeys(requested))


def sort_units(facts: UnitFacts, numbers: list[int], sort: str, *, reverse: bool) -> list[int]:
    """Units in an order: the largest first, equal ones by number, and those without a value last.

    `reverse` turns the order round, but for those without a value.
    """
    if sort == "unit":
        return sorted(numbers, reverse=reverse)
    values = {
        "frequency": facts.frequency,
        "selectivity": facts.selectivity,
        "mean": facts.mean,
        "median": facts.quantiles[:, MEDIAN_COLUMN],
        "largest": facts.quantiles[:, -1],
    }[sort]
    sign = 1 if reverse else -1
    return sorted(numbers, key=lambda unit: (math.isnan(values[unit]), sign * values[unit], unit))


def make_unit_row(scan: Scan, facts: UnitFacts, unit: int) -> dict[str, Any]:
    """The facts of a unit, JSON-able."""
    duplicate_of = int(facts.duplicate_of[unit])
    nearest = [
        {"layer": layer, "unit": number, "correlation": correlation}
        for layer, number, correlation in facts.nearest_units[unit]
    ]
    return {
        "unit": unit,
        "dead": bool(facts.is_dead[unit]),
        "frequency": float(facts.frequency[unit]),
        "mean": float(facts.mean[unit]),
        "deviation": float(facts.deviation[unit]),
        "quantiles": facts.quantiles[unit].tolist(),
        "selectivity": None if np.isnan(facts.selectivity[unit]) else facts.selectivity[unit],
        "class": name_favorite(scan, facts, unit),
        "top": facts.top_images[unit].tolist(),
        "middle": facts.middle_images[unit].tolist(),
        "bottom": facts.bottom_images[unit].tolist(),
        "nearest": nearest,
        "duplicate_of": None if duplicate_of < 0 else duplicate_of,
    }


def name_favorite(scan: Scan, facts: UnitFacts, unit: int) -> str | None:
    """The class that a unit responds to most; None without one."""
    label = int(facts.selective_class[unit])
    return None if label < 0 else scan.class_names[label]


def format_units(scan: Scan, facts: UnitFacts, numbers: list[int]) -> list[str]:
    """A table of units, a line each."""
    header = (
        f"{'unit':>5} {'fires':>6} {'median':>9} {'largest':>9} {'select.':>7}  "
        f"{'class':<18} nearest unit"
    )
    lines = [f"{escape_for_display(facts.layer)}, {scan.images:,} images", header]
    for unit in numbers:
        selectivity = facts.selectivity[unit]
        shown_selectivity = "–" if np.isnan(selectivity) else f"{selectivity:.2f}"
        favorite = escape_for_display(name_favorite(scan, facts, unit) or "–", 18)
        lines.append(
            f"{unit:>5} {facts.frequency[unit]:>6.1%} {facts.quantiles[unit, MEDIAN_COLUMN]:>9.3g} "
            f"{facts.quantiles[unit, -1]:>9.3g} {shown_selectivity:>7}  "
            f"{favorite:<18} {describe_likeness(facts, unit)}"
        )
    return lines


def describe_likeness(facts: UnitFacts, unit: int) -> str:
    """Whether a unit is dead or a duplicate, and its nearest unit."""
    if facts.is_dead[unit]:
        return "dead"
    duplicate_of = int(facts.duplicate_of[unit])
    if duplicate_of >= 0:
        return f"duplicate of {duplicate_of}"
    nearest = facts.nearest_units[unit]
    if not nearest:
        return "–"
    layer, number, correlation = nearest[0]
    return f"{escape_for_display(layer)} {number} (r = {correlation:.2f})"
