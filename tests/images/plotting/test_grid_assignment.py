"""Pictures on a grid: each in a cell of its own, near its place."""

import itertools

import pytest
import torch
from torch import Tensor

from sightline.images.plotting.grid_assignment import (
    assign_cells_by_halving,
    assign_cells_optimally,
    make_picture_mosaic,
    snap_to_grid,
)


def places(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [1, 2, 7, 60, 100, 1601, 3000])
def test_every_picture_has_a_cell_of_its_own(count: int) -> None:
    cells, side = snap_to_grid(places(count))
    assert len({tuple(cell) for cell in cells.tolist()}) == count
    assert 0 <= cells.min() <= cells.max() < side
    assert (side - 1) ** 2 < count <= side**2


def test_the_way_is_the_shortest() -> None:
    unit = torch.rand(4, 2, generator=torch.Generator().manual_seed(1))
    centers = [(y + 0.5) / 2 for y in range(2)]
    cells = list(itertools.product(range(2), range(2)))

    def way(order: tuple[tuple[int, int], ...]) -> float:
        return sum(
            (p[0] - centers[y]) ** 2 + (p[1] - centers[x]) ** 2
            for p, (y, x) in zip(unit.tolist(), order, strict=True)
        )

    assert [tuple(cell) for cell in assign_cells_optimally(unit, 2).tolist()] == list(
        min(itertools.permutations(cells), key=way)
    )


@pytest.mark.parametrize("lay", [assign_cells_optimally, assign_cells_by_halving])
def test_a_grid_stays_as_it_is(lay: object) -> None:
    cells = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    shuffled = cells[torch.randperm(25, generator=torch.Generator().manual_seed(3))]
    assert callable(lay)
    assert torch.equal(lay((shuffled + 0.5) / 5, 5), shuffled)


def test_halving_keeps_neighbourhoods() -> None:
    unit = torch.rand(900, 2, generator=torch.Generator().manual_seed(4))
    ways = [
        ((lay(unit, 30) + 0.5) / 30 - unit).norm(dim=1).mean().item()
        for lay in (assign_cells_optimally, assign_cells_by_halving)
    ]
    assert ways[1] < 1.6 * ways[0], ways
    assert ways[1] < 0.1


def test_up_is_up_and_the_mosaic_shows_it() -> None:
    cells, side = snap_to_grid(torch.tensor([[0.0, 1], [1, 1], [0, 0], [1, 0]]))
    assert cells.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    pictures = torch.arange(4).div(4).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    assert (
        make_picture_mosaic(pictures, cells, side)[0, 0].tolist()
        == [[0, 0, 0.25, 0.25]] * 2 + [[0.5, 0.5, 0.75, 0.75]] * 2
    )
    assert make_picture_mosaic(pictures[:3], cells[:3], side)[0, 0, 3, 3] == 1
