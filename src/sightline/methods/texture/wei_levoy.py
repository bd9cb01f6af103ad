"""Texture synthesis by a raster scan over a pyramid (Wei & Levoy 2000).

Each pixel takes the best match of its neighborhood. Departure: a full search instead of the
paper's tree-structured vector quantization.
"""

import math
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.images.transforms import blur_image
from sightline.registry.progress import Callback, Step

# Radius of the neighborhood at the coarser level. With 1, structures dissolve into gray areas.
PARENT_RADIUS = 2

STEPS_PER_CALLBACK = 64


@torch.no_grad()
def scan_texture(
    exemplar: Tensor,
    size: tuple[int, int],
    *,
    window: int,
    generator: torch.Generator,
    levels: int = 4,
    callback: Callback | None = None,
) -> Tensor:
    """A picture C×H×W from an exemplar C×h×w. The picture is a torus, so it always tiles.

    At each level, coarse to fine, every pixel takes the exemplar's pixel whose causal (L-shaped)
    neighborhood, with the 5×5 neighborhood at the level above, differs least.
    """
    # Departures:
    # - Pixels are not found line by line but along slanted lines, each row a window behind the row
    #   above. No pixel of a slanted line sees another, so one matrix product serves them all.
    # - A second pass compares whole neighborhoods, as the paper does to fill holes (section 5.1),
    #   so that the last rows and columns fit the first ones.
    # - The coarsest level starts from blocks of the exemplar and compares whole neighborhoods in
    #   both passes: from noise, flat areas grow.
    radius = window // 2
    pyramid, sizes = build_pyramid(exemplar, size, min_side=2 * window + 1, max_levels=levels)
    wavefronts = [schedule_wavefronts(*level_size, radius) for level_size in sizes]
    total = 2 * sum(len(waves) for waves in wavefronts)
    step_index = 0
    picture = None

    for level in reversed(range(len(pyramid))):
        source = pyramid[level]
        parents = pyramid[level + 1] if level + 1 < len(pyramid) else None
        coarse = picture
        picture = tile_random_blocks(source, sizes[level], 2 * window, generator)
        whole_offsets = make_square_offsets(radius)
        first_offsets = whole_offsets if coarse is None else make_causal_offsets(radius)

        for offsets in (first_offsets, whole_offsets):
            windows, colors = gather_exemplar_windows(source, parents, offsets)
            squared_norms = windows.square().sum(1)
            for wave in wavefronts[level]:
                queries = gather_queries(picture, coarse, wave, offsets)
                # The squared distance without the query's own norm, the same for all windows.
                nearest = (squared_norms - 2 * queries @ windows.T).argmin(1)
                rows, columns = wave.unbind(1)
                picture[:, rows, columns] = colors[:, nearest]
                step_index += 1
                if callback and step_index % STEPS_PER_CALLBACK == 0:
                    preview = enlarge_preview(picture, size)
                    if callback(Step(step_index, total, torch.zeros(1), preview)):
                        return preview[0]
    return picture if picture is not None else exemplar


def build_pyramid(
    exemplar: Tensor, size: tuple[int, int], *, min_side: int, max_levels: int
) -> tuple[list[Tensor], list[tuple[int, int]]]:
    """The exemplar at each level, fine to coarse, and the size of the picture at each level.

    No level is added with a side, of exemplar or picture, below `min_side`.
    """
    pyramid = [exemplar]
    sizes = [size]
    while len(pyramid) < max_levels:
        next_short_side = min(*pyramid[-1].shape[-2:], *sizes[-1]) // 2
        if next_short_side < min_side:
            break
        pyramid.append(downsample_level(pyramid[-1]))
        height, width = sizes[-1]
        sizes.append((math.ceil(height / 2), math.ceil(width / 2)))
    return pyramid, sizes


def downsample_level(picture: Tensor) -> Tensor:
    """The next level of the Gaussian pyramid of a picture C×H×W."""
    blurred = blur_image(picture[None], 1.0)[0]
    return blurred[:, ::2, ::2].contiguous()


