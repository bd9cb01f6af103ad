"""Colours: the map reaches the statistics it promises, and luminance is kept where it should be."""

import torch
from helpers import smooth
from torch import Tensor

from sightline.images.color import (
    RGB_TO_YIQ,
    apply_color_matrix,
    copy_photo_colors,
    match_colors,
    match_luminance,
)


def statistics(image: Tensor) -> tuple[Tensor, Tensor]:
    pixels = image[0].flatten(1)
    return pixels.mean(1), torch.cov(pixels)


def test_colors_get_the_other_s_mean_and_covariance() -> None:
    image, model = 0.4 + 0.2 * smooth(1, 40, 0), 0.3 + 0.3 * smooth(1, 40, 1)
    found, wanted = statistics(match_colors(image, model)), statistics(model)
    torch.testing.assert_close(found[0], wanted[0], atol=5e-3, rtol=0)
    torch.testing.assert_close(found[1], wanted[1], atol=2e-3, rtol=0.05)
    torch.testing.assert_close(match_colors(image, image), image, atol=1e-4, rtol=0)


def test_luminance_gets_the_other_s_mean_and_spread() -> None:
    image, model = smooth(1, 40, 0), 0.4 + 0.2 * smooth(1, 40, 1)
    gray = match_luminance(image, model)
    light = apply_color_matrix(model, RGB_TO_YIQ)[:, :1]
    assert torch.equal(gray[:, 0], gray[:, 1])
    torch.testing.assert_close(gray[:, 0].mean(), light.mean(), atol=1e-3, rtol=0)
    torch.testing.assert_close(gray[:, 0].std(), light.std(), atol=1e-3, rtol=0)


def test_a_photo_s_colors_keep_the_picture_s_luminance() -> None:
    image, photo = 0.4 + 0.2 * smooth(1, 30, 2), 0.4 + 0.2 * smooth(1, 30, 3)
    joined = apply_color_matrix(copy_photo_colors(image, photo), RGB_TO_YIQ)
    torch.testing.assert_close(
        joined[:, :1], apply_color_matrix(image, RGB_TO_YIQ)[:, :1], atol=1e-4, rtol=0
    )
    torch.testing.assert_close(
        joined[:, 1:], apply_color_matrix(photo, RGB_TO_YIQ)[:, 1:], atol=1e-4, rtol=0
    )
    torch.testing.assert_close(copy_photo_colors(photo, photo), photo, atol=1e-4, rtol=0)
