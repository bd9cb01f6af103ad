"""Positions in the plane moved to the cells of a grid, so that thumbnails there do not overlap."""

import math

import torch
from torch import Tensor

# Up to so many positions the assignment is optimal; its time grows with the cube.
MAX_EXACT_POSITIONS = 1600


def snap_to_grid(positions: Tensor) -> tuple[Tensor, int]:
    """Gives each of n positions a cell of its own in the smallest square grid that holds all.

    `positions` are n×2, x to the right and y upwards. Returns the row and column of each, n×2,
    and the grid's side. Up to 1,600 positions, the sum of squared distances from position to cell
    is minimal (linear assignment). Above, halves of the plane go to halves of the grid, again and
    again, which takes the time of a sort.
    """
    side = math.ceil(math.sqrt(len(positions)))
    low = positions.amin(0)
    high = positions.amax(0)
    in_unit_square = (positions - low) / (high - low).clamp_min(1e-12)
    x, y = in_unit_square.unbind(1)
    # Rows are counted downwards.
    row_and_column = torch.stack([1 - y, x], 1)
    if len(positions) <= MAX_EXACT_POSITIONS:
        return assign_cells_optimally(row_and_column, side), side
    return assign_cells_by_halving(row_and_column, side), side


def assign_cells_optimally(positions: Tensor, side: int) -> Tensor:
    """Cells n×2 of positions (row, column) in the unit square, by linear assignment."""
    from scipy.optimize import linear_sum_assignment

    cells = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    centers = (cells.double() + 0.5) / side
    costs = torch.cdist(positions.double(), centers).square()
    _, chosen_cells = linear_sum_assignment(costs.numpy())
    return cells[torch.from_numpy(chosen_cells)]


def assign_cells_by_halving(positions: Tensor, side: int) -> Tensor:
    """Cells n×2 of positions (row, column) in the unit square, by recursive halving.

    A block of cells is halved across its longer side, and its positions with it, until one cell
    is left.
    """
    cells = torch.zeros(len(positions), 2, dtype=torch.long)
    # Blocks still to be divided: their positions, their first row and column, their size.
    blocks = [(torch.arange(len(positions)), (0, 0), (side, side))]
    while blocks:
        ids, corner, size = blocks.pop()
        if size == (1, 1) or not len(ids):
            cells[ids] = torch.tensor(corner)
            continue
        axis = 0 if size[0] >= size[1] else 1
        first_length = size[axis] // 2
        first_size = _replace_item(size, axis, first_length)
        second_size = _replace_item(size, axis, size[axis] - first_length)
        second_corner = _replace_item(corner, axis, corner[axis] + first_length)

        # Positions are divided in proportion to the cells. Neither half gets more than it has
        # cells: there are no more positions than cells in the block, and rounding keeps that.
        sorted_ids = ids[positions[ids, axis].argsort(stable=True)]
        first_count = round(len(ids) * first_length / size[axis])
        blocks.append((sorted_ids[:first_count], corner, first_size))
        blocks.append((sorted_ids[first_count:], second_corner, second_size))
    return cells


def make_picture_mosaic(pictures: Tensor, cells: Tensor, side: int) -> Tensor:
    """n×3×t×t pictures laid into their cells n×2, white elsewhere: 1×3×(side·t)×(side·t)."""
    tile_side = pictures.shape[-1]
    canvas = torch.ones(1, 3, side * tile_side, side * tile_side)
    for picture, (top, left) in zip(pictures, (cells * tile_side).tolist(), strict=True):
        canvas[0, :, top : top + tile_side, left : left + tile_side] = picture
    return canvas


def _replace_item(pair: tuple[int, int], axis: int, value: int) -> tuple[int, int]:
    return (value, pair[1]) if axis == 0 else (pair[0], value)
