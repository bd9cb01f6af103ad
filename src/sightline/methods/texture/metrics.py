"""Measures of a synthesized texture that need no network, and the memory that synthesis needs."""

import math

import torch
from torch import Tensor

from sightline.methods.texture.quilting import BlockMatcher

# A patch counts as copied if its root mean square difference from the exemplar is below this.
COPY_THRESHOLD = 0.01


@torch.no_grad()
def measure_copy_rate(
    picture: Tensor, exemplar: Tensor, side: int = 12, max_patches: int = 100
) -> float:
    """The share of square patches of a picture C×H×W that are copied from an exemplar C×h×w.

    At most `max_patches` of them are compared, evenly spread.
    """
    side = min(side, *picture.shape[-2:], *exemplar.shape[-2:])
    patch_grid = picture.unfold(1, side, side).unfold(2, side, side)
    patches = patch_grid.flatten(1, 2).transpose(0, 1)
    patch_count = min(max_patches, len(patches))
    indices = torch.linspace(0, len(patches) - 1, patch_count).round().long()

    matcher = BlockMatcher(exemplar)
    weight = torch.ones(side, side)
    max_distance = len(exemplar) * (side * COPY_THRESHOLD) ** 2

    copied_count = 0
    for patch in patches[indices]:
        distance = float(matcher.measure_distances(patch, weight).min())
        copied_count += distance < max_distance
    return copied_count / patch_count


def measure_seam(picture: Tensor) -> tuple[float, float]:
    """Compares the step across the edges of a picture C×H×W with the steps inside.

    A step is the mean absolute difference between neighboring rows or columns. Gives the ratio of
    the step across the edges to the mean step inside, and the share of the steps inside that are
    smaller; both are means over the two axes. A picture that tiles has a ratio of about 1 and a
    share anywhere in [0, 1], one half on average; a visible seam has a share near 1.
    """
    ratios: list[Tensor] = []
    shares: list[Tensor] = []
    for axis in (-1, -2):
        difference = (picture - picture.roll(1, axis)).abs()
        steps = difference.movedim(axis, 0).flatten(1).mean(1)
        edge = steps[0]
        inside = steps[1:]
        ratios.append(edge / inside.mean() if inside.sum() > 0 else torch.ones(()))
        # Equal steps count half.
        is_smaller = (inside < edge).float() + (inside == edge).float() / 2
        shares.append(is_smaller.mean())
    return float(sum(ratios) / 2), float(sum(shares) / 2)


def measure_seed_diversity(pictures: Tensor) -> float:
    """How much pictures N×C×H×W of different seeds differ, N ≥ 2.

    Their root mean square difference, divided by that of unrelated pixels of these pictures: 0 for
    equal pictures, about 1 for independent ones.
    """
    mean = pictures.mean((0, 2, 3), keepdim=True)
    unrelated = 2 * (pictures - mean).square().mean()
    if unrelated <= 0:
        return 0.0
    differences: list[Tensor] = []
    for index, picture in enumerate(pictures):
        for later_picture in pictures[index + 1 :]:
            differences.append((picture - later_picture).square().mean())
    return float((torch.stack(differences).mean() / unrelated).sqrt())


def estimate_exemplar_memory(
    method: str, exemplar: tuple[int, int], size: tuple[int, int], window: int
) -> float:
    """The memory that a method needs in GB, from an exemplar (h, w) to a picture (H, W).

    Counts the table of the exemplar's windows, its temporary copies, and for "patchmatch" the
    windows of all output pixels. Quilting needs little more than both pictures, which counts as 0.
    """
    window_count = math.prod(length - window + 1 for length in exemplar)
    window_bytes = 4 * 3 * window**2
    if method == "efros_leung":
        return 2 * window_count * window_bytes / 1e9
    if method == "wei_levoy":
        parent_window_bytes = 4 * 75
        wave_length = min(size[0], 1 + 2 * size[1] // window)
        distance_bytes = 8 * wave_length
        return window_count * (3 * (window_bytes + parent_window_bytes) + distance_bytes) / 1e9
    if method == "patchmatch":
        return (2 * window_count + 5 * math.prod(size)) * window_bytes / 1e9
    return 0.0
