"""Image quilting (Efros & Freeman 2001): blocks of the exemplar laid with overlap, each joined along the cheapest cut."""

import math
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from ..ascend import Callback, Count, Step
from ..model import LUMINANCE
from ..transform import blur


@dataclass(frozen=True)
class Guide:
    """What a texture transfer follows: luminance of the exemplar and of the target picture, 1×h×w and 1×H×W, an earlier
    pass 3×H×W if there is one, and `alpha`, the weight of the texture against the correspondence (section 3)."""

    exemplar: Tensor
    target: Tensor
    prior: Tensor | None
    alpha: float


class Matcher:
    """Weighted squared distances of a block to every place of a picture C×h×w at once, by Fourier transform.

    In double precision: the distance is a difference of large numbers, and its least value decides.
    """

    def __init__(self, picture: Tensor) -> None:
        self.picture, self.size = picture.double(), picture.shape[-2:]
        self.spectrum = torch.fft.rfft2(self.picture)
        self.squares = torch.fft.rfft2(self.picture.square().sum(0))

    def correlate(self, spectrum: Tensor, kernel: Tensor) -> Tensor:
        """Σ picture·kernel at every place where the kernel lies inside."""
        full = torch.fft.irfft2(spectrum * torch.fft.rfft2(kernel, s=self.size).conj(), s=self.size)
        return full[..., : self.size[0] - kernel.shape[-2] + 1, : self.size[1] - kernel.shape[-1] + 1]

    def distance(self, block: Tensor, weight: Tensor) -> Tensor:
        """Σ weight·(block − picture)² over channels and pixels of a block C×b×c with weights b×c: (h−b+1)×(w−c+1)."""
        block, weight = block.double(), weight.double()
        cross = self.correlate(self.spectrum, block * weight).sum(0)
        return ((block.square() * weight).sum() - 2 * cross + self.correlate(self.squares, weight)).clamp_min(0)


