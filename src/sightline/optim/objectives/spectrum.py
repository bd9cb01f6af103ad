"""The spectrum constraint of texture synthesis (Liu, Gousseau & Xia 2016).

It holds structure that repeats over long distances, where Gram matrices see only as far as a
receptive field.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.optim.objectives.objective import Objective, average_per_image


def build_spectrum_objective(exemplar: Tensor) -> Objective:
    """Minus half the mean squared distance of an image to its projection onto the spectrum.

    The projection is the nearest image with the exemplar's Fourier moduli (section 3.2). The
    distance is divided by the exemplar's variance. The exemplar is 1×3×h×w; the image may be
    larger.
    """
    centered = exemplar - exemplar.mean((2, 3), keepdim=True)
    variance = float(centered.square().mean())

    def score(image: Tensor, _: object) -> Tensor:
        projection = project_onto_spectrum(image.detach(), exemplar.to(image))
        distance = average_per_image((image - projection).square())
        return -distance / (2 * max(variance, 1e-12))

    return Objective("spectrum", (), lambda _: score)


def project_onto_spectrum(image: Tensor, exemplar: Tensor) -> Tensor:
    """The nearest image with the exemplar's moduli: N×3×H×W.

    Each frequency gets one phase shift, shared by the colours, which keeps the exemplar's phase
    differences between them.
    """
    height, width = image.shape[2:]
    mean = exemplar.mean((2, 3), keepdim=True)
    reference = compute_reference_spectrum(exemplar - mean, height, width)

    # The phase shift that brings the exemplar nearest to the image.
    spectrum = torch.fft.rfft2(image - mean)
    agreement = (spectrum * reference.conj()).sum(1, keepdim=True)
    phase = agreement / agreement.abs().clamp_min(1e-12)
    return torch.fft.irfft2(phase * reference, s=(height, width)) + mean


def compute_reference_spectrum(centered: Tensor, height: int, width: int) -> Tensor:
    """The spectrum of an exemplar without its mean, at the frequencies of height×width pixels.

    Zeros around the exemplar interpolate its spectrum to the frequencies of a larger image, at the
    same energy per pixel. The exemplar fades into them, or its outline would show in the result.
    """
    patch = centered[:, :, :height, :width]
    patch_height, patch_width = patch.shape[2:]
    row_window = make_fade_window(patch_height, height)
    column_window = make_fade_window(patch_width, width)
    window = row_window[:, None] * column_window
    faded = patch * window.to(patch)

    right_padding = width - patch_width
    bottom_padding = height - patch_height
    padded = F.pad(faded, (0, right_padding, 0, bottom_padding))

    window_energy = float(window.square().sum())
    energy_ratio = height * width / window_energy
    return torch.fft.rfft2(padded) * math.sqrt(energy_ratio)


def make_fade_window(length: int, image_length: int) -> Tensor:
    """Weights along one side of the exemplar: a Hann window if the image is longer, else ones."""
    if image_length > length:
        return torch.hann_window(length + 2, periodic=False)[1:-1]
    return torch.ones(length)
