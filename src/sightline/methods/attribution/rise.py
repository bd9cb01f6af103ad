"""RISE: keep random parts of the image, see which of them hold the score (Petsiuk 2018)."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from math import ceil
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.methods.attribution.masking import (
    MAX_OCCLUSION_BATCH,
    FillKind,
    LabelChoice,
    choose_class_indices,
    draw_score_panel,
    make_fill_images,
)
from sightline.models.model import Model
from sightline.models.tracing.batch_size import choose_batch_size
from sightline.registry.method import AttributionSpec, register_method
from sightline.registry.parameter import ValueRange
from sightline.registry.progress import Callback, Step
from sightline.registry.result import Result

ScoreKind = Literal["probability", "logit"]


@register_method(
    chapter="analytical",
    title="RISE",
    question="Which parts, kept while others are hidden at random, hold the answer?",
    reading="Red: while this place is visible, the score is higher than over all random masks. Blue: it is lower.",
    caution="An average over random masks: a faint pattern without a shape is the luck of the draw, and another seed or more masks change it. "
    "The map is as coarse as the cells of the masks.",
    tour_runs=({"masks": 150, "cells": 4},),
    quick_parameters={"masks": 100},
    # Every randomized network is asked again. Few masks need large cells, or the map is little but luck.
    attribution=AttributionSpec(
        "evidence", costly_kinds=True, test_parameters={"masks": 150, "cells": 4}
    ),
)
def rise(
    model: Model,
    image: Tensor,
    *,
    label: LabelChoice = "top",
    masks: Annotated[int, ValueRange(1, 100_000)] = 2000,
    cells: Annotated[int, ValueRange(1, 64)] = 7,
    keep: Annotated[float, ValueRange(0.01, 0.99)] = 0.5,
    fill: Annotated[float | FillKind, ValueRange(0, 1)] = 0.5,
    score: ScoreKind = "probability",
    batch: Annotated[int | None, ValueRange(1, 4096)] = None,
    memory: Annotated[float, ValueRange(0.001, 1024)] = 1.0,
    seed: int = 0,
    callback: Callback | None = None,
) -> Result:
    """Hides random smooth parts of the image and averages the masks, each weighed by the score it leaves (Petsiuk 2018, eq. 6).

    `values["map"]` is N×H×W: the mean score with this pixel visible; `values["mean"]` N the mean over all masks, and `values["evidence"]`
    how far the map lies above it; `values["score"]` N that of the clean image, `values["masks"]` how many were tried. A list of labels, however short, adds an axis after the images.
    All labels and all images have the same masks.

    Args:
        label: Class to ask about, or a list of them: an index, a name or an unambiguous part of one, or "top" for the predicted class.
        masks: How many random masks.
        cells: Cells of a mask along each side, kept or hidden by chance, then enlarged smoothly and shifted.
        keep: Chance that a cell is kept.
        fill: What hides: a gray value in [0, 1], or "gray" (0.5), "zero" (black), "mean" (the image's mean colour), "blur" (the image, blurred).
        score: What is averaged, "probability" after the softmax or "logit" before.
        batch: How many masked images are run at once; None for as many as are fastest on a processor, or as `memory` allows, at most 32.
    """
    height, width = image.shape[-2:]
    index, covers = (
        choose_class_indices(model, label, image),
        make_fill_images(image, fill, max(height, width) // cells),
    )
    average = RiseAverage(model, image, covers, index, score)
    at_once = batch or min(
        MAX_OCCLUSION_BATCH, choose_batch_size(model, image, memory, gradients=False)
    )
    stream = sample_rise_masks((height, width), cells, keep, masks, seed)
    for step in range(1, ceil(masks / at_once) + 1):
        shown, scores = average.add_masks(torch.stack(list(islice(stream, at_once))))
        if callback and callback(Step(step, ceil(masks / at_once), scores, shown)):
            break
    found, mean, clean = (
        average.attribution,
        average.mean_score,
        average.compute_scores(image).cpu(),
    )
    evidence = found - mean[:, :, None, None]
    panel, limit = draw_score_panel(image, evidence, clean)
    several = isinstance(label, (tuple, list))
    details = ", ".join(
        f"{model.labels[i]} ({a:.3g}, {b:.3g})"
        for i, a, b in zip(index[0], clean[0].tolist(), mean[0].tolist(), strict=True)
    )
    caption = (
        f"Image, then how far the mean {score} over the masks that show a pixel lies above that over all {average.count} masks (white 0, "
        f"±{limit:.3g} full colour){', one map for each label' if several else ', and both'}. Label, its clean {score} and its mean: {details}."
    )
    values = {"map": found, "mean": mean, "evidence": evidence, "score": clean, "label": index}
    values = {name: value if several else value[:, 0] for name, value in values.items()}
    return Result({"rise": panel}, {**values, "masks": average.count}, {"rise": caption})


def sample_rise_masks(
    size: tuple[int, int], cells: int, keep: float, count: int, seed: int
) -> Iterator[Tensor]:
    """Random masks of `size`, in [0, 1] (Petsiuk 2018, section 3.3): cells×cells of 0 and 1, enlarged bilinearly, cropped at a random place."""
    (height, width), generator = size, torch.Generator().manual_seed(seed)
    rows, columns = ceil(height / cells), ceil(width / cells)
    for _ in range(count):
        grid = (torch.rand(1, 1, cells, cells, generator=generator) < keep).float()
        large = F.interpolate(
            grid,
            size=((cells + 1) * rows, (cells + 1) * columns),
            mode="bilinear",
            align_corners=False,
        )[0, 0]
        top, left = (int(torch.randint(side, (), generator=generator)) for side in (rows, columns))
        yield large[top : top + height, left : left + width].clamp_max(1)


@dataclass
class RiseAverage:
    """Sums over masks: of the masks, of the scores, and of the masks weighed by the scores of the labels `index`, N×L."""

    model: Model
    image: Tensor
    fills: Tensor
    index: Tensor
    score_kind: ScoreKind

    def __post_init__(self) -> None:
        size = self.image.shape[-2:]
        self.count, self.visibility = 0, torch.zeros(size, dtype=torch.float64)
        self.score_sum = torch.zeros(self.index.shape, dtype=torch.float64)
        self.weighted_sum = torch.zeros(*self.index.shape, *size, dtype=torch.float64)

    def add_masks(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Takes in masks B×H×W; gives the images under the last of them, N×3×H×W, and their scores of the first label, N."""
        images = zip(self.image.split(1), self.fills.split(1), strict=True)
        masked = [
            cover.cpu() + (image.cpu() - cover.cpu()) * masks[:, None] for image, cover in images
        ]
        scores = (
            torch.stack([self.compute_scores(some, i) for i, some in enumerate(masked)])
            .cpu()
            .double()
        )
        self.count, self.visibility = (
            self.count + len(masks),
            self.visibility + masks.double().sum(0),
        )
        self.score_sum += scores.sum(1)
        self.weighted_sum += torch.einsum("nbl,bhw->nlhw", scores, masks.double())
        return torch.stack([some[-1] for some in masked]), scores[:, -1, 0].float()

    def compute_scores(self, images: Tensor, image_index: int | None = None) -> Tensor:
        """Scores B×L of pictures B×3×H×W: of the labels of image `of`, or each of its own."""
        with torch.no_grad():
            logits = self.model.run(images, ["logits"])["logits"]
            index = (
                self.index
                if image_index is None
                else self.index[image_index : image_index + 1].expand(len(images), -1)
            )
            return (logits.softmax(1) if self.score_kind == "probability" else logits).gather(
                1, index
            )

    @property
    def mean_score(self) -> Tensor:
        """Mean score over the masks, N×L."""
        return (self.score_sum / self.count).float()

    @property
    def attribution(self) -> Tensor:
        """Mean score weighed by how visible each pixel is, N×L×H×W; where a pixel never is, the mean score."""
        # The paper divides by the expected visibility, keep × masks. By the masks' own, luck in it does not show as evidence.
        seen = self.visibility > 1e-6
        return torch.where(
            seen,
            self.weighted_sum / self.visibility.clamp_min(1e-6),
            self.mean_score.double()[:, :, None, None],
        ).float()
