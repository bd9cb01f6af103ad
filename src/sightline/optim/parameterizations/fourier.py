"""What is optimized: pixels, a Fourier spectrum, or only its phases.

A parameterization owns leaf tensors, makes the image from them, and can project them back onto
what is allowed after a step.
"""

from typing import Protocol

import torch
from torch import Tensor

from sightline.errors import SightlineError
from sightline.images.color import COLOR_CORRELATION, apply_channel_matrix
from sightline.images.spectrum import (
    PIVOT_WAVES,
    compute_decorrelated_spectrum,
    compute_frequency_grid,
    load_natural_spectrum,
)


class Parameterization(Protocol):
    """Makes images N×3×H×W from `parameters`, leaves that require a gradient.

    `project_` changes the leaves in place, without gradient.
    """

    parameters: list[Tensor]

    def __call__(self) -> Tensor: ...
    def project_(self) -> None: ...


class Pixels:
    """The pixels themselves, kept in [0, 1] so that the result can be saved as an image."""

    def __init__(self, image: Tensor) -> None:
        self.pixels = image.detach().clone().requires_grad_()
        self.parameters = [self.pixels]

    def __call__(self) -> Tensor:
        return self.pixels

    @torch.no_grad()
    def project_(self) -> None:
        """Clamps the pixels to [0, 1]."""
        self.pixels.clamp_(0, 1)


class FourierSpectrum:
    """A spectrum in decorrelated colours, through a sigmoid (Olah 2017, "preconditioning").

    Images of another number of channels than 3 have no colours: their channels are independent.

    The coefficients start as N(0, `deviation`²), with `shared_start` the same for all images, or as
    those of `image`. Each is weighted by 1/frequency^`frequency_exponent`, so that low frequencies
    move first. With exponent 1 every octave has the same energy; above, coarse ones have more. The
    weight at 4 waves per image is the same for every exponent.
    """

    def __init__(
        self,
        count: int,
        height: int,
        width: int,
        *,
        seed: int = 0,
        deviation: float = 0.01,
        shared_start: bool = False,
        image: Tensor | None = None,
        frequency_exponent: float = 1.0,
        channels: int = 3,
        device: torch.device | str = "cpu",
    ) -> None:
        self.size = (height, width)
        frequency_weights = compute_frequency_weights(height, width, frequency_exponent)
        self.frequency_weights = frequency_weights.to(device)
        self.color_matrix = make_channel_matrix(channels).to(device)

        # Real and imaginary parts, 2×N×C×H×(W // 2 + 1).
        if image is None:
            start_count = 1 if shared_start else count
            shape = (2, start_count, channels, *frequency_weights.shape)
            generator = torch.Generator().manual_seed(seed)
            start = torch.randn(shape, generator=generator, dtype=torch.float32) * deviation
            start = start.expand(-1, count, -1, -1, -1).to(device)
        else:
            coefficients = 4 * compute_decorrelated_spectrum(image.to(device), self.color_matrix)
            unweighted = coefficients / self.frequency_weights
            start = torch.view_as_real(unweighted).movedim(-1, 0)
        self.spectrum = start.contiguous().clone().requires_grad_()
        self.parameters = [self.spectrum]

    def __call__(self) -> Tensor:
        waves = sum_weighted_waves(self.spectrum, self.frequency_weights, self.size)
        return apply_channel_matrix(waves, self.color_matrix).sigmoid()

    def project_(self) -> None:
        """Does nothing: every spectrum is allowed."""


class FourierPhase:
    """A spectrum with the amplitudes of photographs, whose phases alone move (MACO, Fel 2023).

    The amplitudes are the mean of photographs in decorrelated colours, by direction and frequency
    in waves per pixel (`training/spectrum.py`). Each channel of every image is brought to the
    contrast of photographs in each step. All images of a batch start alike with `shared_start`.
    `channels` is 3, or 1 for gray images. Raises SightlineError for any other number.
    """

    def __init__(
        self,
        count: int,
        height: int,
        width: int,
        *,
        seed: int = 0,
        shared_start: bool = True,
        channels: int = 3,
        device: torch.device | str = "cpu",
    ) -> None:
        if channels not in (1, 3):
            raise SightlineError(
                f"photographs have no amplitudes of {channels} channels; choose another preset "
                "than maco, such as smooth"
            )
        self.size = (height, width)
        amplitude, contrast = load_natural_spectrum(height, width)
        # The first of the decorrelated colours is luminance.
        self.amplitude = amplitude[:channels].to(device)
        self.contrast = contrast[:channels].to(device)
        self.color_matrix = make_channel_matrix(channels).to(device)

        start_count = 1 if shared_start else count
        generator = torch.Generator().manual_seed(seed)
        shape = (start_count, *self.amplitude.shape)
        start = torch.randn(shape, generator=generator, dtype=torch.float32)
        start = start.expand(count, -1, -1, -1).to(device)
        self.phase = start.clone().requires_grad_()
        self.parameters = [self.phase]

    def __call__(self) -> Tensor:
        # The phases are standardized, or a few of them would carry the whole image
        # (xplique, features_visualizations/maco.py).
        mean = self.phase.mean((1, 2, 3), keepdim=True)
        deviation = self.phase.std((1, 2, 3), keepdim=True)
        phase = (self.phase - mean) / (deviation + 1e-5)

        amplitude = self.amplitude.expand_as(phase)
        spectrum = torch.polar(amplitude, phase)
        waves = torch.fft.irfft2(spectrum, s=self.size, norm="ortho")

        # Mean 0 and the contrast of photographs, each channel for itself.
        waves = waves - waves.mean((2, 3), keepdim=True)
        contrast = waves.std((2, 3), keepdim=True)
        waves = waves / (contrast + 1e-5) * self.contrast
        return apply_channel_matrix(waves, self.color_matrix).sigmoid()

    def project_(self) -> None:
        """Does nothing: every phase is allowed."""


def make_channel_matrix(channels: int) -> Tensor:
    """What turns the channels of a spectrum into those of an image, channels×channels.

    Other channels than red, green and blue are independent, and each has the contrast of luminance.
    """
    if channels == 3:
        return COLOR_CORRELATION
    luminance_gain = float(COLOR_CORRELATION[:, 0].mean())
    return luminance_gain * torch.eye(channels, dtype=torch.float32)


def compute_frequency_weights(height: int, width: int, exponent: float) -> Tensor:
    """1/frequency^exponent of every coefficient, H×(W // 2 + 1).

    Scaled so that the weight at `PIVOT_WAVES` waves per image is the same for every exponent. The
    constant is weighted as the lowest frequency.
    """
    side = max(height, width)
    frequency = compute_frequency_grid(height, width).clamp_min(1 / side)
    weights = (frequency * side / PIVOT_WAVES) ** (1 - exponent) / frequency
    return weights.float()


def sum_weighted_waves(spectrum: Tensor, weights: Tensor, size: tuple[int, int]) -> Tensor:
    """The sum of the waves N×C×H×W, of real and imaginary parts 2×N×C×H×(W // 2 + 1)."""
    weighted = torch.complex(spectrum[0], spectrum[1]) * weights
    # The 4 is lucid's constant, which sets the contrast of the first image. "ortho" absorbs
    # lucid's factor √(height·width).
    return torch.fft.irfft2(weighted, s=size, norm="ortho") / 4
