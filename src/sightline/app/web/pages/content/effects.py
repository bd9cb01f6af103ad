"""What a unit does to the network's answers: measured by leaving it out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.app.web.explorer.explorer import Explorer
from sightline.app.web.pages.content.facts import read_unit_table
from sightline.app.web.pages.content.sheets import list_strongest_patches
from sightline.data.search.nearest import pick_evenly_spaced
from sightline.errors import SightlineError
from sightline.models.model import Model

STRONGEST_COUNT = 16  # images on which the unit is strongest
ORDINARY_COUNT = 16  # images evenly spread over the dataset
EFFECT_CLASSES = 4  # classes of each direction that are shown
RANDOM_UNITS = 4  # of the same layer, which are left out instead


def add_effect_script(explorer: Explorer, layer: str, unit: int) -> dict[str, str] | None:
    """The name and address of the script that says where a unit counts; None without the network.

    It is measured when the script is asked for, by a server. In exported pages it says that it was
    not measured, unless it is kept already.
    """
    model = explorer.model
    if model is None:
        return None
    folder = explorer.link("unit", layer=layer, unit=unit).removesuffix(".html")
    name = folder.replace("units/", "effect-of/")
    key = {"numbers": "effect of a unit", "layer": layer, "unit": unit, "version": 2}

    def make_content() -> dict[str, Any]:
        effect = explorer.read_numbers(key, lambda: measure_effect(explorer, model, layer, unit))
        return effect or {"missing": True}

    return {"name": name, "address": explorer.add_script(name, make_content)}


def measure_effect(explorer: Explorer, model: Model, layer: str, unit: int) -> dict[str, Any]:
    """The change of the class scores when a unit is set to zero.

    It is measured on the images on which the unit is strongest, and on others as ordinary as they
    come; `changed` of both is how many answers differ. Beside it stands what random units of the
    layer do to the images on which this one is strongest: `changed` and `size`, the mean magnitude
    of the changes of scores, both on average.
    """
    scan = explorer.scan
    patches = list_strongest_patches(explorer, layer, unit, STRONGEST_COUNT)
    strongest_ids = [patch.image_id for patch in patches]
    ordinary_ids = pick_evenly_spaced(scan.images, ORDINARY_COUNT).tolist()
    ablated = model.ablated({layer: [unit]}, fill="zero")
    try:
        strongest = compare_scores(explorer, model, ablated, strongest_ids)
        ordinary = compare_scores(explorer, model, ablated, ordinary_ids)
        others = [
            compare_scores(
                explorer, model, model.ablated({layer: [other]}, fill="zero"), strongest_ids
            )
            for other in draw_other_units(explorer, layer, unit)
        ]
    except SightlineError as error:
        return {"problem": str(error)}
    drops = strongest["mean"].argsort()[:EFFECT_CLASSES].tolist()
    rises = strongest["mean"].argsort(descending=True)[:EFFECT_CLASSES].tolist()
    classes = list(dict.fromkeys([*drops, *reversed(rises)]))
    return {
        "classes": [
            {
                "name": model.labels[index],
                "address": explorer.link("class", index=index),
                "strongest": round(float(strongest["mean"][index]), 4),
                "ordinary": round(float(ordinary["mean"][index]), 4),
            }
            for index in classes
        ],
        "strongest": {
            "images": len(strongest_ids),
            "changed": strongest["changed"],
            "size": strongest["size"],
        },
        "random": {
            "units": len(others),
            "changed": sum(other["changed"] for other in others) / max(1, len(others)),
            "size": sum(other["size"] for other in others) / max(1, len(others)),
        },
        "ordinary": {"images": len(ordinary_ids), "changed": ordinary["changed"]},
    }


def draw_other_units(explorer: Explorer, layer: str, unit: int) -> list[int]:
    """Random units of the layer without this one and dead ones; always the same for a unit."""
    table = read_unit_table(explorer, layer)
    is_candidate = np.ones(table.unit_count, bool) if table.facts is None else ~table.facts.is_dead
    is_candidate[unit] = False
    candidates = np.flatnonzero(is_candidate)
    count = min(RANDOM_UNITS, len(candidates))
    return np.random.default_rng(unit).choice(candidates, count, replace=False).tolist()


def compare_scores(
    explorer: Explorer, model: Model, ablated: Model, ids: Sequence[int]
) -> dict[str, Any]:
    """The mean change of each class score over images, its size, and how many answers differ.

    Raises SightlineError where an original is gone.
    """
    images = torch.cat([explorer.read_input(id) for id in ids])
    with torch.no_grad():
        scores: Tensor = model.logits(images).cpu()
        scores_without: Tensor = ablated.logits(images).cpu()
    changed = int((scores.argmax(1) != scores_without.argmax(1)).sum())
    change = scores_without - scores
    return {"mean": change.mean(0), "size": float(change.abs().mean()), "changed": changed}
