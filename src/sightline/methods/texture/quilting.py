"""Image quilting (Efros & Freeman 2001): blocks of the exemplar laid with overlap, each joined along the cheapest cut."""

import math
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from sightline.images.color import LUMINANCE_WEIGHTS
from sightline.images.transforms import blur_image
from sightline.registry.progress import Callback, MultiRunCallback, Step


@dataclass(frozen=True)
class TransferGuide:
    """What a texture transfer follows: luminance of the exemplar and of the target picture, 1×h×w and 1×H×W, an earlier
    pass 3×H×W if there is one, and `alpha`, the weight of the texture against the correspondence (section 3)."""

    exemplar_luminance: Tensor
    target_luminance: Tensor
    previous_pass: Tensor | None
    alpha: float


class BlockMatcher:
    """Weighted squared distances of a block to every place of a picture C×h×w at once, by Fourier transform.

    In double precision: the distance is a difference of large numbers, and its least value decides.
    """

    def __init__(self, picture: Tensor) -> None:
        self.picture, self.size = picture.double(), picture.shape[-2:]
        self.spectrum = torch.fft.rfft2(self.picture)
        self.squares = torch.fft.rfft2(self.picture.square().sum(0))

    def correlate_kernel(self, spectrum: Tensor, kernel: Tensor) -> Tensor:
        """Σ picture·kernel at every place where the kernel lies inside."""
        full = torch.fft.irfft2(spectrum * torch.fft.rfft2(kernel, s=self.size).conj(), s=self.size)
        return full[
            ..., : self.size[0] - kernel.shape[-2] + 1, : self.size[1] - kernel.shape[-1] + 1
        ]

    def measure_distances(self, block: Tensor, weight: Tensor) -> Tensor:
        """Σ weight·(block − picture)² over channels and pixels of a block C×b×c with weights b×c: (h−b+1)×(w−c+1)."""
        block, weight = block.double(), weight.double()
        cross = self.correlate_kernel(self.spectrum, block * weight).sum(0)
        return (
            (block.square() * weight).sum()
            - 2 * cross
            + self.correlate_kernel(self.squares, weight)
        ).clamp_min(0)


@torch.no_grad()
def quilt_texture(
    exemplar: Tensor,
    size: tuple[int, int],
    *,
    block: int,
    generator: torch.Generator,
    tileable: bool = False,
    tolerance: float = 0.1,
    guide: TransferGuide | None = None,
    callback: Callback | None = None,
) -> tuple[Tensor, float]:
    """Fills `size` with blocks of an exemplar 3×h×w; gives the picture 3×H×W and the mean squared step along the cuts.

    Blocks overlap by a sixth of their side or a little more, so that they end with the picture's edge; with `tileable`
    the last also overlap the first. Of the blocks whose overlap differs by at most (1 + tolerance) × the least, one is drawn.
    """
    height, width = size
    side = min(block, *exemplar.shape[-2:], height, width)
    rows, columns = (
        plan_block_positions(height, side, tileable),
        plan_block_positions(width, side, tileable),
    )
    canvas, matcher, costs = torch.zeros(3, height, width), BlockMatcher(exemplar), list[float]()
    luminance = BlockMatcher(guide.exemplar_luminance) if guide else None
    for index, (row, column) in enumerate(product(rows, columns), 1):
        down, across = (
            (row.start + torch.arange(side)) % height,
            (column.start + torch.arange(side)) % width,
        )
        here = (slice(None), down[:, None], across)
        known = mask_overlaps(side, row, column)
        distance = matcher.measure_distances(canvas[here], known)
        if guide and luminance:
            earlier = (
                matcher.measure_distances(guide.previous_pass[here], torch.ones(side, side))
                if guide.previous_pass is not None
                else 0
            )
            distance = guide.alpha * (distance + earlier) + (
                1 - guide.alpha
            ) * luminance.measure_distances(guide.target_luminance[here], torch.ones(side, side))
        top, left = divmod(draw_block_index(distance, tolerance, generator), distance.shape[1])
        new = exemplar[:, top : top + side, left : left + side]
        error = (canvas[here] - new).square().sum(0)
        keep, cost = cut_overlaps(error, row, column)
        canvas[here] = torch.where(keep, canvas[here], new)
        costs += cost
        if (
            callback
            and column is columns[-1]
            and callback(
                Step(
                    index // len(columns),
                    len(rows),
                    torch.tensor([average_or_zero(costs)]),
                    canvas[None].clone(),
                )
            )
        ):
            break
    return canvas, average_or_zero(costs)


@dataclass(frozen=True)
class BlockPosition:
    """Where a block begins, and by how many pixels it overlaps what lies before and (on a torus) after it."""

    start: int
    overlap_before: int
    overlap_after: int


