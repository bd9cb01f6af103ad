"""PatchMatch against the full search, and the vote that makes a picture of a field."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.images.transforms import blur_image
from sightline.methods.texture.patchmatch import REUSE_PENALTY, PatchMatch, optimize_texture


def make_smooth(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 4, width // 4, generator=generator)
    return F.interpolate(coarse, size=(height, width), mode="bilinear")[0]


def make_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_grid(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Rows and columns of all pixels."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return rows, columns


def list_colors(picture: Tensor) -> set[tuple[float, ...]]:
    return {tuple(color) for color in picture.flatten(1).T.tolist()}


# ── the search ──


def test_comes_close_to_the_full_search_and_never_gets_worse() -> None:
    source, picture = make_smooth(28, 32), make_smooth(20, 24, seed=5)
    search = PatchMatch(source, (20, 24), 5, make_generator())
    full = torch.cdist(search.extract_patches(picture), search.table).square().amin(1)
    field = search.draw_random_field()
    errors = [float(search.measure_error(field, picture))]
    for _ in range(4):
        field, _ = search.improve_field(field, picture, sweeps=2)
        errors.append(float(search.measure_error(field, picture)))
    # The penalty on reuse may cost a little; without it the best is found nearly everywhere.
    assert errors[1] < 0.5 * errors[0]
    search.penalize_reuse = lambda patches, field: search.reuse_penalty.zero_()  # type: ignore[method-assign]
    field, distance = search.improve_field(field, picture, sweeps=6)
    assert (distance.flatten() >= full - 1e-4).all()
    assert float(distance.mean()) < 1.1 * float(full.mean())


def test_a_single_match_spreads_over_the_picture_in_one_sweep() -> None:
    """From a pixel to its neighbors 8, 4, 2 and 1 away in all directions, with their offset."""
    source = torch.rand(3, 40, 44, generator=make_generator())
    picture = source[:, 5:25, 9:37].contiguous()
    search = PatchMatch(source, (20, 28), 3, make_generator(1))
    search.penalize_reuse = lambda patches, field: None  # type: ignore[method-assign]
    rows, columns = make_grid(20, 28)
    truth = search.clamp_patch_index(rows + 5 - 1, columns + 9 - 1)
    field = torch.zeros(20, 28, dtype=torch.long)
    without_start, _ = search.improve_field(field, picture, sweeps=1)
    field[9, 13] = truth[9, 13]
    with_start, _ = search.improve_field(field, picture, sweeps=1)
    inside = (slice(1, -1), slice(1, -1))
    assert (without_start == truth)[inside].float().mean() < 0.1, "luck alone finds few"
    assert torch.equal(with_start[inside], truth[inside])


def test_distances_are_the_literal_ones() -> None:
    source, picture = make_smooth(12, 20), make_smooth(12, 16, seed=2)
    search = PatchMatch(source, (12, 16), 3, make_generator())
    search.reuse_penalty = torch.rand(len(search.table), generator=make_generator(1))
    field = search.draw_random_field()
    distances = search.measure_distances(search.extract_patches(picture), field)
    squares: list[float] = []
    for y, x in product(range(12), range(16)):
        row, column = divmod(int(field[y, x]), search.columns)
        rows, columns = torch.arange(y - 1, y + 2) % 12, torch.arange(x - 1, x + 2) % 16
        patch = picture[:, rows[:, None], columns]
        match = source[:, row : row + 3, column : column + 3]
        squares.append(float((patch - match).square().sum()))
        penalty = float(search.reuse_penalty[field[y, x]])
        assert float(distances[y, x]) == pytest.approx(squares[-1] + penalty, rel=1e-4)
    mean = sum(squares) / len(squares) / 27
    assert float(search.measure_error(field, picture)) == pytest.approx(mean, rel=1e-4)


def test_the_nearer_of_two_patches_is_kept() -> None:
    """A tie keeps the match; a candidate that is the match changes nothing."""
    search = PatchMatch(make_smooth(12, 16), (2, 3), 3, make_generator())
    search.reuse_penalty[4] = 0.5
    patches = search.table[[0, 1, 2, 3, 4, 5]]
    field = torch.tensor([[7, 1, 8], [3, 9, 5]])
    candidate = torch.tensor([[0, 20, 2], [3, 4, 30]])
    distance = search.measure_distances(patches, field)
    before = distance.clone()
    distance[1, 1] = 0.5  # as far as the candidate with its penalty
    kept, kept_distance = search.keep_nearer(patches, field, distance, candidate)
    assert kept.tolist() == [[0, 1, 2], [3, 9, 5]]
    assert kept_distance.tolist() == [[0, 0, 0], [0, 0.5, 0]]
    assert field.tolist() == [[7, 1, 8], [3, 9, 5]], "in a copy"
    assert (before >= 0).all()


def test_reuse_is_penalized_in_proportion_to_the_blurred_counts() -> None:
    """A patch that is used as often as the average costs 0.3 of the median distance."""
    search = PatchMatch(make_smooth(12, 20), (6, 7), 3, make_generator())
    field = torch.zeros(6, 7, dtype=torch.long)
    field[2:, 1:] = 40
    patches = search.table[torch.arange(42) + 50]
    search.penalize_reuse(patches, field)
    counts = torch.zeros(search.rows, search.columns)
    for match in field.flatten().tolist():
        counts[match // search.columns, match % search.columns] += 1
    average = 42 / (search.rows * search.columns)
    median = (patches - search.table[field.flatten()]).square().sum(1).median()
    expected = REUSE_PENALTY * median * blur_image(counts[None, None], 1.5) / average
    torch.testing.assert_close(search.reuse_penalty, expected.flatten())
    even = PatchMatch(make_smooth(12, 20), (10, 18), 3, make_generator())
    patches = even.table.roll(1, 0)
    even.penalize_reuse(patches, torch.arange(180).view(10, 18))
    median = (patches - even.table).square().sum(1).median()
    torch.testing.assert_close(even.reuse_penalty, (0.3 * median).expand(180), rtol=1e-4, atol=0)


# ── fields ──


def test_the_field_of_the_picture_itself_gives_the_picture_back() -> None:
    source = make_smooth(16, 20)
    search = PatchMatch(source, (16, 20), 3, make_generator())
    rows, columns = make_grid(16, 20)
    field = search.clamp_patch_index(rows - 1, columns - 1)
    for picture in search.vote_colors(field, None):
        torch.testing.assert_close(picture[:, 2:-2, 2:-2], source[:, 2:-2, 2:-2])


@pytest.mark.parametrize("size", [(24, 28), (23, 27)])
def test_a_coarse_field_points_to_the_same_places_at_twice_the_size(size: tuple[int, int]) -> None:
    height, width = size
    source = make_smooth(24, 28)[:, :height, :width]
    fine = PatchMatch(source, size, 5, make_generator())
    coarse = PatchMatch(source[:, ::2, ::2].contiguous(), (12, 14), 5, make_generator())
    rows, columns = make_grid(12, 14)
    field = fine.upsample_field(coarse.clamp_patch_index(rows - 2, columns - 2))
    assert field.shape == size
    rows, columns = make_grid(height, width)
    inside = (slice(6, -6), slice(6, -6))
    assert torch.equal((field // fine.columns)[inside], rows[inside] - 4)
    assert torch.equal((field % fine.columns)[inside], columns[inside] - 4)


def test_it_begins_with_whole_blocks() -> None:
    search = PatchMatch(make_smooth(60, 64), (20, 30), 5, make_generator(1))
    field = search.draw_random_field()
    block = field[0, 0] + torch.arange(10)[:, None] * search.columns + torch.arange(10)
    assert torch.equal(field[:10, :10], block), "one block of two windows' side, from one place"
    assert len(torch.unique(field[::10, ::10])) == 6
    assert 0 <= int(field.min()) <= int(field.max()) < len(search.table)


# ── the vote ──


def test_the_vote_is_a_weighted_mean_and_the_nearest_color() -> None:
    """Pixel by pixel: the nine patches over it, with weights exp(−distance/2σ²)."""
    source = make_smooth(12, 20)
    search = PatchMatch(source, (6, 7), 3, make_generator())
    field = search.draw_random_field()
    distance = torch.rand(6, 7, generator=make_generator(2)) * 4
    mean, nearest = search.vote_colors(field, distance)
    variance = float(distance.median())
    for y, x in product(range(6), range(7)):
        colors: list[Tensor] = []
        weights: list[float] = []
        for dy, dx in product((-1, 0, 1), (-1, 0, 1)):
            # The patch around (y − dy, x − dx) has this pixel (dy, dx) from its middle.
            center = ((y - dy) % 6, (x - dx) % 7)
            row, column = divmod(int(field[center]), search.columns)
            colors.append(source[:, row + 1 + dy, column + 1 + dx])
            weights.append(math.exp(-float(distance[center]) / (2 * variance)))
        total = sum(weights)
        expected = sum(
            color * (weight / total) for color, weight in zip(colors, weights, strict=True)
        )
        assert isinstance(expected, Tensor)
        torch.testing.assert_close(mean[:, y, x], expected)
        gaps = [float((color - expected).square().sum()) for color in colors]
        gap = float((nearest[:, y, x] - expected).square().sum())
        assert gap == pytest.approx(min(gaps), abs=1e-6)


def test_where_all_patches_are_far_the_vote_is_still_theirs() -> None:
    source = make_smooth(16, 20).clamp_min(0.3)
    search = PatchMatch(source, (16, 20), 3, make_generator())
    far = torch.ones(16, 20).index_fill(0, torch.arange(6, 12), 1e4)
    mean, nearest = search.vote_colors(search.draw_random_field(), far)
    assert float(mean.min()) >= float(source.min()) - 1e-5, "weights that vanish would leave black"
    assert float(nearest.min()) >= float(source.min())


# ── the whole ──


def test_the_picture_is_made_of_the_exemplars_colors() -> None:
    exemplar = make_smooth(40, 48)
    runs = [
        optimize_texture(exemplar, (36, 44), window=5, generator=make_generator(seed), rounds=2)
        for seed in (0, 0, 1)
    ]
    pictures = [picture for picture, _ in runs]
    assert pictures[0].shape == (3, 36, 44)
    assert list_colors(pictures[0]) <= list_colors(exemplar)
    assert torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures[0], pictures[2])


def test_constant_stays_constant() -> None:
    picture, error = optimize_texture(
        torch.full((3, 24, 30), 0.6), (20, 28), window=5, generator=make_generator(), rounds=1
    )
    torch.testing.assert_close(picture, torch.full((3, 20, 28), 0.6))
    assert error == 0


def test_a_callback_sees_whole_pictures_and_stops_it() -> None:
    """Two levels of three rounds; the first ones are enlarged."""
    steps: list[tuple[int, int]] = []
    shapes: list[torch.Size] = []

    def stop_at_5(step: object) -> bool:
        steps.append((step.index, step.total))  # type: ignore[attr-defined]
        shapes.append(step.image.shape)  # type: ignore[attr-defined]
        return len(steps) == 5

    exemplar = make_smooth(40, 48)
    picture, _ = optimize_texture(
        exemplar, (36, 44), window=5, generator=make_generator(), rounds=3, callback=stop_at_5
    )
    assert steps == [(index, 6) for index in range(1, 6)]
    assert set(shapes) == {torch.Size((1, 3, 36, 44))}
    assert picture.shape == (3, 36, 44)
