"""Saliency by occlusion (Zeiler & Fergus 2014, section 4.2): cover a window, measure the score."""

from typing import Annotated

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.plotting.figures import Heatmap
from sightline.methods.attribution.masking import (
    FillKind,
    LabelChoice,
    check_labels,
    choose_class_indices,
    describe_score_panel,
    draw_score_panel,
    make_fill_images,
    squeeze_single_label,
)
from sightline.models.heads.target_text import TargetChoice
from sightline.models.model import Model
from sightline.models.tracing.incremental import score_occluded_windows
from sightline.models.tracing.windows import OcclusionScores, OcclusionWindows
from sightline.registry.method import AttributionSpec, register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.result import Result


@register_method(
    chapter="analytical",
    title="Saliency by occlusion",
    question="Which regions of the image does the score depend on? Cover them and measure.",
    reading="Red: covering this region lowers the class score, so the network used it. "
    "Blue: covering it raises the score.",
    caution="The gray patch is itself unusual input, and regions that can replace each other show "
    "little. The attribution is as coarse as the window.",
    quick_parameters={"stride": 16, "window": 32},
    # The default stride of 8 has four times as many windows, and the trust test runs them for every
    # randomized network.
    attribution=AttributionSpec("drop", costly_kinds=True, test_parameters={"stride": 16}),
)
def occlusion(
    model: Model,
    image: Tensor,
    *,
    label: LabelChoice = "top",
    target: TargetChoice | None = None,
    window: Annotated[int, ValueRange(1, 1024)] = 16,
    stride: Annotated[int, ValueRange(1, 1024)] = 8,
    fill: Annotated[float | FillKind, ValueRange(0, 1)] = 0.5,
    batch: Annotated[int | None, ValueRange(1, 4096)] = None,
    memory: Annotated[float, ValueRange(0.001, 1024)] = 1.0,
    incremental: bool = True,
) -> Result:
    """Slides a covered window over the image and records the drop of a class score.

    Windows lie fully inside the image, top-left corners at multiples of the stride. Where these do
    not reach the lower or right edge, one more row or column of windows ends there.
    `values["drop"]`, N×rows×columns, is score(clean) − score(covered) before the softmax.
    `values["attribution"]`, N×H×W and signed, is at each pixel the mean drop over the windows that
    cover it, 0 where none does; the picture shows it. `values["score"]` and `values["label"]`, N
    each, are the clean score and the class index.

    For a list of labels, however short, these have an axis of labels after the images:
    N×L×rows×columns, N×L×H×W and N×L. All labels cost as much as one.

    Of the first image, `values["incremental"]` is the share of the network's multiply-adds that
    were computed incrementally, and `values["speedup_bound"]` the multiply-adds of running every
    covered image whole over those spent. `values["fallback"]` says why nothing was computed
    incrementally: the operation that can't be followed, or that it would take no less time. It is
    empty where something was.

    Args:
        label: Class whose score is followed, or a list of them: an index, a name or an unambiguous
            part of one, or "top" for the predicted class.
        window: Side of the covered square in pixels.
        stride: Pixels between neighbouring windows.
        fill: What replaces the covered pixels: a gray value in [0, 1], or "gray" (0.5), "zero"
            (black), "mean" (the image's mean colour), "blur" (the blurred image).
        batch: How many covered images are run at once; None for the fastest number that `memory`
            allows, at most 64.
        incremental: Whether only what a window can affect is computed anew, where that is faster
            (the scores are the same), or every covered image as a whole.
    """
    model = model.with_target(target)
    height, width = image.shape[-2:]
    if window > min(height, width):
        raise SightlineError(
            f"window is {window}; it must lie between 1 and {min(height, width)}, "
            "the image's shorter side"
        )
    row_starts = list_window_starts(height, window, stride)
    column_starts = list_window_starts(width, window, stride)
    positions = [(row, column) for row in row_starts for column in column_starts]

    fills = make_fill_images(image, fill, window)
    check_labels(model, label)
    runs: list[OcclusionScores] = []
    for single_image, single_fill in zip(image.split(1), fills.split(1), strict=True):

        def choose_labels(logits: Tensor, single_image: Tensor = single_image) -> Tensor:
            return choose_class_indices(model, label, single_image, logits)[0]

        runs.append(
            score_occluded_windows(
                model,
                OcclusionWindows(single_image, single_fill, positions, window),
                choose_labels,
                batch=batch,
                gigabytes=memory,
                incremental=incremental,
            )
        )
    index = torch.stack([run.label_indices for run in runs])
    clean_scores = torch.stack([run.clean_scores for run in runs]).cpu()
    occluded_scores = torch.stack([run.scores.T.cpu() for run in runs])  # N×L×windows
    grid = (len(row_starts), len(column_starts))
    drop = clean_scores[:, :, None, None] - occluded_scores.unflatten(2, grid)
    attribution = average_drops_per_pixel(drop, positions, window, height, width)

    panel, limit = draw_score_panel(model.to_picture(image), attribution, clean_scores)
    caption = (
        f"Image, mean drop of the score over the {window}×{window} windows that cover each pixel "
        f"(white 0, ±{limit:.3g} full colour), {describe_score_panel(label)}. "
        "Label, its clean score and the largest drop: "
        f"{describe_drops(model, index[0], clean_scores[0], drop[0])}."
    )
    per_label = {
        "attribution": attribution,
        "drop": drop,
        "score": clean_scores,
        "label": index,
    }
    values = {
        **squeeze_single_label(per_label, label),
        "incremental": runs[0].localized_share,
        "speedup_bound": runs[0].speedup_bound,
        "fallback": runs[0].fallback,
    }
    chosen = {"batch": batch or runs[0].batch or None}
    description = (
        f"Mean drop of the score over the {window}×{window} windows that cover each pixel. "
        "Label, its clean score and the largest drop: "
        f"{describe_drops(model, index[0], clean_scores[0], drop[0])}."
    )
    return Result(
        {"occlusion": panel},
        values,
        {"occlusion": caption},
        figures={"occlusion": Heatmap(attribution[0, 0], limit, True, description)},
        chosen=chosen,
    )


