"""A picture with transparency, in front of ever other backgrounds: what stays opaque is what counts (lucid, collapse_alpha_random)."""

import torch
from torch import Tensor

from sightline.images.color import COLOR_CORRELATION, apply_channel_matrix
from sightline.images.spectrum import PIVOT_WAVES, compute_frequency_grid
from sightline.optim.parameterizations.fourier import Parameterization

# Found by trying on the embedded network: edges as sharp as the colours' leave specks everywhere.
OPACITY_PENALTY, OPACITY_FREQUENCY_EXPONENT, OPACITY_SCALE = 0.1, 2.5, 0.5

PENALTY_WARMUP_STEPS = 48  # looks until the whole of it is pulled: a picture that is still nothing would be cleared away (lucid waits 150 steps)

BACKGROUND_DEVIATION = 0.3  # deviation of the backgrounds' coefficients


class TransparentImage:
    """Colours by another parameterization, and how opaque each place is by a spectrum of its own; gives the picture over gray.

    The opacity of an image is pulled down at each step by `thinning` times the mean slope of its pixels (less in the first steps): where
    the picture does less for the score than that, it becomes clear. `changing` puts a random background in the gray's place, the same for all images of a batch.
    """

    def __init__(
        self, colors: Parameterization, count: int, height: int, width: int, *, seed: int, opacity_penalty: float = OPACITY_PENALTY,
        device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        self.colors, self.size, self.opacity_penalty = colors, (height, width), opacity_penalty
        frequency = compute_frequency_grid(height, width).clamp_min(1 / max(height, width))
        self.background_weights = (1 / frequency).to(device)
        self.opacity_weights = OPACITY_SCALE * (
            (frequency * max(height, width) / PIVOT_WAVES) ** (1 - OPACITY_FREQUENCY_EXPONENT)
            / frequency
        ).to(device)
        self.opacity_spectrum = torch.zeros(
            2, count, 1, *frequency.shape, device=device, requires_grad=True
        )
        self.parameters = [*colors.parameters, self.opacity_spectrum]
        self.opacity = torch.full((count, 1, height, width), 0.5, device=device)
        self.call_count = 0
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self) -> Tensor:
        weighted = (
            torch.complex(self.opacity_spectrum[0], self.opacity_spectrum[1]) * self.opacity_weights
        )
        self.opacity = (torch.fft.irfft2(weighted, s=self.size, norm="ortho") / 4).sigmoid()
        if self.opacity.requires_grad:
            pull = self.opacity_penalty * min(1, self.call_count / PENALTY_WARMUP_STEPS)
            self.call_count += 1
            self.opacity.register_hook(
                lambda slope: slope + pull * slope.abs().mean((1, 2, 3), keepdim=True)
            )
        return self.opacity * self.colors() + (1 - self.opacity) * 0.5

    def replace_background(self, image: Tensor) -> Tensor:
        """The picture that was given last, before a random background."""
        return image + (1 - self.opacity) * (self.draw_background() - 0.5)

    def draw_background(self) -> Tensor:
        """Random colours, 1×3×H×W, whose waves are weighted as a spectrum's at its start."""
        shape = 2, 1, 3, *self.opacity_weights.shape
        real, imaginary = (torch.randn(shape, generator=self.generator) * BACKGROUND_DEVIATION).to(
            self.opacity_weights.device
        )
        waves = (
            torch.fft.irfft2(
                torch.complex(real, imaginary) * self.background_weights, s=self.size, norm="ortho"
            )
            / 4
        )
        return apply_channel_matrix(waves, COLOR_CORRELATION.to(waves)).sigmoid()

    def project_(self) -> None:
        """Brings the colours back to what is allowed."""
        self.colors.project_()
