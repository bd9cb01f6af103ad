"""RISE (Petsiuk 2018): hide random regions, average the masks weighted by the score."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from math import ceil
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.images.plotting.figures import Heatmap
from sightline.methods.attribution.masking import (
    FillKind,
    LabelChoice,
    choose_class_indices,
    describe_score_panel,
    draw_score_panel,
    make_fill_images,
    squeeze_single_label,
)
from sightline.models.heads.target_text import TargetChoice
from sightline.models.model import Model
from sightline.models.tracing.batch_size import choose_batch_size
from sightline.registry.method import AttributionSpec, register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.progress import Callback, Step
from sightline.registry.result import Result

ScoreKind = Literal["probability", "logit"]

# A step of the progress shows no more masks.
MAX_MASKS_AT_ONCE = 32

# Below this sum of the masks a pixel was never visible.
MIN_VISIBILITY = 1e-6


@register_method(
    chapter="analytical",
    title="RISE",
    question="Which regions keep the score up while others are hidden at random?",
    reading="Red: while this pixel is visible, the score is higher than over all random masks. "
    "Blue: it is lower.",
    caution="It is an average over random masks: a faint pattern without a shape is chance, and "
    "changes with the seed or with more masks. It is as coarse as the cells of the masks.",
    tour_runs=({"samples": 100, "cells": 4},),
    quick_parameters={"samples": 100},
    former_names={"masks": "samples"},
    # The trust test repeats it for every randomized network. Few masks need large cells; with small
    # ones the attribution would be mostly noise.
    attribution=AttributionSpec(
        "evidence", costly_kinds=True, test_parameters={"samples": 150, "cells": 4}
    ),
)
def rise(
    model: Model,
    image: Tensor,
    *,
    label: LabelChoice = "top",
    target: TargetChoice | None = None,
    samples: Annotated[int, ValueRange(1, 100_000)] = 2000,
    cells: Annotated[int, ValueRange(1, 64)] = 7,
    keep: Annotated[float, ValueRange(0.01, 0.99)] = 0.5,
    fill: Annotated[float | FillKind, ValueRange(0, 1)] = 0.5,
    score: ScoreKind = "probability",
    batch: Annotated[int | None, ValueRange(1, 4096)] = None,
    memory: Annotated[float, ValueRange(0.001, 1024)] = 1.0,
    seed: int = 0,
    callback: Callback | None = None,
) -> Result:
    """Averages random smooth masks weighted by the masked image's score (Petsiuk 2018, eq. 6).

    `values["map"]`, N×H×W, is the mean score while a pixel is visible and `values["mean"]`, N, the
    mean score over all masks. `values["attribution"]`, N×H×W and signed, is the first minus the
    second; the picture shows it (also under its older name, `values["evidence"]`).
    `values["score"]` and `values["label"]`, N each, are the score of the unmasked image and the
    class index; `values["masks"]` is how many masks were run.

    For a list of labels, however short, these have an axis of labels after the images: N×L×H×W and
    N×L. All labels and all images share the masks.

    Args:
        label: Class whose score is followed, or a list of them: an index, a name or an unambiguous
            part of one, or "top" for the predicted class.
        samples: Number of random masks.
        cells: Cells of a mask along each side, each visible or hidden at random, then enlarged
            smoothly and shifted.
        keep: Probability that a cell is visible.
        fill: What replaces hidden pixels: a gray value in [0, 1], or "gray" (0.5), "zero" (black),
            "mean" (the image's mean colour), "blur" (the blurred image).
        score: What is averaged: "probability" (softmax or, where labels don't exclude each other,
            sigmoid) or "logit" before. The score of a target is averaged as it is.
        batch: How many masked images are run at once; None for the fastest number that `memory`
            allows, at most 32.
    """
    model = model.with_target(target)
    height, width = image.shape[-2:]
    index = choose_class_indices(model, label, image)
    fills = make_fill_images(image, fill, max(height, width) // cells)
    average = RiseAverage(model, image, fills, index, score)
    at_once = batch or min(
        MAX_MASKS_AT_ONCE,
        choose_batch_size(model, image, memory, image_count=samples * len(image), gradients=False),
    )
    mask_stream = sample_rise_masks((height, width), cells, keep, samples, seed)
    step_count = ceil(samples / at_once)
    for step in range(1, step_count + 1):
        chunk = torch.stack(list(islice(mask_stream, at_once)))
        masked_images, masked_scores = average.add_masks(chunk)
        if callback and callback(Step(step, step_count, masked_scores, masked_images)):
            break

    visible_score = average.visible_score
    mean_score = average.mean_score
    attribution = visible_score - mean_score[:, :, None, None]
    clean_scores = average.compute_scores(image).cpu()

    panel, limit = draw_score_panel(model.to_picture(image), attribution, clean_scores)
    details = describe_scores(model, index[0], clean_scores[0], mean_score[0])
    caption = (
        f"Image, mean {score} over the masks that show a pixel minus that over all "
        f"{average.count} masks (white 0, ±{limit:.3g} full colour), "
        f"{describe_score_panel(label)}. Label, its {score} on the unmasked image and its mean: "
        f"{details}."
    )
    per_label = {
        "attribution": attribution,
        "map": visible_score,
        "mean": mean_score,
        "evidence": attribution,
        "score": clean_scores,
        "label": index,
    }
    values = {**squeeze_single_label(per_label, label), "masks": average.count}
    description = (
        f"Mean {score} over the masks that show a pixel minus that over all {average.count} masks. "
        f"Label, its {score} on the unmasked image and its mean: {details}."
    )
    return Result(
        {"rise": panel},
        values,
        {"rise": caption},
        figures={"rise": Heatmap(attribution[0, 0], limit, True, description)},
        chosen={"batch": at_once},
    )


def describe_scores(model: Model, index: Tensor, clean_scores: Tensor, mean_score: Tensor) -> str:
    """Label, score on the unmasked image and mean score of one image's L labels."""
    descriptions: list[str] = []
    for i, label_index in enumerate(index.tolist()):
        label_name = model.labels[label_index]
        descriptions.append(
            f"{label_name} ({float(clean_scores[i]):.3g}, {float(mean_score[i]):.3g})"
        )
    return ", ".join(descriptions)


def sample_rise_masks(
    size: tuple[int, int], cells: int, keep: float, count: int, seed: int
) -> Iterator[Tensor]:
    """Random masks H×W in [0, 1] (Petsiuk 2018, section 3.3).

    A grid of cells×cells zeros and ones is enlarged bilinearly to one cell more than the image in
    each direction, and cropped to `size` at a random offset of less than a cell.
    """
    height, width = size
    cell_height = ceil(height / cells)
    cell_width = ceil(width / cells)
    enlarged_size = ((cells + 1) * cell_height, (cells + 1) * cell_width)

    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        draws = torch.rand(1, 1, cells, cells, generator=generator)
        grid = (draws < keep).float()
        enlarged = F.interpolate(grid, size=enlarged_size, mode="bilinear", align_corners=False)

        row = int(torch.randint(cell_height, (), generator=generator))
        column = int(torch.randint(cell_width, (), generator=generator))
        mask = enlarged[0, 0, row : row + height, column : column + width]
        yield mask.clamp_max(1)


@dataclass
class RiseAverage:
    """Running sums over masks: the masks, the scores, and the masks weighted by the scores.

    `image` and `fills` are N×3×H×W, `index` N×L.
    """

    model: Model
    image: Tensor
    fills: Tensor
    index: Tensor
    score_kind: ScoreKind

    def __post_init__(self) -> None:
        size = self.image.shape[-2:]
        self.count = 0
        self.visibility = torch.zeros(size, dtype=torch.float64)
        self.score_sum = torch.zeros(self.index.shape, dtype=torch.float64)
        self.weighted_sum = torch.zeros(*self.index.shape, *size, dtype=torch.float64)

    def add_masks(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Adds masks B×H×W to the sums.

        Returns the images under the last mask, N×3×H×W, and their scores of the first label, N.
        """
        images = self.image.cpu()
        fills = self.fills.cpu()
        mask_planes = masks[:, None]  # B×1×H×W
        last_images: list[Tensor] = []
        scores_by_image: list[Tensor] = []
        for i, (single_image, fill) in enumerate(zip(images, fills, strict=True)):
            masked = fill + (single_image - fill) * mask_planes
            scores_by_image.append(self.compute_scores(masked, i))
            last_images.append(masked[-1])
        scores = torch.stack(scores_by_image).cpu().double()  # N×B×L
        first_label_scores = scores[:, -1, 0].float()

        self.count += len(masks)
        self.visibility += masks.double().sum(0)
        self.score_sum += scores.sum(1)
        self.weighted_sum += torch.einsum("nbl,bhw->nlhw", scores, masks.double())
        return torch.stack(last_images), first_label_scores

    def compute_scores(self, images: Tensor, image_index: int | None = None) -> Tensor:
        """Scores B×L of images B×3×H×W.

        The labels are those of image `image_index` for all of them, or each image's own if it is
        None.
        """
        index = self.index
        if image_index is not None:
            index = index[image_index : image_index + 1].expand(len(images), -1)
        with torch.no_grad():
            scores = self.model.run(images, ["logits"])["logits"]
            if self.score_kind == "probability":
                scores = self.model.to_probabilities(scores)
            return scores.gather(1, index)

    @property
    def mean_score(self) -> Tensor:
        """Mean score over the masks, N×L."""
        return (self.score_sum / self.count).float()

    @property
    def visible_score(self) -> Tensor:
        """Mean score weighted by each pixel's visibility, N×L×H×W.

        Where no mask shows a pixel, it is the mean score.
        """
        # The paper divides by the expected visibility, keep × masks. Dividing by the actual one
        # keeps the chance in it out of the attribution.
        weighted_mean = self.weighted_sum / self.visibility.clamp_min(MIN_VISIBILITY)
        mean = self.mean_score.double()[:, :, None, None]
        is_visible = self.visibility > MIN_VISIBILITY
        return torch.where(is_visible, weighted_mean, mean).float()
