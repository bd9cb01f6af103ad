"""A texture's spectrum as a constraint: what repeats far apart shows there, where Gram matrices see a window only
(Liu, Gousseau & Xia 2016)."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from sightline.optim.objectives.objective import Objective


def build_spectrum_objective(exemplar: Tensor) -> Objective:
    """Minus half the mean squared distance of an image to the nearest one with the exemplar's Fourier moduli (section 3.2),
    over the exemplar's variance. The exemplar is 1×3×h×w; the image may be larger."""
    variance = float((exemplar - exemplar.mean((2, 3), keepdim=True)).square().mean())

    def score(image: Tensor, _: object) -> Tensor:
        nearest = project_onto_spectrum(image.detach(), exemplar.to(image))
        return -(image - nearest).square().flatten(1).mean(1) / (2 * max(variance, 1e-12))

    return Objective("spectrum", (), lambda model: score)


def project_onto_spectrum(image: Tensor, exemplar: Tensor) -> Tensor:
    """The nearest image with the exemplar's moduli: one phase for each frequency, shared by the colours, which keeps the
    exemplar's phases between them. N×3×H×W."""
    size = (image.shape[2], image.shape[3])
    mean = exemplar.mean((2, 3), keepdim=True)
    # Zeros around the exemplar, which fades into them, interpolate its spectrum to the frequencies of a larger picture, at the
    # same energy per pixel. Without the fading its outline would be seen.
    piece = (exemplar - mean)[:, :, : size[0], : size[1]]
    fade = make_fade_window(piece.shape[2], size[0])[:, None] * make_fade_window(
        piece.shape[3], size[1]
    )
    wide = F.pad(piece * fade.to(piece), (0, size[1] - piece.shape[3], 0, size[0] - piece.shape[2]))
    reference = torch.fft.rfft2(wide) * math.sqrt(size[0] * size[1] / float(fade.square().sum()))
    agreement = (torch.fft.rfft2(image - mean) * reference.conj()).sum(1, keepdim=True)
    phase = agreement / agreement.abs().clamp_min(1e-12)
    return torch.fft.irfft2(phase * reference, s=size) + mean


def make_fade_window(length: int, picture_length: int) -> Tensor:
    """Weights along one side of the exemplar: a Hann window where the picture is longer."""
    return (
        torch.hann_window(length + 2, periodic=False)[1:-1]
        if picture_length > length
        else torch.ones(length)
    )
