"""Spectra of natural images: frequencies, and how amplitudes fall with them."""

import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.images.color import COLOR_CORRELATION, apply_channel_matrix

# In waves per picture, about the size of an object's parts. Frequency weights of every steepness
# are equal there.
PIVOT_WAVES = 4

# Distance that pixels keep from black and white, where the inverse of a sigmoid is infinite.
LOGIT_MARGIN = 0.02

SPECTRUM_FILE = Path(__file__).parents[1] / "assets" / "spectrum.safetensors"


def compute_frequency_grid(height: int, width: int) -> Tensor:
    """Waves per pixel of each coefficient of `torch.fft.rfft2`: height×(width//2+1)."""
    vertical = torch.fft.fftfreq(height, dtype=torch.float32)[:, None]
    horizontal = torch.fft.rfftfreq(width, dtype=torch.float32)
    return (vertical.square() + horizontal.square()).sqrt()


def compute_decorrelated_spectrum(
    image: Tensor, color_matrix: Tensor = COLOR_CORRELATION
) -> Tensor:
    """The spectrum N×C×H×(W//2+1) that becomes the image N×C×H×W by color matrix and sigmoid.

    Pixels closer than 0.02 to black or white are moved to that distance.
    """
    logits = image.clamp(LOGIT_MARGIN, 1 - LOGIT_MARGIN).logit()
    decorrelation = torch.linalg.inv(color_matrix).to(image.device)
    return torch.fft.rfft2(apply_channel_matrix(logits, decorrelation), norm="ortho")


def load_natural_spectrum(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Mean amplitudes of photographs at a size, and the photographs' contrast.

    The amplitudes are 3×height×(width//2+1), with 0 for the constant coefficient; the contrast
    is 3×1×1. The shipped table holds log amplitudes by direction and log frequency.
    """
    from safetensors.torch import load_file

    table = load_file(SPECTRUM_FILE)
    frequency = compute_frequency_grid(height, width)
    vertical = torch.fft.fftfreq(height, dtype=torch.float32)[:, None].abs().expand_as(frequency)
    horizontal = torch.fft.rfftfreq(width, dtype=torch.float32).expand_as(frequency)
    # Both coordinates run from -1 to 1: the angle from horizontal to vertical waves, and the log
    # frequency over the range of the table.
    angle = torch.atan2(vertical, horizontal) * 4 / math.pi - 1
    min_log, max_log = (math.log(float(value)) for value in table["range"])
    lowest_frequency = 1 / max(height, width)
    log_frequency = frequency.clamp_min(lowest_frequency).log()
    level = 2 * (log_frequency - min_log) / (max_log - min_log) - 1

    log_amplitudes = F.grid_sample(
        table["log_amplitude"].float()[None],
        torch.stack([angle, level], -1)[None],
        padding_mode="border",
        align_corners=True,
    )
    amplitudes = log_amplitudes[0].exp()
    amplitudes[:, 0, 0] = 0
    return amplitudes, table["contrast"].float().view(3, 1, 1)
