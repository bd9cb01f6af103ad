"""Does an attribution say what the score depends on? Remove pixels and measure the score.

Deletion and insertion (Petsiuk 2018, section 3.2), sensitivity-n (Ancona 2018, section 4),
infidelity (Yeh 2019, definition 2.1).
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from sightline.images.transforms import blur_image
from sightline.models.model import Model

REMOVED_GRAY = 0.5

# Sensitivity-n removes these shares of the image.
REMOVED_SHARES = (0.1, 0.3, 0.5)

# Ancona 2018 removes single pixels. Random sets of single pixels hardly differ in what they cost,
# and their gray dots are an unusual input. Here squares are removed, with a side of 1/16 of the
# image's short side.
SQUARES_PER_SIDE = 16

# Random squares of the infidelity have sides between these shares of the image's short side.
MIN_SQUARE_SHARE = 0.125
MAX_SQUARE_SHARE = 0.5


@dataclass(frozen=True)
class Attribution:
    """An attribution of one image.

    `heatmap` H×W is what the method's picture shows; it orders the pixels. `per_channel` C×H×W is
    what is summed over sets of pixels: a contribution to the score, or, if `is_gradient`, the
    change of the score per unit of pixel value.
    """

    heatmap: Tensor
    per_channel: Tensor
    is_gradient: bool

    def predict_pixel_drops(self, image: Tensor) -> Tensor:
        """The predicted drop of the score when a pixel of the image 3×H×W turns gray, H×W.

        It is known up to one common factor.
        """
        drops = self.per_channel
        if self.is_gradient:
            drops = drops * (image - REMOVED_GRAY)
        return drops.sum(0).double()

    def shift_randomly(self, generator: torch.Generator) -> "Attribution":
        """The attribution shifted by a random offset, wrapped round the border of the image.

        It keeps its values and its smoothness, and loses any relation to the image.
        """
        height, width = self.heatmap.shape
        row_shift = int(torch.randint(height, (), generator=generator))
        column_shift = int(torch.randint(width, (), generator=generator))
        shifts = (row_shift, column_shift)
        return Attribution(
            heatmap=self.heatmap.roll(shifts, (-2, -1)),
            per_channel=self.per_channel.roll(shifts, (-2, -1)),
            is_gradient=self.is_gradient,
        )


@dataclass(frozen=True)
class ClassScorer:
    """A network's output for one class; `batch` images are run at once."""

    model: Model
    index: int
    batch: int

    def compute_logits(self, images: Iterable[Tensor]) -> Tensor:
        """Scores of all classes before the softmax for images 3×H×W, N×classes, in float64."""
        logits: list[Tensor] = []
        stream = iter(images)
        with torch.no_grad():
            while chunk := list(islice(stream, self.batch)):
                outputs = self.model.run(torch.stack(chunk), ["logits"])
                logits.append(outputs["logits"].cpu().double())
        return torch.cat(logits)

    def compute_scores(self, images: Iterable[Tensor]) -> Tensor:
        """Score of the class before the softmax, N."""
        return self.compute_logits(images)[:, self.index]

    def compute_probabilities(self, images: Iterable[Tensor]) -> Tensor:
        """Probability of the class, N."""
        return self.model.to_probabilities(self.compute_logits(images))[:, self.index]


# ── deletion and insertion ──


@dataclass(frozen=True)
class DeletionInsertion:
    """Curves of steps + 1 class probabilities, and the areas under them.

    `…_chance` is the mean over other attributions.
    """

    deletion: Tensor
    deletion_chance: Tensor
    insertion: Tensor
    insertion_chance: Tensor
    deletion_auc: Tensor
    deletion_auc_chance: Tensor
    insertion_auc: Tensor
    insertion_auc_chance: Tensor


