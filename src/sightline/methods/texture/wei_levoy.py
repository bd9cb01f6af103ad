"""Wei & Levoy 2000, with the full search instead of a tree: raster scan over a pyramid, each pixel the best match of its window."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.images.transforms import blur_image
from sightline.registry.progress import Callback, Step

PARENT_RADIUS = 2  # radius of the window at the coarser level; with 1 stones grow into gray plains


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
    """A picture 3×H×W from an exemplar 3×h×w. The output is a torus, so it always tiles.

    At each level, coarse to fine, every pixel takes the exemplar's pixel whose causal (L-shaped) window, with the 5×5 window of
    the level above, differs least. Departures: instead of line by line, pixels are found along slanted lines, each row a window
    behind the one above, so that none sees another of its line and one matrix product serves them all. A second round compares
    whole windows, as the paper does to fill holes (section 5.1), so that the last rows and columns fit the first ones. The coarsest
    level begins with blocks of the exemplar, and whole windows: out of noise grow plains.
    """
    radius = window // 2
    pyramid, sizes = [exemplar], [size]
    while (
        len(pyramid) < levels
        and min(*pyramid[-1].shape[-2:]) // 2 > 2 * window
        and min(sizes[-1]) // 2 > 2 * window
    ):
        pyramid.append(downsample_level(pyramid[-1]))
        sizes.append((math.ceil(sizes[-1][0] / 2), math.ceil(sizes[-1][1] / 2)))
    steps = [schedule_wavefronts(*shape, radius) for shape in sizes]
    total, done, picture = 2 * sum(map(len, steps)), 0, None
    for level in reversed(range(len(pyramid))):
        source, parents = pyramid[level], pyramid[level + 1] if level + 1 < len(pyramid) else None
        coarse, picture = picture, tile_random_blocks(source, sizes[level], 2 * window, generator)
        for seen in (
            make_square_offsets(radius) if coarse is None else make_causal_offsets(radius),
            make_square_offsets(radius),
        ):
            table, centers = gather_exemplar_windows(source, parents, seen)
            squares = table.square().sum(1)
            for wave in steps[level]:
                best = (squares - 2 * gather_queries(picture, coarse, wave, seen) @ table.T).argmin(
                    1
                )
                picture[:, wave[:, 0], wave[:, 1]] = centers[:, best]
                done += 1
                if (
                    callback
                    and done % 64 == 0
                    and callback(Step(done, total, torch.zeros(1), enlarge_preview(picture, size)))
                ):
                    return enlarge_preview(picture, size)[0]
    return picture if picture is not None else exemplar


def downsample_level(picture: Tensor) -> Tensor:
    """The next level of the Gaussian pyramid."""
    return blur_image(picture[None], 1.0)[0, :, ::2, ::2].contiguous()


def tile_random_blocks(
    source: Tensor, size: tuple[int, int], side: int, generator: torch.Generator
) -> Tensor:
    """Square blocks of the source from anywhere, laid side by side: 3×H×W."""
    side = min(side, *source.shape[-2:])
    counts = [-(-length // side) for length in size]
    corners = [
        torch.randint(length - side + 1, tuple(counts), generator=generator)
        for length in source.shape[-2:]
    ]
    rows, columns = torch.arange(size[0])[:, None], torch.arange(size[1])
    top, left = (corner[rows // side, columns // side] for corner in corners)
    return source[:, top + rows % side, left + columns % side]


def schedule_wavefronts(height: int, width: int, radius: int) -> list[Tensor]:
    """All pixels, in steps of those that don't see each other: a row runs `radius` + 1 pixels behind the one above."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    when = (columns + (radius + 1) * rows).flatten()
    order = torch.argsort(when, stable=True)
    places = torch.stack([rows.flatten(), columns.flatten()], 1)[order]
    counts = torch.bincount(when)
    return list(places.split(counts[counts > 0].tolist()))


def make_causal_offsets(radius: int) -> Tensor:
    """Offsets (row, column) of the L-shaped window: the rows above and what lies to the left: m×2."""
    reach = range(-radius, radius + 1)
    return torch.tensor([(dy, dx) for dy in range(-radius, 1) for dx in reach if dy < 0 or dx < 0])


def make_square_offsets(radius: int, *, include_center: bool = False) -> Tensor:
    """Offsets (row, column) of the whole window, without or with its middle: m×2."""
    reach = range(-radius, radius + 1)
    return torch.tensor([(dy, dx) for dy in reach for dx in reach if include_center or dy or dx])


def gather_queries(picture: Tensor, coarse: Tensor | None, wave: Tensor, offsets: Tensor) -> Tensor:
    """What is `seen` around the pixels of a wave, and the windows at the coarser level, on the torus: n×d."""
    parts = [gather_colors(picture, wave, offsets)]
    if coarse is not None:
        parts.append(
            gather_colors(
                coarse, wave // 2, make_square_offsets(PARENT_RADIUS, include_center=True)
            )
        )
    return torch.cat(parts, 1)


def gather_colors(picture: Tensor, positions: Tensor, offsets: Tensor) -> Tensor:
    """Colours at the offsets from each place, on the torus: n×3m."""
    where = positions[:, None] + offsets
    return (
        picture[:, where[..., 0] % picture.shape[1], where[..., 1] % picture.shape[2]]
        .permute(1, 0, 2)
        .flatten(1)
    )


def gather_exemplar_windows(
    source: Tensor, parents: Tensor | None, offsets: Tensor
) -> tuple[Tensor, Tensor]:
    """The windows of the exemplar that lie inside it, at its level and the coarser one, and the colours they lead to."""
    size = torch.tensor(source.shape[-2:])
    first, last = -offsets.amin(0), size - offsets.amax(0).clamp_min(0)
    places = torch.cartesian_prod(
        *(torch.arange(int(one), int(other)) for one, other in zip(first, last, strict=True))
    )
    if parents is not None:
        above = places // 2
        inside = (above >= PARENT_RADIUS).all(1) & (
            above < torch.tensor(parents.shape[-2:]) - PARENT_RADIUS
        ).all(1)
        places = places[inside]
    return gather_queries(source, parents, places, offsets), source[:, places[:, 0], places[:, 1]]


def enlarge_preview(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """What is made so far, at full size: 1×3×H×W."""
    return F.interpolate(picture[None], size=size, mode="nearest")
