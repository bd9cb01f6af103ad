"""What is optimized. A parameterization owns leaf tensors, makes the image from them, and can project them back to
what is allowed after a step."""

import math
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from .networks.decoder import CodeGenerator

# Square root of the covariance of natural colours (lucid, optvis/param/color.py), scaled to a largest column norm of 1.
COLOR_COVARIANCE_ROOT = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
COLOR_CORRELATION = COLOR_COVARIANCE_ROOT / COLOR_COVARIANCE_ROOT.norm(dim=0).max()
PIVOT_WAVES = 4  # waves per picture, about the size of the parts of an object: there every slope gives the same weight


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
        self.frequency_weights = ((frequency * side / PIVOT_WAVES) ** (1 - frequency_exponent) / frequency).to(device)
        self.color_matrix = COLOR_CORRELATION.to(device)
        if image is None:
            shape = 2, 1 if shared_start else count, 3, *frequency.shape
            start = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * deviation
            start = start.expand(2, count, *shape[2:]).to(device)
        else:
            start = torch.view_as_real(4 * compute_decorrelated_spectrum(image.to(device)) / self.frequency_weights).movedim(-1, 0)
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
        self, count: int, height: int, width: int, *, seed: int = 0, shared_start: bool = True, device: torch.device | str = "cpu"
    ) -> None:
        self.size = height, width
        self.amplitude, self.contrast = (value.to(device) for value in load_natural_spectrum(height, width))
        start = torch.randn(1 if shared_start else count, *self.amplitude.shape, generator=torch.Generator().manual_seed(seed))
        self.phase = start.expand(count, -1, -1, -1).to(device).clone().requires_grad_()
        self.color_matrix = COLOR_CORRELATION.to(device)
        self.parameters = [self.phase]

    def __call__(self) -> Tensor:
        # Phases of one spread, or a few would carry the whole picture (xplique, features_visualizations/maco.py).
        phase = (self.phase - self.phase.mean((1, 2, 3), keepdim=True)) / (self.phase.std((1, 2, 3), keepdim=True) + 1e-5)
        image = torch.fft.irfft2(torch.polar(self.amplitude.expand_as(phase), phase), s=self.size, norm="ortho")
        image = image - image.mean((2, 3), keepdim=True)
        image = image / (image.std((2, 3), keepdim=True) + 1e-5) * self.contrast
        return apply_channel_matrix(image, self.color_matrix).sigmoid()

    def project_(self) -> None:
        """Every phase is allowed."""


class GeneratorCode:
    """Features from which a trained generator paints the pictures (Nguyen 2016), enlarged to `side` pixels.

    The codes start as the mean of photographs' features, or with `alike` false, near it: `deviation` of theirs away. They
    stay within 0 and mean + 3 deviations, where photographs' features lie.
    """

    def __init__(
        self, generator: CodeGenerator, count: int, side: int, *, seed: int = 0, shared_start: bool = True, deviation: float = 0.5
    ) -> None:
        self.generator, self.side = generator, side
        noise = torch.randn(count, generator.mean.shape[1], generator=torch.Generator().manual_seed(seed)).to(generator.mean)
        start = generator.mean + (0.0 if shared_start else deviation) * generator.deviation * noise
        self.code = start.clamp_min(0).requires_grad_()
        self.parameters = [self.code]

    def __call__(self) -> Tensor:
        picture = self.generator(self.code)
        return (
            picture if picture.shape[-1] == self.side else F.interpolate(picture, size=(self.side, self.side), mode="bicubic").clamp(0, 1)
        )

    @torch.no_grad()
    def decay_to_mean_(self, share: float) -> None:
        """Goes that share of the way back to the mean."""
        self.code.lerp_(self.generator.mean.expand_as(self.code), share)

    @torch.no_grad()
    def project_(self) -> None:
        most = self.generator.mean + 3 * self.generator.deviation
        self.code.copy_(self.code.clamp_min(0).minimum(most))


def apply_channel_matrix(image: Tensor, matrix: Tensor) -> Tensor:
    """Colours of N×3×H×W through a matrix 3×3. As a matrix product, forward and backward take a tenth of einsum's time."""
    return (matrix @ image.flatten(2)).unflatten(2, image.shape[2:])


def compute_frequency_grid(height: int, width: int) -> Tensor:
    """Waves per pixel of every coefficient of a real picture's spectrum, height × (width // 2 + 1)."""
    return (torch.fft.fftfreq(height)[:, None].square() + torch.fft.rfftfreq(width).square()).sqrt()


def compute_decorrelated_spectrum(image: Tensor) -> Tensor:
    """The spectrum of N×3×H×W before sigmoid and colours, N×3×H×(W // 2 + 1); pixels nearer than 0.02 to black or white are moved there."""
    plain = apply_channel_matrix(image.clamp(0.02, 0.98).logit(), torch.linalg.inv(COLOR_CORRELATION).to(image.device))
    return torch.fft.rfft2(plain, norm="ortho")


def load_natural_spectrum(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Mean amplitudes of photographs at a size, 3×H×(W // 2 + 1) without their mean, and their contrast, 3×1×1."""
    from safetensors.torch import load_file

    table = load_file(Path(__file__).parent / "assets" / "spectrum.safetensors")
    radius, rows = compute_frequency_grid(height, width), torch.fft.fftfreq(height)[:, None].abs()
    angle = torch.atan2(rows.expand_as(radius), torch.fft.rfftfreq(width).expand_as(radius)) * 4 / math.pi - 1
    least, most = (math.log(float(value)) for value in table["range"])
    level = 2 * (radius.clamp_min(1 / max(height, width)).log() - least) / (most - least) - 1
    grid = torch.stack([angle, level], -1)[None]
    found = F.grid_sample(table["log_amplitude"].float()[None], grid, padding_mode="border", align_corners=True)[0].exp()
    found[:, 0, 0] = 0
    return found, table["contrast"].float().view(3, 1, 1)
