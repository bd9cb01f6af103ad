"""Pixels found many at once equal those found one by one."""

import pytest
import torch
from torch import Tensor

from sightline.methods.texture import wei_levoy
from sightline.methods.texture.metrics import measure_seam
from sightline.methods.texture.wei_levoy import (
    gather_exemplar_windows,
    gather_queries,
    make_causal_offsets,
    make_square_offsets,
    scan_texture,
    schedule_wavefronts,
    tile_random_blocks,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def literal(exemplar: Tensor, size: tuple[int, int], radius: int, seed: int) -> Tensor:
    """One level, pixel by pixel along the slanted lines, twice, whole window by whole window."""
    picture = tile_random_blocks(exemplar, size, 2 * (2 * radius + 1), generator(seed))
    offsets = [
        (dy, dx)
        for dy in range(-radius, radius + 1)
        for dx in range(-radius, radius + 1)
        if dy or dx
    ]
    order = sorted(
        ((y, x) for y in range(size[0]) for x in range(size[1])),
        key=lambda place: (place[1] + (radius + 1) * place[0], place[0]),
    )
    for y, x in 2 * order:
        best, chosen = float("inf"), exemplar[:, 0, 0]
        for row in range(radius, exemplar.shape[1] - radius):
            for column in range(radius, exemplar.shape[2] - radius):
                mine = torch.stack(
                    [picture[:, (y + dy) % size[0], (x + dx) % size[1]] for dy, dx in offsets]
                )
                theirs = torch.stack([exemplar[:, row + dy, column + dx] for dy, dx in offsets])
                error = float((mine - theirs).square().sum())
                if error < best:
                    best, chosen = error, exemplar[:, row, column]
        picture[:, y, x] = chosen
    return picture


@pytest.mark.parametrize("size", [(6, 7), (5, 8)])
def test_many_at_once_equal_one_by_one(size: tuple[int, int]) -> None:
    exemplar = random(3, 6, 7)
    found = scan_texture(exemplar, size, window=3, generator=generator(3), levels=1)
    torch.testing.assert_close(found, literal(exemplar, size, 1, 3))


@pytest.mark.parametrize(("height", "width", "radius"), [(8, 8, 2), (9, 40, 2), (20, 12, 3)])
def test_inside_what_a_pixel_sees_is_found_before_it(height: int, width: int, radius: int) -> None:
    when = {
        tuple(place): number
        for number, wave in enumerate(schedule_wavefronts(height, width, radius))
        for place in wave.tolist()
    }
    assert len(when) == height * width
    for (y, x), mine in when.items():
        for dy, dx in make_causal_offsets(radius).tolist():
            if (y + dy, x + dx) in when:
                assert when[y + dy, x + dx] < mine


def test_with_a_coarser_level_both_windows_lie_inside() -> None:
    source, parents = random(3, 24, 24), random(3, 12, 12)
    table, centers = gather_exemplar_windows(source, parents, make_causal_offsets(2))
    assert table.shape[1] == 3 * (2 * 5 + 2) + 3 * (2 * wei_levoy.PARENT_RADIUS + 1) ** 2
    assert centers.shape == (3, len(table))
    # Inside, the torus is never used: the same windows, cut out literally.
    place = torch.tensor([[10, 12]])
    asked = gather_queries(source, parents, place, make_causal_offsets(2))[0]
    reach = range(-wei_levoy.PARENT_RADIUS, wei_levoy.PARENT_RADIUS + 1)
    fine = torch.stack(
        [source[:, 10 + dy, 12 + dx] for dy, dx in make_causal_offsets(2).tolist()], 1
    )
    coarse = torch.stack([parents[:, 5 + dy, 6 + dx] for dy in reach for dx in reach], 1)
    assert torch.equal(asked, torch.cat([fine.flatten(), coarse.flatten()]))
    assert bool((table == asked).all(1).any())


@pytest.mark.parametrize(
    ("offsets", "count"), [(make_causal_offsets(2), 22 * 20), (make_square_offsets(2), 20 * 20)]
)
def test_every_window_inside_is_a_candidate(offsets: Tensor, count: int) -> None:
    source = random(3, 24, 24)
    table, centers = gather_exemplar_windows(source, None, offsets)
    assert len(table) == centers.shape[1] == count
    assert torch.equal(
        table[0].view(3, -1),
        torch.stack([source[:, 2 + dy, 2 + dx] for dy, dx in offsets.tolist()], 1),
    )
    assert torch.equal(centers[:, 0], source[:, 2, 2])


def test_blocks_are_pieces_of_the_source() -> None:
    source = random(3, 9, 11)
    picture = tile_random_blocks(source, (10, 13), 5, generator())
    assert picture.shape == (3, 10, 13)
    pieces = source.unfold(1, 5, 1).unfold(2, 5, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    for top, left in ((0, 0), (5, 5)):
        assert bool((pieces == picture[:, top : top + 5, left : left + 5]).flatten(1).all(1).any())


def test_the_last_rows_and_columns_fit_the_first_ones() -> None:
    exemplar = torch.nn.functional.avg_pool2d(random(3, 43, 43, seed=8), 4, 1)
    seams = [
        measure_seam(scan_texture(exemplar, (40, 36), window=5, generator=generator(seed)))
        for seed in range(4)
    ]
    assert 0.8 < sum(ratio for ratio, _ in seams) / 4 < 1.15


def test_tiles_repeats_and_keeps_the_palette() -> None:
    exemplar = (torch.arange(40) % 4 < 2).float().expand(3, 40, 40).contiguous()
    picture = scan_texture(exemplar, (32, 32), window=5, generator=generator())
    assert (picture == picture.roll(4, 2)).float().mean() > 0.9, (
        "stripes go on, also across the edge"
    )
    photo = random(3, 40, 40)
    runs = [
        scan_texture(photo, (30, 26), window=5, generator=generator(seed)) for seed in (0, 0, 1)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    palette = {tuple(color) for color in photo.flatten(1).T.tolist()}
    assert {tuple(color) for color in runs[0].flatten(1).T.tolist()} <= palette


def test_constant_stays_constant() -> None:
    picture = scan_texture(torch.full((3, 20, 20), 0.6), (25, 21), window=5, generator=generator())
    torch.testing.assert_close(picture, torch.full((3, 25, 21), 0.6))
