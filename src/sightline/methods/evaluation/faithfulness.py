"""Does a map say what the score depends on? Remove pixels and see.

Deletion and insertion (Petsiuk 2018, section 3.2), sensitivity-n (Ancona 2018, section 4), infidelity (Yeh 2019, definition 2.1).
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from sightline.images.transforms import blur_image
from sightline.models.model import Model

REMOVED_GRAY = 0.5

# Sensitivity-n removes these shares of the image.
REMOVED_SHARES = (0.1, 0.3, 0.5)

# Ancona 2018 removes single pixels. Their subsets hardly differ from one another in what they cost, and their gray dots are an
# unusual input; here they are squares of a side of 1/16 of the image's short side.
SQUARES_PER_SIDE = 16


@dataclass(frozen=True)
class Attribution:
    """A map of one image. `shown` H×W is what the method's picture shows, by which pixels are ordered; `attribution` C×H×W is what
    is added up. A `slope` is the attribution per unit of pixel value, else it is what the pixel itself counts."""

    heatmap: Tensor
    per_channel: Tensor
    is_gradient: bool

    def predict_pixel_drops(self, image: Tensor) -> Tensor:
        """What turning each pixel of the image 3×H×W to gray should take from the score, up to one common factor, H×W."""
        return (
            (self.per_channel * (image - REMOVED_GRAY) if self.is_gradient else self.per_channel)
            .sum(0)
            .double()
        )

    def shift_randomly(self, generator: torch.Generator) -> "Attribution":
        """The same map shifted round the image at random: same values and smoothness, no relation to the picture."""
        height, width = self.heatmap.shape
        by = (
            int(torch.randint(height, (), generator=generator)),
            int(torch.randint(width, (), generator=generator)),
        )
        return Attribution(
            self.heatmap.roll(by, (0, 1)), self.per_channel.roll(by, (1, 2)), self.is_gradient
        )


@dataclass(frozen=True)
class ClassScorer:
    """A network that is asked about one class, with `batch` pictures run at once."""

    model: Model
    index: int
    batch: int

    def compute_logits(self, images: Iterable[Tensor]) -> Tensor:
        """Scores before the softmax of pictures 3×H×W, N×classes, in double precision."""
        found: list[Tensor] = []
        stream = iter(images)
        with torch.no_grad():
            while part := list(islice(stream, self.batch)):
                found.append(self.model.run(torch.stack(part), ["logits"])["logits"].cpu().double())
        return torch.cat(found)

    def compute_scores(self, images: Iterable[Tensor]) -> Tensor:
        """Score of the class before the softmax, N."""
        return self.compute_logits(images)[:, self.index]

    def compute_probabilities(self, images: Iterable[Tensor]) -> Tensor:
        """Probability of the class, N."""
        return self.compute_logits(images).softmax(1)[:, self.index]


# ── deletion and insertion ──


def rank_pixels(heatmap: Tensor, generator: torch.Generator) -> Tensor:
    """Each pixel's place, H×W, when the largest value of the map comes first; equal ones in random order."""
    flat = heatmap.flatten()
    # Without the shuffle, the empty part of a map would be taken row by row from the top.
    shuffle = torch.randperm(len(flat), generator=generator)
    order = shuffle[flat[shuffle].argsort(descending=True, stable=True)]
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order))
    return places.view(heatmap.shape)


def compute_replacement_curves(
    scorer: ClassScorer, start: Tensor, end: Tensor, pixel_ranks: list[Tensor], steps: int
) -> Tensor:
    """Probability of the class while the pixels of `start` become those of `end` in each of K orders, K×(steps + 1)."""

    def pictures() -> Iterator[Tensor]:
        yield from (start, end)  # the same in every order
        for places in pixel_ranks:
            yield from (
                torch.where(places < round(k * places.numel() / steps), end, start)
                for k in range(1, steps)
            )

    found = scorer.compute_probabilities(pictures())
    first, last = found[:2, None, None].expand(2, len(pixel_ranks), 1)
    return torch.cat([first, found[2:].view(len(pixel_ranks), steps - 1), last], 1)


def compute_curve_area(curve: Tensor) -> Tensor:
    """Area under curves …×(steps + 1) over the share of pixels from 0 to 1, by trapezia."""
    return (curve[..., 1:] + curve[..., :-1]).mean(-1) / 2


