"""Color statistics and the two ways to keep a photograph's colors in style transfer.

The source is Gatys 2016, "Preserving color in neural artistic style transfer"; sections are its.
"""

import torch
from torch import Tensor

LUMINANCE_WEIGHTS = (0.299, 0.587, 0.114)

# Square root of the covariance of natural colors (lucid, optvis/param/color.py), scaled to a
# largest column norm of 1.
COLOR_COVARIANCE_ROOT = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
COLOR_CORRELATION = COLOR_COVARIANCE_ROOT / COLOR_COVARIANCE_ROOT.norm(dim=0).max()

# Luminance and two color differences (YIQ), as in section 4.
RGB_TO_YIQ = torch.tensor([LUMINANCE_WEIGHTS, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])

# Added to the diagonal of color covariances, and the smallest eigenvalue of their powers.
COVARIANCE_RIDGE = 1e-5
MIN_DEVIATION = 1e-6


def apply_channel_matrix(image: Tensor, matrix: Tensor) -> Tensor:
    """Multiplies every pixel's color by a 3×3 matrix: N×3×H×W.

    As a matrix product it takes a tenth of einsum's time, forward and backward.
    """
    return (matrix.to(image) @ image.flatten(2)).unflatten(2, image.shape[2:])


# The former name of the function; tests of other packages still import it.
apply_color_matrix = apply_channel_matrix


def match_colors(image: Tensor, reference: Tensor) -> Tensor:
    """The image with the mean and covariance of the reference's colors: 1×3×H×W in [0, 1].

    The linear map between them is the symmetric one of section 3 (CORAL).
    """
    mean, covariance = _compute_color_statistics(image)
    reference_mean, reference_covariance = _compute_color_statistics(reference)
    whitening = _compute_matrix_power(covariance, -0.5)
    coloring = _compute_matrix_power(reference_covariance, 0.5)
    centered = image - mean.view(1, 3, 1, 1)
    matched = apply_channel_matrix(centered, coloring @ whitening)
    return (matched + reference_mean.view(1, 3, 1, 1)).clamp(0, 1)


def match_luminance(image: Tensor, reference: Tensor) -> Tensor:
    """The image in gray, with the mean and deviation of the reference's luminance (section 4).

    Returns 1×3×H×W in [0, 1], three equal channels.
    """
    luminance = apply_channel_matrix(image, RGB_TO_YIQ)[:, :1]
    target = apply_channel_matrix(reference, RGB_TO_YIQ)[:, :1]
    normalized = (luminance - luminance.mean()) / luminance.std().clamp_min(MIN_DEVIATION)
    matched = normalized * target.std() + target.mean()
    return matched.clamp(0, 1).expand(-1, 3, -1, -1).contiguous()


def copy_photo_colors(image: Tensor, photo: Tensor) -> Tensor:
    """The image's luminance with the photograph's color differences: N×3×H×W in [0, 1]."""
    luminance = apply_channel_matrix(image, RGB_TO_YIQ)[:, :1]
    color_differences = apply_channel_matrix(photo, RGB_TO_YIQ)[:, 1:]
    combined = torch.cat([luminance, color_differences], 1)
    return apply_channel_matrix(combined, torch.linalg.inv(RGB_TO_YIQ)).clamp(0, 1)


def _compute_color_statistics(image: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (3) and covariance (3×3) of the colors of an image 1×3×H×W."""
    pixels = image[0].flatten(1)
    return pixels.mean(1), torch.cov(pixels) + COVARIANCE_RIDGE * torch.eye(3)


def _compute_matrix_power(matrix: Tensor, exponent: float) -> Tensor:
    """A power of a symmetric positive definite matrix, by its eigenvalues."""
    eigenvalues, eigenvectors = torch.linalg.eigh(matrix)
    powers = eigenvalues.clamp_min(COVARIANCE_RIDGE).pow(exponent)
    return eigenvectors * powers @ eigenvectors.T
