"""The gradient of an objective for images of any size: tile by tile with overlap, so that memory is bounded by the tile."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from sightline.models.model import Model
from sightline.models.outputs import differentiate_scores
from sightline.optim.objectives.objective import Objective

OVERLAP_DIVISOR = 4  # neighbours share this part of a tile: a fourth


def compute_tile_starts(length: int, tile_side: int) -> list[int]:
    """Where tiles begin along one axis: evenly spaced, the last ending at `length`, neighbours sharing at least a fourth of a tile."""
    if length <= tile_side:
        return [0]
    step = tile_side - tile_side // OVERLAP_DIVISOR
    count = -(-(length - tile_side) // step) + 1
    return [round(number * (length - tile_side) / (count - 1)) for number in range(count)]


def compute_tile_weights(length: int, tile_side: int) -> list[Tensor]:
    """For each tile along an axis, the share that each of its pixels contributes to the whole: smooth, and 1 in sum everywhere."""
    begins, side = compute_tile_starts(length, tile_side), min(length, tile_side)
    places = torch.arange(side) + 0.5
    weights = list[Tensor]()
    for number in range(len(begins)):
        rise = places if number else torch.full_like(places, torch.inf)
        fall = side - places if number + 1 < len(begins) else torch.full_like(places, torch.inf)
        # A tile is trusted in its middle: near its edges the network sees padding instead of the picture.
        weights.append(
            (torch.minimum(rise, fall) / (tile_side / OVERLAP_DIVISOR))
            .clamp(0, 1)
            .mul(torch.pi / 2)
            .sin()
            .square()
        )
    total = torch.zeros(length)
    for begin, weight in zip(begins, weights, strict=True):
        total[begin : begin + side] += weight
    return [
        weight / total[begin : begin + side] for begin, weight in zip(begins, weights, strict=True)
    ]


def balance_tile_side(length: int, tile_side: int) -> int:
    """The side of tiles along an axis, at most `tile`: no more tiles than needed, and none larger than their overlap of a fourth asks for."""
    count = len(compute_tile_starts(length, tile_side))
    if count == 1:
        return length
    least = length * OVERLAP_DIVISOR / (count * (OVERLAP_DIVISOR - 1) + 1)
    return min(tile_side, -(-math.ceil(least) // 8) * 8)


def split_wrapped_range(begin: int, count: int, length: int) -> list[tuple[slice, slice]]:
    """`count` places from `begin` on, round an axis of `length`: where they lie on the axis, and which of the `count` they are."""
    begin %= length
    first = min(count, length - begin)
    whole = (
        (slice(begin, begin + first), slice(0, first)),
        (slice(0, count - first), slice(first, count)),
    )
    return [part for part in whole if part[1].start < part[1].stop]


@dataclass(frozen=True)
class WrappedTile:
    """A tile, perhaps round the border of the image: what each of its pixels contributes, h×w, and its rows and columns as stretches."""

    weight: Tensor
    row_spans: list[tuple[slice, slice]]
    column_spans: list[tuple[slice, slice]]

    def crop_image(self, image: Tensor) -> Tensor:
        """What lies under the tile, N×3×h×w, a copy."""
        return torch.cat(
            [
                torch.cat([image[..., rows, columns] for columns, _ in self.column_spans], 3)
                for rows, _ in self.row_spans
            ],
            2,
        )

    def add_weighted(self, image: Tensor, tile: Tensor) -> None:
        """Adds the tile's share to the image."""
        tile = tile * self.weight.to(tile.device)
        for (rows, tall), (columns, wide) in product(self.row_spans, self.column_spans):
            image[..., rows, columns] += tile[..., tall, wide]


def iterate_wrapped_tiles(
    height: int, width: int, tile_side: int, shift: tuple[int, int] = (0, 0)
) -> Iterator[WrappedTile]:
    """Every tile.

    The tiles are those of an image moved round by `shift` pixels down and right, as `Tensor.roll` moves it; they lie in the
    image as it is, so that nobody needs to move it.
    """
    tall, wide = balance_tile_side(height, tile_side), balance_tile_side(width, tile_side)
    for top, below in zip(
        compute_tile_starts(height, tall), compute_tile_weights(height, tall), strict=True
    ):
        rows = split_wrapped_range(top - shift[0], len(below), height)
        for left, beside in zip(
            compute_tile_starts(width, wide), compute_tile_weights(width, wide), strict=True
        ):
            yield WrappedTile(
                below[:, None] * beside,
                rows,
                split_wrapped_range(left - shift[1], len(beside), width),
            )


@torch.enable_grad()
def compute_tiled_gradient(
    model: Model,
    objective: Objective,
    image: Tensor,
    tile_side: int,
    shift: tuple[int, int] = (0, 0),
) -> tuple[Tensor, Tensor]:
    """∂objective/∂image of images N×3×H×W, and the objective, N: the mean over tiles of at most `tile`×`tile` pixels.

    An image that is no larger than a tile is one. The network sees the image moved round by `shift` pixels down and right.
    Raises SightlineError where there is no gradient.
    """
    score_of, layers = objective.bind(model), [model.layer(name) for name in objective.layers]
    found, scores = torch.zeros_like(image), list[Tensor]()
    for box in iterate_wrapped_tiles(image.shape[2], image.shape[3], tile_side, shift):
        part = box.crop_image(image).detach().requires_grad_()
        score = score_of(part, model.run(part, layers) if layers else {})
        box.add_weighted(found, differentiate_scores(score, part, "the image"))
        scores.append(score.detach())
    return found, torch.stack(scores).mean(0)


@torch.no_grad()
def compute_tiled_score(
    model: Model, objective: Objective, image: Tensor, tile_side: int
) -> Tensor:
    """The objective of images N×3×H×W alone, N, as `gradient` has it."""
    score_of, layers = objective.bind(model), [model.layer(name) for name in objective.layers]
    parts = (
        box.crop_image(image)
        for box in iterate_wrapped_tiles(image.shape[2], image.shape[3], tile_side)
    )
    return torch.stack(
        [score_of(part, model.run(part, layers) if layers else {}) for part in parts]
    ).mean(0)
