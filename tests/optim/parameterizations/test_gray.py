"""Gray images: three equal channels whatever they are made from."""

import torch
from helpers import make_input
from torch import Tensor

from sightline.optim.parameterizations.fourier import FourierPhase, FourierSpectrum, Pixels
from sightline.optim.parameterizations.gray import GrayImage, make_gray_picture

HEIGHT = 10
WIDTH = 14


def assert_gray(image: Tensor) -> None:
    assert image.shape[1:] == (3, HEIGHT, WIDTH)
    assert torch.equal(image, image[:, :1].expand_as(image))


def test_every_parameterization_becomes_gray() -> None:
    colors = make_input(2, 3, HEIGHT, WIDTH).sigmoid()
    for levels in (
        Pixels(colors[:, :1]),
        Pixels(colors),
        FourierSpectrum(2, HEIGHT, WIDTH, channels=1, deviation=1.0),
        FourierPhase(2, HEIGHT, WIDTH, channels=1),
    ):
        image = GrayImage(levels)()
        assert_gray(image.detach())
        assert float(image.detach().std()) > 0.01


def test_a_level_gets_the_gradient_of_all_channels() -> None:
    pixels = Pixels(make_input(1, 1, HEIGHT, WIDTH).sigmoid())
    weights = make_input(1, 3, HEIGHT, WIDTH)
    (GrayImage(pixels)() * weights).sum().backward()
    torch.testing.assert_close(pixels.pixels.grad, weights.sum(1, keepdim=True))


def test_a_colour_picture_keeps_its_luminance() -> None:
    colors = make_input(2, 3, HEIGHT, WIDTH).sigmoid()
    red, green, blue = colors.unbind(1)
    gray = make_gray_picture(colors)
    assert_gray(gray)
    torch.testing.assert_close(gray[:, 1], 0.299 * red + 0.587 * green + 0.114 * blue)
    assert float(make_gray_picture(torch.ones(1, 3, HEIGHT, WIDTH)).max()) <= 1


def test_projection_reaches_the_levels() -> None:
    pixels = Pixels(make_input(1, 1, HEIGHT, WIDTH))
    GrayImage(pixels).project_()
    assert 0 <= float(pixels.pixels.detach().min()) <= float(pixels.pixels.detach().max()) <= 1
