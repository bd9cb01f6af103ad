"""Can a map be trusted? It is held against the network with parts of the image removed, and against networks that learned nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.plotting.maps import LinePlot, draw_heatmap_row, draw_line_plots
from sightline.methods.evaluation.attribution_map import AttributionMethod, find_attribution_method
from sightline.methods.evaluation.faithfulness import (
    ClassScorer,
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
from sightline.methods.evaluation.verdict import write_trust_captions, write_verdicts
from sightline.models.model import Model
from sightline.models.tracing.batch_size import choose_batch_size
from sightline.registry.method import register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.result import Result

# How often the map is shifted elsewhere to see what chance would give; for the curves, which cost a forward pass a point, fewer.
SHIFT_COUNT, CURVE_SHIFT_COUNT = 16, 3

# Stages of the randomization unless told: every one but the first asks for two more maps.
DEFAULT_STAGE_COUNT, COSTLY_STAGE_COUNT = 10, 5

MIN_TRUST_SIDE = 7


@dataclass(frozen=True)
class TrustSettings:
    """How much is spent: points of a curve, subsets of pixels; and the seed of all draws."""

    steps: int
    samples: int
    seed: int


@register_method(
    chapter="analytical",
    title="Trust",
    question="Does a map show what the score depends on, and would a network that has learned nothing give another one?",
    reading="A good map's deletion curve falls sooner and its insertion curve rises sooner than chance (the same map, shifted). Of the maps below, the first "
    "is the network's own; then more and more layers lose what they learned, from the answer down. The picture should change.",
    caution="Removing pixels makes unusual images, to which the network may answer anything. A map that passes every test here may still mislead, and one "
    "image proves little: look at several.",
    tour_runs=({"method": "saliency"},),
    quick_parameters={"steps": 8, "samples": 16, "stages": 4},
)
def trust(
    model: Model,
    image: Tensor,
    *,
    method: str = "saliency",
    label: int | str = "top",
    kind: str | None = None,
    steps: Annotated[int, ValueRange(1, 1000)] = 16,
    samples: Annotated[int, ValueRange(4, 10_000)] = 32,
    stages: Annotated[int | None, ValueRange(1, 1000)] = None,
    batch: Annotated[int | None, ValueRange(1, 4096)] = None,
    seed: int = 0,
) -> Result:
    """Tests the map of another method: deletion, insertion, sensitivity-n, infidelity, model randomization, stability.

    `values`, for N images, S steps, L stages: `map` N×H×W; `deletion`, `insertion` N×(S+1), class probability, with `…_auc` N
    (Petsiuk 2018); `sensitivity` N×3, the correlation of the map's sum over `sensitivity_n` random squares of `patch` pixels with the
    score lost when they turn gray (Ancona 2018); `infidelity` N, score² (Yeh 2019), and `unexplained`, its share of what the removals
    cost squared, 0 to 1; `cascade_rank`, `cascade_ssim`, `layer_rank`, `layer_ssim` N×L: Spearman's correlation and SSIM with the map
    of a network whose layers' weights are shuffled from the top down, or in one stage alone (Adebayo 2018), the stages in `layers`; of
    the cascade's maps, `empty` N are 0 everywhere; `stability_rank`, `stability_ssim` N: with the map of another seed or, where that
    changes nothing, of the image with noise of deviation 0.01 (`stability_of`). A name with `_chance` is what the same map, shifted at
    random, gets. `verdict` has sentences for each image, by these limits: an area differs by 0.02, a correlation or share by 0.1; a
    map is lost below a median rank correlation of 0.2 above chance and barely changes from 0.5; it is stable from 0.8.
    The other method is run 2 L + 1 times, with occlusion's stride 16, 150 masks of RISE with 4×4 cells and Score-CAM's 32 strongest channels
    for speed.

    Args:
        method: Whose map: any method that gives one, as "saliency", "occlusion", "rise", "gradcam", "cam", "attention", "segment" (its seeds' map) or
            "guided" (of the class score).
        kind: Kind of saliency, cam or attention, rule of guided or source of segment; None for that method's default.
        steps: Number of steps of the deletion and insertion curves.
        samples: Number of random removals for each n and for the infidelity.
        stages: Most stages of the randomization; deep networks have their layers put together to so many. None for 10, or 5 where a map
            takes many passes of the network (occlusion, RISE, Score-CAM, the averaged kinds of saliency).
        batch: How many changed images are run at once; None for as many as fit into about a gigabyte, at most 32.
    """
    if min(image.shape[-2:]) < MIN_TRUST_SIDE:
        raise SightlineError(
            f"the image is {image.shape[-2]}×{image.shape[-1]} pixels; trust needs at least {MIN_TRUST_SIDE}×{MIN_TRUST_SIDE}"
        )
    asked = find_attribution_method(method, kind)
    stages = stages or (COSTLY_STAGE_COUNT if asked.is_costly else DEFAULT_STAGE_COUNT)
    groups = merge_layer_groups(group_weight_layers(model), stages)
    size, effort = (
        batch or min(32, choose_batch_size(model, image, gradients=False)),
        TrustSettings(steps, samples, seed),
    )
    index = model.choose(label, image)
    each: list[dict[str, Any]] = []
    for one, i in zip(image.cpu().split(1), index.tolist(), strict=True):
        each.append(
            measure_trust(one, asked, ClassScorer(model, i, size), groups=groups, settings=effort)
        )
    rows = [found.pop("maps") for found in each]
    for found in each:
        found["verdict"] = write_verdicts(asked.description, found)
    height, width = image.shape[-2:]
    values: dict[str, Any] = {
        name: torch.stack([found[name] for found in each])
        if isinstance(each[0][name], Tensor)
        else [found[name] for found in each]
        for name in each[0]
    }
    names = [describe_stage(paths) for paths in groups]
    values |= {
        "sensitivity_n": compute_subset_sizes(height, width), "patch": compute_square_side(height, width), "layers": names, "label": index,
    }  # fmt: skip
    panels = {"curves": draw_trust_curves(each[0]), "maps": draw_heatmap_row(image[:1], rows[0])}
    return Result(
        panels,
        values,
        write_trust_captions(asked.description, str(model.labels[int(index[0])]), each[0], names),
    )


# ── the tests of one image ──


def measure_trust(
    image: Tensor,
    method: AttributionMethod,
    scorer: ClassScorer,
    *,
    groups: list[list[str]],
    settings: TrustSettings,
) -> dict[str, Any]:
    """All numbers of one image, and the `maps` of the cascade."""
    seed, generator = settings.seed, torch.Generator().manual_seed(settings.seed)
    clean = method.compute_attribution(scorer.model, image, scorer.index, seed)
    others = [clean.shift_randomly(generator) for _ in range(SHIFT_COUNT)]
    found: dict[str, Any] = {"map": clean.heatmap}
    found |= measure_deletion_insertion(
        scorer,
        image[0],
        clean,
        others[:CURVE_SHIFT_COUNT],
        steps=settings.steps,
        generator=generator,
    )
    found |= measure_sensitivity_infidelity(
        scorer, image[0], clean, others, samples=settings.samples, generator=generator
    )
    cascade: list[Tensor] = []
    alone: list[Tensor] = []
    for both, one in randomize_layer_groups(scorer.model, groups, seed):
        cascade.append(method.compute_attribution(both, image, scorer.index, seed).heatmap)
        # In the first stage the two networks are the same.
        alone.append(
            method.compute_attribution(one, image, scorer.index, seed).heatmap
            if alone
            else cascade[0]
        )
    again, of = method.repeat_attribution(
        scorer.model, image, scorer.index, clean.heatmap, seed, generator
    )
    found["rank_chance"], found["ssim_chance"] = (
        part.mean() for part in compare_heatmaps(clean.heatmap, [other.heatmap for other in others])
    )
    found["cascade_rank"], found["cascade_ssim"] = compare_heatmaps(clean.heatmap, cascade)
    found["layer_rank"], found["layer_ssim"] = compare_heatmaps(clean.heatmap, alone)
    found["stability_rank"], found["stability_ssim"] = (
        part[0] for part in compare_heatmaps(clean.heatmap, [again])
    )
    found["empty"] = torch.tensor([not map_.any() for map_ in cascade]).sum()
    return {**found, "stability_of": of, "maps": [clean.heatmap, *cascade]}


# ── pictures ──


def draw_trust_curves(results: Mapping[str, Any]) -> Tensor:
    """Curves of one image: deletion, insertion, and how the maps of randomized networks are like its map."""
    removed = torch.linspace(0, 1, len(results["deletion"])).tolist()
    plots: list[LinePlot] = []
    for name, axis in (
        ("deletion", "share of pixels turned gray"),
        ("insertion", "share of pixels made sharp"),
    ):
        curves = {
            name_: (removed, results[key].tolist())
            for name_, key in (("the map", name), ("shifted maps", f"{name}_chance"))
        }
        plots.append(LinePlot(f"{name.capitalize()}: probability of the class", axis, curves))
    stages = list(range(len(results["cascade_rank"]) + 1))
    likeness = {
        "from the top down": (stages, [1.0, *results["cascade_rank"].tolist()]),
        "one alone": (stages, [1.0, *results["layer_rank"].tolist()]),
        "shifted maps": (stages, [float(results["rank_chance"])] * len(stages)),
    }
    plots.append(
        LinePlot(
            "Randomized: rank correlation of the maps",
            "stage of randomization, from the answer down",
            likeness,
        )
    )
    return draw_line_plots(plots)


def describe_stage(paths: list[str]) -> str:
    """A stage of the randomization in words: its topmost and lowest module."""
    names = [path or "the network's own weights" for path in paths]
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"
