"""Texture synthesis by non-parametric sampling (Efros & Leung 1999): pixel after pixel grown outwards from a seed."""

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.registry.progress import Callback, Step

ERROR_THRESHOLD, INITIAL_MAX_ERROR = 0.1, 0.3  # ErrThreshold and MaxErr of the authors' pseudocode


@torch.no_grad()
def grow_texture(
    exemplar: Tensor,
    size: tuple[int, int],
    *,
    window: int,
    generator: torch.Generator,
    tileable: bool = False,
    callback: Callback | None = None,
) -> Tensor:
    """Grows a picture 3×H×W from a 3×3 seed of an exemplar 3×h×w, ring by ring.

    A pixel takes the colour of one of the windows whose Gaussian-weighted distance to its known neighbourhood is at most 1.1 ×
    the least. Departure: the pixels of a ring are found together, from what was known before it (one matrix product instead
    of one search per pixel), and of neighbours in the ring only every other one, so that the next ones see them.
    """
    radius = window // 2
    table, centers = extract_windows(exemplar, window)
    weight, squares = make_gaussian_window(window), table.square()
    canvas, known = place_seed_patch(exemplar, size, generator)
    largest, left = INITIAL_MAX_ERROR, int((~known).sum())
    total = left
    while left:
        ring = select_ring_pixels(known, tileable, generator)
        block = max(1, 2**24 // len(table))
        accepted = 0
        for part in ring.split(block):
            around, seen = gather_neighborhoods(canvas, known, part, radius, tileable)
            masked = seen * weight
            masked /= masked.sum(1, keepdim=True)
            colors = masked.repeat(1, 3)
            distance = (
                (colors * around.square()).sum(1, keepdim=True)
                - 2 * (colors * around) @ table.T
                + colors @ squares.T
            )
            choice, error = sample_window_match(distance.clamp_min_(0), generator)
            good = error < largest
            rows, columns = part[good].unbind(1)
            canvas[:, rows, columns] = centers[:, choice[good]]
            known[rows, columns] = True
            accepted += int(good.sum())
        left -= accepted
        largest = largest * 1.1 if not accepted else largest
        if callback and callback(
            Step(total - left, total, torch.tensor([float(largest)]), canvas[None].clone())
        ):
            break
    return canvas


def extract_windows(exemplar: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Every window inside the exemplar as a row, colour by colour, and the colour in its middle: n×3w² and 3×n."""
    table = F.unfold(exemplar[None], window)[0].T.contiguous()
    return table, table.view(-1, 3, window * window)[:, :, window * window // 2].T


def make_gaussian_window(window: int) -> Tensor:
    """Weights of a window, σ a 6.4th of its side: w²."""
    line = torch.exp(-(torch.arange(window) - window // 2).square() / (2 * (window / 6.4) ** 2))
    return torch.outer(line, line).flatten()


def place_seed_patch(
    exemplar: Tensor, size: tuple[int, int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A canvas of the exemplar's mean colour with a 3×3 piece of it in the middle, and which pixels are known."""
    side = min(3, *size, *exemplar.shape[-2:])
    canvas = exemplar.mean((1, 2))[:, None, None].expand(3, *size).clone()
    top, left = (
        int(torch.randint(n - side + 1, (1,), generator=generator)) for n in exemplar.shape[-2:]
    )
    y, x = size[0] // 2, size[1] // 2
    y, x = min(y, size[0] - side), min(x, size[1] - side)
    known = torch.zeros(size, dtype=torch.bool)
    canvas[:, y : y + side, x : x + side] = exemplar[:, top : top + side, left : left + side]
    known[y : y + side, x : x + side] = True
    return canvas, known


def select_ring_pixels(known: Tensor, tileable: bool, generator: torch.Generator) -> Tensor:
    """The unknown pixels beside known ones, in random order, no two of one direct neighbourhood: n×2."""
    beside = pad_texture(known[None, None].float(), 1, tileable)
    ring = (F.max_pool2d(beside, 3, stride=1)[0, 0] > 0) & ~known
    places = ring.nonzero()
    parity = (places.sum(1) + int(torch.randint(2, (1,), generator=generator))) % 2 == 0
    chosen = places[parity] if bool(parity.any()) else places
    return chosen[torch.randperm(len(chosen), generator=generator)]


def pad_texture(image: Tensor, radius: int, tileable: bool) -> Tensor:
    """Continued by itself on a torus, else by zeros."""
    while radius > 0:
        step = min(radius, *image.shape[-2:]) if tileable else radius
        image = F.pad(image, (step, step, step, step), mode="circular" if tileable else "constant")
        radius -= step
    return image


def gather_neighborhoods(
    canvas: Tensor, known: Tensor, positions: Tensor, radius: int, tileable: bool
) -> tuple[Tensor, Tensor]:
    """Colours (n×3w²) and knownness (n×w²) around each place."""
    wide = pad_texture(torch.cat([canvas, known[None].float()])[None], radius, tileable)[0]
    reach = torch.arange(2 * radius + 1)
    rows, columns = (
        positions[:, 0, None, None] + reach[None, :, None],
        positions[:, 1, None, None] + reach,
    )
    around = wide[:, rows, columns].permute(1, 0, 2, 3).flatten(2)
    return around[:, :3].flatten(1), around[:, 3]


def sample_window_match(distance: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """For each row, one of the entries within the threshold of the least, all alike, and its distance."""
    least = distance.amin(1, keepdim=True)
    near = distance <= least * (1 + ERROR_THRESHOLD) + 1e-6
    counts = near.sum(1)
    columns = near.nonzero()[:, 1]
    offset = torch.rand(len(counts), generator=generator, dtype=torch.float64) * counts
    choice = columns[counts.cumsum(0) - counts + offset.long().clamp_max(counts - 1)]
    return choice, distance.gather(1, choice[:, None])[:, 0]
