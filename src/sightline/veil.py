"""A picture with transparency, in front of ever other backgrounds: what stays opaque is what counts (lucid, collapse_alpha_random)."""

import torch
from torch import Tensor

from .parameterize import COLOR, PIVOT, Parameterization, frequencies, mixed

# Found by trying on the embedded network: edges as sharp as the colours' leave specks everywhere.
THINNING, SLOPE, STRENGTH = 0.1, 2.5, 0.5
PATIENCE = 48  # looks until the whole of it is pulled: a picture that is still nothing would be cleared away (lucid waits 150 steps)
VARIETY = 0.3  # deviation of the backgrounds' coefficients


class Veiled:
    """Colours by another parameterization, and how opaque each place is by a spectrum of its own; gives the picture over gray.

    The opacity of an image is pulled down at each step by `thinning` times the mean slope of its pixels (less in the first steps): where
    the picture does less for the score than that, it becomes clear. `changing` puts a random background in the gray's place, the same for all images of a batch.
    """

    def __init__(
        self, colors: Parameterization, count: int, height: int, width: int, *, seed: int, thinning: float = THINNING,
        device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        self.colors, self.size, self.thinning = colors, (height, width), thinning
        frequency = frequencies(height, width).clamp_min(1 / max(height, width))
        self.waves = (1 / frequency).to(device)
        self.scale = STRENGTH * ((frequency * max(height, width) / PIVOT) ** (1 - SLOPE) / frequency).to(device)
        self.spectrum = torch.zeros(2, count, 1, *frequency.shape, device=device, requires_grad=True)
        self.parameters = [*colors.parameters, self.spectrum]
        self.opacity = torch.full((count, 1, height, width), 0.5, device=device)
        self.looks = 0
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self) -> Tensor:
        weighted = torch.complex(self.spectrum[0], self.spectrum[1]) * self.scale
        self.opacity = (torch.fft.irfft2(weighted, s=self.size, norm="ortho") / 4).sigmoid()
        if self.opacity.requires_grad:
            pull = self.thinning * min(1, self.looks / PATIENCE)
            self.looks += 1
            self.opacity.register_hook(lambda slope: slope + pull * slope.abs().mean((1, 2, 3), keepdim=True))
        return self.opacity * self.colors() + (1 - self.opacity) * 0.5

    def changing(self, image: Tensor) -> Tensor:
        """The picture that was given last, before a random background."""
        return image + (1 - self.opacity) * (self.background() - 0.5)

    def background(self) -> Tensor:
        """Random colours, 1×3×H×W, whose waves are weighted as a spectrum's at its start."""
        shape = 2, 1, 3, *self.scale.shape
        real, imaginary = (torch.randn(shape, generator=self.generator) * VARIETY).to(self.scale.device)
        waves = torch.fft.irfft2(torch.complex(real, imaginary) * self.waves, s=self.size, norm="ortho") / 4
        return mixed(waves, COLOR.to(waves)).sigmoid()

    def project_(self) -> None:
        """Brings the colours back to what is allowed."""
        self.colors.project_()
