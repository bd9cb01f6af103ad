"""What is optimized. A parameterization owns leaf tensors, makes the image from them, and can project them back to
what is allowed after a step."""

from typing import Protocol

import torch
from torch import Tensor

from sightline.images.color import COLOR_CORRELATION, apply_channel_matrix
from sightline.images.spectrum import (
    PIVOT_WAVES,
    compute_decorrelated_spectrum,
    compute_frequency_grid,
    load_natural_spectrum,
)


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


class FourierSpectrum:
    """Spectrum with decorrelated colours, through a sigmoid (Olah 2017, "preconditioning").

    The coefficients start as N(0, `deviation`²), with `alike` the same for all images, or as those of `image`; each is weighted by
    1/frequency^`slope`, which is the same at 4 waves per picture for every slope. Low frequencies then move first; at slope 1 every
    octave has equal energy, above it the coarse ones have more.
    """

    def __init__(
        self, count: int, height: int, width: int, *, seed: int = 0, deviation: float = 0.01, shared_start: bool = False,
        image: Tensor | None = None, frequency_exponent: float = 1.0, device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        self.size = height, width
        side = max(height, width)
        frequency = compute_frequency_grid(height, width).clamp_min(1 / side)
        self.frequency_weights = (
            (frequency * side / PIVOT_WAVES) ** (1 - frequency_exponent) / frequency
        ).to(device)
        self.color_matrix = COLOR_CORRELATION.to(device)
        if image is None:
            shape = 2, 1 if shared_start else count, 3, *frequency.shape
            start = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * deviation
            start = start.expand(2, count, *shape[2:]).to(device)
        else:
            start = torch.view_as_real(
                4 * compute_decorrelated_spectrum(image.to(device)) / self.frequency_weights
            ).movedim(-1, 0)
        self.spectrum = start.contiguous().clone().requires_grad_()
        self.parameters = [self.spectrum]

    def __call__(self) -> Tensor:
        weighted = torch.complex(self.spectrum[0], self.spectrum[1]) * self.frequency_weights
        # Lucid's constant: the 4 sets the contrast of the first picture. "ortho" absorbs its factor √(height·width).
        image = torch.fft.irfft2(weighted, s=self.size, norm="ortho") / 4
        return apply_channel_matrix(image, self.color_matrix).sigmoid()

    def project_(self) -> None:
        """Every spectrum is allowed."""


class FourierPhase:
    """A spectrum with the amplitudes of photographs, of which only the phases move (Fel 2023, MACO).

    The amplitudes are the mean of photographs in decorrelated colours, by frequency in waves per pixel and direction
    (`training/spectrum.py`); every image is brought to their contrast in each step, and all of a batch start alike unless told otherwise.
    """

    def __init__(
        self,
        count: int,
        height: int,
        width: int,
        *,
        seed: int = 0,
        shared_start: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        self.size = height, width
        self.amplitude, self.contrast = (
            value.to(device) for value in load_natural_spectrum(height, width)
        )
        start = torch.randn(
            1 if shared_start else count,
            *self.amplitude.shape,
            generator=torch.Generator().manual_seed(seed),
        )
        self.phase = start.expand(count, -1, -1, -1).to(device).clone().requires_grad_()
        self.color_matrix = COLOR_CORRELATION.to(device)
        self.parameters = [self.phase]

    def __call__(self) -> Tensor:
        # Phases of one spread, or a few would carry the whole picture (xplique, features_visualizations/maco.py).
        phase = (self.phase - self.phase.mean((1, 2, 3), keepdim=True)) / (
            self.phase.std((1, 2, 3), keepdim=True) + 1e-5
        )
        image = torch.fft.irfft2(
            torch.polar(self.amplitude.expand_as(phase), phase), s=self.size, norm="ortho"
        )
        image = image - image.mean((2, 3), keepdim=True)
        image = image / (image.std((2, 3), keepdim=True) + 1e-5) * self.contrast
        return apply_channel_matrix(image, self.color_matrix).sigmoid()

    def project_(self) -> None:
        """Every phase is allowed."""
