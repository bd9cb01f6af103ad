"""What the page of a comparison shows: `build_comparison_data` gives it to a template."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sightline.app.web.diagnosis.pictures import (
    AddPicture,
    Side,
    Tile,
    load_network,
    make_attribution_tiles,
    make_thumbnail_tiles,
    make_unit_tiles,
    title_unit,
)
from sightline.data.store.reader import Scan
from sightline.errors import escape_for_display
from sightline.images.plotting.maps import apply_colormap, enlarge_pixels
from sightline.methods.diagnosis.compare import Comparison
from sightline.methods.diagnosis.similarity.cka import find_best_matches
from sightline.methods.diagnosis.similarity.neighbor_graphs import ImageGroup
from sightline.methods.diagnosis.similarity.prediction_flips import FlipGroup
from sightline.methods.diagnosis.similarity.unit_changes import ChangedUnit
from sightline.methods.diagnosis.unit_names import UnitNames

# Units that are shown with their images.
SHOWN_UNITS = 8

# Pixels of the heat map's longer side.
HEATMAP_SIDE = 480

FATE_WORDS = {
    "kept": "kept: one unit of the other network responds as they do",
    "moved": "moved: their like is in another layer",
    "split": "split: two units share what they did",
    "merged": "merged: one unit does what two did",
    "died": "died: nothing in the other network responds as they do",
    "born": "born: nothing in the first network responded as they do",
    "dead": "dead in the first network already",
}


def build_comparison_data(
    comparison: Comparison, old: Scan, new: Scan, add_picture: AddPicture
) -> dict[str, Any]:
    """Everything that the template of a comparison reads."""
    sides = (
        Side(comparison.names[0], old, load_network(old)),
        Side(comparison.names[1], new, load_network(new)),
    )
    return {
        "names": comparison.names,
        "images": len(comparison.ids),
        "all_images": comparison.image_count,
        "is_same": comparison.is_same,
        "lead": compose_lead(comparison),
        "performances": describe_performances(comparison),
        "heatmap": draw_heatmap(comparison, add_picture),
        "layer_pairs": list_layer_pairs(comparison),
        "fates": [
            {"count": count, "word": FATE_WORDS[fate]}
            for fate, count in sorted(comparison.count_fates().items(), key=lambda item: -item[1])
        ],
        "units": [
            describe_unit_change(comparison, position, old, new, add_picture)
            for position in range(min(SHOWN_UNITS, len(comparison.changed_units)))
            if comparison.changed_units[position].correlation < 0.99
        ],
        "held": [
            {
                "title": f"Held together by {name} only",
                "groups": [describe_held_group(group, old, add_picture) for group in groups],
            }
            for name, groups in zip(
                comparison.names, (comparison.held_by_old, comparison.held_by_new), strict=True
            )
        ],
        "flips": [
            describe_flips(comparison, group, sides, add_picture)
            | {
                "units": [
                    describe_changed_unit(unit, sides, comparison.unit_names, add_picture)
                    for unit in units
                ]
            }
            for group, units in zip(comparison.flips, comparison.flip_units, strict=True)
        ],
        "class_flips": list_class_flips(comparison),
        "notes": comparison.notes,
    }


def compose_lead(comparison: Comparison) -> str:
    """The comparison in two sentences."""
    first, second = comparison.names
    if comparison.is_same:
        return (
            f"{first} and {second} are the same in all that was compared: every unit has its "
            "partner, and no answer differs."
        )
    sentences: list[str] = []
    if comparison.answers is not None:
        share = comparison.flip_share
        sentences.append(f"{first} and {second} differ in {share:.1%} of their answers.")
    counts = comparison.count_fates()
    matched_units = counts.get("kept", 0)
    total = sum(count for fate, count in counts.items() if fate not in ("dead", "born"))
    if total:
        sentences.append(
            f"{matched_units:,} of {total:,} units of {first} have a partner in {second}."
        )
    return " ".join(sentences)


def describe_performances(comparison: Comparison) -> list[dict[str, str]]:
    """Accuracy and calibration of both networks, as text."""
    if comparison.performances is None:
        return []
    return [
        {
            "name": name,
            "accuracy": f"{performance.accuracy:.1%}",
            "confidence": f"{performance.confidence:.1%}",
            "error": f"{performance.calibration_error:.3f}",
        }
        for name, performance in zip(comparison.names, comparison.performances, strict=True)
    ]


def draw_heatmap(comparison: Comparison, add_picture: AddPicture) -> dict[str, Any]:
    """CKA of all pairs of layers as a picture: the first network's layers down."""
    values = torch.from_numpy(np.nan_to_num(comparison.cka).clip(0, 1)).float()
    rows, columns = values.shape
    factor = max(1, HEATMAP_SIDE // max(rows, columns))
    picture = enlarge_pixels(apply_colormap(values[None], "viridis"), factor * min(rows, columns))
    height, width = picture.shape[-2:]
    old_layers, new_layers = (list(map(escape_for_display, names)) for names in comparison.layers)
    return {
        "source": add_picture("layers", picture),
        "width": width,
        "height": height,
        "rows": (old_layers[0], old_layers[-1]),
        "columns": (new_layers[0], new_layers[-1]),
    }


def list_layer_pairs(comparison: Comparison) -> list[dict[str, str]]:
    """For every layer of the second network the most similar one of the first."""
    pairs: list[dict[str, str]] = []
    old_layers, new_layers = comparison.layers
    for column, row in enumerate(find_best_matches(comparison.cka).tolist()):
        if row < 0:
            continue
        pairs.append(
            {
                "new": escape_for_display(new_layers[column]),
                "old": escape_for_display(old_layers[row]),
                "cka": f"{comparison.cka[row, column]:.3f}",
            }
        )
    return pairs


def describe_unit_change(
    comparison: Comparison, position: int, old: Scan, new: Scan, add_picture: AddPicture
) -> dict[str, Any]:
    """A changed unit with the images of both networks."""
    change = comparison.changed_units[position]
    partner = None
    partner_tiles: list[Tile] = []
    if change.partner is not None:
        partner = title_unit(*change.partner, comparison.unit_names[1])
        partner_tiles = make_unit_tiles(new, *change.partner, add_picture)
    return {
        "name": title_unit(change.layer, change.unit, comparison.unit_names[0]),
        "fate": change.fate,
        "correlation": f"{change.correlation:.2f}",
        "tiles": make_unit_tiles(old, change.layer, change.unit, add_picture),
        "partner": partner,
        "partner_place": change.partner,
        "partner_tiles": partner_tiles,
    }


def describe_held_group(group: ImageGroup, scan: Scan, add_picture: AddPicture) -> dict[str, Any]:
    """A group of images that one network holds together."""
    ids = group.members.tolist()
    return {
        "count": len(ids),
        "together": f"{group.together:.0%}",
        "apart": f"{group.apart:.0%}",
        "tiles": make_thumbnail_tiles(scan, ids, [""] * len(ids), add_picture),
    }


def describe_flips(
    comparison: Comparison,
    group: FlipGroup,
    sides: Sequence[Side],
    add_picture: AddPicture,
) -> dict[str, Any]:
    """A group of flips with its images, and what speaks for both answers in the first."""
    members = group.members.tolist()
    captions = [
        " → ".join(
            f"{comparison.class_names[answers.labels[row]]} {answers.confidence[row]:.0%}"
            for answers in comparison.answers or ()
        )
        for row in members
    ]
    ids = comparison.ids[group.members].tolist()
    labels = [int(side.scan.top5[0][ids[0], 0]) for side in sides]
    return {
        "title": group.title,
        "count": len(members),
        "old_confidence": f"{group.old_confidence:.0%}",
        "new_confidence": f"{group.new_confidence:.0%}",
        "right": describe_right(group),
        "tiles": make_thumbnail_tiles(sides[0].scan, ids, captions, add_picture),
        "attributions": make_attribution_tiles(sides, ids[0], labels, add_picture),
    }


def describe_right(group: FlipGroup) -> str:
    """How many of a group's answers are right, before and after."""
    if group.old_right is None:
        return ""
    return f"{group.old_right} right before, {group.new_right} now"


def describe_changed_unit(
    unit: ChangedUnit,
    sides: Sequence[Side],
    unit_names: tuple[UnitNames, UnitNames],
    add_picture: AddPicture,
) -> dict[str, Any]:
    """A unit whose responses to a group changed, with the images that it responds to most."""
    side = 0 if unit.new is None else 1
    layer, number = unit.new or unit.old or ("", 0)
    word = "stronger" if unit.change > 0 else "weaker"
    is_paired = unit.old is not None and unit.new is not None
    status = "" if is_paired else "without a partner in the other network"
    return {
        "name": title_unit(layer, number, unit_names[side]),
        "place": unit.new,
        "change": f"{abs(unit.change):.1f} standard deviations {word}",
        "status": status,
        "tiles": make_unit_tiles(sides[side].scan, layer, number, add_picture),
    }


def list_class_flips(comparison: Comparison) -> list[dict[str, Any]]:
    """The classes that most images leave or come to, the most first."""
    totals = comparison.class_flips.sum(1)
    order = np.argsort(-totals, kind="stable")[:15]
    return [
        {
            "name": comparison.class_names[index],
            "left": int(comparison.class_flips[index, 0]),
            "came": int(comparison.class_flips[index, 1]),
        }
        for index in order.tolist()
        if totals[index] > 0
    ]
