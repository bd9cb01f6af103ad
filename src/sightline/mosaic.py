"""The gradient of an objective for images of any size: tile by tile with overlap, so that memory is bounded by the tile."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .model import Model
from .objective import Objective
from .outputs import slope

OVERLAP = 4  # neighbours share this part of a tile: a fourth


def starts(length: int, tile: int) -> list[int]:
    """Where tiles begin along one axis: evenly spaced, the last ending at `length`, neighbours sharing at least a fourth of a tile."""
    if length <= tile:
        return [0]
    step = tile - tile // OVERLAP
    count = -(-(length - tile) // step) + 1
    return [round(number * (length - tile) / (count - 1)) for number in range(count)]


def shares(length: int, tile: int) -> list[Tensor]:
    """For each tile along an axis, the share that each of its pixels contributes to the whole: smooth, and 1 in sum everywhere."""
    begins, side = starts(length, tile), min(length, tile)
    places = torch.arange(side) + 0.5
    weights = list[Tensor]()
    for number in range(len(begins)):
        rise = places if number else torch.full_like(places, torch.inf)
        fall = side - places if number + 1 < len(begins) else torch.full_like(places, torch.inf)
        # A tile is trusted in its middle: near its edges the network sees padding instead of the picture.
        weights.append((torch.minimum(rise, fall) / (tile / OVERLAP)).clamp(0, 1).mul(torch.pi / 2).sin().square())
    total = torch.zeros(length)
    for begin, weight in zip(begins, weights, strict=True):
        total[begin : begin + side] += weight
    return [weight / total[begin : begin + side] for begin, weight in zip(begins, weights, strict=True)]


def boxes(height: int, width: int, tile: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows and columns of every tile, and what each of its pixels contributes, h×w."""
    for top, tall in zip(starts(height, tile), shares(height, tile), strict=True):
        for left, wide in zip(starts(width, tile), shares(width, tile), strict=True):
            yield slice(top, top + len(tall)), slice(left, left + len(wide)), tall[:, None] * wide


@torch.enable_grad()
def gradient(model: Model, objective: Objective, image: Tensor, tile: int) -> tuple[Tensor, Tensor]:
    """∂objective/∂image of images N×3×H×W, and the objective, N: the mean over tiles of at most `tile`×`tile` pixels.

    An image that is no larger than a tile is one. Raises SightlineError where there is no gradient.
    """
    score_of, layers = objective.bind(model), [model.layer(name) for name in objective.layers]
    found, scores = torch.zeros_like(image), list[Tensor]()
    height, width = image.shape[-2:]
    for rows, columns, share in boxes(height, width, tile):
        part = image[..., rows, columns].detach().requires_grad_()
        score = score_of(part, model.run(part, layers) if layers else {})
        found[..., rows, columns] += slope(score, part, "the image") * share.to(image.device)
        scores.append(score.detach())
    return found, torch.stack(scores).mean(0)
