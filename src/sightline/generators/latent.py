"""Images by the code of a generator: what is optimized when `start="generator"`."""

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.generators.architectures.decoder import CodeGenerator


class GeneratorCode:
    """Features from which a trained generator paints the pictures (Nguyen 2016), enlarged to `side` pixels.

    The codes start as the mean of photographs' features, or with `alike` false, near it: `deviation` of theirs away. They
    stay within 0 and mean + 3 deviations, where photographs' features lie.
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
        self.generator, self.side = generator, side
        noise = torch.randn(
            count, generator.mean.shape[1], generator=torch.Generator().manual_seed(seed)
        ).to(generator.mean)
        start = generator.mean + (0.0 if shared_start else deviation) * generator.deviation * noise
        self.code = start.clamp_min(0).requires_grad_()
        self.parameters = [self.code]

    def __call__(self) -> Tensor:
        picture = self.generator(self.code)
        return (
            picture
            if picture.shape[-1] == self.side
            else F.interpolate(picture, size=(self.side, self.side), mode="bicubic").clamp(0, 1)
        )

    @torch.no_grad()
    def decay_to_mean_(self, share: float) -> None:
        """Goes that share of the way back to the mean."""
        self.code.lerp_(self.generator.mean.expand_as(self.code), share)

    @torch.no_grad()
    def project_(self) -> None:
        most = self.generator.mean + 3 * self.generator.deviation
        self.code.copy_(self.code.clamp_min(0).minimum(most))