@torch.no_grad()
def quilt(
    exemplar: Tensor,
    size: tuple[int, int],
    *,
    block: int,
    generator: torch.Generator,
    tileable: bool = False,
    tolerance: float = 0.1,
    guide: Guide | None = None,
    callback: Callback | None = None,
) -> tuple[Tensor, float]:
    """Fills `size` with blocks of an exemplar 3×h×w; gives the picture 3×H×W and the mean squared step along the cuts.

    Blocks overlap by a sixth of their side or a little more, so that they end with the picture's edge; with `tileable`
    the last also overlap the first. Of the blocks whose overlap differs by at most (1 + tolerance) × the least, one is drawn.
    """
    height, width = size
    side = min(block, *exemplar.shape[-2:], height, width)
    rows, columns = places(height, side, tileable), places(width, side, tileable)
    canvas, matcher, costs = torch.zeros(3, height, width), Matcher(exemplar), list[float]()
    luminance = Matcher(guide.exemplar) if guide else None
    for index, (row, column) in enumerate(product(rows, columns), 1):
        down, across = (row.start + torch.arange(side)) % height, (column.start + torch.arange(side)) % width
        here = (slice(None), down[:, None], across)
        known = covered(side, row, column)
        distance = matcher.distance(canvas[here], known)
        if guide and luminance:
            earlier = matcher.distance(guide.prior[here], torch.ones(side, side)) if guide.prior is not None else 0
            distance = guide.alpha * (distance + earlier) + (1 - guide.alpha) * luminance.distance(
                guide.target[here], torch.ones(side, side)
            )
        top, left = divmod(draw(distance, tolerance, generator), distance.shape[1])
        new = exemplar[:, top : top + side, left : left + side]
        error = (canvas[here] - new).square().sum(0)
        keep, cost = joined(error, row, column)
        canvas[here] = torch.where(keep, canvas[here], new)
        costs += cost
        if (
            callback
            and column is columns[-1]
            and callback(Step(index // len(columns), len(rows), torch.tensor([mean(costs)]), canvas[None].clone()))
        ):
            break
    return canvas, mean(costs)


@dataclass(frozen=True)
class Place:
    """Where a block begins, and by how many pixels it overlaps what lies before and (on a torus) after it."""

    start: int
    before: int
    after: int


def places(length: int, side: int, around: bool) -> list[Place]:
    """Blocks along one side of the picture, evenly spread, overlapping by at least a sixth."""
    step = side - max(1, side // 6)
    if around:
        count = math.ceil(length / step)
        starts = [round(length * number / count) for number in range(count)]
    else:
        count = math.ceil((length - side) / step) + 1
        starts = [round((length - side) * number / max(count - 1, 1)) for number in range(count)]
    ends = [0, *(start + side for start in starts)]
    return [
        Place(start, max(0, end - start), max(0, start + side - length) if around and count > 1 and number == count - 1 else 0)
        for number, (start, end) in enumerate(zip(starts, ends, strict=False))
    ]


def covered(side: int, row: Place, column: Place) -> Tensor:
    """Which pixels of a block are laid already: 1 in the overlaps, side×side."""
    known = torch.zeros(side, side)
    known[: row.before], known[:, : column.before] = 1, 1
    known[side - row.after :], known[:, side - column.after :] = 1, 1
    return known


def draw(distance: Tensor, tolerance: float, generator: torch.Generator) -> int:
    """One of the places whose distance is within the tolerance of the least."""
    flat = distance.flatten()
    near = (flat <= flat.min() * (1 + tolerance) + 1e-9).nonzero().squeeze(1)
    return int(near[torch.randint(len(near), (1,), generator=generator)])


def joined(error: Tensor, row: Place, column: Place) -> tuple[Tensor, list[float]]:
    """Where the old pixels stay, beyond the cut of each overlap; and the mean squared difference along each cut."""
    keep, costs = torch.zeros_like(error, dtype=torch.bool), list[float]()
    # Each side in turn: turn the block so that the overlap lies to the left, cut, and turn the answer back.
    for turns, overlap in ((0, column.before), (1, row.after), (2, column.after), (3, row.before)):
        if overlap:
            turned = error.rot90(-turns)
            path = cheapest(turned[:, :overlap])
            keep |= (torch.arange(len(error)) < path[:, None]).rot90(turns)
            costs.append(float(turned.gather(1, path[:, None]).mean()))
    return keep, costs


def cheapest(error: Tensor) -> Tensor:
    """The minimum-error boundary cut (section 2.1): per row of L×o the column of the path of least total error that moves
    by at most one column from row to row."""
    total, came = [error[0]], list[Tensor]()
    wall = torch.full((1,), torch.inf, dtype=error.dtype)
    for line in error[1:]:
        last = total[-1]
        best, step = torch.stack([torch.cat([wall, last[:-1]]), last, torch.cat([last[1:], wall])]).min(0)
        total.append(line + best)
        came.append(step - 1)
    path = [int(total[-1].argmin())]
    for step in reversed(came):
        path.append(path[-1] + int(step[path[-1]]))
    return torch.tensor(path[::-1])


@torch.no_grad()
def transfer(
    exemplar: Tensor, target: Tensor, *, block: int, generator: torch.Generator, passes: int = 3, callback: Callback | None = None
) -> tuple[Tensor, float]:
    """Texture transfer (section 3): the target 3×H×W remade from blocks of the exemplar, by luminance.

    Each pass has blocks a third smaller and more weight on the texture: α = 0.8·(i − 1)/(N − 1) + 0.1.
    """
    light, wanted = luminance_of(exemplar), luminance_of(target)
    picture, cost = None, 0.0
    for number in range(passes):
        alpha = 0.8 * number / (passes - 1) + 0.1 if passes > 1 else 0.1
        guide = Guide(light, wanted, picture, alpha)
        side = max(6, round(block * (2 / 3) ** number))
        watch, size = Count(callback, number, passes), (target.shape[-2], target.shape[-1])
        picture, cost = quilt(exemplar, size, block=side, generator=generator, guide=guide, callback=watch)
        if watch.stopped:
            break
    return (picture if picture is not None else target), cost


def luminance_of(picture: Tensor) -> Tensor:
    """Blurred luminance, spread over its whole range, as the map by which places correspond: 1×h×w."""
    light = blur((picture * torch.tensor(LUMINANCE).view(3, 1, 1)).sum(0, keepdim=True)[None], 1.0)[0]
    # By rank (departure): a dark exemplar then still has a place for every shade of the target.
    ordered = light.flatten().sort().values
    return (torch.searchsorted(ordered, light) + torch.searchsorted(ordered, light, right=True)) / (2 * len(ordered))


def mean(numbers: list[float]) -> float:
    """The mean, 0 of none."""
    return sum(numbers) / len(numbers) if numbers else 0.0
