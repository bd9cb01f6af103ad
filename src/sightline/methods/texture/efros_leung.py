"""Texture synthesis by non-parametric sampling (Efros & Leung 1999): pixels grown from a seed."""

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.registry.progress import Callback, Step

# ErrThreshold and MaxErrThreshold of the authors' pseudocode.
ERROR_THRESHOLD = 0.1
INITIAL_MAX_ERROR = 0.3
MAX_ERROR_GROWTH = 1.1

SEED_SIDE = 3

MAX_DISTANCES = 2**24  # distances that are computed at once


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
    """Grows a picture C×H×W from a 3×3 seed of an exemplar C×h×w, ring by ring.

    A pixel takes the color in the middle of an exemplar window. The window is drawn from those
    whose Gaussian-weighted distance to the known neighborhood is at most 1.1 × the smallest.
    """
    # Departure: the pixels of a ring are found together, from the pixels known before it, in one
    # matrix product instead of one search per pixel. Of direct neighbors in the ring only every
    # other pixel is filled, so that the next ring sees them.
    radius = window // 2
    windows, center_colors = extract_windows(exemplar, window)
    squared_windows = windows.square()
    gaussian = make_gaussian_window(window)
    canvas, known_mask = place_seed_patch(exemplar, size, generator)
    remaining = int((~known_mask).sum())
    total = remaining
    max_error = INITIAL_MAX_ERROR
    batch_size = max(1, MAX_DISTANCES // len(windows))

    while remaining:
        ring = select_ring_pixels(known_mask, tileable, generator)
        accepted_count = 0
        for positions in ring.split(batch_size):
            colors, is_known = gather_neighborhoods(canvas, known_mask, positions, radius, tileable)
            pixel_weights = is_known * gaussian
            pixel_weights /= pixel_weights.sum(1, keepdim=True)
            weights = pixel_weights.repeat(1, len(exemplar))
            # Σ weight·(color − window color)², multiplied out into matrix products.
            weighted_colors = weights * colors
            distances = (weights * colors.square()).sum(1, keepdim=True)
            distances = distances - 2 * weighted_colors @ windows.T + weights @ squared_windows.T

            choice, error = sample_window_match(distances.clamp_min_(0), generator)
            is_accepted = error < max_error
            rows, columns = positions[is_accepted].unbind(1)
            canvas[:, rows, columns] = center_colors[:, choice[is_accepted]]
            known_mask[rows, columns] = True
            accepted_count += int(is_accepted.sum())

        remaining -= accepted_count
        if not accepted_count:
            max_error *= MAX_ERROR_GROWTH
        if callback:
            scores = torch.tensor([max_error])
            step = Step(total - remaining, total, scores, canvas[None].clone())
            if callback(step):
                break
    return canvas


def extract_windows(exemplar: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """All windows inside the exemplar as rows, n×Cw², and the colors in their middle, C×n."""
    windows = F.unfold(exemplar[None], window)[0].T.contiguous()

    pixel_count = window * window
    pixels = windows.view(-1, len(exemplar), pixel_count)
    center_colors = pixels[:, :, pixel_count // 2].T
    return windows, center_colors


def make_gaussian_window(window: int) -> Tensor:
    """Gaussian weights of the pixels of a window, w²; σ is its side divided by 6.4."""
    sigma = window / 6.4
    offsets = torch.arange(window) - window // 2
    profile = torch.exp(-offsets.square() / (2 * sigma**2))
    return torch.outer(profile, profile).flatten()


def place_seed_patch(
    exemplar: Tensor, size: tuple[int, int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A canvas C×H×W with a random 3×3 patch of the exemplar in its middle, and known pixels H×W.

    Unknown pixels have the exemplar's mean color.
    """
    height, width = size
    exemplar_height, exemplar_width = exemplar.shape[-2:]
    side = min(SEED_SIDE, height, width, exemplar_height, exemplar_width)

    source_row = draw_integer(exemplar_height - side + 1, generator)
    source_column = draw_integer(exemplar_width - side + 1, generator)
    source_rows = slice(source_row, source_row + side)
    source_columns = slice(source_column, source_column + side)

    row = min(height // 2, height - side)
    column = min(width // 2, width - side)
    rows = slice(row, row + side)
    columns = slice(column, column + side)

    mean_color = exemplar.mean((1, 2), keepdim=True)
    canvas = mean_color.expand(-1, height, width).clone()
    canvas[:, rows, columns] = exemplar[:, source_rows, source_columns]
    known_mask = torch.zeros(size, dtype=torch.bool)
    known_mask[rows, columns] = True
    return canvas, known_mask


def draw_integer(end: int, generator: torch.Generator) -> int:
    """A uniform random integer from 0 to `end` − 1."""
    return int(torch.randint(end, (1,), generator=generator))


def select_ring_pixels(known: Tensor, tileable: bool, generator: torch.Generator) -> Tensor:
    """Unknown pixels beside known ones, in random order, no two of them direct neighbors: n×2."""
    padded = pad_texture(known[None, None].float(), 1, tileable)
    is_near_known = F.max_pool2d(padded, 3, stride=1)[0, 0] > 0
    is_in_ring = is_near_known & ~known
    ring = is_in_ring.nonzero()

    # One color of a chessboard, drawn at random, unless the ring has only pixels of the other.
    parity = draw_integer(2, generator)
    is_selected = (ring.sum(1) + parity) % 2 == 0
    selected = ring[is_selected] if bool(is_selected.any()) else ring

    order = torch.randperm(len(selected), generator=generator)
    return selected[order]


def pad_texture(image: Tensor, radius: int, tileable: bool) -> Tensor:
    """Pads an image N×C×H×W by `radius`: with its opposite side if it tiles, else with zeros."""
    padding = (radius, radius, radius, radius)
    if not tileable:
        return F.pad(image, padding)
    height, width = image.shape[-2:]
    if radius <= min(height, width):
        return F.pad(image, padding, mode="circular")
    # F.pad goes round once at most. Indexing has no such limit, but takes ten times as long.
    rows = torch.arange(-radius, height + radius) % height
    columns = torch.arange(-radius, width + radius) % width
    return image[..., rows[:, None], columns]


def gather_neighborhoods(
    canvas: Tensor, known: Tensor, positions: Tensor, radius: int, tileable: bool
) -> tuple[Tensor, Tensor]:
    """The colors around each of n positions, n×Cw², and whether they are known, n×w² of 0 and 1."""
    channels = torch.cat([canvas, known[None].float()])
    padded = pad_texture(channels[None], radius, tileable)[0]

    offsets = torch.arange(2 * radius + 1)
    center_rows, center_columns = positions.unbind(1)
    rows = center_rows[:, None] + offsets  # n×w
    columns = center_columns[:, None] + offsets
    neighborhoods = padded[:, rows[:, :, None], columns[:, None, :]]  # (C+1)×n×w×w
    neighborhoods = neighborhoods.permute(1, 0, 2, 3).flatten(2)  # n×(C+1)×w²

    colors = neighborhoods[:, :-1].flatten(1)
    is_known = neighborhoods[:, -1]
    return colors, is_known


def sample_window_match(distance: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """For each row of n×m distances one column, uniformly among those near the smallest.

    Gives the columns, n, and their distances, n.
    """
    smallest = distance.amin(1, keepdim=True)
    is_candidate = distance <= smallest * (1 + ERROR_THRESHOLD) + 1e-6
    counts = is_candidate.sum(1)
    candidate_columns = is_candidate.nonzero()[:, 1]  # row after row
    first_of_row = counts.cumsum(0) - counts

    uniform = torch.rand(len(counts), generator=generator, dtype=torch.float64)
    index_in_row = (uniform * counts).long().clamp_max(counts - 1)
    choice = candidate_columns[first_of_row + index_in_row]
    chosen_distance = distance.gather(1, choice[:, None])[:, 0]
    return choice, chosen_distance
