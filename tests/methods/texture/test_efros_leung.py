"""Non-parametric sampling against its literal definition, pixel by pixel."""

import pytest
import torch
from torch import Tensor

from sightline.methods.texture.efros_leung import (
    extract_windows,
    gather_neighborhoods,
    grow_texture,
    make_gaussian_window,
    place_seed_patch,
    sample_window_match,
    select_ring_pixels,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("tileable", [False, True])
def test_a_pixel_is_one_of_the_literal_candidates(tileable: bool) -> None:
    exemplar, window, radius = random(3, 12, 12), 5, 2
    canvas, known = place_seed_patch(exemplar, (9, 9), generator())
    known[4, 0:3] = True
    place = torch.tensor([[3, 3]])
    table, centers = extract_windows(exemplar, window)
    around, seen = gather_neighborhoods(canvas, known, place, radius, tileable)
    masked = seen * make_gaussian_window(window)
    masked /= masked.sum(1, keepdim=True)
    found = (masked.repeat(1, 3) * (around - table).square()).sum(1)
    for number in range(len(table)):
        y, x = divmod(number, 8)
        literal, total = 0.0, 0.0
        for dy in range(-2, 3):
            for dx in range(-2, 3):
                row, column = 3 + dy, 3 + dx
                if known[row, column]:
                    weight = float(
                        torch.exp(torch.tensor(-(dy * dy + dx * dx) / (2 * (5 / 6.4) ** 2)))
                    )
                    literal += weight * float(
                        (canvas[:, row, column] - exemplar[:, y + 2 + dy, x + 2 + dx])
                        .square()
                        .sum()
                    )
                    total += weight
        assert float(found[number]) == pytest.approx(literal / total, rel=1e-4)
        assert torch.equal(centers[:, number], exemplar[:, y + 2, x + 2])


def test_draws_evenly_among_those_near_the_least() -> None:
    distance = torch.tensor([[1.0, 1.05, 1.2, 1.09, 3.0]]).repeat(3000, 1)
    choice, error = sample_window_match(distance, generator())
    counts = torch.bincount(choice, minlength=5)
    assert counts[[2, 4]].tolist() == [0, 0]
    assert (counts[[0, 1, 3]] > 900).all()
    assert torch.equal(error, distance[0, choice])


@pytest.mark.parametrize("tileable", [False, True])
def test_the_ring_touches_what_is_known(tileable: bool) -> None:
    known = torch.zeros(7, 8, dtype=torch.bool)
    known[0, 0] = True
    ring = {tuple(place) for place in select_ring_pixels(known, tileable, generator()).tolist()}
    beside = {(0, 1), (1, 0), (1, 1)} | (
        {(6, 0), (0, 7), (6, 7), (6, 1), (1, 7)} if tileable else set()
    )
    assert ring
    assert ring <= beside
    assert not any(abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1 for a in ring for b in ring)


def test_grows_from_the_exemplar_s_own_colors_and_repeats() -> None:
    exemplar = random(3, 14, 16)
    runs = [
        grow_texture(exemplar, (19, 23), window=5, generator=generator(seed)) for seed in (0, 0, 1)
    ]
    palette = {tuple(color) for color in exemplar.flatten(1).T.tolist()}
    assert {tuple(color) for color in runs[0].flatten(1).T.tolist()} <= palette
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_continues_stripes() -> None:
    exemplar = (torch.arange(18) % 3 == 0).float().expand(3, 18, 18).contiguous()
    picture = grow_texture(exemplar, (24, 24), window=7, generator=generator(), tileable=True)
    assert torch.equal(picture, picture.roll(3, 2))
    assert torch.equal(picture, picture.roll(1, 1))


def test_constant_stays_constant_and_can_be_stopped() -> None:
    assert torch.equal(
        grow_texture(torch.full((3, 9, 9), 0.25), (12, 12), window=3, generator=generator()),
        torch.full((3, 12, 12), 0.25),
    )
    seen: list[int] = []
    picture = grow_texture(
        random(3, 12, 12),
        (30, 30),
        window=3,
        generator=generator(),
        callback=lambda step: seen.append(step.index) or True,
    )
    assert len(seen) == 1
    assert picture.isfinite().all()
