"""Image quilting: distances and cuts against brute force, and texture transfer by its formula."""

from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sightline.images.transforms import blur_image
from sightline.methods.texture import quilting
from sightline.methods.texture.quilting import (
    BlockMatcher,
    BlockPosition,
    TransferGuide,
    add_guide_distances,
    cut_overlaps,
    draw_block_index,
    find_minimum_cut,
    mask_overlaps,
    plan_block_positions,
    quilt_texture,
    rank_luminance,
    transfer_texture,
)
from sightline.registry.progress import Step


def random_image(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def make_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def list_colors(picture: Tensor) -> set[tuple[float, ...]]:
    return {tuple(color) for color in picture.flatten(1).T.tolist()}


# ── distances, positions and cuts ──


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_distances_equal_the_literal_sum(height: int, width: int, seed: int) -> None:
    picture = random_image(3, 9, 8, seed=seed)
    block = random_image(3, height, width, seed=seed + 1)
    weight = random_image(height, width, seed=seed + 2)
    distances = BlockMatcher(picture).measure_distances(block, weight)
    assert distances.shape == (9 - height + 1, 8 - width + 1)
    for y, x in product(range(distances.shape[0]), range(distances.shape[1])):
        literal = ((block - picture[:, y : y + height, x : x + width]).square() * weight).sum()
        torch.testing.assert_close(distances[y, x].float(), literal, atol=1e-6, rtol=1e-5)


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_the_cut_is_the_cheapest_of_all(length: int, width: int, seed: int) -> None:
    error = random_image(length, width, seed=seed)
    costs: dict[tuple[int, ...], float] = {}
    for path in product(range(width), repeat=length):
        if all(abs(a - b) <= 1 for a, b in pairwise(path)):
            costs[path] = float(sum(error[row, column] for row, column in enumerate(path)))
    cut = tuple(find_minimum_cut(error).tolist())
    assert cut in costs
    assert costs[cut] == pytest.approx(min(costs.values()), abs=1e-6)


@given(st.integers(6, 80), st.integers(6, 40), st.booleans())
def test_blocks_cover_the_side_and_overlap(length: int, side: int, wraps: bool) -> None:
    side = min(side, length)
    positions = plan_block_positions(length, side, wraps)
    cover_counts = torch.zeros(length, dtype=torch.long)
    for position in positions:
        cover_counts[(position.start + torch.arange(side)) % length] += 1
    assert (cover_counts > 0).all()
    assert positions[0].start == 0
    assert wraps or positions[-1].start + side == length
    for position, following in pairwise(positions):
        overlap = position.start + side - following.start
        assert overlap == following.overlap_before >= side // 6
        assert position.overlap_after == 0
    if wraps and len(positions) > 1:
        last = positions[-1]
        assert last.overlap_after == last.start + side - length >= side // 6


NO_OVERLAP = BlockPosition(0, 0, 0)
BEFORE = BlockPosition(0, 4, 0)
AFTER = BlockPosition(0, 0, 4)


@pytest.mark.parametrize(
    ("row", "column", "cheap", "kept"),
    [
        (BEFORE, NO_OVERLAP, (2, slice(None)), (slice(None, 2), slice(None))),
        (AFTER, NO_OVERLAP, (9, slice(None)), (slice(10, None), slice(None))),
        (NO_OVERLAP, BEFORE, (slice(None), 2), (slice(None), slice(None, 2))),
        (NO_OVERLAP, AFTER, (slice(None), 9), (slice(None), slice(10, None))),
    ],
    ids=["top", "bottom", "left", "right"],
)
def test_each_overlap_keeps_the_side_it_touches(
    row: BlockPosition, column: BlockPosition, cheap: tuple[object, ...], kept: tuple[object, ...]
) -> None:
    """The cut runs through the third pixel from the edge: what lies beyond it is kept."""
    error = torch.ones(12, 12)
    error[cheap] = 0
    keep_existing, costs = cut_overlaps(error, row, column)
    expected = torch.zeros(12, 12, dtype=torch.bool)
    expected[kept] = True
    assert torch.equal(keep_existing, expected)
    assert costs == [0.0]
    assert bool((mask_overlaps(12, row, column) >= keep_existing).all())


def test_the_tolerance_counts_from_the_smallest_distance() -> None:
    """Of 1, 1.05, 1.2 and 1.09 those up to 1.1 are drawn, all alike."""
    distances = torch.tensor([[1.2, 1.05, 3.0], [1.0, 1.3, 1.09]])
    generator = make_generator()
    indices = torch.tensor([draw_block_index(distances, 0.1, generator) for _ in range(900)])
    counts = torch.bincount(indices, minlength=6)
    assert counts[[0, 2, 4]].tolist() == [0, 0, 0]
    assert (counts[[1, 3, 5]] > 240).all()


# ── quilting ──


@pytest.mark.parametrize("tileable", [False, True])
@pytest.mark.parametrize("size", [(40, 40), (33, 57)])
def test_every_pixel_comes_from_the_exemplar(tileable: bool, size: tuple[int, int]) -> None:
    exemplar = random_image(3, 24, 20)
    picture, cost = quilt_texture(
        exemplar, size, block=9, generator=make_generator(), tileable=tileable
    )
    assert picture.shape == (3, *size)
    assert cost > 0
    assert list_colors(picture) <= list_colors(exemplar)


def test_a_pattern_that_repeats_is_continued_without_a_fault() -> None:
    exemplar = random_image(3, 6, 8).repeat(1, 5, 4)
    picture, cost = quilt_texture(
        exemplar, (48, 64), block=17, generator=make_generator(), tileable=True
    )
    assert cost == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(picture.roll((6, 8), (1, 2)), picture)


def test_constant_stays_constant_and_seeds_repeat() -> None:
    picture, cost = quilt_texture(
        torch.full((3, 16, 18), 0.3), (20, 26), block=8, generator=make_generator()
    )
    assert cost == 0
    assert torch.equal(picture, torch.full((3, 20, 26), 0.3))
    exemplar = random_image(3, 24, 28)
    runs = [
        quilt_texture(exemplar, (32, 40), block=8, generator=make_generator(seed))[0]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_a_callback_stops_it_after_a_row_of_blocks() -> None:
    steps: list[Step] = []

    def stop_at_2(step: Step) -> bool:
        steps.append(step)
        return step.index == 2

    exemplar = random_image(3, 24, 28)
    picture, _ = quilt_texture(
        exemplar, (64, 50), block=8, generator=make_generator(), callback=stop_at_2
    )
    rows = plan_block_positions(64, 8, wraps=False)
    assert [(step.index, step.total) for step in steps] == [(1, len(rows)), (2, len(rows))]
    end = rows[1].start + 8
    assert (picture[:, :end] > 0).any(0).all()
    assert (picture[:, end:] == 0).all()


# ── texture transfer ──


def make_guide(alpha: float, *, with_previous: bool) -> TransferGuide:
    """Luminance of an exemplar 9×8 and of a target 14×12, and perhaps a previous pass."""
    return TransferGuide(
        exemplar_luminance=random_image(1, 9, 8, seed=1),
        target_luminance=random_image(1, 14, 12, seed=2),
        previous_pass=random_image(3, 14, 12, seed=3) if with_previous else None,
        alpha=alpha,
    )


@pytest.mark.parametrize("with_previous", [False, True])
@pytest.mark.parametrize("alpha", [0.1, 0.7])
def test_alpha_weighs_the_texture_against_the_correspondence(
    alpha: float, with_previous: bool
) -> None:
    """Section 3: α · (overlap + previous pass) + (1 − α) · luminance, summed pixel by pixel."""
    exemplar = random_image(3, 9, 8)
    guide = make_guide(alpha, with_previous=with_previous)
    region = (slice(None), torch.arange(6, 10)[:, None], torch.arange(3, 8))
    overlap_distances = random_image(6, 4, seed=4)
    distances = add_guide_distances(
        overlap_distances,
        guide,
        BlockMatcher(exemplar),
        BlockMatcher(guide.exemplar_luminance),
        region,
    )
    assert distances.shape == (6, 4)
    for y, x in product(range(6), range(4)):
        texture = float(overlap_distances[y, x])
        if guide.previous_pass is not None:
            block = exemplar[:, y : y + 4, x : x + 5]
            texture += float((guide.previous_pass[:, 6:10, 3:8] - block).square().sum())
        shades = guide.exemplar_luminance[:, y : y + 4, x : x + 5]
        luminance = float((guide.target_luminance[:, 6:10, 3:8] - shades).square().sum())
        expected = alpha * texture + (1 - alpha) * luminance
        assert float(distances[y, x]) == pytest.approx(expected, rel=1e-4)


def test_at_alpha_one_the_guide_has_no_say() -> None:
    exemplar = random_image(3, 9, 8)
    guide = make_guide(1.0, with_previous=False)
    options = {"size": (14, 12), "block": 5, "tolerance": 0.0}
    guided, _ = quilt_texture(exemplar, generator=make_generator(), guide=guide, **options)
    free, _ = quilt_texture(exemplar, generator=make_generator(), **options)
    assert torch.equal(guided, free)
    guide = make_guide(0.5, with_previous=False)
    guided, _ = quilt_texture(exemplar, generator=make_generator(), guide=guide, **options)
    assert not torch.equal(guided, free)


def test_at_alpha_zero_every_block_is_the_nearest_in_luminance() -> None:
    """Blocks without overlaps in the way: one block that is the whole picture."""
    exemplar = random_image(3, 9, 8)
    guide = make_guide(0.0, with_previous=True)
    target = TransferGuide(
        guide.exemplar_luminance, guide.target_luminance[:, :5, :5], guide.previous_pass, 0.0
    )
    picture, _ = quilt_texture(
        exemplar, (5, 5), block=5, generator=make_generator(), tolerance=0.0, guide=target
    )
    distances: dict[tuple[int, int], float] = {}
    for y, x in product(range(5), range(4)):
        shades = guide.exemplar_luminance[:, y : y + 5, x : x + 5]
        distances[y, x] = float((target.target_luminance - shades).square().sum())
    y, x = min(distances, key=distances.__getitem__)
    assert torch.equal(picture, exemplar[:, y : y + 5, x : x + 5])


def test_passes_have_smaller_blocks_and_more_weight_on_the_texture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """α = 0.8·(i − 1)/(N − 1) + 0.1 in pass i of N, each with the last pass as its start."""
    calls: list[tuple[int, TransferGuide]] = []

    def record(
        exemplar: Tensor, size: tuple[int, int], *, block: int, guide: TransferGuide, **_: object
    ) -> tuple[Tensor, float]:
        calls.append((block, guide))
        return torch.full((3, *size), float(len(calls))), 0.5 * len(calls)

    monkeypatch.setattr(quilting, "quilt_texture", record)
    exemplar, target = random_image(3, 20, 24), random_image(3, 30, 26, seed=1)
    picture, cost = transfer_texture(
        exemplar, target, block=18, generator=make_generator(), passes=4
    )
    assert [block for block, _ in calls] == [18, 12, 8, 6]
    alphas = [guide.alpha for _, guide in calls]
    assert alphas == pytest.approx([0.1, 0.1 + 0.8 / 3, 0.1 + 1.6 / 3, 0.9])
    previous = [guide.previous_pass for _, guide in calls]
    assert previous[0] is None
    for index, result in enumerate(previous[1:], 1):
        assert result is not None
        assert result.unique().tolist() == [index]
    assert picture.unique().tolist() == [4]
    assert cost == 2.0
    for _, guide in calls:
        assert torch.equal(guide.exemplar_luminance, rank_luminance(exemplar))
        assert torch.equal(guide.target_luminance, rank_luminance(target))

    calls.clear()
    transfer_texture(exemplar, target, block=18, generator=make_generator(), passes=1)
    assert [guide.alpha for _, guide in calls] == [0.1]


def test_luminance_counts_by_rank() -> None:
    """The share of darker values, and half of the equal ones."""
    picture = random_image(3, 6, 9)
    luminance = 0.299 * picture[0] + 0.587 * picture[1] + 0.114 * picture[2]
    blurred = blur_image(luminance[None, None], 1.0)[0, 0]
    ranks = rank_luminance(picture)
    assert ranks.shape == (1, 6, 9)
    for y, x in product(range(6), range(9)):
        darker = float((blurred < blurred[y, x]).float().mean())
        equal = float((blurred == blurred[y, x]).float().mean())
        assert float(ranks[0, y, x]) == pytest.approx(darker + equal / 2, abs=0.03)
    assert torch.equal(rank_luminance(torch.full((3, 4, 5), 0.2)), torch.full((1, 4, 5), 0.5))


def test_transfer_follows_light_and_dark() -> None:
    exemplar = random_image(3, 40, 44) * torch.linspace(0, 1, 44)
    target = torch.zeros(3, 36, 30)
    target[:, 12:24, 9:21] = 1
    picture, _ = transfer_texture(exemplar, target, block=9, generator=make_generator(), passes=2)
    assert picture.shape == target.shape
    assert picture[:, 14:22, 11:19].mean() > 2 * picture[:, :8].mean()