def plan_block_positions(length: int, block_side: int, wraps: bool) -> list[BlockPosition]:
    """Blocks along one side of the picture, evenly spread, overlapping by at least a sixth."""
    step = block_side - max(1, block_side // 6)
    if wraps:
        count = math.ceil(length / step)
        starts = [round(length * number / count) for number in range(count)]
    else:
        count = math.ceil((length - block_side) / step) + 1
        starts = [
            round((length - block_side) * number / max(count - 1, 1)) for number in range(count)
        ]
    ends = [0, *(start + block_side for start in starts)]
    return [
        BlockPosition(
            start,
            max(0, end - start),
            max(0, start + block_side - length)
            if wraps and count > 1 and number == count - 1
            else 0,
        )
        for number, (start, end) in enumerate(zip(starts, ends, strict=False))
    ]


def mask_overlaps(side: int, row: BlockPosition, column: BlockPosition) -> Tensor:
    """Which pixels of a block are laid already: 1 in the overlaps, side×side."""
    known = torch.zeros(side, side)
    known[: row.overlap_before], known[:, : column.overlap_before] = 1, 1
    known[side - row.overlap_after :], known[:, side - column.overlap_after :] = 1, 1
    return known


def draw_block_index(distance: Tensor, tolerance: float, generator: torch.Generator) -> int:
    """One of the places whose distance is within the tolerance of the least."""
    flat = distance.flatten()
    near = (flat <= flat.min() * (1 + tolerance) + 1e-9).nonzero().squeeze(1)
    return int(near[torch.randint(len(near), (1,), generator=generator)])


def cut_overlaps(
    error: Tensor, row: BlockPosition, column: BlockPosition
) -> tuple[Tensor, list[float]]:
    """Where the old pixels stay, beyond the cut of each overlap; and the mean squared difference along each cut."""
    keep, costs = torch.zeros_like(error, dtype=torch.bool), list[float]()
    # Each side in turn: turn the block so that the overlap lies to the left, cut, and turn the answer back.
    for turns, overlap in (
        (0, column.overlap_before),
        (1, row.overlap_after),
        (2, column.overlap_after),
        (3, row.overlap_before),
    ):
        if overlap:
            turned = error.rot90(-turns)
            path = find_minimum_cut(turned[:, :overlap])
            keep |= (torch.arange(len(error)) < path[:, None]).rot90(turns)
            costs.append(float(turned.gather(1, path[:, None]).mean()))
    return keep, costs


def find_minimum_cut(error: Tensor) -> Tensor:
    """The minimum-error boundary cut (section 2.1): per row of L×o the column of the path of least total error that moves
    by at most one column from row to row."""
    total, came = [error[0]], list[Tensor]()
    wall = torch.full((1,), torch.inf, dtype=error.dtype)
    for line in error[1:]:
        last = total[-1]
        best, step = torch.stack(
            [torch.cat([wall, last[:-1]]), last, torch.cat([last[1:], wall])]
        ).min(0)
        total.append(line + best)
        came.append(step - 1)
    path = [int(total[-1].argmin())]
    for step in reversed(came):
        path.append(path[-1] + int(step[path[-1]]))
    return torch.tensor(path[::-1])


@torch.no_grad()
def transfer_texture(
    exemplar: Tensor,
    target: Tensor,
    *,
    block: int,
    generator: torch.Generator,
    passes: int = 3,
    callback: Callback | None = None,
) -> tuple[Tensor, float]:
    """Texture transfer (section 3): the target 3×H×W remade from blocks of the exemplar, by luminance.

    Each pass has blocks a third smaller and more weight on the texture: α = 0.8·(i − 1)/(N − 1) + 0.1.
    """
    light, wanted = rank_luminance(exemplar), rank_luminance(target)
    picture, cost = None, 0.0
    for number in range(passes):
        alpha = 0.8 * number / (passes - 1) + 0.1 if passes > 1 else 0.1
        guide = TransferGuide(light, wanted, picture, alpha)
        side = max(6, round(block * (2 / 3) ** number))
        watch, size = (
            MultiRunCallback(callback, number, passes),
            (target.shape[-2], target.shape[-1]),
        )
        picture, cost = quilt_texture(
            exemplar, size, block=side, generator=generator, guide=guide, callback=watch
        )
        if watch.stopped:
            break
    return (picture if picture is not None else target), cost


def rank_luminance(picture: Tensor) -> Tensor:
    """Blurred luminance, spread over its whole range, as the map by which places correspond: 1×h×w."""
    light = blur_image(
        (picture * torch.tensor(LUMINANCE_WEIGHTS).view(3, 1, 1)).sum(0, keepdim=True)[None], 1.0
    )[0]
    # By rank (departure): a dark exemplar then still has a place for every shade of the target.
    ordered = light.flatten().sort().values
    return (torch.searchsorted(ordered, light) + torch.searchsorted(ordered, light, right=True)) / (
        2 * len(ordered)
    )


def average_or_zero(numbers: list[float]) -> float:
    """The mean, 0 of none."""
    return sum(numbers) / len(numbers) if numbers else 0.0
