"""Image quilting: distances and cuts against brute force, and what every quilt must be."""

from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sightline.methods.texture.quilting import (
    BlockMatcher,
    BlockPosition,
    cut_overlaps,
    find_minimum_cut,
    mask_overlaps,
    plan_block_positions,
    quilt_texture,
    transfer_texture,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_distances_equal_the_literal_sum(height: int, width: int, seed: int) -> None:
    picture, block, weight = (
        random(3, 9, 8, seed=seed),
        random(3, height, width, seed=seed + 1),
        random(height, width, seed=seed + 2),
    )
    found = BlockMatcher(picture).measure_distances(block, weight)
    assert found.shape == (9 - height + 1, 8 - width + 1)
    for y, x in product(range(found.shape[0]), range(found.shape[1])):
        literal = ((block - picture[:, y : y + height, x : x + width]).square() * weight).sum()
        torch.testing.assert_close(found[y, x].float(), literal, atol=1e-6, rtol=1e-5)


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_the_cut_is_the_cheapest_of_all(length: int, width: int, seed: int) -> None:
    error = random(length, width, seed=seed)
    paths = [
        path
        for path in product(range(width), repeat=length)
        if all(abs(a - b) <= 1 for a, b in pairwise(path))
    ]
    costs = {
        path: float(sum(error[row, column] for row, column in enumerate(path))) for path in paths
    }
    found = tuple(find_minimum_cut(error).tolist())
    assert found in costs
    assert costs[found] == pytest.approx(min(costs.values()), abs=1e-6)


@given(st.integers(6, 80), st.integers(6, 40), st.booleans())
def test_blocks_cover_the_side_and_overlap(length: int, side: int, around: bool) -> None:
    side = min(side, length)
    found = plan_block_positions(length, side, around)
    seen = torch.zeros(length, dtype=torch.long)
    for place in found:
        seen[(place.start + torch.arange(side)) % length] += 1
    assert (seen > 0).all()
    assert found[0].start == 0
    assert around or found[-1].start + side == length
    assert all(
        one.start + side - two.start == two.overlap_before >= side // 6
        for one, two in pairwise(found)
    )
    if around and len(found) > 1:
        assert found[-1].overlap_after >= side // 6


def test_each_overlap_keeps_the_side_it_touches() -> None:
    for row, column, side in (
        (BlockPosition(0, 4, 0), BlockPosition(0, 0, 0), "top"), (BlockPosition(0, 0, 4), BlockPosition(0, 0, 0), "bottom"),
        (BlockPosition(0, 0, 0), BlockPosition(0, 4, 0), "left"), (BlockPosition(0, 0, 0), BlockPosition(0, 0, 4), "right"),
    ):  # fmt: skip
        # Cheapest in the third pixel of the overlap, counted from the edge: what lies beyond it stays.
        costly = torch.ones(12, 12)
        line = {
            "top": (2, slice(None)),
            "bottom": (9, slice(None)),
            "left": (slice(None), 2),
            "right": (slice(None), 9),
        }[side]
        costly[line] = 0
        keep, costs = cut_overlaps(costly, row, column)
        stays = {"top": keep[:2], "bottom": keep[10:], "left": keep[:, :2], "right": keep[:, 10:]}[
            side
        ]
        assert bool(stays.all())
        assert int(keep.sum()) == stays.numel()
        assert costs == [0.0]
        assert bool((mask_overlaps(12, row, column) >= keep).all())


@pytest.mark.parametrize("tileable", [False, True])
@pytest.mark.parametrize("size", [(40, 40), (33, 57)])
def test_every_pixel_comes_from_the_exemplar(tileable: bool, size: tuple[int, int]) -> None:
    exemplar = random(3, 24, 20)
    picture, cost = quilt_texture(exemplar, size, block=9, generator=generator(), tileable=tileable)
    assert picture.shape == (3, *size)
    assert cost > 0
    palette = {tuple(color) for color in exemplar.flatten(1).T.tolist()}
    assert {tuple(color) for color in picture.flatten(1).T.tolist()} <= palette


def test_a_pattern_that_repeats_is_continued_without_a_fault() -> None:
    tile = random(3, 6, 6)
    exemplar = tile.repeat(1, 5, 5)
    picture, cost = quilt_texture(
        exemplar, (48, 48), block=15, generator=generator(), tileable=True
    )
    assert cost == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(picture.roll((6, 6), (1, 2)), picture)


def test_constant_stays_constant_and_seeds_repeat() -> None:
    picture, cost = quilt_texture(
        torch.full((3, 16, 16), 0.3), (20, 20), block=8, generator=generator()
    )
    assert cost == 0
    assert torch.equal(picture, torch.full((3, 20, 20), 0.3))
    runs = [
        quilt_texture(random(3, 24, 24), (32, 32), block=8, generator=generator(seed))[0]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_transfer_follows_light_and_dark() -> None:
    exemplar = random(3, 40, 40) * torch.linspace(0, 1, 40)
    target = torch.zeros(3, 36, 36)
    target[:, 12:24, 12:24] = 1
    picture, _ = transfer_texture(exemplar, target, block=9, generator=generator(), passes=2)
    assert picture.shape == target.shape
    assert picture[:, 14:22, 14:22].mean() > 2 * picture[:, :8].mean()


def test_stops_when_told_to() -> None:
    seen: list[int] = []
    quilt_texture(
        random(3, 24, 24),
        (64, 64),
        block=8,
        generator=generator(),
        callback=lambda step: seen.append(step.index) or len(seen) == 2,
    )
    assert len(seen) == 2
