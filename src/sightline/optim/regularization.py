"""The four regularizers of pixel ascent (Simonyan 2013; Yosinski 2015, section 3)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sightline.images.transforms import blur_image
from sightline.optim.parameterizations.fourier import Pixels


@dataclass(frozen=True)
class Regularizer:
    """Decay, blur and two kinds of clipping, all relative to gray (0.5).

    Attributes:
        decay: Each step keeps (1 − decay) of every pixel's distance to gray.
        blur_sigma: Standard deviation of a Gaussian blur, in pixels.
        blur_interval: The blur is applied once every so many steps.
        small_norm_share: The share of pixels nearest to gray that is set to gray.
        small_contribution_share: The same for the pixels with the smallest |distance · gradient|,
            which contribute least to the score.
    """

    decay: float = 0.0
    blur_sigma: float = 0.0
    blur_interval: int = 4
    small_norm_share: float = 0.0
    small_contribution_share: float = 0.0

    @torch.no_grad()
    def regularize_pixels_(self, parameterization: Pixels, step: int) -> None:
        """Regularizes the pixels in place, after step number `step` (from 0)."""
        offset = parameterization.pixels - 0.5
        offset *= 1 - self.decay
        if self.blur_sigma > 0 and (step + 1) % self.blur_interval == 0:
            offset = blur_image(offset, self.blur_sigma)

        # Both measures are taken before anything is clipped: a pixel that is gray already
        # contributes nothing, and the second clipping would only choose those again.
        norm = offset.norm(dim=1)
        gradient = parameterization.pixels.grad
        clipped_offset = offset
        if self.small_norm_share > 0:
            clipped_offset = zero_least_important(clipped_offset, norm, self.small_norm_share)
        if self.small_contribution_share > 0 and gradient is not None:
            contribution = (offset * gradient).sum(1).abs()
            clipped_offset = zero_least_important(
                clipped_offset, contribution, self.small_contribution_share
            )
        parameterization.pixels.copy_(clipped_offset + 0.5)


def zero_least_important(offset: Tensor, importance: Tensor, share: float) -> Tensor:
    """Sets the least important `share` of the pixels to zero (importance N×H×W)."""
    threshold = importance.flatten(1).quantile(share, dim=1).view(-1, 1, 1)
    return offset * (importance >= threshold).unsqueeze(1)
