"""Can an attribution be trusted?

It is tested against the network with parts of the image removed, and against networks whose weights
are shuffled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.plotting.captioned_rows import FigureRow
from sightline.images.plotting.charts import LinePlot, draw_line_plots
from sightline.images.plotting.figures import FigureData, LineChart, PictureRows
from sightline.images.plotting.maps import draw_heatmap_row, render_heatmaps
from sightline.methods.evaluation.attribution_method import (
    AttributionMethod,
    find_attribution_method,
)
from sightline.methods.evaluation.faithfulness import (
    ClassScorer,
    DeletionInsertion,
    RemovalScores,
    compute_square_side,
    compute_subset_sizes,
    measure_deletion_insertion,
    measure_sensitivity_infidelity,
)
from sightline.methods.evaluation.randomization import (
    compare_heatmaps,
    group_weight_layers,
    merge_layer_groups,
    randomize_layer_groups,
)
from sightline.methods.evaluation.verdict import (
    TrustScores,
    write_trust_captions,
    write_verdicts,
)
from sightline.models.heads.labels import ClassChoice
from sightline.models.heads.target_text import TargetChoice
from sightline.models.model import Model
from sightline.models.tracing.batch_size import choose_batch_size
from sightline.registry.method import register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.result import Result

# How many random shifts of the attribution give the level of chance. The curves, which cost a
# forward pass a point, have fewer.
SHIFT_COUNT = 16
CURVE_SHIFT_COUNT = 3

# Default number of stages of the randomization; each but the first costs two more attributions.
DEFAULT_STAGE_COUNT = 10
COSTLY_STAGE_COUNT = 5

MIN_TRUST_SIDE = 7

CASCADE_TILE_SIDE = 128  # pixels

MAX_TRUST_BATCH = 32


@register_method(
    chapter="analytical",
    title="Trust",
    question="Does an attribution show what the score depends on, and would an untrained network "
    "give another one?",
    reading="A good attribution's deletion curve falls sooner and its insertion curve rises sooner "
    "than chance (the same attribution, shifted). Of the attributions below, the first is the "
    "network's own; then more and more layers lose what they learned, from the output down. The "
    "picture should change.",
    caution="Removing pixels makes unusual images, on which the network's output can be anything. "
    "An attribution that passes every test here may still mislead, and one image proves little: "
    "look at several.",
    tour_runs=({"method": "saliency"},),
    quick_parameters={"steps": 8, "samples": 16, "stages": 4},
)
def trust(
    model: Model,
    image: Tensor,
    *,
    method: str = "saliency",
    label: ClassChoice = "top",
    target: TargetChoice | None = None,
    kind: str | None = None,
    steps: Annotated[int, ValueRange(1, 1000)] = 16,
    samples: Annotated[int, ValueRange(4, 10_000)] = 32,
    stages: Annotated[int | None, ValueRange(1, 1000)] = None,
    batch: Annotated[int | None, ValueRange(1, 4096)] = None,
    seed: int = 0,
) -> Result:
    """Tests another method's attribution, by removing pixels and by randomizing the network.

    `values`, for N images, S steps and L stages:

    - `map`, N×H×W: the attribution that is tested.
    - `deletion` and `insertion`, N×(S+1): class probability, with areas `…_auc`, N (Petsiuk 2018).
    - `sensitivity`, N×3: correlation for n of the squares removed (Ancona 2018); `sensitivity_n`
      has the three n, `patch` the side of a square in pixels.
    - `infidelity`, N: in score² (Yeh 2019); `unexplained`, N: its share of the mean squared drop,
      0 to 1.
    - `cascade_rank` and `cascade_ssim`, N×L: Spearman's correlation and SSIM with the attribution
      of a network whose weights are shuffled from the top down (Adebayo 2018); `layer_rank` and
      `layer_ssim`, N×L: of one with a single stage shuffled. `layers` names the stages. `empty`, N,
      counts the cascade's attributions that are 0 everywhere.
    - `stability_rank` and `stability_ssim`, N: with the attribution of another seed or, where that
      changes nothing, of the image with noise of deviation 0.01; `stability_of` says which.
    - `label`, N: the class indices. `verdict`: sentences for each image.

    A name with `_chance` is the value for the same attribution, shifted at random. The verdicts use
    these limits: an area differs by 0.02, a correlation or share by 0.1; an attribution is lost
    below a median rank correlation of 0.2 above chance and barely changes from 0.5; it is stable
    from 0.8.

    The other method is run 2 L + 1 times, for speed with occlusion's stride 16, 150 masks of RISE
    with 4×4 cells, and Score-CAM's 32 strongest channels.

    Args:
        method: Whose attribution: any method that has one, as "saliency", "occlusion", "rise",
            "gradcam", "cam", "attention", "segment" (the map of its seeds) or "guided" (for the
            class score).
        kind: Kind of saliency, cam or attention, rule of guided or source of segment; None for that
            method's default.
        steps: Number of steps of the deletion and insertion curves.
        samples: Number of random removals for each n and for the infidelity.
        stages: Largest number of stages of the randomization; the layers of deep networks are
            merged to so many. None for 10, or 5 where an attribution takes many passes of the
            network (occlusion, RISE, Score-CAM, the averaged kinds of saliency).
        batch: How many changed images are run at once; None for as many as fit into about a
            gigabyte, at most 32.
    """
    model = model.with_target(target)
    height, width = image.shape[-2:]
    if min(height, width) < MIN_TRUST_SIDE:
        raise SightlineError(
            f"the image is {height}×{width} pixels; "
            f"trust needs at least {MIN_TRUST_SIDE}×{MIN_TRUST_SIDE}"
        )
    tested_method = find_attribution_method(method, kind)
    default_stages = COSTLY_STAGE_COUNT if tested_method.is_costly else DEFAULT_STAGE_COUNT
    groups = merge_layer_groups(group_weight_layers(model), stages or default_stages)
    images_to_run = (2 * steps + samples) * len(image)  # and more for chance
    at_once = batch or min(
        MAX_TRUST_BATCH,
        choose_batch_size(model, image, image_count=images_to_run, gradients=False),
    )
    settings = TrustSettings(steps, samples, seed)

    index = model.choose(label, image)
    results: list[TrustResult] = []
    for single_image, i in zip(image.cpu().split(1), index.tolist(), strict=True):
        scorer = ClassScorer(model, i, at_once)
        results.append(measure_trust(single_image, tested_method, scorer, groups, settings))
    verdicts = [write_verdicts(tested_method.description, item.scores) for item in results]

    stage_names = [describe_stage(paths) for paths in groups]
    values = {
        **stack_values([item.values for item in results]),
        "verdict": verdicts,
        "sensitivity_n": compute_subset_sizes(height, width),
        "patch": compute_square_side(height, width),
        "layers": stage_names,
        "label": index,
    }
    first = results[0]
    plots = list_trust_plots(first.values)
    panels = {
        "curves": draw_line_plots(plots),
        "maps": draw_heatmap_row(model.to_picture(image[:1]), first.heatmaps),
    }
    label_name = str(model.labels[int(index[0])])
    empty_count = int(first.values["empty"])
    captions = write_trust_captions(
        tested_method.description, label_name, verdicts[0], empty_count, stage_names
    )
    figures: dict[str, FigureData] = {
        "curves": LineChart(plots),
        "maps": make_cascade_rows(first.heatmaps, stage_names),
    }
    return Result(panels, values, captions, figures=figures, chosen={"batch": at_once})


# ── the tests of one image ──


@dataclass(frozen=True)
class TrustSettings:
    """Steps of a curve, random removals for each test, and the seed of all draws."""

    steps: int
    samples: int
    seed: int


@dataclass(frozen=True)
class TrustResult:
    """The tests of one image: values, scores for the verdict, and the cascade's heatmaps."""

    values: Mapping[str, Any]
    scores: TrustScores
    heatmaps: list[Tensor]


