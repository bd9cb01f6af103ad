"""The linear map reaches the statistics that it promises, and luminance stays where it should."""

import torch
from helpers import smooth
from torch import Tensor

from sightline.images.color import (
    RGB_TO_YIQ,
    apply_channel_matrix,
    copy_photo_colors,
    match_colors,
    match_luminance,
)


def make_picture(low: float, high: float, seed: int) -> Tensor:
    """Smooth colors within a range, 1×3×30×40."""
    return low + (high - low) * smooth(1, 40, seed)[..., :30, :]


def compute_statistics(image: Tensor) -> tuple[Tensor, Tensor]:
    pixels = image[0].flatten(1)
    return pixels.mean(1), torch.cov(pixels)


def test_a_matrix_is_applied_to_each_pixel() -> None:
    image = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    matrix = torch.rand(3, 3, generator=torch.Generator().manual_seed(1))
    result = apply_channel_matrix(image, matrix.double())
    assert result.dtype == torch.float32
    for n in range(2):
        for y in range(4):
            for x in range(5):
                torch.testing.assert_close(result[n, :, y, x], matrix @ image[n, :, y, x])


def test_colors_get_the_mean_and_covariance_of_the_reference() -> None:
    noise = torch.randn(2, 1, 3, 30, 40, generator=torch.Generator().manual_seed(0))
    image_mixing = torch.tensor([[0.06, 0.0, 0.0], [0.05, 0.02, 0.0], [0.0, 0.01, 0.03]])
    reference_mixing = torch.tensor([[0.02, 0.0, 0.04], [0.0, 0.06, -0.03], [0.0, 0.0, 0.05]])
    image = 0.4 + apply_channel_matrix(noise[0], image_mixing)
    reference = 0.5 + apply_channel_matrix(noise[1], reference_mixing)
    matched = match_colors(image, reference)
    assert 0 < matched.min() < matched.max() < 1
    mean, covariance = compute_statistics(matched)
    reference_mean, reference_covariance = compute_statistics(reference)
    torch.testing.assert_close(mean, reference_mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(covariance, reference_covariance, atol=2e-4, rtol=0)
    torch.testing.assert_close(match_colors(image, image), image, atol=1e-4, rtol=0)


def test_luminance_gets_the_mean_and_deviation_of_the_reference() -> None:
    image = make_picture(0, 1, seed=0)
    reference = make_picture(0.4, 0.6, seed=1)
    gray = match_luminance(image, reference)
    luminance = apply_channel_matrix(reference, RGB_TO_YIQ)[:, :1]
    assert torch.equal(gray[:, 0], gray[:, 1])
    assert torch.equal(gray[:, 0], gray[:, 2])
    torch.testing.assert_close(gray[:, 0].mean(), luminance.mean(), atol=1e-3, rtol=0)
    torch.testing.assert_close(gray[:, 0].std(), luminance.std(), atol=1e-3, rtol=0)


def test_colors_of_a_photo_keep_the_luminance_of_the_image() -> None:
    image = make_picture(0.4, 0.6, seed=2)
    photo = make_picture(0.4, 0.6, seed=3)
    combined = apply_channel_matrix(copy_photo_colors(image, photo), RGB_TO_YIQ)
    image_yiq = apply_channel_matrix(image, RGB_TO_YIQ)
    photo_yiq = apply_channel_matrix(photo, RGB_TO_YIQ)
    torch.testing.assert_close(combined[:, :1], image_yiq[:, :1], atol=1e-4, rtol=0)
    torch.testing.assert_close(combined[:, 1:], photo_yiq[:, 1:], atol=1e-4, rtol=0)
    torch.testing.assert_close(copy_photo_colors(photo, photo), photo, atol=1e-4, rtol=0)
