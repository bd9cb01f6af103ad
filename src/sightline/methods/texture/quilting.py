"""Image quilting (Efros & Freeman 2001): overlapping blocks of the exemplar, each joined along the
cheapest cut."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sightline.images.color import LUMINANCE_WEIGHTS
from sightline.images.transforms import blur_image
from sightline.registry.progress import Callback, MultiRunCallback, Step

MIN_TRANSFER_BLOCK = 6  # pixels; blocks of later passes don't get smaller

# An index of a canvas 3×H×W that selects a block, which may wrap around the edges.
Region = tuple[slice, Tensor, Tensor]


@dataclass(frozen=True)
class TransferGuide:
    """What texture transfer follows (section 3).

    Luminance of the exemplar, 1×h×w, and of the target picture, 1×H×W; the result of the previous
    pass, 3×H×W, or None; and `alpha`, the weight of the texture against the correspondence.
    """

    exemplar_luminance: Tensor
    target_luminance: Tensor
    previous_pass: Tensor | None
    alpha: float


class BlockMatcher:
    """Weighted squared distances of a block to all positions of a picture C×h×w, by FFT.

    Computed in double precision: the distance is a difference of large numbers, and its smallest
    value decides.
    """

    def __init__(self, picture: Tensor) -> None:
        self.picture = picture.double()
        self.size = picture.shape[-2:]
        self.spectrum = torch.fft.rfft2(self.picture)
        squares = self.picture.square().sum(0)
        self.squares_spectrum = torch.fft.rfft2(squares)

    def correlate_kernel(self, spectrum: Tensor, kernel: Tensor) -> Tensor:
        """Σ picture·kernel at all positions where the kernel lies inside the picture."""
        kernel_spectrum = torch.fft.rfft2(kernel, s=self.size)
        product = spectrum * kernel_spectrum.conj()
        correlation = torch.fft.irfft2(product, s=self.size)

        height, width = self.size
        kernel_height, kernel_width = kernel.shape[-2:]
        row_count = height - kernel_height + 1
        column_count = width - kernel_width + 1
        return correlation[..., :row_count, :column_count]

    def measure_distances(self, block: Tensor, weight: Tensor) -> Tensor:
        """Σ weight·(block − picture)² over a block C×b×c with weights b×c: (h−b+1)×(w−c+1)."""
        block = block.double()
        weight = weight.double()
        block_energy = (block.square() * weight).sum()
        cross = self.correlate_kernel(self.spectrum, block * weight).sum(0)
        picture_energy = self.correlate_kernel(self.squares_spectrum, weight)
        return (block_energy - 2 * cross + picture_energy).clamp_min(0)


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
    """Fills `size` with blocks of an exemplar C×h×w.

    Blocks overlap by at least a sixth of their side. They are evenly spaced, so that the last ones
    end at the picture's edge (departure: the paper crops the picture); with `tileable` they also
    overlap the first ones. Each block is drawn from those whose overlap differs by at most
    (1 + `tolerance`) × the smallest difference.

    Gives the picture C×H×W and the mean squared difference along the cuts.
    """
    height, width = size
    side = min(block, *exemplar.shape[-2:], height, width)
    rows = plan_block_positions(height, side, tileable)
    columns = plan_block_positions(width, side, tileable)
    canvas = torch.zeros(len(exemplar), height, width)
    matcher = BlockMatcher(exemplar)
    luminance_matcher = BlockMatcher(guide.exemplar_luminance) if guide else None
    cut_costs: list[float] = []

    for row_index, row in enumerate(rows, 1):
        for column in columns:
            block_rows = (row.start + torch.arange(side)) % height
            block_columns = (column.start + torch.arange(side)) % width
            region = (slice(None), block_rows[:, None], block_columns)
            existing = canvas[region]

            distances = matcher.measure_distances(existing, mask_overlaps(side, row, column))
            if guide and luminance_matcher:
                distances = add_guide_distances(
                    distances, guide, matcher, luminance_matcher, region
                )
            index = draw_block_index(distances, tolerance, generator)
            source_row, source_column = divmod(index, distances.shape[1])
            new_block = exemplar[
                :, source_row : source_row + side, source_column : source_column + side
            ]

            error = (existing - new_block).square().sum(0)
            keep_existing, costs = cut_overlaps(error, row, column)
            canvas[region] = torch.where(keep_existing, existing, new_block)
            cut_costs += costs
        if callback:
            scores = torch.tensor([average_or_zero(cut_costs)])
            if callback(Step(row_index, len(rows), scores, canvas[None].clone())):
                break
    return canvas, average_or_zero(cut_costs)


def add_guide_distances(
    overlap_distances: Tensor,
    guide: TransferGuide,
    matcher: BlockMatcher,
    luminance_matcher: BlockMatcher,
    region: Region,
) -> Tensor:
    """Section 3: α · (overlap + previous pass) + (1 − α) · luminance correspondence."""
    target_luminance = guide.target_luminance[region]
    ones = torch.ones(target_luminance.shape[-2:])
    texture_distances = overlap_distances
    if guide.previous_pass is not None:
        previous_distances = matcher.measure_distances(guide.previous_pass[region], ones)
        texture_distances = overlap_distances + previous_distances
    correspondence = luminance_matcher.measure_distances(target_luminance, ones)
    return guide.alpha * texture_distances + (1 - guide.alpha) * correspondence


@dataclass(frozen=True)
class BlockPosition:
    """Where a block begins along one side of the picture, and its overlaps in pixels.

    `overlap_before` is the overlap with the previous block, `overlap_after` that of the last block
    with the first one, on a torus.
    """

    start: int
    overlap_before: int
    overlap_after: int


def plan_block_positions(length: int, block_side: int, wraps: bool) -> list[BlockPosition]:
    """Blocks along one side of the picture, evenly spaced, overlapping by at least a sixth."""
    max_spacing = block_side - max(1, block_side // 6)
    if wraps:
        count = math.ceil(length / max_spacing)
        starts = [round(length * index / count) for index in range(count)]
    else:
        count = math.ceil((length - block_side) / max_spacing) + 1
        last_start = length - block_side
        starts = [round(last_start * index / max(count - 1, 1)) for index in range(count)]

    positions: list[BlockPosition] = []
    previous_end = 0
    for index, start in enumerate(starts):
        end = start + block_side
        overlap_after = 0
        if wraps and count > 1 and index == count - 1:
            overlap_after = max(0, end - length)
        positions.append(BlockPosition(start, max(0, previous_end - start), overlap_after))
        previous_end = end
    return positions


def mask_overlaps(side: int, row: BlockPosition, column: BlockPosition) -> Tensor:
    """1 where a block lies on pixels that exist already, else 0: side×side."""
    mask = torch.zeros(side, side)
    mask[: row.overlap_before] = 1
    mask[:, : column.overlap_before] = 1
    mask[side - row.overlap_after :] = 1
    mask[:, side - column.overlap_after :] = 1
    return mask


def draw_block_index(distance: Tensor, tolerance: float, generator: torch.Generator) -> int:
    """The flat index of one of the positions whose distance is within the tolerance."""
    flat = distance.flatten()
    max_distance = flat.min() * (1 + tolerance) + 1e-9
    is_candidate = flat <= max_distance
    candidates = is_candidate.nonzero().squeeze(1)

    choice = torch.randint(len(candidates), (1,), generator=generator)
    return int(candidates[choice])


def cut_overlaps(
    error: Tensor, row: BlockPosition, column: BlockPosition
) -> tuple[Tensor, list[float]]:
    """Cuts each overlap of a block, given the squared differences side×side.

    Gives where the existing pixels are kept, side×side, and the mean difference along each cut.
    """
    keep_existing = torch.zeros_like(error, dtype=torch.bool)
    costs: list[float] = []
    overlap_of_quarter_turns = {
        0: column.overlap_before,
        1: row.overlap_after,
        2: column.overlap_after,
        3: row.overlap_before,
    }
    for turns, overlap in overlap_of_quarter_turns.items():
        if not overlap:
            continue
        # Turn the block so that this overlap lies on the left, cut, and turn the result back.
        turned = error.rot90(-turns)
        path = find_minimum_cut(turned[:, :overlap])[:, None]
        is_left_of_cut = torch.arange(len(error)) < path
        keep_existing |= is_left_of_cut.rot90(turns)

        path_errors = turned.gather(1, path)
        costs.append(float(path_errors.mean()))
    return keep_existing, costs


def find_minimum_cut(error: Tensor) -> Tensor:
    """The minimum error boundary cut (section 2.1) through squared differences L×o.

    Gives for each row the column of the path with the smallest sum; from row to row the path
    moves by at most one column.
    """
    path_costs = error[0]  # of the cheapest path to each column
    steps: list[Tensor] = []
    infinite = torch.full((1,), torch.inf, dtype=error.dtype)
    for row_error in error[1:]:
        from_left = torch.cat([infinite, path_costs[:-1]])
        from_right = torch.cat([path_costs[1:], infinite])
        previous_costs, origin = torch.stack([from_left, path_costs, from_right]).min(0)
        path_costs = row_error + previous_costs
        steps.append(origin - 1)

    path = [int(path_costs.argmin())]
    for step in reversed(steps):
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
    """Texture transfer (section 3): remakes the target 3×H×W from blocks of the exemplar.

    Blocks correspond by luminance. Each pass has blocks a third smaller and more weight on the
    texture: α = 0.8·(i − 1)/(N − 1) + 0.1 in pass i of N.

    Gives the picture C×H×W and the mean squared difference along the cuts of the last pass.
    """
    exemplar_luminance = rank_luminance(exemplar)
    target_luminance = rank_luminance(target)
    size = (target.shape[-2], target.shape[-1])
    picture = None
    cost = 0.0
    for pass_index in range(passes):
        alpha = 0.1
        if passes > 1:
            alpha = 0.8 * pass_index / (passes - 1) + 0.1
        guide = TransferGuide(exemplar_luminance, target_luminance, picture, alpha)
        side = max(MIN_TRANSFER_BLOCK, round(block * (2 / 3) ** pass_index))
        pass_callback = MultiRunCallback(callback, pass_index, passes)
        picture, cost = quilt_texture(
            exemplar,
            size,
            block=side,
            generator=generator,
            guide=guide,
            callback=pass_callback,
        )
        if pass_callback.stopped:
            break
    return (picture if picture is not None else target), cost


def rank_luminance(picture: Tensor) -> Tensor:
    """Blurred luminance of a picture 3×h×w, by which positions correspond: 1×h×w in [0, 1].

    Each value is its rank among all values. Departure: the paper takes the luminance itself; by
    rank, a dark exemplar also has a counterpart for every shade of the target.
    """
    weights = torch.tensor(LUMINANCE_WEIGHTS).view(3, 1, 1)
    luminance = (picture * weights).sum(0, keepdim=True)
    blurred = blur_image(luminance[None], 1.0)[0]

    # The middle of the ranks of equal values.
    ordered = blurred.flatten().sort().values
    below = torch.searchsorted(ordered, blurred)
    not_above = torch.searchsorted(ordered, blurred, right=True)
    return (below + not_above) / (2 * len(ordered))


def average_or_zero(numbers: list[float]) -> float:
    """The mean; 0 for an empty list."""
    return sum(numbers) / len(numbers) if numbers else 0.0
