"""Tiles that wrap around the image: their weights, and the gradient that they add up to."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import sightline as sl
from sightline.optim.objectives.objective import Objective
from sightline.optim.tiled import (
    balance_tile_side,
    choose_tile_size,
    compute_tile_starts,
    compute_tile_weights,
    compute_tiled_gradient,
    compute_tiled_score,
    iterate_wrapped_tiles,
    split_wrapped_range,
)

LENGTHS = [(40, 64), (64, 64), (65, 64), (130, 128), (300, 64), (1000, 256)]


def random_images(count: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, height, width, generator=generator)


def pixel_sum() -> Objective:
    """A weighted sum of the pixels, whose gradient is the weights wherever a pixel lies."""
    weights = torch.tensor([1.0, -2.0, 3.0]).view(1, 3, 1, 1)
    return Objective("sum", (), lambda _: lambda image, _: (weights * image).flatten(1).sum(1))


@pytest.mark.parametrize(("length", "tile_side"), LENGTHS)
def test_tiles_cover_an_axis_and_weights_sum_to_one(length: int, tile_side: int) -> None:
    starts = compute_tile_starts(length, tile_side)
    weights = compute_tile_weights(length, tile_side)
    assert starts[0] == 0
    assert starts[-1] + min(tile_side, length) == length
    total = torch.zeros(length)
    for start, weight in zip(starts, weights, strict=True):
        assert len(weight) == min(tile_side, length)
        assert weight.min() >= 0
        total[start : start + len(weight)] += weight
    torch.testing.assert_close(total, torch.ones(length))


@pytest.mark.parametrize(("length", "tile_side"), LENGTHS)
def test_neighbouring_tiles_overlap_by_a_fourth_or_more(length: int, tile_side: int) -> None:
    starts = compute_tile_starts(length, tile_side)
    for start, next_start in pairwise(starts):
        assert next_start - start <= tile_side - tile_side // 4


@pytest.mark.parametrize(("length", "tile_side"), LENGTHS)
def test_a_balanced_tile_is_the_smallest_that_needs_no_more_tiles(
    length: int, tile_side: int
) -> None:
    """By trying every side that is a multiple of 8."""
    count = len(compute_tile_starts(length, tile_side))
    sufficient = [
        side
        for side in range(8, tile_side + 1, 8)
        if len(compute_tile_starts(length, side)) <= count
    ]
    expected = length if count == 1 else sufficient[0]
    assert balance_tile_side(length, tile_side) == expected


@pytest.mark.parametrize("start", [-13, 0, 3, 7, 10, 24])
@pytest.mark.parametrize("count", [1, 4, 10])
def test_a_wrapped_range_counts_around_the_axis(start: int, count: int) -> None:
    length = 10
    covered = torch.full((count,), -1)
    for axis_span, own_span in split_wrapped_range(start, count, length):
        covered[own_span] = torch.arange(length)[axis_span]
    assert covered.tolist() == [(start + offset) % length for offset in range(count)]


@pytest.mark.parametrize("shift", [(0, 0), (7, -13), (-200, 5)])
def test_a_tile_is_a_crop_of_the_rolled_image(shift: tuple[int, int]) -> None:
    height, width, tile_side = 100, 150, 48
    image = random_images(2, height, width)
    rolled = image.roll(shift, (2, 3))
    row_side = balance_tile_side(height, tile_side)
    column_side = balance_tile_side(width, tile_side)
    expected = [
        rolled[:, :, row : row + row_side, column : column + column_side]
        for row in compute_tile_starts(height, row_side)
        for column in compute_tile_starts(width, column_side)
    ]
    crops = [
        tile.crop_image(image) for tile in iterate_wrapped_tiles(height, width, tile_side, shift)
    ]
    assert len(crops) == len(expected)
    for crop, expected_crop in zip(crops, expected, strict=True):
        assert torch.equal(crop, expected_crop)


@pytest.mark.parametrize("shift", [(0, 0), (7, -13), (-200, 5)])
def test_weighted_tiles_add_up_to_the_image(shift: tuple[int, int]) -> None:
    image = random_images(2, 100, 150)
    assembled = torch.zeros_like(image)
    for tile in iterate_wrapped_tiles(100, 150, 48, shift):
        tile.add_weighted(assembled, tile.crop_image(image))
    torch.testing.assert_close(assembled, image)


def test_the_gradient_of_a_sum_is_its_weights_everywhere(tiny: sl.Model) -> None:
    image = random_images(2, 100, 150)
    gradient, scores = compute_tiled_gradient(tiny, pixel_sum(), image, 48, (7, -13))
    expected = torch.tensor([1.0, -2.0, 3.0]).view(1, 3, 1, 1).expand_as(image)
    torch.testing.assert_close(gradient, expected)
    tiles = list(iterate_wrapped_tiles(100, 150, 48, (7, -13)))
    tile_scores = [
        (tile.crop_image(image) * expected[:1, :, :1, :1]).sum((1, 2, 3)) for tile in tiles
    ]
    torch.testing.assert_close(scores, torch.stack(tile_scores).mean(0))


def test_an_image_of_one_tile_has_the_plain_gradient(tiny: sl.Model) -> None:
    image = random_images(2, 40, 56).requires_grad_()
    objective = sl.energy("relu2") - 0.1 * sl.tv()
    expected_scores = objective.bind(tiny)(image, tiny.run(image, ["relu2"]))
    (expected_gradient,) = torch.autograd.grad(expected_scores.sum(), image)
    gradient, scores = compute_tiled_gradient(tiny, objective, image.detach(), 64)
    torch.testing.assert_close(gradient, expected_gradient)
    torch.testing.assert_close(scores, expected_scores.detach())


def test_the_score_alone_is_that_of_the_gradient(tiny: sl.Model) -> None:
    image = random_images(2, 70, 100)
    objective = sl.channel("conv2", 3) - sl.l2()
    _, scores = compute_tiled_gradient(tiny, objective, image, 48)
    torch.testing.assert_close(compute_tiled_score(tiny, objective, image, 48), scores)


# ── sizes that a network takes ──


class SizedNet(nn.Module):
    """Takes sides that `accepts` allows, and refuses others as networks do."""

    def __init__(self, accepts: Callable[[int, int], bool]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 3)
        self.accepts = accepts

    def forward(self, x: Tensor) -> Tensor:
        assert self.accepts(*x.shape[-2:]), "another size"
        return self.head(self.conv(x).mean((2, 3)))


@pytest.mark.parametrize(
    ("accepts", "size", "expected"),
    [
        (lambda _h, _w: True, (70, 100), 64),
        (lambda h, w: h % 14 == w % 14 == 0, (70, 100), (56, 56)),
        (lambda h, w: h % 14 == w % 14 == 0, (60, 45), (56, 42)),
        (lambda h, w: (h, w) == (42, 56), (70, 100), (42, 56)),
        (lambda h, w: (h, w) == (42, 56), (30, 100), None),
    ],
    ids=["any", "multiples, tiles", "multiples, whole", "own size", "too small"],
)
def test_tiles_are_of_sizes_that_the_network_takes(
    accepts: Callable[[int, int], bool], size: tuple[int, int], expected: object
) -> None:
    model = sl.load(SizedNet(accepts).eval(), size=(42, 56))
    objective = sl.channel("conv", 1)
    assert choose_tile_size(model, objective, size, 64) == expected


def test_tiles_of_an_exact_size_add_up_to_the_gradient() -> None:
    image = random_images(1, 70, 100)
    model = sl.load(SizedNet(lambda h, w: (h, w) == (32, 48)).eval(), size=(32, 48))
    gradient, scores = compute_tiled_gradient(model, pixel_sum(), image, (32, 48), (5, -9))
    expected = torch.tensor([1.0, -2.0, 3.0]).view(1, 3, 1, 1).expand_as(image)
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-5)
    assert scores.shape == (1,)
    assert compute_tiled_score(model, sl.channel("conv", 1), image, (32, 48)).isfinite().all()
