"""Latent codes of an image generator, optimized when a synthesis uses `start="generator"`."""

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.generators.architectures.decoder import CodeGenerator

# A code may be this many standard deviations above the mean of photographs' codes (Nguyen 2016).
MAX_CODE_DEVIATIONS = 3


class GeneratorCode:
    """Codes from which a trained generator makes images N×3×side×side in [0, 1] (Nguyen 2016).

    A code is a vector of the network's last features. All codes start at the mean over photographs.
    With `shared_start` false each gets Gaussian noise of `deviation` standard deviations.
    `project_` keeps them between 0 and mean + 3 standard deviations, the range of photographs'
    features.
    """

    def __init__(
        self,
        generator: CodeGenerator,
        count: int,
        side: int,
        *,
        seed: int = 0,
        shared_start: bool = True,
        deviation: float = 0.5,
    ) -> None:
        self.generator = generator
        self.side = side

        random = torch.Generator().manual_seed(seed)
        channels = generator.mean.shape[1]
        noise = torch.randn(count, channels, generator=random).to(generator.mean)
        noise_scale = 0.0 if shared_start else deviation
        start = generator.mean + noise_scale * generator.deviation * noise

        self.code = start.clamp_min(0).requires_grad_()
        self.parameters = [self.code]

    def __call__(self) -> Tensor:
        image = self.generator(self.code)
        if image.shape[-1] == self.side:
            return image
        size = (self.side, self.side)
        return F.interpolate(image, size=size, mode="bicubic").clamp(0, 1)

    @torch.no_grad()
    def decay_to_mean_(self, share: float) -> None:
        """Moves every code by `share`, in [0, 1], of its distance to the mean."""
        self.code.lerp_(self.generator.mean.expand_as(self.code), share)

    @torch.no_grad()
    def project_(self) -> None:
        """Clamps every code to the range of photographs' features."""
        upper_bound = self.generator.mean + MAX_CODE_DEVIATIONS * self.generator.deviation
        self.code.copy_(self.code.clamp_min(0).minimum(upper_bound))
