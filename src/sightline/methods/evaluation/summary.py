"""The short form of trust that the report shows beside every map: curves of a few points, three randomized networks, one repetition."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sightline.methods.evaluation.attribution_map import AttributionMethod, find_attribution_method
from sightline.methods.evaluation.faithfulness import ClassScorer, measure_deletion_insertion
from sightline.methods.evaluation.randomization import (
    compute_rank_correlation,
    group_weight_layers,
    merge_layer_groups,
    randomize_layer_groups,
)
from sightline.methods.evaluation.verdict import write_short_verdict
from sightline.models.model import Model
from sightline.models.tracing.batch_size import choose_batch_size

SUMMARY_CURVE_STEPS, SUMMARY_SHIFT_COUNT = 8, 3

# Of so many stages of the randomization all but the last are tried: their middle is where half of the layers are random.
SUMMARY_STAGE_COUNT = 4

# The same everywhere or chosen for a run; what the map is of stays the same.
EXCLUDED_PARAMETERS = ("label", "unit", "callback", "seed", "k")


@dataclass(frozen=True)
class TrustSummary:
    """What is shown beside a map: rows of (test, what is good, the map's number, chance's number), a sentence, the numbers."""

    rows: list[tuple[str, str, float, float | None]]
    sentence: str
    numbers: dict[str, float | str]


def find_run_attribution_method(name: str, parameters: Mapping[str, Any]) -> AttributionMethod:
    """The map of a method's run with these knobs. Raises SightlineError for a method without a map."""
    found = find_attribution_method(name)
    kind = parameters.get(found.map_declaration.kind_parameter, found.kind)
    return AttributionMethod(
        name,
        kind,
        {
            key: value
            for key, value in parameters.items()
            if key not in (*EXCLUDED_PARAMETERS, found.map_declaration.kind_parameter)
        },
    )


def summarize_trust(
    model: Model, image: Tensor, method: AttributionMethod, index: int, seed: int = 0
) -> TrustSummary:
    """The tests of the map of one image 1×3×H×W for one class; their meaning is that of `trust`. The map is made 5 times."""
    image, generator = image.cpu(), torch.Generator().manual_seed(seed)
    clean, asked = (
        method.compute_attribution(model, image, index, seed),
        ClassScorer(model, index, min(32, choose_batch_size(model, image, gradients=False))),
    )
    others = [clean.shift_randomly(generator) for _ in range(SUMMARY_SHIFT_COUNT)]
    found: dict[str, Any] = {"map": clean.heatmap}
    found |= measure_deletion_insertion(
        asked, image[0], clean, others, steps=SUMMARY_CURVE_STEPS, generator=generator
    )
    groups = merge_layer_groups(group_weight_layers(model), SUMMARY_STAGE_COUNT)
    some = groups[: SUMMARY_STAGE_COUNT - 1]
    cascade = [
        method.compute_attribution(network, image, index, seed).heatmap
        for network, _ in randomize_layer_groups(model, some, seed)
    ]
    again, found["stability_of"] = method.repeat_attribution(
        model, image, index, clean.heatmap, seed, generator
    )
    found["cascade_rank"] = torch.stack(
        [compute_rank_correlation(clean.heatmap, other) for other in cascade]
    )
    found["rank_chance"] = torch.stack(
        [compute_rank_correlation(clean.heatmap, other.heatmap) for other in others]
    ).mean()
    found["stability_rank"] = compute_rank_correlation(clean.heatmap, again)
    numbers: dict[str, float | str] = {
        name: float(found[name]) for name in found if name.endswith(("_auc", "_auc_chance"))
    }
    numbers |= {
        "randomized_rank": float(found["cascade_rank"].quantile(0.5)),
        "rank_chance": float(found["rank_chance"]),
    }
    numbers |= {
        "stability_rank": float(found["stability_rank"]),
        "stability_of": str(found["stability_of"]),
    }
    return TrustSummary(
        make_summary_rows(numbers), write_short_verdict(method.description, found), numbers
    )


def make_summary_rows(numbers: Mapping[str, Any]) -> list[tuple[str, str, float, float | None]]:
    """The table's rows."""
    repeated = (
        "With another seed"
        if numbers["stability_of"] == "seed"
        else "With a trace of noise on the image"
    )
    return [
        (
            "Brightest pixels removed: probability left",
            "less is better",
            numbers["deletion_auc"],
            numbers["deletion_auc_chance"],
        ),
        (
            "Brightest pixels made sharp: probability reached",
            "more is better",
            numbers["insertion_auc"],
            numbers["insertion_auc_chance"],
        ),
        (
            "Network randomized: likeness of the map",
            "near chance is better",
            numbers["randomized_rank"],
            numbers["rank_chance"],
        ),
        (f"{repeated}: likeness of the map", "1 is the same", numbers["stability_rank"], None),
    ]
