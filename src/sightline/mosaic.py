"""The gradient of an objective for images of any size: tile by tile with overlap, so that memory is bounded by the tile."""

import math
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


def evened(length: int, tile: int) -> int:
    """The side of tiles along an axis, at most `tile`: no more tiles than needed, and none larger than their overlap of a fourth asks for."""
    count = len(starts(length, tile))
    if count == 1:
        return length
    least = length * OVERLAP / (count * (OVERLAP - 1) + 1)
    return min(tile, -(-math.ceil(least) // 8) * 8)


def boxes(height: int, width: int, tile: int, shift: tuple[int, int] = (0, 0)) -> Iterator[tuple[tuple[Tensor, Tensor], Tensor]]:
    """Rows h×1 and columns w of every tile, and what each of its pixels contributes, h×w.

    The tiles are those of an image moved round by `shift` pixels down and right, as `Tensor.roll` moves it; the places are
    those in the image as it is, so that nobody needs to move it.
    """
    tall, wide = evened(height, tile), evened(width, tile)
    for top, below in zip(starts(height, tall), shares(height, tall), strict=True):
        rows = (torch.arange(top, top + len(below)) - shift[0]) % height
        for left, beside in zip(starts(width, wide), shares(width, wide), strict=True):
            columns = (torch.arange(left, left + len(beside)) - shift[1]) % width
            yield (rows[:, None], columns), below[:, None] * beside


@torch.enable_grad()
def gradient(model: Model, objective: Objective, image: Tensor, tile: int, shift: tuple[int, int] = (0, 0)) -> tuple[Tensor, Tensor]:
    """∂objective/∂image of images N×3×H×W, and the objective, N: the mean over tiles of at most `tile`×`tile` pixels.

    An image that is no larger than a tile is one. The network sees the image moved round by `shift` pixels down and right.
    Raises SightlineError where there is no gradient.
    """
    score_of, layers = objective.bind(model), [model.layer(name) for name in objective.layers]
    found, scores = torch.zeros_like(image), list[Tensor]()
    for place, share in boxes(image.shape[2], image.shape[3], tile, shift):
        part = image[..., *place].detach().requires_grad_()
        score = score_of(part, model.run(part, layers) if layers else {})
        found[..., *place] += slope(score, part, "the image") * share.to(image.device)
        scores.append(score.detach())
    return found, torch.stack(scores).mean(0)


@torch.no_grad()
def score(model: Model, objective: Objective, image: Tensor, tile: int) -> Tensor:
    """The objective of images N×3×H×W alone, N, as `gradient` has it."""
    score_of, layers = objective.bind(model), [model.layer(name) for name in objective.layers]
    parts = (image[..., *place] for place, _ in boxes(image.shape[2], image.shape[3], tile))
    return torch.stack([score_of(part, model.run(part, layers) if layers else {}) for part in parts]).mean(0)
