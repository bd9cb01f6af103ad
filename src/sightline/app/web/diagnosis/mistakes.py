"""What the pages of mistakes and of turned-off units show, for their templates."""

from typing import Any

import numpy as np
import torch

from sightline.app.web.diagnosis.pictures import (
    SHOWN_IMAGES,
    AddPicture,
    make_thumbnail_tiles,
    make_unit_tiles,
    title_unit,
)
from sightline.data.store.reader import Scan
from sightline.errors import escape_for_display
from sightline.methods.diagnosis.ablation_effects import AblationEffects
from sightline.methods.diagnosis.causal_tests import CausalTest
from sightline.methods.diagnosis.mistakes import MistakeGroup, Mistakes
from sightline.methods.diagnosis.unit_names import UnitNames

# Units of a group, and units of a layer, that are shown with their images.
SHOWN_UNITS = 4
SHOWN_EFFECTS = 20

# True classes of a group that are listed by name.
SHOWN_CLASSES = 6

TEST_WORDS = {
    "units off": "the units are turned off",
    "patch covered": "the patch is covered by the mean colour",
    "patch inpainted": "the patch is painted over from around it",
    "patch pasted": "the patch is put onto right images of other classes",
}


def build_mistakes_data(result: Mistakes, scan: Scan, add_picture: AddPicture) -> dict[str, Any]:
    """Everything that the template of mistakes reads."""
    with_cause = sum(group.has_cause for group in result.groups)
    return {
        "network": escape_for_display(result.network),
        "images": result.image_count,
        "errors": result.error_count,
        "accuracy": f"{result.accuracy:.1%}",
        "source": result.source,
        "with_cause": with_cause,
        "groups": [
            describe_mistake_group(group, result.unit_names, scan, add_picture)
            for group in result.groups
        ],
        "surest": make_thumbnail_tiles(
            scan,
            [mistake.id for mistake in result.surest],
            [mistake.caption for mistake in result.surest],
            add_picture,
            limit=len(result.surest),
        ),
        "notes": result.notes,
    }


def describe_mistake_group(
    group: MistakeGroup, unit_names: UnitNames, scan: Scan, add_picture: AddPicture
) -> dict[str, Any]:
    """A group of mistakes: sentence, images, units, tests and images to label."""
    ids = group.ids.tolist()
    _, probabilities = scan.top5
    captions = [
        f"{name}, {float(probabilities[id, 0]):.0%} sure"
        for name, id in zip(group.truth, ids, strict=True)
    ]
    chosen = set(group.cause)
    cause_first = sorted(group.units, key=lambda unit: (unit.layer, unit.unit) not in chosen)
    return {
        "class_name": group.class_name,
        "title": f"{len(ids)} images wrongly taken for {group.class_name}",
        "sentence": group.sentence,
        "has_cause": group.has_cause,
        "true_classes": list_true_classes(group),
        "error_share": f"{group.group.error_share:.0%}",
        "expected_share": f"{group.group.expected_share:.0%}",
        "p_value": f"{group.group.p_value:.3f}",
        "tiles": make_thumbnail_tiles(scan, ids, captions, add_picture),
        "shown": min(len(ids), SHOWN_IMAGES),
        "count": len(ids),
        "units": [
            {
                "name": title_unit(unit.layer, unit.unit, unit_names),
                "place": (unit.layer, unit.unit),
                "separation": f"{unit.separation:.0%}",
                "class_separation": f"{unit.class_separation:.0%}",
                "is_cause": (unit.layer, unit.unit) in chosen,
                "tiles": make_unit_tiles(scan, unit.layer, unit.unit, add_picture),
            }
            for unit in cause_first[:SHOWN_UNITS]
        ],
        "tests": [describe_test(test, group.class_name) for test in group.tests],
        "broken": describe_broken(group),
        "others_broken": describe_others_broken(group),
        "to_label": make_thumbnail_tiles(
            scan, group.to_label, [""] * len(group.to_label), add_picture
        ),
    }


def list_true_classes(group: MistakeGroup) -> list[dict[str, Any]]:
    """What the images of a group are, the most frequent classes first, and all others together."""
    rows = [{"name": name, "count": count} for name, count in group.true_classes[:SHOWN_CLASSES]]
    others = sum(count for _, count in group.true_classes[SHOWN_CLASSES:])
    if others:
        rows.append({"name": "others", "count": others})
    return rows


def describe_broken(group: MistakeGroup) -> str:
    """How many right answers of the class change without the units of the cause."""
    if group.share is None:
        return ""
    return f"{group.share.broken} of {group.share.right_images}"


def describe_others_broken(group: MistakeGroup) -> str:
    """How many right answers for other classes change without the units of the cause."""
    if group.share is None:
        return ""
    return f"{group.share.others_broken} of {group.share.other_images}"


def describe_test(test: CausalTest, class_name: str) -> dict[str, Any]:
    """A test beside chance, as a row of a table."""
    is_pasting = test.kind == "patch pasted"
    return {
        "word": TEST_WORDS[test.kind],
        "changed": f"{test.changed} of {test.images}",
        "becomes": f"become {class_name}" if is_pasting else "change",
        "chance": f"{test.random_changed:.1f}",
        "corrected": "" if is_pasting else str(test.corrected),
        "random_corrected": "" if is_pasting else f"{test.random_corrected:.1f}",
        "p_value": f"{test.p_value:.2f}",
        "is_passed": test.is_passed,
    }


def build_effects_data(
    effects: AblationEffects, scan: Scan, add_picture: AddPicture
) -> dict[str, Any]:
    """Everything that the template of turned-off units reads."""
    drops = effects.class_drops
    rows: list[dict[str, Any]] = []
    for position in effects.list_strongest(SHOWN_EFFECTS):
        unit = int(effects.units[position])
        worst = np.argsort(-drops[position], kind="stable")[:3]
        classes = [
            f"{effects.class_names[index]} −{drops[position, index]:.0%}"
            for index in worst.tolist()
            if drops[position, index] > 0
        ]
        followed = effects.layer in scan.layers
        rows.append(
            {
                "unit": unit,
                "drop": f"{effects.accuracy_drops[position]:+.1%}",
                "flips": f"{effects.flips[position]:.1%}",
                "classes": ", ".join(classes),
                "tiles": (
                    make_unit_tiles(scan, effects.layer, unit, add_picture, 3) if followed else []
                ),
            }
        )
    idle = int((torch.from_numpy(effects.flips) == 0).sum())
    return {
        "layer": escape_for_display(effects.layer),
        "fill": effects.fill,
        "images": len(effects.images),
        "accuracy": f"{effects.accuracy:.1%}",
        "reference": effects.reference,
        "unit_count": len(effects.units),
        "idle": idle,
        "rows": rows,
    }