def measure_deletion_insertion(
    scorer: ClassScorer,
    image: Tensor,
    attribution: Attribution,
    others: list[Attribution],
    *,
    steps: int,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Deletion and insertion of an image 3×H×W by its map, and the mean of those by other maps, with the areas under them."""
    # Petsiuk 2018 has a kernel of 11 pixels at 224, after which classes are often still seen; a twentieth of the side fits every size.
    dim = blur_image(image[None], min(image.shape[-2:]) / 20)[0]
    ends = {"deletion": (image, torch.full_like(image, REMOVED_GRAY)), "insertion": (dim, image)}
    orders = [rank_pixels(one.heatmap, generator) for one in (attribution, *others)]
    found: dict[str, Tensor] = {}
    for name, (start, end) in ends.items():
        drawn = compute_replacement_curves(scorer, start, end, orders, steps)
        found |= {name: drawn[0], f"{name}_chance": drawn[1:].mean(0)}
    for name in ends:
        found |= {
            f"{name}_auc": compute_curve_area(found[name]),
            f"{name}_auc_chance": compute_curve_area(found[f"{name}_chance"]),
        }
    return found


# ── subsets of pixels ──


def compute_square_side(height: int, width: int) -> int:
    """Side in pixels of the squares that sensitivity-n removes; 1 in small images."""
    return max(1, round(min(height, width) / SQUARES_PER_SIDE))


def compute_subset_sizes(height: int, width: int) -> list[int]:
    """The n of sensitivity-n: how many of the squares are removed."""
    side = compute_square_side(height, width)
    return [
        max(1, round(share * math.ceil(height / side) * math.ceil(width / side)))
        for share in REMOVED_SHARES
    ]


def sample_square_subsets(
    height: int, width: int, n: int, count: int, generator: torch.Generator
) -> Tensor:
    """`count` random sets of n squares of the image, as true pixels, count×H×W."""
    side = compute_square_side(height, width)
    rows, columns = math.ceil(height / side), math.ceil(width / side)
    chosen = torch.rand(count, rows * columns, generator=generator).argsort(1) < n
    square = torch.arange(height)[:, None] // side * columns + torch.arange(width)[None] // side
    return chosen[:, square]


def sample_random_squares(
    height: int, width: int, count: int, generator: torch.Generator
) -> Tensor:
    """`count` random squares with a side between an eighth and a half of the image's short side, as true pixels, count×H×W."""
    short = min(height, width)
    masks = torch.zeros(count, height, width, dtype=torch.bool)
    for mask, (size, down, right) in zip(
        masks, torch.rand(count, 3, generator=generator).tolist(), strict=True
    ):
        side = max(1, round(short * (0.125 + 0.375 * size)))
        top, left = int(down * (height - side + 1)), int(right * (width - side + 1))
        mask[top : top + side, left : left + side] = True
    return masks


def measure_sensitivity_infidelity(
    scorer: ClassScorer,
    image: Tensor,
    attribution: Attribution,
    others: list[Attribution],
    *,
    samples: int,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Sensitivity-n for each of the subset sizes and infidelity of an image's map, and the mean of those of other maps."""
    height, width = image.shape[-2:]
    shares = [one.predict_pixel_drops(image) for one in (attribution, *others)]
    found: list[list[Tensor]] = []
    for n in compute_subset_sizes(height, width):
        masks = sample_square_subsets(height, width, n, samples, generator)
        drop = measure_score_drops(scorer, image, masks)
        found.append(
            [compute_pearson_correlation(sum_over_masks(share, masks), drop) for share in shares]
        )
    sensitivity = torch.stack([torch.stack(row) for row in found], 1)
    masks = sample_random_squares(height, width, samples, generator)
    drop = measure_score_drops(scorer, image, masks)
    missed = torch.stack(
        [compute_infidelity(sum_over_masks(share, masks), drop) for share in shares]
    )
    unexplained = missed / drop.square().mean().clamp_min(1e-300)
    told = {"sensitivity": sensitivity, "infidelity": missed, "unexplained": unexplained}
    return {name: value[0] for name, value in told.items()} | {
        f"{name}_chance": value[1:].mean(0) for name, value in told.items()
    }


def measure_score_drops(scorer: ClassScorer, image: Tensor, masks: Tensor) -> Tensor:
    """How far the score falls when the pixels of each mask turn gray, one number for each of K masks K×H×W."""
    found = scorer.compute_scores(gray_out_pixels(image, masks))
    return found[0] - found[1:]


def gray_out_pixels(image: Tensor, masks: Tensor) -> Iterator[Tensor]:
    """The image 3×H×W, then the image with the pixels of each mask gray."""
    yield image
    for mask in masks:
        yield torch.where(mask, torch.full_like(image, REMOVED_GRAY), image)


def sum_over_masks(pixel_drops: Tensor, masks: Tensor) -> Tensor:
    """Sum of a map H×W over each mask, K."""
    return masks.flatten(1).double() @ pixel_drops.flatten().double()


def compute_pearson_correlation(first_values: Tensor, second_values: Tensor) -> Tensor:
    """Pearson correlation of two lists of numbers; 0 where one of them does not vary."""
    parts = [value.double() - value.double().mean() for value in (first_values, second_values)]
    # What is left of equal numbers is rounding.
    if any(
        part.norm() <= 1e-9 * value.double().norm()
        for part, value in zip(parts, (first_values, second_values), strict=True)
    ):
        return torch.zeros((), dtype=torch.float64)
    first, second = (part / part.norm() for part in parts)
    return (first @ second).clamp(-1, 1)


def compute_infidelity(expected: Tensor, drop: Tensor) -> Tensor:
    """Mean squared difference of what a map expects removals to cost, times its best factor β ≥ 0, and what they cost, in score²."""
    # β as in Yeh 2019, section 2.2, so that maps in any unit compare; a negative one would praise the map that says the opposite.
    power = expected.square().mean()
    factor = ((expected * drop).mean() / power).clamp_min(0) if power > 0 else power
    return (factor * expected - drop).square().mean()
