"""What is optimized. A parameterization owns leaf tensors, makes the image from them, and can project them back to
what is allowed after a step."""

from typing import Protocol

import torch
from torch import Tensor

# Square root of the covariance of natural colours (lucid, optvis/param/color.py), scaled to a largest column norm of 1.
NATURAL = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
COLOR = NATURAL / NATURAL.norm(dim=0).max()


class Parameterization(Protocol):
    """`parameters` are leaves that require a gradient; calling gives N×3×H×W; `project_` works in place, without gradient."""

    parameters: list[Tensor]

    def __call__(self) -> Tensor: ...
    def project_(self) -> None: ...


class Pixels:
    """The pixels themselves, kept in [0, 1] (a picture must be one that can be saved)."""

    def __init__(self, image: Tensor) -> None:
        self.pixels = image.detach().clone().requires_grad_()
        self.parameters = [self.pixels]

    def __call__(self) -> Tensor:
        return self.pixels

    @torch.no_grad()
    def project_(self) -> None:
        self.pixels.clamp_(0, 1)


class Fourier:
    """Spectrum with equal energy per frequency band and decorrelated colours, through a sigmoid (Olah 2017, "preconditioning").

    The coefficients start as N(0, `deviation`²); each is weighted by 1/frequency. Low frequencies then move first.
    """

    def __init__(
        self, count: int, height: int, width: int, *, seed: int = 0, deviation: float = 0.01, device: torch.device | str = "cpu"
    ) -> None:
        self.size = height, width
        frequency = (torch.fft.fftfreq(height)[:, None].square() + torch.fft.rfftfreq(width).square()).sqrt()
        self.scale = (1 / frequency.clamp_min(1 / max(height, width))).to(device)
        start = torch.randn(2, count, 3, *frequency.shape, generator=torch.Generator().manual_seed(seed)) * deviation
        self.spectrum = start.to(device).requires_grad_()
        self.color = COLOR.to(device)
        self.parameters = [self.spectrum]

    def __call__(self) -> Tensor:
        weighted = torch.complex(self.spectrum[0], self.spectrum[1]) * self.scale
        # Lucid's constant: the 4 sets the contrast of the first picture. "ortho" absorbs its factor √(height·width).
        image = torch.fft.irfft2(weighted, s=self.size, norm="ortho") / 4
        return torch.einsum("nchw,dc->ndhw", image, self.color).sigmoid()

    def project_(self) -> None:
        """Every spectrum is allowed."""
