"""PatchMatch against the full search, and the vote that makes a picture of a field."""

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.methods.texture.patchmatch import PatchMatch, optimize_texture


def smooth(height: int, width: int, seed: int = 0) -> Tensor:
    coarse = torch.rand(
        1, 3, height // 4, width // 4, generator=torch.Generator().manual_seed(seed)
    )
    return F.interpolate(coarse, size=(height, width), mode="bilinear")[0]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_comes_close_to_the_full_search_and_never_gets_worse() -> None:
    source, picture = smooth(28, 32), smooth(20, 24, seed=5)
    search = PatchMatch(source, (20, 24), 5, generator())
    asked = search.extract_patches(picture)
    full = torch.cdist(asked, search.table).square().amin(1)
    field = search.draw_random_field()
    errors = [float(search.measure_error(field, picture))]
    for _ in range(4):
        field, _ = search.improve_field(field, picture, sweeps=2)
        errors.append(float(search.measure_error(field, picture)))
    # The bias against repetition may cost a little; without it the best is found nearly everywhere.
    assert errors[1] < 0.5 * errors[0]
    search.penalize_reuse = lambda asked, field: search.reuse_penalty.zero_()  # type: ignore[method-assign]
    field, distance = search.improve_field(field, picture, sweeps=6)
    assert (distance.flatten() >= full - 1e-4).all()
    assert float(distance.mean()) < 1.1 * float(full.mean())


def test_the_field_of_the_picture_itself_gives_the_picture_back() -> None:
    source = smooth(16, 20)
    search = PatchMatch(source, (16, 20), 3, generator())
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(20), indexing="ij")
    field = search.clamp_patch_index(rows - 1, columns - 1)
    mean, sharp = search.vote_colors(field, None)
    for picture in (mean, sharp):
        torch.testing.assert_close(picture[:, 2:-2, 2:-2], source[:, 2:-2, 2:-2])


def test_distances_are_the_literal_ones() -> None:
    source, picture = smooth(12, 16), smooth(12, 16, seed=2)
    search = PatchMatch(source, (12, 16), 3, generator())
    field = search.draw_random_field()
    row, column = divmod(int(field[5, 7]), search.columns)
    literal = (picture[:, 4:7, 6:9] - source[:, row : row + 3, column : column + 3]).square().sum()
    torch.testing.assert_close(
        search.measure_distances(search.extract_patches(picture), field)[5, 7], literal
    )


def test_a_coarse_field_points_to_the_same_places_at_twice_the_size() -> None:
    source = smooth(24, 28)
    fine = PatchMatch(source, (24, 28), 5, generator())
    coarse = PatchMatch(source[:, ::2, ::2].contiguous(), (12, 14), 5, generator())
    rows, columns = torch.meshgrid(torch.arange(12), torch.arange(14), indexing="ij")
    field = fine.upsample_field(coarse.clamp_patch_index(rows - 2, columns - 2))
    rows, columns = torch.meshgrid(torch.arange(24), torch.arange(28), indexing="ij")
    inside = (slice(6, -6), slice(6, -6))
    assert torch.equal((field // fine.columns)[inside], rows[inside] - 4)
    assert torch.equal((field % fine.columns)[inside], columns[inside] - 4)


def test_where_all_patches_are_far_the_vote_is_still_theirs() -> None:
    source = smooth(16, 20).clamp_min(0.3)
    search = PatchMatch(source, (16, 20), 3, generator())
    far = torch.ones(16, 20).index_fill(0, torch.arange(6, 12), 1e4)
    mean, sharp = search.vote_colors(search.draw_random_field(), far)
    assert float(mean.min()) >= float(source.min()) - 1e-5, "weights that vanish would leave black"
    assert float(sharp.min()) >= float(source.min())


def test_it_begins_with_whole_blocks() -> None:
    search = PatchMatch(smooth(60, 64), (20, 20), 5, generator(1))
    field = search.draw_random_field()
    whole = field[0, 0] + torch.arange(10)[:, None] * search.columns + torch.arange(10)
    assert torch.equal(field[:10, :10], whole), "one block of two windows' side, from one place"
    assert len(torch.unique(field[::10, ::10])) == 4
    assert 0 <= int(field.min()) <= int(field.max()) < len(search.table)


def test_the_picture_is_made_of_the_exemplar_s_colors() -> None:
    exemplar = smooth(40, 40)
    runs = [
        optimize_texture(exemplar, (36, 44), window=5, generator=generator(seed), rounds=2)
        for seed in (0, 0, 1)
    ]
    palette = {tuple(color) for color in exemplar.flatten(1).T.tolist()}
    assert runs[0][0].shape == (3, 36, 44)
    assert {tuple(color) for color in runs[0][0].flatten(1).T.tolist()} <= palette
    assert torch.equal(runs[0][0], runs[1][0])
    assert not torch.equal(runs[0][0], runs[2][0])


def test_constant_stays_constant() -> None:
    picture, cost = optimize_texture(
        torch.full((3, 24, 24), 0.6), (20, 28), window=5, generator=generator(), rounds=1
    )
    torch.testing.assert_close(picture, torch.full((3, 20, 28), 0.6))
    assert cost == 0
