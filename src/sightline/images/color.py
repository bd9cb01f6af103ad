"""Whose colours a stylized picture has: the style's, or the photograph's (Gatys 2016, "Preserving color in neural style transfer")."""

import torch
from torch import Tensor

LUMINANCE_WEIGHTS = (0.299, 0.587, 0.114)

# Square root of the covariance of natural colours (lucid, optvis/param/color.py), scaled to a largest column norm of 1.
COLOR_COVARIANCE_ROOT = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
COLOR_CORRELATION = COLOR_COVARIANCE_ROOT / COLOR_COVARIANCE_ROOT.norm(dim=0).max()

# Luminance and two colour differences (YIQ), as the paper's section 4 has it.
RGB_TO_YIQ = torch.tensor([LUMINANCE_WEIGHTS, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])

COVARIANCE_RIDGE = 1e-5  # added to colour covariances


def apply_color_matrix(image: Tensor, matrix: Tensor) -> Tensor:
    """Every pixel's colour times a 3×3 matrix: N×3×H×W."""
    return torch.einsum("nchw,dc->ndhw", image, matrix.to(image))


def match_colors(image: Tensor, reference: Tensor) -> Tensor:
    """The image with the mean and covariance of another one's colours, by the symmetric (CORAL) map of section 3: 1×3×H×W in [0, 1]."""
    (mean, spread), (target, wanted) = (
        compute_color_statistics(image),
        compute_color_statistics(reference),
    )
    change = compute_matrix_power(wanted, 0.5) @ compute_matrix_power(spread, -0.5)
    moved = apply_color_matrix(image - mean.view(1, 3, 1, 1), change) + target.view(1, 3, 1, 1)
    return moved.clamp(0, 1)


def match_luminance(image: Tensor, reference: Tensor) -> Tensor:
    """The image as gray, its luminance brought to the mean and deviation of another one's (section 4): 1×3×H×W in [0, 1]."""
    light, target = (
        apply_color_matrix(picture, RGB_TO_YIQ)[:, :1] for picture in (image, reference)
    )
    scaled = (light - light.mean()) / light.std().clamp_min(1e-6) * target.std() + target.mean()
    return scaled.clamp(0, 1).expand(-1, 3, -1, -1).contiguous()


def copy_photo_colors(image: Tensor, photo: Tensor) -> Tensor:
    """The image's luminance with the photograph's colours: N×3×H×W in [0, 1]."""
    joined = torch.cat(
        [
            apply_color_matrix(image, RGB_TO_YIQ)[:, :1],
            apply_color_matrix(photo, RGB_TO_YIQ)[:, 1:],
        ],
        1,
    )
    return apply_color_matrix(joined, torch.linalg.inv(RGB_TO_YIQ)).clamp(0, 1)


def compute_color_statistics(image: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (3) and covariance (3×3) of an image's colours."""
    pixels = image[0].flatten(1)
    return pixels.mean(1), torch.cov(pixels) + COVARIANCE_RIDGE * torch.eye(3)


def compute_matrix_power(matrix: Tensor, exponent: float) -> Tensor:
    """A power of a symmetric positive matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp_min(COVARIANCE_RIDGE).pow(exponent) @ vectors.T


def apply_channel_matrix(image: Tensor, matrix: Tensor) -> Tensor:
    """Colours of N×3×H×W through a matrix 3×3. As a matrix product, forward and backward take a tenth of einsum's time."""
    return (matrix @ image.flatten(2)).unflatten(2, image.shape[2:])
