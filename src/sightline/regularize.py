"""What keeps pixel ascent from noise: the lecture's four regularizers (Simonyan 2013; Yosinski 2015, section 3)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .parameterize import Pixels
from .transform import blur


@dataclass(frozen=True)
class Regularizer:
    """The four, around gray 0.5.

    `decay`: each step keeps (1 − decay) of the distance to gray. `sigma`, `every`: Gaussian blur of σ pixels every n steps.
    `small`: that share of pixels with the smallest distance to gray is set to gray;
    `idle`: likewise the share with the smallest |distance · gradient|, which contribute least.
    """

    decay: float = 0.0
    sigma: float = 0.0
    every: int = 4
    small: float = 0.0
    idle: float = 0.0

    @torch.no_grad()
    def apply_(self, start: Pixels, index: int) -> None:
        """Works on the pixels in place, after a step."""
        offset = start.pixels - 0.5
        offset *= 1 - self.decay
        if self.sigma > 0 and (index + 1) % self.every == 0:
            offset = blur(offset, self.sigma)
        # Both are measured before either clips: what is gray already contributes nothing and would fill the share of the idle.
        distance, gradient = offset.norm(dim=1), start.pixels.grad
        contribution = distance if gradient is None else (offset * gradient).sum(1).abs()
        if self.small > 0:
            offset = kept(offset, distance, self.small)
        if self.idle > 0 and gradient is not None:
            offset = kept(offset, contribution, self.idle)
        start.pixels.copy_(offset + 0.5)


def kept(offset: Tensor, importance: Tensor, share: float) -> Tensor:
    """Offsets with the least important `share` of pixels (importance N×H×W) set to zero."""
    threshold = importance.flatten(1).quantile(share, dim=1).view(-1, 1, 1)
    return offset * (importance >= threshold).unsqueeze(1)
