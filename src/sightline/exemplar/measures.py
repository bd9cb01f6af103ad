"""How good a synthesized texture is, without a network: what was copied, whether it tiles, whether seeds differ."""

import torch
from torch import Tensor

from .quilting import Matcher

# A patch counts as copied when its pixels differ from the exemplar's by less than a 100th of the range (root mean square).
SAME = 0.01


@torch.no_grad()
def copy_rate(picture: Tensor, exemplar: Tensor, side: int = 12, most: int = 100) -> float:
    """The share of square patches of a picture 3×H×W that stand in the exemplar 3×h×w as they are; at most `most` are tried."""
    side = min(side, *picture.shape[-2:], *exemplar.shape[-2:])
    patches = picture.unfold(1, side, side).unfold(2, side, side).flatten(1, 2).transpose(0, 1)
    tried = patches[torch.linspace(0, len(patches) - 1, min(most, len(patches))).round().long()]
    matcher, weight = Matcher(exemplar), torch.ones(side, side)
    return sum(float(matcher.distance(patch, weight).min()) < 3 * (side * SAME) ** 2 for patch in tried) / len(tried)


def seam(picture: Tensor) -> float:
    """The mean step from edge to opposite edge over the mean step between neighbours inside: about 1 where a picture tiles."""
    across = (picture[..., 0] - picture[..., -1]).abs().mean() + (picture[..., 0, :] - picture[..., -1, :]).abs().mean()
    inside = picture.diff(dim=-1).abs().mean() + picture.diff(dim=-2).abs().mean()
    return float(across / inside) if inside > 0 else 1.0


def diversity(pictures: Tensor) -> float:
    """Root mean square difference between pictures N×3×H×W of different seeds, over what unrelated pixels of theirs would
    differ by: 0 for equal ones, about 1 for independent ones. Two pictures at least."""
    mean = pictures.mean((0, 2, 3), keepdim=True)
    unrelated = 2 * (pictures - mean).square().mean()
    differences = [(one - other).square().mean() for index, one in enumerate(pictures) for other in pictures[index + 1 :]]
    return float((torch.stack(differences).mean() / unrelated).sqrt()) if unrelated > 0 else 0.0
