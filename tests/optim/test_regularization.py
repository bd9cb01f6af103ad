"""The four regularizers, written out pixel by pixel."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from sightline.optim.parameterizations.fourier import Pixels
from sightline.optim.regularization import Regularizer

HEIGHT, WIDTH = 9, 13
# Of 117 pixels, the quantiles of 0.25 and 0.5 are pixels themselves.
SHARES = [0.0, 0.05, 0.1, 0.25, 0.5, 0.9]


def random_images(count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, HEIGHT, WIDTH, generator=generator)


def random_gradient() -> Tensor:
    return torch.randn(3, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(4))


def regularize(
    regularizer: Regularizer, image: Tensor, step: int = 0, gradient: Tensor | None = None
) -> Tensor:
    pixels = Pixels(image)
    pixels.pixels.grad = gradient
    regularizer.regularize_pixels_(pixels, step)
    assert pixels.pixels.requires_grad
    return pixels().detach()


def test_by_default_nothing_changes() -> None:
    image = random_images()
    result = regularize(Regularizer(), image, 3, torch.ones_like(image))
    assert torch.allclose(result, image, atol=1e-7)


def test_decay_shrinks_the_distance_to_gray() -> None:
    image = random_images()
    pixels = Pixels(image)
    for step in range(4):
        Regularizer(decay=0.1).regularize_pixels_(pixels, step)
    assert torch.allclose(pixels(), 0.5 + 0.9**4 * (image - 0.5), atol=1e-6)
    assert torch.equal(regularize(Regularizer(decay=1.0), image), torch.full_like(image, 0.5))


def test_blur_is_applied_once_every_interval() -> None:
    image = random_images()
    blurred = gaussian_filter(image.numpy(), 0.8, mode="mirror", axes=(2, 3), radius=3)
    for step in range(12):
        result = regularize(Regularizer(blur_sigma=0.8, blur_interval=4), image, step)
        if step in (3, 7, 11):
            assert np.allclose(result.numpy(), blurred, atol=1e-5)
        else:
            assert torch.allclose(result, image, atol=1e-6)


def find_least_important(importance: np.ndarray, share: float) -> set[tuple[int, int]]:
    """The pixels below the share's quantile, by sorting. The last one is never below it."""
    positions = sorted(np.ndindex(importance.shape), key=lambda position: importance[position])
    return set(positions[: math.ceil(share * (len(positions) - 1) - 1e-9)])


def assert_gray_where_least_important(
    result: Tensor, image: Tensor, importance: np.ndarray, share: float
) -> None:
    """One image 3×H×W after clipping against the same before."""
    gray_positions = find_least_important(importance, share)
    assert abs(len(gray_positions) - share * HEIGHT * WIDTH) <= 1
    for row, column in np.ndindex(HEIGHT, WIDTH):
        expected = image[:, row, column]
        if (row, column) in gray_positions:
            expected = torch.full((3,), 0.5)
        assert torch.allclose(result[:, row, column], expected, atol=1e-7)


@pytest.mark.parametrize("share", SHARES)
def test_pixels_of_small_norm_become_gray(share: float) -> None:
    images = random_images()
    results = regularize(Regularizer(small_norm_share=share), images)
    for image, result in zip(images, results, strict=True):
        offset = image.double().numpy() - 0.5
        importance = np.zeros((HEIGHT, WIDTH))
        for row, column in np.ndindex(HEIGHT, WIDTH):
            importance[row, column] = math.sqrt((offset[:, row, column] ** 2).sum())
        assert_gray_where_least_important(result, image, importance, share)


@pytest.mark.parametrize("share", SHARES)
def test_pixels_of_small_contribution_become_gray(share: float) -> None:
    images = random_images()
    gradients = random_gradient()
    results = regularize(Regularizer(small_contribution_share=share), images, 0, gradients)
    for image, gradient, result in zip(images, gradients, results, strict=True):
        offset = image.double().numpy() - 0.5
        slope = gradient.double().numpy()
        importance = np.zeros((HEIGHT, WIDTH))
        for row, column in np.ndindex(HEIGHT, WIDTH):
            products = [offset[k, row, column] * slope[k, row, column] for k in range(3)]
            importance[row, column] = abs(sum(products))
        assert_gray_where_least_important(result, image, importance, share)


def test_both_clippings_measure_the_image_before_either() -> None:
    """Measured after the first, the second would choose the pixels that are gray already."""
    image = random_images()
    gradient = random_gradient()
    both = Regularizer(small_norm_share=0.2, small_contribution_share=0.2)
    both_gray = (regularize(both, image, 0, gradient) == 0.5).all(1)
    norm_gray = (regularize(Regularizer(small_norm_share=0.2), image) == 0.5).all(1)
    contribution = Regularizer(small_contribution_share=0.2)
    contribution_gray = (regularize(contribution, image, 0, gradient) == 0.5).all(1)
    assert torch.equal(both_gray, norm_gray | contribution_gray)
    assert both_gray.sum() > norm_gray.sum() + 10
    assert both_gray.sum() > contribution_gray.sum() + 10


def test_without_a_gradient_no_contribution_is_clipped() -> None:
    image = random_images()
    result = regularize(Regularizer(small_contribution_share=0.5), image)
    assert torch.allclose(result, image, atol=1e-7)