def measure_trust(
    image: Tensor,
    method: AttributionMethod,
    scorer: ClassScorer,
    groups: list[list[str]],
    settings: TrustSettings,
) -> TrustResult:
    """Runs all tests on one image 1×3×H×W."""
    model, index, seed = scorer.model, scorer.index, settings.seed
    generator = torch.Generator().manual_seed(seed)
    attribution = method.compute_attribution(model, image, index, seed)
    heatmap = attribution.heatmap
    shifted = [attribution.shift_randomly(generator) for _ in range(SHIFT_COUNT)]
    curves = measure_deletion_insertion(
        scorer,
        image[0],
        attribution,
        shifted[:CURVE_SHIFT_COUNT],
        steps=settings.steps,
        generator=generator,
    )
    removals = measure_sensitivity_infidelity(
        scorer, image[0], attribution, shifted, samples=settings.samples, generator=generator
    )

    cascade: list[Tensor] = []
    single: list[Tensor] = []
    for cascade_model, single_model in randomize_layer_groups(model, groups, seed):
        cascade.append(method.compute_attribution(cascade_model, image, index, seed).heatmap)
        if single:
            single.append(method.compute_attribution(single_model, image, index, seed).heatmap)
        else:
            # In the first stage the two networks are the same.
            single.append(cascade[0])
    repeated, stability_of = method.repeat_attribution(
        model, image, index, heatmap, seed, generator
    )

    chance_ranks, chance_ssims = compare_heatmaps(heatmap, [item.heatmap for item in shifted])
    cascade_rank, cascade_ssim = compare_heatmaps(heatmap, cascade)
    layer_rank, layer_ssim = compare_heatmaps(heatmap, single)
    stability_rank, stability_ssim = compare_heatmaps(heatmap, [repeated])
    values = {
        "map": heatmap,
        **vars(curves),
        **vars(removals),
        "rank_chance": chance_ranks.mean(),
        "ssim_chance": chance_ssims.mean(),
        "cascade_rank": cascade_rank,
        "cascade_ssim": cascade_ssim,
        "layer_rank": layer_rank,
        "layer_ssim": layer_ssim,
        "stability_rank": stability_rank[0],
        "stability_ssim": stability_ssim[0],
        "empty": torch.tensor([not item.any() for item in cascade]).sum(),
        "stability_of": stability_of,
    }
    scores = collect_scores(values, curves, removals)
    return TrustResult(values, scores, [heatmap, *cascade])