def measure_deletion_insertion(
    scorer: ClassScorer,
    image: Tensor,
    attribution: Attribution,
    references: Sequence[Attribution],
    *,
    steps: int,
    generator: torch.Generator,
) -> DeletionInsertion:
    """Deletion and insertion of an image 3×H×W by its attribution; chance is by `references`."""
    # Petsiuk 2018 blurs with a kernel of 11 pixels at a side of 224, where classes can often still
    # be recognized. A twentieth of the short side suits every size.
    blurred = blur_image(image[None], min(image.shape[-2:]) / 20)[0]
    gray = torch.full_like(image, REMOVED_GRAY)
    pixel_ranks = [rank_pixels(item.heatmap, generator) for item in (attribution, *references)]

    deletion = compute_replacement_curves(scorer, image, gray, pixel_ranks, steps)
    insertion = compute_replacement_curves(scorer, blurred, image, pixel_ranks, steps)
    deletion_chance = deletion[1:].mean(0)
    insertion_chance = insertion[1:].mean(0)
    return DeletionInsertion(
        deletion=deletion[0],
        deletion_chance=deletion_chance,
        insertion=insertion[0],
        insertion_chance=insertion_chance,
        deletion_auc=compute_curve_area(deletion[0]),
        deletion_auc_chance=compute_curve_area(deletion_chance),
        insertion_auc=compute_curve_area(insertion[0]),
        insertion_auc_chance=compute_curve_area(insertion_chance),
    )


def rank_pixels(heatmap: Tensor, generator: torch.Generator) -> Tensor:
    """Each pixel's rank, H×W: 0 for the largest value; equal values in random order."""
    values = heatmap.flatten()
    # Without the shuffle, the empty part of a heatmap would be ranked row by row from the top.
    shuffle = torch.randperm(len(values), generator=generator)
    order = values[shuffle].argsort(descending=True, stable=True)
    pixels_by_rank = shuffle[order]
    ranks = torch.empty_like(pixels_by_rank)
    ranks[pixels_by_rank] = torch.arange(len(values))
    return ranks.view(heatmap.shape)


def compute_replacement_curves(
    scorer: ClassScorer, start: Tensor, end: Tensor, pixel_ranks: Sequence[Tensor], steps: int
) -> Tensor:
    """Probability of the class while the pixels of `start` are replaced by those of `end`.

    Each of K orders gives one curve: K×(steps + 1).
    """

    def iterate_images() -> Iterator[Tensor]:
        # The first and the last point are the same in every order.
        yield start
        yield end
        for ranks in pixel_ranks:
            for step in range(1, steps):
                is_replaced = ranks < round(step * ranks.numel() / steps)
                yield torch.where(is_replaced, end, start)

    probabilities = scorer.compute_probabilities(iterate_images())
    count = len(pixel_ranks)
    first = probabilities[0].expand(count, 1)
    last = probabilities[1].expand(count, 1)
    between = probabilities[2:].view(count, steps - 1)
    return torch.cat([first, between, last], 1)


def compute_curve_area(curve: Tensor) -> Tensor:
    """Area under curves …×(steps + 1) over the share of pixels from 0 to 1, by trapezoids."""
    return (curve[..., 1:] + curve[..., :-1]).mean(-1) / 2


# ── removal of sets of pixels ──


@dataclass(frozen=True)
class RemovalScores:
    """How well an attribution predicts the drops of the score when sets of pixels are removed.

    `sensitivity` has one correlation for each subset size; `infidelity` is in score²;
    `unexplained` is its share of the mean squared drop, 0 to 1. `…_chance` is the mean over other
    attributions.
    """

    sensitivity: Tensor
    infidelity: Tensor
    unexplained: Tensor
    sensitivity_chance: Tensor
    infidelity_chance: Tensor
    unexplained_chance: Tensor


def measure_sensitivity_infidelity(
    scorer: ClassScorer,
    image: Tensor,
    attribution: Attribution,
    references: Sequence[Attribution],
    *,
    samples: int,
    generator: torch.Generator,
) -> RemovalScores:
    """Sensitivity-n and infidelity of an image's attribution; chance is by `references`.

    `samples` random sets of pixels are removed for each subset size and for the infidelity.
    """
    height, width = image.shape[-2:]
    pixel_drops = [item.predict_pixel_drops(image) for item in (attribution, *references)]

    correlations: list[Tensor] = []
    for n in compute_subset_sizes(height, width):
        masks = sample_square_subsets(height, width, n, samples, generator)
        drops = measure_score_drops(scorer, image, masks)
        predictions = [sum_over_masks(pixels, masks) for pixels in pixel_drops]
        by_attribution = [compute_pearson_correlation(sums, drops) for sums in predictions]
        correlations.append(torch.stack(by_attribution))
    sensitivity = torch.stack(correlations, 1)  # attributions × subset sizes

    masks = sample_random_squares(height, width, samples, generator)
    drops = measure_score_drops(scorer, image, masks)
    predictions = [sum_over_masks(pixels, masks) for pixels in pixel_drops]
    infidelity = torch.stack([compute_infidelity(sums, drops) for sums in predictions])
    unexplained = infidelity / drops.square().mean().clamp_min(1e-300)
    return RemovalScores(
        sensitivity=sensitivity[0],
        infidelity=infidelity[0],
        unexplained=unexplained[0],
        sensitivity_chance=sensitivity[1:].mean(0),
        infidelity_chance=infidelity[1:].mean(0),
        unexplained_chance=unexplained[1:].mean(0),
    )


