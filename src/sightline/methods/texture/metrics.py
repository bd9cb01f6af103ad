"""How good a synthesized texture is, without a network: what was copied, whether it tiles, whether seeds differ."""

import math

import torch
from torch import Tensor

from sightline.methods.texture.quilting import BlockMatcher

# A patch counts as copied when its pixels differ from the exemplar's by less than a 100th of the range (root mean square).
COPY_THRESHOLD = 0.01


@torch.no_grad()
def measure_copy_rate(
    picture: Tensor, exemplar: Tensor, side: int = 12, max_patches: int = 100
) -> float:
    """The share of square patches of a picture 3×H×W that stand in the exemplar 3×h×w as they are; at most `most` are tried."""
    side = min(side, *picture.shape[-2:], *exemplar.shape[-2:])
    patches = picture.unfold(1, side, side).unfold(2, side, side).flatten(1, 2).transpose(0, 1)
    tried = patches[
        torch.linspace(0, len(patches) - 1, min(max_patches, len(patches))).round().long()
    ]
    matcher, weight = BlockMatcher(exemplar), torch.ones(side, side)
    return sum(
        float(matcher.measure_distances(patch, weight).min()) < 3 * (side * COPY_THRESHOLD) ** 2
        for patch in tried
    ) / len(tried)


def measure_seam(picture: Tensor) -> tuple[float, float]:
    """How the step from edge to opposite edge compares with the steps between neighbouring rows and columns inside: their ratio, and the
    share of those that are smaller. About 1 and anywhere in [0, 1], one half in the mean, where a picture tiles; a joint is larger than
    nearly all of them."""
    ratios, shares = list[Tensor](), list[Tensor]()
    for axis in (-1, -2):
        step = (picture - picture.roll(1, axis)).abs().movedim(axis, 0).flatten(1).mean(1)
        edge, inside = step[0], step[1:]
        ratios.append(edge / inside.mean() if inside.sum() > 0 else torch.ones(()))
        shares.append(((inside < edge).float() + (inside == edge).float() / 2).mean())
    return float(sum(ratios) / 2), float(sum(shares) / 2)


def measure_seed_diversity(pictures: Tensor) -> float:
    """Root mean square difference between pictures N×3×H×W of different seeds, over what unrelated pixels of theirs would
    differ by: 0 for equal ones, about 1 for independent ones. Two pictures at least."""
    mean = pictures.mean((0, 2, 3), keepdim=True)
    unrelated = 2 * (pictures - mean).square().mean()
    differences = [
        (one - other).square().mean()
        for index, one in enumerate(pictures)
        for other in pictures[index + 1 :]
    ]
    return float((torch.stack(differences).mean() / unrelated).sqrt()) if unrelated > 0 else 0.0


def estimate_exemplar_memory(
    method: str, exemplar: tuple[int, int], size: tuple[int, int], window: int
) -> float:
    """For a picture of this size from an exemplar of that: the table of the exemplar's windows, what is made of it on the way, and
    (for "patchmatch") the windows of all output pixels at once. Quilting holds little more than both pictures."""
    windows = math.prod(length - window + 1 for length in exemplar)
    row = 4 * 3 * window**2
    if method == "efros_leung":
        return 2 * windows * row / 1e9
    if method == "wei_levoy":
        wave = min(size[0], 1 + 2 * size[1] // window)
        return windows * (3 * (row + 4 * 75) + 8 * wave) / 1e9
    if method == "patchmatch":
        return (2 * windows + 5 * math.prod(size)) * row / 1e9
    return 0.0