def collect_scores(
    values: Mapping[str, Any], curves: DeletionInsertion, removals: RemovalScores
) -> TrustScores:
    """The numbers of one image that its verdict is written from."""
    heatmap: Tensor = values["map"]
    cascade_rank: Tensor = values["cascade_rank"]
    return TrustScores(
        is_constant=bool(heatmap.min() == heatmap.max()),
        deletion_auc=float(curves.deletion_auc),
        deletion_auc_chance=float(curves.deletion_auc_chance),
        insertion_auc=float(curves.insertion_auc),
        insertion_auc_chance=float(curves.insertion_auc_chance),
        randomized_rank=float(cascade_rank.quantile(0.5)),
        rank_chance=float(values["rank_chance"]),
        stability_rank=float(values["stability_rank"]),
        stability_of=str(values["stability_of"]),
        sensitivity=float(removals.sensitivity.mean()),
        sensitivity_chance=float(removals.sensitivity_chance.mean()),
        unexplained=float(removals.unexplained),
        unexplained_chance=float(removals.unexplained_chance),
        fully_randomized_rank=float(cascade_rank[-1]),
    )


def stack_values(by_image: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The values of all images by name: tensors stacked, others as a list."""
    stacked: dict[str, Any] = {}
    for name in by_image[0]:
        items = [values[name] for values in by_image]
        stacked[name] = torch.stack(items) if isinstance(items[0], Tensor) else items
    return stacked


# ── figures ──


def list_trust_plots(values: Mapping[str, Any]) -> list[LinePlot]:
    """Curves of one image: deletion, insertion, and similarity in randomized networks."""
    stages = list(range(len(values["cascade_rank"]) + 1))
    similarity = LinePlot(
        "Randomized: rank correlation of the attributions",
        "stage of randomization, from the output down",
        {
            "from the top down": (stages, [1.0, *values["cascade_rank"].tolist()]),
            "one stage alone": (stages, [1.0, *values["layer_rank"].tolist()]),
            "shifted": (stages, [float(values["rank_chance"])] * len(stages)),
        },
    )
    deletion = make_probability_plot(values, "deletion", "share of pixels turned gray")
    insertion = make_probability_plot(values, "insertion", "share of pixels made sharp")
    return [deletion, insertion, similarity]


def make_probability_plot(values: Mapping[str, Any], name: str, x_label: str) -> LinePlot:
    """The curve "deletion" or "insertion" and that of chance."""
    curve: Tensor = values[name]
    chance: Tensor = values[f"{name}_chance"]
    shares = torch.linspace(0, 1, len(curve)).tolist()
    lines = {
        "attribution": (shares, curve.tolist()),
        "shifted": (shares, chance.tolist()),
    }
    return LinePlot(f"{name.capitalize()}: probability of the class", x_label, lines)


def make_cascade_rows(heatmaps: list[Tensor], stages: Sequence[str]) -> PictureRows:
    """The attribution, and those of the network with more and more layers shuffled."""
    pictures = render_heatmaps(heatmaps).split(1)
    captions = ["the network's own", *(f"shuffled: {stage}" for stage in stages)]
    return PictureRows([FigureRow("", pictures, captions, lead_count=1)], CASCADE_TILE_SIDE)


def describe_stage(paths: list[str]) -> str:
    """A stage of the randomization in words: its first and its last module."""
    names = [path or "the network's own weights" for path in paths]
    if len(names) == 1:
        return names[0]
    return f"{names[0]} … {names[-1]}"
