"""The short form of `trust` that the report shows beside an attribution.

It has curves of a few points, three randomized networks and one repetition.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sightline.methods.evaluation.attribution_method import (
    AttributionMethod,
    find_attribution_method,
)
from sightline.methods.evaluation.faithfulness import ClassScorer, measure_deletion_insertion
from sightline.methods.evaluation.randomization import (
    compute_rank_correlation,
    group_weight_layers,
    merge_layer_groups,
    randomize_layer_groups,
)
from sightline.methods.evaluation.verdict import (
    SummaryScores,
    TrustLevel,
    rate_trust,
    write_short_verdict,
)
from sightline.models.model import Model
from sightline.models.tracing.batch_size import choose_batch_size

SUMMARY_CURVE_STEPS = 8
SUMMARY_SHIFT_COUNT = 3

# Of this many stages of the randomization all but the last are run: in the middle one half of the
# layers are random.
SUMMARY_STAGE_COUNT = 4

MAX_SUMMARY_BATCH = 32

# Parameters of a run that the test sets itself, or that do not change the attribution of a class.
EXCLUDED_PARAMETERS = ("label", "unit", "callback", "seed", "k")


@dataclass(frozen=True)
class TrustSummary:
    """What the report shows beside an attribution.

    `rows` of (test, what is good, the attribution's number, chance's number), a verdict, the
    numbers by name, and the verdict in a word.
    """

    rows: list[tuple[str, str, float, float | None]]
    sentence: str
    numbers: dict[str, float | str]
    level: TrustLevel


def find_run_attribution_method(name: str, parameters: Mapping[str, Any]) -> AttributionMethod:
    """The attribution that a run with these parameters shows.

    Raises SightlineError for a method without an attribution.
    """
    method = find_attribution_method(name)
    kind_parameter = method.spec.kind_parameter
    kind = parameters.get(kind_parameter, method.kind)
    excluded = (*EXCLUDED_PARAMETERS, kind_parameter)
    kept_parameters = {key: value for key, value in parameters.items() if key not in excluded}
    return AttributionMethod(name, kind, kept_parameters)


def summarize_trust(
    model: Model, image: Tensor, method: AttributionMethod, index: int, seed: int = 0
) -> TrustSummary:
    """Tests the attribution of one class in one image 1×3×H×W, as `trust` does.

    The attribution is computed 5 times.
    """
    image = image.cpu()
    generator = torch.Generator().manual_seed(seed)
    images_to_run = 2 * SUMMARY_CURVE_STEPS * (1 + SUMMARY_SHIFT_COUNT)
    batch = min(
        MAX_SUMMARY_BATCH,
        choose_batch_size(model, image, image_count=images_to_run, gradients=False),
    )
    scorer = ClassScorer(model, index, batch)
    attribution = method.compute_attribution(model, image, index, seed)
    heatmap = attribution.heatmap
    shifted = [attribution.shift_randomly(generator) for _ in range(SUMMARY_SHIFT_COUNT)]
    curves = measure_deletion_insertion(
        scorer, image[0], attribution, shifted, steps=SUMMARY_CURVE_STEPS, generator=generator
    )

    groups = merge_layer_groups(group_weight_layers(model), SUMMARY_STAGE_COUNT)
    tested_groups = groups[: SUMMARY_STAGE_COUNT - 1]
    cascade_ranks: list[Tensor] = []
    for randomized_model, _ in randomize_layer_groups(model, tested_groups, seed):
        randomized = method.compute_attribution(randomized_model, image, index, seed)
        cascade_ranks.append(compute_rank_correlation(heatmap, randomized.heatmap))
    chance_ranks = [compute_rank_correlation(heatmap, item.heatmap) for item in shifted]
    repeated, stability_of = method.repeat_attribution(
        model, image, index, heatmap, seed, generator
    )

    scores = SummaryScores(
        is_constant=bool(heatmap.min() == heatmap.max()),
        deletion_auc=float(curves.deletion_auc),
        deletion_auc_chance=float(curves.deletion_auc_chance),
        insertion_auc=float(curves.insertion_auc),
        insertion_auc_chance=float(curves.insertion_auc_chance),
        randomized_rank=float(torch.stack(cascade_ranks).quantile(0.5)),
        rank_chance=float(torch.stack(chance_ranks).mean()),
        stability_rank=float(compute_rank_correlation(heatmap, repeated)),
        stability_of=stability_of,
    )
    return make_trust_summary(scores, method.description)


def read_trust_summary(values: Mapping[str, Any], description: str) -> TrustSummary:
    """The summary of the first image of a result of `trust`, from its values."""
    heatmap: Tensor = values["map"][0]
    scores = SummaryScores(
        is_constant=bool(heatmap.min() == heatmap.max()),
        deletion_auc=float(values["deletion_auc"][0]),
        deletion_auc_chance=float(values["deletion_auc_chance"][0]),
        insertion_auc=float(values["insertion_auc"][0]),
        insertion_auc_chance=float(values["insertion_auc_chance"][0]),
        randomized_rank=float(values["cascade_rank"][0].quantile(0.5)),
        rank_chance=float(values["rank_chance"][0]),
        stability_rank=float(values["stability_rank"][0]),
        stability_of=str(values["stability_of"][0]),
    )
    return make_trust_summary(scores, description)


def make_trust_summary(scores: SummaryScores, description: str) -> TrustSummary:
    """The summary that these scores give."""
    numbers = {name: value for name, value in vars(scores).items() if name != "is_constant"}
    sentence = write_short_verdict(description, scores)
    return TrustSummary(make_summary_rows(scores), sentence, numbers, rate_trust(scores))


def make_summary_rows(scores: SummaryScores) -> list[tuple[str, str, float, float | None]]:
    """The rows of the report's table."""
    variation = "another seed" if scores.stability_of == "seed" else "a little noise on the image"
    return [
        (
            "Brightest pixels removed: probability left",
            "less is better",
            scores.deletion_auc,
            scores.deletion_auc_chance,
        ),
        (
            "Brightest pixels made sharp: probability reached",
            "more is better",
            scores.insertion_auc,
            scores.insertion_auc_chance,
        ),
        (
            "Network randomized: similarity of the attribution",
            "near chance is better",
            scores.randomized_rank,
            scores.rank_chance,
        ),
        (
            f"With {variation}: similarity of the attribution",
            "1 is the same",
            scores.stability_rank,
            None,
        ),
    ]
