"""Positions on a grid: each in a cell of its own, near where it was."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sightline.images.plotting.grid_assignment import (
    assign_cells_by_halving,
    assign_cells_optimally,
    make_picture_mosaic,
    snap_to_grid,
)

ASSIGNMENTS = [assign_cells_optimally, assign_cells_by_halving]


def draw_positions(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [1, 2, 7, 60, 100, 1601, 3000])
def test_every_position_has_a_cell_of_its_own(count: int) -> None:
    cells, side = snap_to_grid(draw_positions(count))
    assert len({tuple(cell) for cell in cells.tolist()}) == count
    assert 0 <= cells.min() <= cells.max() < side
    assert (side - 1) ** 2 < count <= side**2


def test_the_sum_of_squared_distances_is_minimal() -> None:
    positions = torch.rand(4, 2, generator=torch.Generator().manual_seed(1))
    cells = list(itertools.product(range(2), range(2)))

    def compute_cost(order: tuple[tuple[int, int], ...]) -> float:
        cost = 0.0
        for (row, column), (cell_row, cell_column) in zip(positions.tolist(), order, strict=True):
            cost += (row - (cell_row + 0.5) / 2) ** 2 + (column - (cell_column + 0.5) / 2) ** 2
        return cost

    best = min(itertools.permutations(cells), key=compute_cost)
    assert [tuple(cell) for cell in assign_cells_optimally(positions, 2).tolist()] == list(best)


@pytest.mark.parametrize("assign", ASSIGNMENTS)
def test_a_grid_stays_as_it_is(assign: Callable[[Tensor, int], Tensor]) -> None:
    cells = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    shuffled = cells[torch.randperm(25, generator=torch.Generator().manual_seed(3))]
    assert torch.equal(assign((shuffled + 0.5) / 5, 5), shuffled)


def test_halving_keeps_neighborhoods() -> None:
    positions = torch.rand(900, 2, generator=torch.Generator().manual_seed(4))
    optimal, halved = (
        ((assign(positions, 30) + 0.5) / 30 - positions).norm(dim=1).mean().item()
        for assign in ASSIGNMENTS
    )
    assert halved < 1.6 * optimal
    assert halved < 0.1


@pytest.mark.parametrize(("count", "side"), [(50, 8), (26, 6), (61, 8), (49, 7)])
def test_halving_divides_by_rows_then_by_columns(count: int, side: int) -> None:
    positions = draw_positions(count, seed=5)
    cells = assign_cells_by_halving(positions, side)
    is_upper = cells[:, 0] < side // 2
    assert positions[is_upper, 0].max() <= positions[~is_upper, 0].min()
    assert int(is_upper.sum()) == round(count * (side // 2) / side)
    for half in (is_upper, ~is_upper):
        is_left = half & (cells[:, 1] < side // 2)
        is_right = half & ~is_left
        assert positions[is_left, 1].max() <= positions[is_right, 1].min()


@pytest.mark.parametrize("side", range(1, 12))
def test_halving_never_gives_a_cell_twice(side: int) -> None:
    for count in range((side - 1) ** 2 + 1, side**2 + 1):
        cells = assign_cells_by_halving(draw_positions(count, seed=count), side)
        assert len({tuple(cell) for cell in cells.tolist()}) == count


def test_up_is_up_and_the_mosaic_shows_it() -> None:
    cells, side = snap_to_grid(torch.tensor([[0.0, 1], [1, 1], [0, 0], [1, 0]]))
    assert cells.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    pictures = torch.arange(4).div(4).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    mosaic = make_picture_mosaic(pictures, cells, side)
    assert mosaic[0, 0].tolist() == [[0, 0, 0.25, 0.25]] * 2 + [[0.5, 0.5, 0.75, 0.75]] * 2
    assert make_picture_mosaic(pictures[:3], cells[:3], side)[0, 0, 3, 3] == 1
