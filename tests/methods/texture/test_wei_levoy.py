"""Pixels found many at once equal those found one by one."""

from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.images.transforms import blur_image
from sightline.methods.texture import wei_levoy
from sightline.methods.texture.metrics import measure_seam
from sightline.methods.texture.wei_levoy import (
    build_pyramid,
    gather_exemplar_windows,
    gather_queries,
    make_causal_offsets,
    make_square_offsets,
    scan_texture,
    schedule_wavefronts,
    tile_random_blocks,
)


def random_image(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def make_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def list_colors(picture: Tensor) -> set[tuple[float, ...]]:
    return {tuple(color) for color in picture.flatten(1).T.tolist()}


# ── one pixel at a time ──


def order_pixels(size: tuple[int, int], radius: int) -> list[tuple[int, int]]:
    """Along slanted lines, each row radius + 1 pixels behind the one above."""
    return sorted(
        product(range(size[0]), range(size[1])),
        key=lambda pixel: (pixel[1] + (radius + 1) * pixel[0], pixel[0]),
    )


def find_best_match(
    picture: Tensor, exemplar: Tensor, position: tuple[int, int], offsets: list[tuple[int, int]]
) -> Tensor:
    """The color whose neighborhood inside the exemplar differs least."""
    height, width = picture.shape[-2:]
    y, x = position
    neighborhood = torch.stack(
        [picture[:, (y + dy) % height, (x + dx) % width] for dy, dx in offsets]
    )
    radius = max(abs(dx) for _, dx in offsets)
    below = max(dy for dy, _ in offsets)
    best_error, color = float("inf"), exemplar[:, 0, 0]
    for row in range(radius, exemplar.shape[1] - below):
        for column in range(radius, exemplar.shape[2] - radius):
            window = torch.stack([exemplar[:, row + dy, column + dx] for dy, dx in offsets])
            error = float((neighborhood - window).square().sum())
            if error < best_error:
                best_error, color = error, exemplar[:, row, column]
    return color


def scan_literally(exemplar: Tensor, size: tuple[int, int], radius: int, seed: int) -> Tensor:
    """One level, pixel by pixel, twice, by whole windows."""
    picture = tile_random_blocks(exemplar, size, 2 * (2 * radius + 1), make_generator(seed))
    reach = range(-radius, radius + 1)
    offsets = [(dy, dx) for dy, dx in product(reach, reach) if dy or dx]
    for y, x in 2 * order_pixels(size, radius):
        picture[:, y, x] = find_best_match(picture, exemplar, (y, x), offsets)
    return picture


@pytest.mark.parametrize("size", [(6, 7), (5, 8)])
def test_many_at_once_equal_one_by_one(size: tuple[int, int]) -> None:
    exemplar = random_image(3, 6, 7)
    picture = scan_texture(exemplar, size, window=3, generator=make_generator(3), levels=1)
    torch.testing.assert_close(picture, scan_literally(exemplar, size, 1, 3))


@pytest.mark.parametrize(("height", "width", "radius"), [(8, 8, 2), (9, 40, 2), (20, 12, 3)])
def test_inside_what_a_pixel_sees_is_found_before_it(height: int, width: int, radius: int) -> None:
    wave_of_pixel: dict[tuple[int, ...], int] = {}
    for index, wave in enumerate(schedule_wavefronts(height, width, radius)):
        for pixel in wave.tolist():
            wave_of_pixel[tuple(pixel)] = index
    assert len(wave_of_pixel) == height * width
    for (y, x), index in wave_of_pixel.items():
        for dy, dx in make_causal_offsets(radius).tolist():
            neighbor = (y + dy, x + dx)
            if neighbor in wave_of_pixel:
                assert wave_of_pixel[neighbor] < index


def test_waves_are_in_the_order_of_the_slanted_lines() -> None:
    pixels = [tuple(pixel) for wave in schedule_wavefronts(5, 9, 2) for pixel in wave.tolist()]
    assert pixels == order_pixels((5, 9), 2)


# ── neighborhoods ──


def test_neighborhoods_are_square_or_l_shaped() -> None:
    """In reading order: all of 5×5 without its middle, and what comes before the middle."""
    square = [pair for pair in product(range(-2, 3), range(-2, 3)) if pair != (0, 0)]
    assert [tuple(offset) for offset in make_square_offsets(2).tolist()] == square
    causal = [tuple(offset) for offset in make_causal_offsets(2).tolist()]
    assert causal == square[:12]
    with_center = make_square_offsets(2, include_center=True).tolist()
    assert [tuple(offset) for offset in with_center] == sorted([*square, (0, 0)])


def test_with_a_coarser_level_both_windows_lie_inside() -> None:
    source, parents = random_image(3, 24, 28), random_image(3, 12, 14)
    windows, colors = gather_exemplar_windows(source, parents, make_causal_offsets(2))
    assert windows.shape[1] == 3 * (2 * 5 + 2) + 3 * (2 * wei_levoy.PARENT_RADIUS + 1) ** 2
    # Parents from 2 to 9 and to 11: children from 4 to 19 and to 23.
    assert colors.shape == (3, len(windows)) == (3, 16 * 20)
    # Inside, the torus is never used: the same windows, cut out literally.
    position = torch.tensor([[10, 12]])
    query = gather_queries(source, parents, position, make_causal_offsets(2))[0]
    reach = range(-wei_levoy.PARENT_RADIUS, wei_levoy.PARENT_RADIUS + 1)
    fine = [source[:, 10 + dy, 12 + dx] for dy, dx in make_causal_offsets(2).tolist()]
    coarse = [parents[:, 5 + dy, 6 + dx] for dy, dx in product(reach, reach)]
    expected = torch.cat([torch.stack(fine, 1).flatten(), torch.stack(coarse, 1).flatten()])
    assert torch.equal(query, expected)
    is_match = (windows == query).all(1)
    assert is_match.sum() == 1
    assert torch.equal(colors[:, is_match][:, 0], source[:, 10, 12])


@pytest.mark.parametrize(
    ("offsets", "count"), [(make_causal_offsets(2), 22 * 24), (make_square_offsets(2), 20 * 24)]
)
def test_every_window_inside_is_a_candidate(offsets: Tensor, count: int) -> None:
    source = random_image(3, 24, 28)
    windows, colors = gather_exemplar_windows(source, None, offsets)
    assert len(windows) == colors.shape[1] == count
    first = torch.stack([source[:, 2 + dy, 2 + dx] for dy, dx in offsets.tolist()], 1)
    assert torch.equal(windows[0].view(3, -1), first)
    assert torch.equal(colors[:, 0], source[:, 2, 2])


def test_neighborhoods_of_the_picture_go_on_at_its_other_side() -> None:
    picture = random_image(3, 6, 9)
    offsets = make_square_offsets(2)
    query = gather_queries(picture, None, torch.tensor([[0, 8], [5, 1]]), offsets)
    for row, (y, x) in enumerate(((0, 8), (5, 1))):
        colors = [picture[:, (y + dy) % 6, (x + dx) % 9] for dy, dx in offsets.tolist()]
        assert torch.equal(query[row], torch.stack(colors, 1).flatten())


# ── levels and blocks ──


def test_levels_halve_down_to_the_smallest_side() -> None:
    exemplar = random_image(3, 45, 60)
    pyramid, sizes = build_pyramid(exemplar, (51, 40), min_side=10, max_levels=5)
    assert [tuple(level.shape[-2:]) for level in pyramid] == [(45, 60), (23, 30), (12, 15)]
    assert sizes == [(51, 40), (26, 20), (13, 10)]
    assert torch.equal(pyramid[1], blur_image(exemplar[None], 1.0)[0, :, ::2, ::2])
    assert len(build_pyramid(exemplar, (51, 40), min_side=11, max_levels=5)[0]) == 2
    assert len(build_pyramid(exemplar, (200, 200), min_side=11, max_levels=5)[0]) == 3
    assert len(build_pyramid(exemplar, (51, 40), min_side=10, max_levels=2)[0]) == 2


def test_blocks_are_pieces_of_the_source() -> None:
    source = random_image(3, 9, 11)
    picture = tile_random_blocks(source, (10, 13), 5, make_generator())
    assert picture.shape == (3, 10, 13)
    pieces = source.unfold(1, 5, 1).unfold(2, 5, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    for top, left in ((0, 0), (5, 5), (5, 0)):
        block = picture[:, top : top + 5, left : left + 5]
        assert bool((pieces == block).flatten(1).all(1).any())


# ── the whole ──


def test_the_last_rows_and_columns_fit_the_first_ones() -> None:
    exemplar = F.avg_pool2d(random_image(3, 43, 43, seed=8), 4, 1)
    ratios: list[float] = []
    for seed in range(4):
        picture = scan_texture(exemplar, (40, 36), window=5, generator=make_generator(seed))
        ratios.append(measure_seam(picture)[0])
    assert 0.8 < sum(ratios) / 4 < 1.15


def test_stripes_go_on_across_the_edge() -> None:
    exemplar = (torch.arange(40) % 4 < 2).float().expand(3, 36, 40).contiguous()
    picture = scan_texture(exemplar, (28, 32), window=5, generator=make_generator())
    assert (picture == picture.roll(4, 2)).float().mean() > 0.9


def test_repeats_by_seed_and_keeps_the_palette() -> None:
    exemplar = random_image(3, 40, 36)
    runs = [
        scan_texture(exemplar, (30, 26), window=5, generator=make_generator(seed))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert list_colors(runs[0]) <= list_colors(exemplar)


def test_constant_stays_constant() -> None:
    exemplar = torch.full((3, 20, 23), 0.6)
    picture = scan_texture(exemplar, (25, 21), window=5, generator=make_generator())
    torch.testing.assert_close(picture, torch.full((3, 25, 21), 0.6))