def compute_square_side(height: int, width: int) -> int:
    """Side in pixels of the squares that sensitivity-n removes; 1 in small images."""
    return max(1, round(min(height, width) / SQUARES_PER_SIDE))


def compute_subset_sizes(height: int, width: int) -> list[int]:
    """The n of sensitivity-n: numbers of squares that are removed."""
    side = compute_square_side(height, width)
    square_count = math.ceil(height / side) * math.ceil(width / side)
    return [max(1, round(share * square_count)) for share in REMOVED_SHARES]


def sample_square_subsets(
    height: int, width: int, n: int, count: int, generator: torch.Generator
) -> Tensor:
    """`count` random sets of n squares of the image, as boolean masks count×H×W."""
    side = compute_square_side(height, width)
    rows = math.ceil(height / side)
    columns = math.ceil(width / side)
    draws = torch.rand(count, rows * columns, generator=generator)
    is_removed = draws.argsort(1) < n

    square_rows = torch.arange(height)[:, None] // side
    square_columns = torch.arange(width)[None] // side
    square_of_pixel = square_rows * columns + square_columns
    return is_removed[:, square_of_pixel]


def sample_random_squares(
    height: int, width: int, count: int, generator: torch.Generator
) -> Tensor:
    """`count` random squares as boolean masks count×H×W.

    Their side lies between an eighth and a half of the image's short side.
    """
    short_side = min(height, width)
    share_range = MAX_SQUARE_SHARE - MIN_SQUARE_SHARE
    masks = torch.zeros(count, height, width, dtype=torch.bool)
    draws = torch.rand(count, 3, generator=generator).tolist()
    for mask, (size_draw, row_draw, column_draw) in zip(masks, draws, strict=True):
        share = MIN_SQUARE_SHARE + share_range * size_draw
        side = max(1, round(short_side * share))
        row = int(row_draw * (height - side + 1))
        column = int(column_draw * (width - side + 1))
        mask[row : row + side, column : column + side] = True
    return masks


def measure_score_drops(scorer: ClassScorer, image: Tensor, masks: Tensor) -> Tensor:
    """How far the score falls when the pixels of a mask turn gray, for each of K masks K×H×W."""

    def iterate_images() -> Iterator[Tensor]:
        yield image
        gray = torch.full_like(image, REMOVED_GRAY)
        for mask in masks:
            yield torch.where(mask, gray, image)

    scores = scorer.compute_scores(iterate_images())
    return scores[0] - scores[1:]


def sum_over_masks(pixel_drops: Tensor, masks: Tensor) -> Tensor:
    """Sum of the values H×W over each mask, K."""
    return masks.flatten(1).double() @ pixel_drops.flatten().double()


def compute_pearson_correlation(first_values: Tensor, second_values: Tensor) -> Tensor:
    """Pearson correlation of two vectors; 0 where one of them is constant up to rounding."""
    from scipy.stats import pearsonr

    vectors = (first_values.double(), second_values.double())
    for vector in vectors:
        deviation = vector - vector.mean()
        if deviation.norm() <= 1e-9 * vector.norm():
            return torch.zeros((), dtype=torch.float64)
    correlation: Any = pearsonr(*(vector.numpy() for vector in vectors))
    return torch.tensor(float(correlation.statistic), dtype=torch.float64)


def compute_infidelity(expected: Tensor, drops: Tensor) -> Tensor:
    """Mean squared difference of β · expected drops and drops, in score², at the best β ≥ 0."""
    # β as in Yeh 2019, section 2.2, makes attributions of any unit comparable. A negative one would
    # reward an attribution that says the opposite.
    power = expected.square().mean()
    factor = power
    if power > 0:
        factor = ((expected * drops).mean() / power).clamp_min(0)
    return (factor * expected - drops).square().mean()
