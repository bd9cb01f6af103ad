"""Places in the plane snapped to a grid, one picture to a cell, so that a map of pictures has no overlaps."""

import math

import torch
from torch import Tensor

MAX_EXACT_POSITIONS = (
    1600  # pictures up to which the shortest total way is found; the time grows with the cube
)


def snap_to_grid(positions: Tensor) -> tuple[Tensor, int]:
    """Row and column, n×2, of a cell of its own for each of n×2 places (x to the right, y upwards), and the square grid's side.

    Up to 1,600 the sum of squared ways from place to cell is least (linear assignment); above, halves of the plane go to halves
    of the grid, and so on, in the time of a sort.
    """
    side = math.ceil(math.sqrt(len(positions)))
    low, high = positions.amin(0), positions.amax(0)
    unit = (positions - low) / (high - low).clamp_min(1e-12)
    unit = torch.stack([1 - unit[:, 1], unit[:, 0]], 1)  # rows go down
    return (
        assign_cells_optimally(unit, side)
        if len(positions) <= MAX_EXACT_POSITIONS
        else assign_cells_by_halving(unit, side)
    ), side


def assign_cells_optimally(positions: Tensor, side: int) -> Tensor:
    """Cells n×2 of places in the unit square by linear assignment."""
    from scipy.optimize import linear_sum_assignment

    cells = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    ways = torch.cdist(positions.double(), (cells.double() + 0.5) / side).square()
    return cells[torch.from_numpy(linear_sum_assignment(ways.numpy())[1])]


def assign_cells_by_halving(positions: Tensor, side: int) -> Tensor:
    """Cells n×2 of places in the unit square by halving the longer side of the grid, and with it the places, until a cell is left."""
    cells = torch.zeros(len(positions), 2, dtype=torch.long)
    todo = [(torch.arange(len(positions)), (0, 0), (side, side))]
    while todo:
        ids, corner, size = todo.pop()
        if size == (1, 1) or not len(ids):
            cells[ids] = torch.tensor(corner)
            continue
        axis = 0 if size[0] >= size[1] else 1
        near = size[axis] // 2
        first, rest = (
            tuple(length if i == axis else size[i] for i in (0, 1))
            for length in (near, size[axis] - near)
        )
        order = ids[positions[ids, axis].argsort(stable=True)]
        most, least = first[0] * first[1], len(ids) - rest[0] * rest[1]
        share = min(most, max(least, round(len(ids) * near / size[axis])))
        beyond = tuple(corner[i] + near * (i == axis) for i in (0, 1))
        todo += [(order[:share], corner, first), (order[share:], beyond, rest)]
    return cells


def make_picture_mosaic(pictures: Tensor, cells: Tensor, side: int) -> Tensor:
    """n×3×t×t pictures laid into their cells, white where there is none: 1×3×(side·t)×(side·t)."""
    tile = pictures.shape[-1]
    canvas = torch.ones(1, 3, side * tile, side * tile)
    for picture, (row, column) in zip(pictures, (cells * tile).tolist(), strict=True):
        canvas[0, :, row : row + tile, column : column + tile] = picture
    return canvas