def list_window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows start along one axis: at multiples of the stride, and a last one at the edge.

    With a stride larger than the window, pixels between two windows are still left out.
    """
    starts = list(range(0, length - window + 1, stride))
    if starts[-1] + window < length:
        starts.append(length - window)
    return starts


def average_drops_per_pixel(
    drops: Tensor, positions: list[tuple[int, int]], window: int, height: int, width: int
) -> Tensor:
    """Drops …×rows×columns as …×H×W: each pixel's mean over the windows that cover it.

    It is 0 where no window lies. `positions` are the top-left corners (row, column) of the windows,
    in the order of the drops.
    """
    total = torch.zeros(*drops.shape[:-2], height, width)
    cover_count = torch.zeros(height, width)
    drop_by_window = drops.flatten(-2).unbind(-1)
    for (row, column), window_drop in zip(positions, drop_by_window, strict=True):
        covered_rows = slice(row, row + window)
        covered_columns = slice(column, column + window)
        total[..., covered_rows, covered_columns] += window_drop[..., None, None]
        cover_count[covered_rows, covered_columns] += 1
    return total / cover_count.clamp_min(1)


def describe_drops(model: Model, index: Tensor, clean_scores: Tensor, drops: Tensor) -> str:
    """Label, clean score and largest drop of one image's L labels; drops are L×rows×columns."""
    largest_drops = drops.flatten(1).amax(1)
    descriptions: list[str] = []
    for i, label_index in enumerate(index.tolist()):
        label_name = model.labels[label_index]
        descriptions.append(
            f"{label_name} ({float(clean_scores[i]):.2f}, {float(largest_drops[i]):.2f})"
        )
    return ", ".join(descriptions)
