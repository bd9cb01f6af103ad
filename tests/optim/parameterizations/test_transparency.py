"""Images with transparency: how they are composed, penalized, and shown over backgrounds."""

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.images.spectrum import compute_frequency_grid
from sightline.optim.parameterizations.fourier import FourierSpectrum, Pixels
from sightline.optim.parameterizations.transparency import (
    BACKGROUND_DEVIATION,
    OPACITY_FREQUENCY_EXPONENT,
    OPACITY_SCALE,
    PENALTY_WARMUP_STEPS,
    TransparentImage,
)

HEIGHT, WIDTH = 10, 14


def random_colors(count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(count, 3, HEIGHT, WIDTH, generator=generator)


def make_transparent(count: int = 2, seed: int = 0, penalty: float = 0.1) -> TransparentImage:
    image = TransparentImage(
        Pixels(random_colors(count)), count, HEIGHT, WIDTH, seed=seed, opacity_penalty=penalty
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        image.opacity_spectrum.copy_(
            0.3 * torch.randn(image.opacity_spectrum.shape, generator=generator)
        )
    return image


def test_it_starts_half_transparent() -> None:
    image = TransparentImage(Pixels(random_colors()), 2, HEIGHT, WIDTH, seed=0)
    torch.testing.assert_close(image().detach(), 0.5 * random_colors() + 0.25)
    torch.testing.assert_close(image.opacity.detach(), torch.full((2, 1, HEIGHT, WIDTH), 0.5))


def test_the_image_is_the_colours_over_gray() -> None:
    image = make_transparent()
    over_gray = image()
    assert image.opacity.shape == (2, 1, HEIGHT, WIDTH)
    assert not torch.allclose(image.opacity[0], image.opacity[1])
    expected = image.opacity * random_colors() + (1 - image.opacity) * 0.5
    torch.testing.assert_close(over_gray, expected)


def test_the_opacity_is_a_sum_of_weighted_waves() -> None:
    """Weights of 1/f^2.5 that are those of 1/f at four waves per image, written out."""
    image = make_transparent(1)
    image()
    spectrum = image.opacity_spectrum.detach()[:, 0, 0].double().numpy()
    frequency = compute_frequency_grid(HEIGHT, WIDTH).double().numpy()
    waves = np.maximum(frequency * max(HEIGHT, WIDTH), 1)
    exponent = OPACITY_FREQUENCY_EXPONENT
    weights = OPACITY_SCALE * max(HEIGHT, WIDTH) * 4 ** (exponent - 1) / waves**exponent
    coefficients = (spectrum[0] + 1j * spectrum[1]) * weights
    total = np.fft.irfft2(coefficients, s=(HEIGHT, WIDTH), norm="ortho") / 4
    expected = 1 / (1 + np.exp(-total))
    assert np.allclose(image.opacity[0, 0].detach().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("call", [1, 24, PENALTY_WARMUP_STEPS, 2 * PENALTY_WARMUP_STEPS])
def test_the_penalty_grows_to_its_full_value(call: int) -> None:
    """It is a multiple of the mean magnitude of each image's gradient, added to every pixel."""
    gradient = torch.randn(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(2))
    gradient[1] *= 10

    def compute_opacity_gradient(penalty: float) -> Tensor:
        image = make_transparent(penalty=penalty)
        for _ in range(call - 1):
            image()
        over_gray = image()
        image.opacity.retain_grad()
        over_gray.backward(gradient)
        assert image.opacity.grad is not None
        return image.opacity.grad

    plain = compute_opacity_gradient(0.0)
    penalized = compute_opacity_gradient(0.1)
    factor = 0.1 * min(1, (call - 1) / PENALTY_WARMUP_STEPS)
    expected = factor * plain.abs().mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(penalized - plain, expected.expand_as(plain), atol=1e-6, rtol=1e-4)


def test_calls_without_gradient_do_not_count_as_steps() -> None:
    image = make_transparent()
    with torch.no_grad():
        image()
    assert image.call_count == 0


def test_a_background_shows_through_what_is_transparent() -> None:
    image = make_transparent()
    over_gray = image()
    over_background = image.replace_background(over_gray)
    background = make_transparent().draw_background()
    assert background.shape == (1, 3, HEIGHT, WIDTH)
    expected = image.opacity * random_colors() + (1 - image.opacity) * background
    torch.testing.assert_close(over_background, expected)


def test_backgrounds_differ_by_step_and_repeat_by_seed() -> None:
    image = make_transparent(seed=3)
    first, second = image.draw_background(), image.draw_background()
    assert not torch.allclose(first, second)
    assert torch.equal(first, make_transparent(seed=3).draw_background())
    assert not torch.allclose(first, make_transparent(seed=4).draw_background())


def test_a_background_is_a_spectrum_at_its_start() -> None:
    background = make_transparent(seed=3).draw_background()
    spectrum = FourierSpectrum(1, HEIGHT, WIDTH, seed=3, deviation=BACKGROUND_DEVIATION)
    assert torch.equal(background, spectrum())


def test_the_projection_is_that_of_the_colours() -> None:
    image = make_transparent()
    assert image.parameters[0] is image.colors.parameters[0]
    assert image.parameters[1] is image.opacity_spectrum
    opacity_spectrum = image.opacity_spectrum.detach().clone()
    with torch.no_grad():
        image.parameters[0].add_(2.0)
    image.project_()
    assert torch.equal(image.parameters[0], torch.ones(2, 3, HEIGHT, WIDTH))
    assert torch.equal(image.opacity_spectrum, opacity_spectrum)


@pytest.mark.parametrize("channels", [1, 5])
def test_a_background_has_the_images_channels(channels: int) -> None:
    levels = torch.rand(2, channels, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    image = TransparentImage(Pixels(levels), 2, HEIGHT, WIDTH, seed=1, channels=channels)
    shown = image.replace_background(image())
    assert shown.shape == levels.shape
    background = image.opacity * levels + (1 - image.opacity) * image.draw_background()
    assert background.shape == levels.shape
