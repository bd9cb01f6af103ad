"""RISE: keep random parts of the image, see which of them hold the score (Petsiuk 2018)."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from math import ceil
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ...ascend import Callback, Step
from ...catalog import Map, method
from ...knobs import Between
from ...memory import worthwhile
from ...model import Model
from ...result import Result
from .occlusion import MOST, Fill, Labels, chosen, covers_of, pictured

Score = Literal["probability", "logit"]


@method(
    title="RISE",
    question="Which parts, kept while others are hidden at random, hold the answer?",
    reading="Red: while this place is visible, the score is higher than over all random masks. Blue: it is lower.",
    caution="An average over random masks: a faint pattern without a shape is the luck of the draw, and another seed or more masks change it. "
    "The map is as coarse as the cells of the masks.",
    tour=({"masks": 150, "cells": 4},),
    quick={"masks": 100},
    # Every randomized network is asked again. Few masks need large cells, or the map is little but luck.
    map=Map("evidence", costly=True, knobs={"masks": 150, "cells": 4}),
)
def rise(
    model: Model,
    image: Tensor,
    *,
    label: Labels = "top",
    masks: Annotated[int, Between(1, 100_000)] = 2000,
    cells: Annotated[int, Between(1, 64)] = 7,
    keep: Annotated[float, Between(0.01, 0.99)] = 0.5,
    fill: Annotated[float | Fill, Between(0, 1)] = 0.5,
    score: Score = "probability",
    batch: Annotated[int | None, Between(1, 4096)] = None,
    memory: Annotated[float, Between(0.001, 1024)] = 1.0,
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
    index, covers = chosen(model, label, image), covers_of(image, fill, max(height, width) // cells)
    average = Average(model, image, covers, index, score)
    at_once = batch or min(MOST, worthwhile(model, image, memory, gradients=False))
    stream = masks_of((height, width), cells, keep, masks, seed)
    for step in range(1, ceil(masks / at_once) + 1):
        shown, scores = average.add(torch.stack(list(islice(stream, at_once))))
        if callback and callback(Step(step, ceil(masks / at_once), scores, shown)):
            break
    found, mean, clean = average.map, average.mean, average.scores(image).cpu()
    evidence = found - mean[:, :, None, None]
    panel, limit = pictured(image, evidence, clean)
    several = isinstance(label, (tuple, list))
    details = ", ".join(
        f"{model.labels[i]} ({a:.3g}, {b:.3g})" for i, a, b in zip(index[0], clean[0].tolist(), mean[0].tolist(), strict=True)
    )
    caption = (
        f"Image, then how far the mean {score} over the masks that show a pixel lies above that over all {average.count} masks (white 0, "
        f"±{limit:.3g} full colour){', one map for each label' if several else ', and both'}. Label, its clean {score} and its mean: {details}."
    )
    values = {"map": found, "mean": mean, "evidence": evidence, "score": clean, "label": index}
    values = {name: value if several else value[:, 0] for name, value in values.items()}
    return Result({"rise": panel}, {**values, "masks": average.count}, {"rise": caption})


def masks_of(size: tuple[int, int], cells: int, keep: float, count: int, seed: int) -> Iterator[Tensor]:
    """Random masks of `size`, in [0, 1] (Petsiuk 2018, section 3.3): cells×cells of 0 and 1, enlarged bilinearly, cropped at a random place."""
    (height, width), generator = size, torch.Generator().manual_seed(seed)
    rows, columns = ceil(height / cells), ceil(width / cells)
    for _ in range(count):
        grid = (torch.rand(1, 1, cells, cells, generator=generator) < keep).float()
        large = F.interpolate(grid, size=((cells + 1) * rows, (cells + 1) * columns), mode="bilinear", align_corners=False)[0, 0]
        top, left = (int(torch.randint(side, (), generator=generator)) for side in (rows, columns))
        yield large[top : top + height, left : left + width].clamp_max(1)


@dataclass
class Average:
    """Sums over masks: of the masks, of the scores, and of the masks weighed by the scores of the labels `index`, N×L."""

    model: Model
    image: Tensor
    covers: Tensor
    index: Tensor
    score: Score

    def __post_init__(self) -> None:
        size = self.image.shape[-2:]
        self.count, self.visible = 0, torch.zeros(size, dtype=torch.float64)
        self.total = torch.zeros(self.index.shape, dtype=torch.float64)
        self.weighed = torch.zeros(*self.index.shape, *size, dtype=torch.float64)

    def add(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Takes in masks B×H×W; gives the images under the last of them, N×3×H×W, and their scores of the first label, N."""
        images = zip(self.image.split(1), self.covers.split(1), strict=True)
        masked = [cover.cpu() + (image.cpu() - cover.cpu()) * masks[:, None] for image, cover in images]
        scores = torch.stack([self.scores(some, i) for i, some in enumerate(masked)]).cpu().double()
        self.count, self.visible = self.count + len(masks), self.visible + masks.double().sum(0)
        self.total += scores.sum(1)
        self.weighed += torch.einsum("nbl,bhw->nlhw", scores, masks.double())
        return torch.stack([some[-1] for some in masked]), scores[:, -1, 0].float()

    def scores(self, pictures: Tensor, of: int | None = None) -> Tensor:
        """Scores B×L of pictures B×3×H×W: of the labels of image `of`, or each of its own."""
        with torch.no_grad():
            logits = self.model.run(pictures, ["logits"])["logits"]
            index = self.index if of is None else self.index[of : of + 1].expand(len(pictures), -1)
            return (logits.softmax(1) if self.score == "probability" else logits).gather(1, index)

    @property
    def mean(self) -> Tensor:
        """Mean score over the masks, N×L."""
        return (self.total / self.count).float()

    @property
    def map(self) -> Tensor:
        """Mean score weighed by how visible each pixel is, N×L×H×W; where a pixel never is, the mean score."""
        # The paper divides by the expected visibility, keep × masks. By the masks' own, luck in it does not show as evidence.
        seen = self.visible > 1e-6
        return torch.where(seen, self.weighed / self.visible.clamp_min(1e-6), self.mean.double()[:, :, None, None]).float()
