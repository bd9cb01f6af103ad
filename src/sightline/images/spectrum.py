"""Spectra of natural images: frequencies, and how strength falls with them."""

import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.images.color import COLOR_CORRELATION, apply_channel_matrix

PIVOT_WAVES = 4  # waves per picture, about the size of the parts of an object: there every slope gives the same weight


def compute_frequency_grid(height: int, width: int) -> Tensor:
    """Waves per pixel of every coefficient of a real picture's spectrum, height × (width // 2 + 1)."""
    return (torch.fft.fftfreq(height)[:, None].square() + torch.fft.rfftfreq(width).square()).sqrt()


def compute_decorrelated_spectrum(image: Tensor) -> Tensor:
    """The spectrum of N×3×H×W before sigmoid and colours, N×3×H×(W // 2 + 1); pixels nearer than 0.02 to black or white are moved there."""
    plain = apply_channel_matrix(
        image.clamp(0.02, 0.98).logit(), torch.linalg.inv(COLOR_CORRELATION).to(image.device)
    )
    return torch.fft.rfft2(plain, norm="ortho")


def load_natural_spectrum(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Mean amplitudes of photographs at a size, 3×H×(W // 2 + 1) without their mean, and their contrast, 3×1×1."""
    from safetensors.torch import load_file

    table = load_file(Path(__file__).parents[1] / "assets" / "spectrum.safetensors")
    radius, rows = compute_frequency_grid(height, width), torch.fft.fftfreq(height)[:, None].abs()
    angle = (
        torch.atan2(rows.expand_as(radius), torch.fft.rfftfreq(width).expand_as(radius))
        * 4
        / math.pi
        - 1
    )
    least, most = (math.log(float(value)) for value in table["range"])
    level = 2 * (radius.clamp_min(1 / max(height, width)).log() - least) / (most - least) - 1
    grid = torch.stack([angle, level], -1)[None]
    found = F.grid_sample(
        table["log_amplitude"].float()[None], grid, padding_mode="border", align_corners=True
    )[0].exp()
    found[:, 0, 0] = 0
    return found, table["contrast"].float().view(3, 1, 1)
