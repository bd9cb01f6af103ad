"""What keeps pixel ascent from noise: the lecture's four regularizers (Simonyan 2013; Yosinski 2015, section 3)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sightline.images.transforms import blur_image
from sightline.optim.parameterizations.fourier import Pixels


@dataclass(frozen=True)
class Regularizer:
    """The four, around gray 0.5.

    `decay`: each step keeps (1 − decay) of the distance to gray. `sigma`, `every`: Gaussian blur of σ pixels every n steps.
    `small`: that share of pixels with the smallest distance to gray is set to gray;
    `idle`: likewise the share with the smallest |distance · gradient|, which contribute least.
    """

    decay: float = 0.0
    blur_sigma: float = 0.0
    blur_interval: int = 4
    small_norm_share: float = 0.0
    small_contribution_share: float = 0.0

    @torch.no_grad()
    def regularize_pixels_(self, parameterization: Pixels, step: int) -> None:
        """Works on the pixels in place, after a step."""
        offset = parameterization.pixels - 0.5
        offset *= 1 - self.decay
        if self.blur_sigma > 0 and (step + 1) % self.blur_interval == 0:
            offset = blur_image(offset, self.blur_sigma)
        # Both are measured before either clips: what is gray already contributes nothing and would fill the share of the idle.
        distance, gradient = offset.norm(dim=1), parameterization.pixels.grad
        contribution = distance if gradient is None else (offset * gradient).sum(1).abs()
        if self.small_norm_share > 0:
            offset = zero_least_important(offset, distance, self.small_norm_share)
        if self.small_contribution_share > 0 and gradient is not None:
            offset = zero_least_important(offset, contribution, self.small_contribution_share)
        parameterization.pixels.copy_(offset + 0.5)


def zero_least_important(offset: Tensor, importance: Tensor, share: float) -> Tensor:
    """Offsets with the least important `share` of pixels (importance N×H×W) set to zero."""
    threshold = importance.flatten(1).quantile(share, dim=1).view(-1, 1, 1)
    return offset * (importance >= threshold).unsqueeze(1)