def tile_random_blocks(
    source: Tensor, size: tuple[int, int], side: int, generator: torch.Generator
) -> Tensor:
    """A picture C×H×W of square blocks from random positions of the source, side by side."""
    height, width = size
    source_height, source_width = source.shape[-2:]
    side = min(side, source_height, source_width)

    # The corner of each block in the source.
    block_grid = (math.ceil(height / side), math.ceil(width / side))
    corner_rows = torch.randint(source_height - side + 1, block_grid, generator=generator)
    corner_columns = torch.randint(source_width - side + 1, block_grid, generator=generator)

    # The position in the source of each output pixel.
    rows = torch.arange(height)[:, None]
    columns = torch.arange(width)
    block_index = (rows // side, columns // side)
    source_rows = corner_rows[block_index] + rows % side
    source_columns = corner_columns[block_index] + columns % side
    return source[:, source_rows, source_columns]


def schedule_wavefronts(height: int, width: int, radius: int) -> list[Tensor]:
    """All pixel positions, in groups n×2 whose pixels don't see each other, in causal order.

    Each row runs `radius` + 1 pixels behind the row above.
    """
    positions = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    rows, columns = positions.unbind(1)
    wave_index = columns + (radius + 1) * rows

    order = torch.argsort(wave_index, stable=True)
    wave_lengths = torch.bincount(wave_index)
    wave_lengths = wave_lengths[wave_lengths > 0]
    return list(positions[order].split(wave_lengths.tolist()))


def make_causal_offsets(radius: int) -> Tensor:
    """Offsets (row, column) of the rows above and of the pixels to the left (an L-shape): m×2."""
    rows_above = product(range(-radius, 0), range(-radius, radius + 1))
    pixels_to_the_left = product([0], range(-radius, 0))
    return torch.tensor([*rows_above, *pixels_to_the_left])


def make_square_offsets(radius: int, *, include_center: bool = False) -> Tensor:
    """Offsets (row, column) of the square neighborhood, with or without its center: m×2."""
    reach = range(-radius, radius + 1)
    offsets = list(product(reach, reach))
    if not include_center:
        offsets.remove((0, 0))
    return torch.tensor(offsets)


def gather_queries(picture: Tensor, coarse: Tensor | None, wave: Tensor, offsets: Tensor) -> Tensor:
    """The neighborhoods of a wave's pixels, at their level and at the coarser one: n×d."""
    neighborhoods = gather_colors(picture, wave, offsets)
    if coarse is None:
        return neighborhoods
    parent_offsets = make_square_offsets(PARENT_RADIUS, include_center=True)
    parent_neighborhoods = gather_colors(coarse, wave // 2, parent_offsets)
    return torch.cat([neighborhoods, parent_neighborhoods], 1)


def gather_colors(picture: Tensor, positions: Tensor, offsets: Tensor) -> Tensor:
    """The colors at m offsets from each of n positions, on the torus: n×Cm."""
    height, width = picture.shape[-2:]
    neighbors = positions[:, None] + offsets
    rows = neighbors[..., 0] % height
    columns = neighbors[..., 1] % width
    colors = picture[:, rows, columns]  # C×n×m
    return colors.permute(1, 0, 2).flatten(1)


def gather_exemplar_windows(
    source: Tensor, parents: Tensor | None, offsets: Tensor
) -> tuple[Tensor, Tensor]:
    """All neighborhoods inside the exemplar, n×d, and the colors of their pixels, C×n.

    With `parents`, the coarser level, the neighborhoods there lie inside as well.
    """
    source_size = torch.tensor(source.shape[-2:])
    first_row, first_column = (-offsets.amin(0)).tolist()
    end_row, end_column = (source_size - offsets.amax(0).clamp_min(0)).tolist()
    rows = torch.arange(first_row, end_row)
    columns = torch.arange(first_column, end_column)
    positions = torch.cartesian_prod(rows, columns)

    if parents is not None:
        parent_positions = positions // 2
        parent_end = torch.tensor(parents.shape[-2:]) - PARENT_RADIUS
        is_after_start = (parent_positions >= PARENT_RADIUS).all(1)
        is_before_end = (parent_positions < parent_end).all(1)
        positions = positions[is_after_start & is_before_end]

    windows = gather_queries(source, parents, positions, offsets)
    rows, columns = positions.unbind(1)
    return windows, source[:, rows, columns]


def enlarge_preview(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """The unfinished picture 3×h×w at full size: 1×C×H×W."""
    return F.interpolate(picture[None], size=size, mode="nearest")
