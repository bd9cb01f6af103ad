"""Non-parametric sampling against its literal definition, pixel by pixel."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from sightline.methods.texture.efros_leung import (
    extract_windows,
    gather_neighborhoods,
    grow_texture,
    make_gaussian_window,
    pad_texture,
    place_seed_patch,
    sample_window_match,
    select_ring_pixels,
)
from sightline.registry.progress import Step


def random_image(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def make_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def list_colors(picture: Tensor) -> set[tuple[float, ...]]:
    return {tuple(color) for color in picture.flatten(1).T.tolist()}


def measure_literally(
    canvas: Tensor, known: Tensor, position: tuple[int, int], window: Tensor
) -> float:
    """The Gaussian-weighted mean squared difference of a 5×5 window over the known pixels.

    Beyond the edges the canvas continues on the torus.
    """
    height, width = known.shape
    error = total = 0.0
    for dy, dx in product(range(-2, 3), range(-2, 3)):
        row, column = (position[0] + dy) % height, (position[1] + dx) % width
        if known[row, column]:
            weight = math.exp(-(dy * dy + dx * dx) / (2 * (5 / 6.4) ** 2))
            difference = canvas[:, row, column] - window[:, 2 + dy, 2 + dx]
            error += weight * float(difference.square().sum())
            total += weight
    return error / total


@pytest.mark.parametrize("position", [(3, 3), (0, 6)])
def test_distances_to_all_windows_are_the_literal_ones(position: tuple[int, int]) -> None:
    exemplar = random_image(3, 12, 10)
    canvas, known = place_seed_patch(exemplar, (7, 9), make_generator())
    known[4, 0:3] = True
    known[5:, 4] = True
    windows, center_colors = extract_windows(exemplar, 5)
    assert windows.shape == (8 * 6, 75)
    colors, is_known = gather_neighborhoods(canvas, known, torch.tensor([position]), 2, True)
    weights = is_known * make_gaussian_window(5)
    weights /= weights.sum(1, keepdim=True)
    distances = (weights.repeat(1, 3) * (colors - windows).square()).sum(1)
    for index in range(len(windows)):
        y, x = divmod(index, 6)
        literal = measure_literally(canvas, known, position, exemplar[:, y : y + 5, x : x + 5])
        assert float(distances[index]) == pytest.approx(literal, rel=1e-4)
        assert torch.equal(center_colors[:, index], exemplar[:, y + 2, x + 2])


def test_beyond_the_edge_of_a_picture_that_does_not_tile_nothing_is_known() -> None:
    canvas, known = random_image(3, 7, 9), torch.ones(7, 9, dtype=torch.bool)
    positions = torch.tensor([[0, 8], [3, 4]])
    colors, is_known = gather_neighborhoods(canvas, known, positions, 2, False)
    corner = is_known[0].view(5, 5)
    assert (corner[2:, :3] == 1).all()
    assert corner.sum() == 9
    assert is_known[1].sum() == 25
    inside = colors[1].view(3, 5, 5)
    assert torch.equal(inside, canvas[:, 1:6, 2:7])


def test_every_pixel_was_a_candidate_when_it_was_found() -> None:
    """A run replayed: all colors come from windows within 1.1 × the smallest distance.

    No distance exceeds the largest allowed error, which grows by 1.1 when no pixel was found. In
    black and white, all errors are large.
    """
    exemplar = random_image(3, 9, 11).round()
    steps: list[Step] = []
    grow_texture(
        exemplar,
        (8, 6),
        window=5,
        generator=make_generator(4),
        tileable=True,
        callback=steps.append,
    )
    canvas, known = place_seed_patch(exemplar, (8, 6), make_generator(4))
    max_error, previous_index, growth_count = 0.3, 0, 0
    for step in steps:
        state = step.image[0]
        # The mean color of the unknown pixels is neither black nor white.
        new = ((state != canvas).any(0) & ~known).nonzero().tolist()
        assert len(new) == step.index - previous_index
        for row, column in new:
            distances: dict[tuple[int, int], float] = {}
            for y, x in product(range(5), range(7)):
                window = exemplar[:, y : y + 5, x : x + 5]
                distances[y, x] = measure_literally(canvas, known, (row, column), window)
            limit = min(1.1 * min(distances.values()), max_error) + 1e-5
            candidates = [key for key, distance in distances.items() if distance <= limit]
            colors = [exemplar[:, y + 2, x + 2] for y, x in candidates]
            assert any(torch.equal(state[:, row, column], color) for color in colors)
        if not new:
            max_error *= 1.1
            growth_count += 1
        assert float(step.scores) == pytest.approx(max_error, rel=1e-5)
        canvas, previous_index = state, step.index
        for row, column in new:
            known[row, column] = True
    assert known.all()
    assert growth_count > 3


def test_draws_evenly_among_those_near_the_smallest() -> None:
    distance = torch.tensor([[1.0, 1.05, 1.2, 1.09, 3.0]]).repeat(3000, 1)
    choice, error = sample_window_match(distance, make_generator())
    counts = torch.bincount(choice, minlength=5)
    assert counts[[2, 4]].tolist() == [0, 0]
    assert (counts[[0, 1, 3]] > 900).all()
    assert torch.equal(error, distance[0, choice])


def test_each_row_is_drawn_from_its_own_candidates() -> None:
    distance = torch.tensor([[5.0, 1.0, 9.0], [2.0, 8.0, 2.1], [7.0, 6.0, 3.0]])
    choice, error = sample_window_match(distance, make_generator())
    assert choice[0] == 1
    assert choice[1] in (0, 2)
    assert choice[2] == 2
    assert torch.equal(error, distance[torch.arange(3), choice])


@pytest.mark.parametrize("tileable", [False, True])
def test_the_ring_touches_what_is_known(tileable: bool) -> None:
    known = torch.zeros(7, 8, dtype=torch.bool)
    known[0, 0] = True
    ring = {
        tuple(pixel) for pixel in select_ring_pixels(known, tileable, make_generator()).tolist()
    }
    beside = {(0, 1), (1, 0), (1, 1)}
    if tileable:
        beside |= {(6, 0), (0, 7), (6, 7), (6, 1), (1, 7)}
    assert ring
    assert ring <= beside
    assert not any(abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1 for a in ring for b in ring)


def test_padding_continues_a_small_picture_more_than_once() -> None:
    image = random_image(1, 2, 3, 4)
    padded = pad_texture(image, 7, tileable=True)
    assert padded.shape == (1, 2, 17, 18)
    for y, x in product(range(17), range(18)):
        assert torch.equal(padded[0, :, y, x], image[0, :, (y - 7) % 3, (x - 7) % 4])
    zeros = pad_texture(image, 7, tileable=False)
    assert torch.equal(zeros[..., 7:10, 7:11], image)
    assert float(zeros.sum()) == pytest.approx(float(image.sum()), rel=1e-5)


def test_the_seed_is_a_piece_of_the_exemplar_in_the_middle() -> None:
    exemplar = random_image(3, 9, 12)
    canvas, known = place_seed_patch(exemplar, (10, 15), make_generator(1))
    expected = torch.zeros(10, 15, dtype=torch.bool)
    expected[5:8, 7:10] = True
    assert torch.equal(known, expected)
    pieces = exemplar.unfold(1, 3, 1).unfold(2, 3, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    assert bool((pieces == canvas[:, 5:8, 7:10]).flatten(1).all(1).any())
    unknown = canvas[:, ~known]
    torch.testing.assert_close(unknown, exemplar.mean((1, 2))[:, None].expand_as(unknown))


def test_grows_from_the_exemplars_own_colors_and_repeats() -> None:
    exemplar = random_image(3, 14, 16)
    runs = [
        grow_texture(exemplar, (19, 23), window=5, generator=make_generator(seed))
        for seed in (0, 0, 1)
    ]
    assert list_colors(runs[0]) <= list_colors(exemplar)
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_continues_stripes() -> None:
    exemplar = (torch.arange(18) % 3 == 0).float().expand(3, 15, 18).contiguous()
    picture = grow_texture(exemplar, (20, 24), window=7, generator=make_generator(), tileable=True)
    assert torch.equal(picture, picture.roll(3, 2))
    assert torch.equal(picture, picture.roll(1, 1))


def test_constant_stays_constant() -> None:
    exemplar = torch.full((3, 9, 10), 0.25)
    picture = grow_texture(exemplar, (12, 14), window=3, generator=make_generator())
    assert torch.equal(picture, torch.full((3, 12, 14), 0.25))


def test_a_callback_stops_it() -> None:
    steps: list[Step] = []
    picture = grow_texture(
        random_image(3, 12, 13),
        (30, 26),
        window=3,
        generator=make_generator(),
        callback=lambda step: steps.append(step) or True,
    )
    assert len(steps) == 1
    assert steps[0].total == 30 * 26 - 9
    assert torch.equal(steps[0].image[0], picture)
